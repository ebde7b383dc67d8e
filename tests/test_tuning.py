"""Tuning: equal budgets, spaces that hold the defaults, studies that go on, and settings that sweeps can refer to."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from stub_book import ROOT, make_book

from gl_core.training import baselines, records
from gl_core.training.config import METHODS, Config
from glbook import studies, sweeps, tuning
from glbook.cli import main
from glbook.sweeps import keys


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book whose runs are not made: their record says that rates near twice the default are best."""
    root = make_book(tmp_path / "project")
    shutil.copyfile(ROOT / "book" / "training.ipynb", root / "book" / "training.ipynb")
    monkeypatch.chdir(root)
    monkeypatch.setattr(keys, "dataset_version", lambda dataset, root: "v")
    made = []

    def run_plan(plan, **_):
        known = {record["key"] for _, record in records.read_records()}
        for run in plan.runs:
            if run.key in known:
                continue
            made.append(run)
            if run.given.get("temperature", 0) > 90:
                continue  # this one fails
            score = 1 / (1 + abs(run.given["learning_rate"] / 4e-3 - 1))
            record = {"run_id": f"r{len(made)}", "created": "2026-01-01T00:00:00+00:00", "purpose": "tuning"}
            record |= {"key": run.key, "metrics": {"R@1": score, "MAP@R": score}}
            records.write_record(record, name=f"{run.key}.json")

    monkeypatch.setattr(sweeps, "run_plan", run_plan, raising=False)
    return made


GIVEN = {"dataset": "glyphs", "image_size": 28, "epochs": 9}


def test_every_method_has_a_space_that_holds_its_defaults():
    assert set(tuning.SPACES) == set(METHODS)
    for method, space in tuning.SPACES.items():
        for dataset in ("omniglot", "cars196_half"):
            config = Config.resolve(method=method, dataset=dataset)
            point = tuning._defaults(config, space)
            assert all(space[name].low <= value <= space[name].high for name, value in point.items()), method
            settings = tuning._settings(config, space, point)
            rate = settings.get("classifier_learning_rate", config.classifier_learning_rate)
            same = config.as_dict() | {"classifier_learning_rate": rate}
            assert Config.from_parameters(config.as_dict() | settings) == Config.from_parameters(same)
        tuned = {name.removeprefix("loss.") for name in space if name.startswith("loss.")}
        assert tuned <= set(baselines.BASELINES[method].options if method in baselines.BASELINES else ())


def test_a_study_is_twelve_trials_on_held_out_classes_at_half_the_epochs(book):
    study = tuning.tune("supervised_contrastive", GIVEN)
    assert len(study.trials) == 12 == len(book)
    for run in book:
        assert (run.settings["evaluate_on"], run.settings["epochs"], run.given["keep"]) == ("held_out", 4, "tuning")
    assert book[0].given["learning_rate"] == 2e-3 and book[0].given["loss_options"] == {"temperature": 0.1}
    scores = [trial["score"] for trial in study.trials]
    assert study.best == study.trials[scores.index(max(scores))]["parameters"]
    assert max(scores) > scores[0]
    (path,) = studies.folder().glob("*.json")
    saved = json.loads(path.read_text())
    assert saved["space"]["loss.temperature"] == {"low": 0.02, "high": 0.5, "log": True}
    assert {trial["run_id"] for trial in saved["trials"]} == {record["run_id"] for _, record in records.read_records()}
    assert "study" in saved and "run_id" not in saved, "no record of a run"


def test_a_study_that_was_interrupted_goes_on_and_ends_the_same(book, monkeypatch):
    whole = tuning.tune("group_loss", GIVEN)
    count = len(book)
    for number, (path, _) in enumerate(list(records.read_records())):
        if number % 2:
            path.unlink()
    again = tuning.tune("group_loss", GIVEN)
    assert count < len(book) < 2 * count
    assert [trial["parameters"] for trial in again.trials] == [trial["parameters"] for trial in whole.trials]
    assert again.best == whole.best
    other = tuning.tune("group_loss", GIVEN, seed=1)
    assert other.trials[0]["parameters"] == whole.trials[0]["parameters"]
    assert other.trials[1]["parameters"] != whole.trials[1]["parameters"]


def test_sweeps_refer_to_the_best_settings(book):
    study = tuning.tune("proxy_anchor", GIVEN)
    path = Path("sweep.yaml")

    def planned(**grid):
        shared = {"chapter": "training", "parameters": {"dataset": "glyphs", "image_size": 28}, "tuned": True}
        path.write_text(json.dumps(shared | {"grid": grid}))
        return sweeps.read_plan(path).runs

    (run,) = planned(method=["proxy_anchor"], learning_rate=[0.5])
    assert run.given["loss_options"] == study.best["loss_options"]
    assert run.given["learning_rate"] == 0.5, "what is given wins"
    with pytest.raises(ValueError, match="no tuning of triplet on glyphs .conv4, 28 px. is .*; .*glbook tune triplet"):
        planned(method=["proxy_anchor", "triplet"])


def test_the_newest_study_of_each_method_counts(book):
    tuning.tune("proxy_anchor", GIVEN)
    study = tuning.tune("group_loss", GIVEN)
    assert list(tuning.studies("glyphs", "conv4", 28)) == ["group_loss", "proxy_anchor"]
    newer = studies.folder() / "newer.json"
    newer.write_text(json.dumps(asdict(study) | {"created": "2999-01-01T00:00:00+00:00", "best": {"temperature": 3.0}}))
    assert tuning.studies("glyphs", "conv4", 28)["group_loss"].best == {"temperature": 3.0}
    assert tuning.best_settings(GIVEN | {"method": "group_loss"}) == {"temperature": 3.0}
    assert tuning.studies("glyphs", "conv4", 56) == tuning.studies("omniglot", "conv4", 28) == {}


def test_the_studies_of_the_book_are_of_recorded_trials_and_of_one_budget():
    found = tuning.studies("omniglot", "conv4", 28)
    assert set(found) == set(METHODS)
    made = {record["run_id"]: record for _, record in records.read_records(ROOT / "data" / "results")}
    for method, study in found.items():
        assert len(study.trials) == tuning.TRIALS
        for trial in study.trials:
            record = made[trial["run_id"]]
            config = record["config"]
            assert (record["purpose"], record["method"], config["evaluate_on"]) == ("tuning", method, "held_out")
            assert config["epochs"] == study.epochs == Config.resolve(dataset="omniglot").epochs // 2
            assert {name: config[name] for name in trial["parameters"]} == trial["parameters"]
            assert trial["score"] == (record["metrics"]["R@1"] + record["metrics"]["MAP@R"]) / 2
        assert study.best == max(study.trials, key=lambda trial: trial["score"])["parameters"]
        # All other settings are the same for all methods, seed and batches included.
        own = {"method", "classifier_learning_rate", "loss_options", "temperature", "num_anchors", *study.space}
        shared = {name: value for name, value in config.items() if name not in own | {"data_root", "device"}}
        first = made[found["cross_entropy"].trials[0]["run_id"]]["config"]
        assert shared == {name: first[name] for name in shared}


def test_bad_studies_are_refused(book, monkeypatch, capsys):
    with pytest.raises(ValueError, match="method='lifted': must be one of group_loss, "):
        tuning.tune("lifted", GIVEN)
    for name, value in {"method": "triplet", "evaluate_on": "test", "choose_epochs": True, "keep": "final"}.items():
        with pytest.raises(ValueError, match=f"{name}=.*: a study sets it itself"):
            tuning.tune("group_loss", GIVEN | {name: value})
    assert main(["tune", "group_loss", "-p", "method", "triplet"]) == 2
    assert "method='triplet': a study sets it itself" in capsys.readouterr().err
    assert book == []
    monkeypatch.setattr(tuning, "_score", lambda record: None)
    with pytest.raises(ValueError, match="method='triplet': none of its 12 trials went well"):
        tuning.tune("triplet", GIVEN)
