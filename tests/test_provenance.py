"""Where a result comes from, and the command that makes it again."""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import keep_some, record
from stub_book import GLBOOK, ROOT, make_book, make_images

from gl_core.training.config import Config
from glbook import cli, notebooks, provenance, runs, statistics


def test_the_banner_of_one_live_run():
    text = provenance.banner(record(3)).data
    assert text.startswith("> **Live result**")
    for fact in ("`run-3`", "omniglot", "group_loss", "seed 3", "50 s on a CPU", "commit `012345678`", "2026-03-04"):
        assert fact in text
    for changed, fact in [
        ({"device": "AMD EPYC, 1 threads"}, "on AMD EPYC, 1 thread ·"),
        ({"device": "AMD EPYC, 16 threads"}, "on AMD EPYC, 16 threads ·"),
        ({"commit": None}, "commit `unknown`"),
        ({"commit": "0123456789abcdef-dirty"}, "`012345678 with local changes`"),
    ]:
        assert fact in provenance.banner(record(**changed)).data


def test_the_banner_of_several_runs(tmp_path):
    keep_some(tmp_path)
    text = provenance.banner(runs.recorded(dataset="omniglot", root=tmp_path)).data
    facts = ["**Recorded result**", "4 runs", "group_loss, cross_entropy", "seeds 0, 1, 2, 5", "3 min on a CPU"]
    for fact in [*facts, "2026-03-01 to 2026-03-06", "run-0", "run-1", "run-2", "ce"]:
        assert fact in text
    assert "No recorded result" in provenance.banner(runs.recorded(dataset="folder", root=tmp_path)).data
    for live in ([record(0), record(1)], runs.as_table([record(0), record(1)])):
        text = provenance.banner(live).data
        assert text.startswith("> **Live result**") and "2 runs" in text


def test_the_banner_of_what_a_page_computes_without_a_record():
    config = Config.resolve(dataset="omniglot", method="cross_entropy", seed=4, device="cpu")
    text = provenance.banner(config).data
    assert text.startswith("> **Live result**") and "omniglot; cross_entropy · seed 4" in text
    assert "run `" not in text and "runs" not in text and "0 s" not in text


def configuration_of(line: str) -> Config:
    """What `glbook` would run, given that line."""
    words = shlex.split(line)
    options = cli._parser().parse_args(words[words.index("glbook") + 1 :])
    declared = notebooks.parameters(options.chapter)
    given = {name: notebooks.parse_value(text, declared[name]) for name, text in options.parameters}
    given = notebooks.check_parameters(options.chapter, given)
    return Config.from_parameters({name: each.default for name, each in declared.items()} | given)


SETTINGS = st.fixed_dictionaries(
    {
        "dataset": st.sampled_from(["glyphs", "omniglot", "cars196_half"]),
        "image_size": st.sampled_from([64, 96]),  # large enough for every backbone
        "seed": st.integers(0, 99),
    },
    optional={
        "method": st.sampled_from(["group_loss", "cross_entropy"]),
        "backbone": st.sampled_from(["conv4", "efficientnet_lite0"]),
        "pretrained": st.booleans(),
        "profile": st.sampled_from(["quick", "full"]),
        "epochs": st.integers(0, 40),
        "temperature": st.floats(0.01, 1e4),
        "learning_rate": st.floats(1e-7, 1.0),
        "weight_decay": st.sampled_from([0.0, 1e-12, 3e-4]),
        "choose_epochs": st.booleans(),
        "evaluate_on": st.sampled_from(["test", "held_out"]),
        "device": st.sampled_from(["auto", "cpu"]),
    },
)


@settings(max_examples=40)
@given(SETTINGS)
def test_the_command_of_a_configuration_runs_that_configuration(chosen):
    if chosen.get("method") == "cross_entropy":
        chosen.pop("temperature", None)  # which does nothing there, and is refused
    config = Config.resolve(**chosen)
    line = provenance.command(config)
    assert configuration_of(line) == config
    assert line.startswith("glbook run training -p dataset ") and line.endswith(" --keep final")
    assert provenance.command(config, keep=None) == line.removesuffix(" --keep final")


@pytest.mark.slow
def test_the_command_of_every_recorded_run_gives_its_configuration():
    for _, row in runs.load_runs(ROOT / "data" / "results").iterrows():
        made = configuration_of(provenance.command(row)).as_dict()
        assert row["config"].items() <= {name: value for name, value in made.items() if name in row["config"]}.items()


def test_the_options_of_a_loss_pass_through_the_shell():
    config = Config.resolve(method="proxy_anchor", loss_options={"margin": 0.2}, learning_rate=1e-05)
    assert configuration_of(provenance.command(config)) == config
    assert "loss_options" not in provenance.command(Config.resolve(method="proxy_anchor"))


def test_a_row_of_records_gives_threads_and_what_is_newer_than_the_record():
    config = Config.resolve(dataset="omniglot", num_iterations=3)
    older = {name: value for name, value in config.as_dict().items() if name != "num_anchors"}
    row = record(config=older, device="AMD EPYC, 1 threads")
    assert provenance.command(row).startswith("OMP_NUM_THREADS=1 glbook run training ")
    assert configuration_of(provenance.command(row)) == config
    assert provenance.command(row | {"device": "NVIDIA H100"}).startswith("glbook run training ")


SWEEPS = sorted((ROOT / "book" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_book_plans_distinct_runs_that_can_be_commanded(path):
    made = runs.planned(path.relative_to(ROOT).as_posix())
    assert len(made) == len({json.dumps(config.as_dict()) for config in made}) >= 6
    for config in made[:: max(1, len(made) // 5)]:
        assert configuration_of(provenance.command(config)) == config
    assert len({config.seed for config in made}) >= 3, "without seeds there is no spread"


def test_what_no_command_gives_is_named():
    without = dataclasses.replace(Config.resolve(dataset="cars196_half"), classifier_learning_rate=None)
    with pytest.raises(ValueError, match="classifier_learning_rate=None: no command gives it"):
        provenance.command(without)


def test_commands_are_listed_with_that_of_the_whole_sweep():
    configs = [Config.resolve(dataset="omniglot", seed=seed).as_dict() for seed in (0, 1)]
    table = runs.as_table([record(seed, config=config) for seed, config in enumerate(configs)])
    text = provenance.commands(table, "book/sweeps/one.yaml").data
    assert "`glbook sweep book/sweeps/one.yaml`" in text and "all 2 runs" in text
    assert all(provenance.command(row) in text for _, row in table.iterrows())
    assert provenance.commands(table.iloc[:1]).data == f"Made by `{provenance.command(table.iloc[0])}`."
    assert "records these runs" in provenance.commands(table.iloc[:0], "book/sweeps/one.yaml").data


@pytest.mark.slow
def test_the_command_of_a_record_gives_the_same_metrics(tmp_path, monkeypatch):
    """A run from Python, and by the shell with the command that its record leads to: to the last digit, on one CPU."""
    from gl_core import training

    project, images = make_book(tmp_path / "book"), make_images(tmp_path / "images")
    monkeypatch.chdir(project)
    small = {"backbone": "conv4", "image_size": 28, "epochs": 1, "classes_per_batch": 2, "samples_per_class": 3}
    config = Config.resolve(dataset="folder", data_root=str(images), temperature=5.0, device="cpu", **small)
    training.run(config, keep="final", progress=False)
    (row,) = runs.load_runs(project / "data" / "results").to_dict("records")
    line = provenance.command(row)
    assert "-p temperature 5.0" in line and line.startswith("OMP_NUM_THREADS=")
    line = line.replace("glbook", GLBOOK, 1) + f" -p data_root {shlex.quote(str(images))}"
    subprocess.run(line, shell=True, check=True, capture_output=True, timeout=300)
    first, again = runs.load_runs(project / "data" / "results").to_dict("records")
    assert again["config"] == first["config"] and again["run_id"] != first["run_id"]
    metrics = [json.loads(Path(each["path"]).read_text())["metrics"] for each in (first, again)]
    assert metrics[0] == metrics[1]


def test_the_results_of_the_readme_are_those_of_the_records():
    readme, verdicts = (ROOT / "README.md").read_text(), []
    for name, sweep in [("Omniglot", "losses_omniglot"), ("Cars196-half", "losses_cars196_half")]:
        table = runs.matching(runs.planned(f"book/sweeps/{sweep}.yaml"))
        verdicts.append(statistics.compare(table, "group_loss")["verdict"].drop("group_loss"))
        shown = runs.spread_table(table, metrics=["untrained R@1", "R@1"])
        expected = [shown.loc["group_loss", "untrained R@1 (%)"]]
        expected += [shown.loc[method, "R@1 (%)"] for method in ("group_loss", "cross_entropy", "proxy_anchor")]
        (row,) = re.findall(rf"^\| {name}.*$", readme, re.MULTILINE)
        assert [cell.strip() for cell in row.split("|")[3:-1]] == expected
    # What the README says below the table.
    omniglot, cars = verdicts
    assert set(omniglot.index[omniglot == "ahead"]) == {"proxy_anchor", "proxy_nca"}
    assert (omniglot == "undecided").sum() == 8 and set(cars) == {"behind"}
