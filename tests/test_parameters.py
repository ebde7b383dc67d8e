"""The parameters of a chapter: how they are declared, read from the command line, and refused."""

import re
from typing import Any, Literal

import pytest
from stub_book import PARAMETERS, make_book

from glbook.parameters import Parameter, check_parameters, parameters, parse_value, read_yaml


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def test_parameters_are_read_with_type_and_default(book):
    found = parameters("training")
    assert list(found) == re.findall(r"^(\w+):", PARAMETERS, re.MULTILINE)
    assert found["profile"] == Parameter("profile", str, "quick")
    assert found["epochs"].type is int and not found["epochs"].optional
    assert found["data_root"].optional


@pytest.mark.parametrize(
    "text, parameter, value",
    [
        ("30", Parameter("epochs", int, 1), 30),
        ("1e-3", Parameter("learning_rate", float, None), 1e-3),
        ("2", Parameter("learning_rate", float, None), 2),
        ("none", Parameter("learning_rate", float, None), None),
        ("null", Parameter("data_root", str, None), None),
        ("2011", Parameter("data_root", str, None), "2011"),
        ("true", Parameter("train", bool, True), True),
        ("[a, 2]", Parameter("values", list, None), ["a", 2]),
        ("{margin: 0.2}", Parameter("loss_options", dict, None), {"margin": 0.2}),
        ("[1, 2", Parameter("values", Any, ()), "[1, 2"),
        # "none" is a kind of augmentation, and None stands for what suits.
        ("none", Parameter("augmentation", str, None), "none"),
        ("null", Parameter("augmentation", str, None), None),
        # YAML 1.1 reads eight, ninety, false, a hundred and sixteen; here they are strings, which numbers refuse.
        *((text, Parameter("values", Any, ()), text) for text in ("010", "1:30", "no", "1_00", "0x10")),
    ],
)
def test_values_of_the_command_line(text, parameter, value):
    parsed = parse_value(text, parameter)
    assert parsed == value and type(parsed) is type(value)


def test_a_key_given_twice_is_refused():
    with pytest.raises(ValueError, match="'b' is given twice"):
        read_yaml("{a: {b: 1, b: 2}, c: {b: 2}}")


def test_good_parameters_pass_and_whole_numbers_may_stand_for_floats(book):
    checked = check_parameters("training", {"epochs": 3, "temperature": 7, "data_root": None})
    assert checked == {"epochs": 3, "temperature": 7.0, "data_root": None}
    assert type(checked["temperature"]) is float


@pytest.mark.parametrize(
    "declared, default, value, message",
    [
        (int, 1, "010", "x='010': must be a whole number"),
        (int, 1, None, "x=None: must be a whole number"),
        (float, None, "fast", "x='fast': must be a number or None"),
        (list[int], None, [1, "a"], r"x=\[1, 'a'\]: must be a list, each item a whole number, or None"),
        (Literal["a", "b"], "a", "c", "x='c': must be one of a, b"),
    ],
)
def test_values_of_another_type_are_refused(declared, default, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Parameter("x", declared, default).check(value)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"epoch": 3}, r"epoch: chapter 'training' has no such parameter; it has profile, .*; did you mean 'epochs'\?"),
        ({"epochs": "many"}, "epochs='many': must be a whole number"),
        ({"epochs": -1}, "epochs=-1: must be a whole number, 0 or more"),
        ({"dataset": "imagenet"}, "dataset='imagenet': must be one of .*glyphs"),
        ({"profile": "slow"}, "profile='slow': must be one of quick, full"),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(book, given, message):
    with pytest.raises(ValueError, match=message):
        check_parameters("training", given)
