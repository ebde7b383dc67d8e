"""The ablation of the strategies at test time: its cases, its record, and what it may read."""

import dataclasses
import sys

import pytest
from stub_book import make_images

from gl_core import inference, training
from gl_core.inference.strategies import GROUPS, Strategies
from gl_core.training import records
from gl_core.training.config import Config
from glbook import ablation, runs

ALL = Strategies(leaky_slope=0.5, mixed_pooling=0.5, mirror=True, beta=0.01, expansion=2, lambda_value=0.5, k1=6, k2=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("pictures"), classes=12, images=8)


@pytest.fixture
def config(pictures, tmp_path, monkeypatch):
    """A small run, in an empty book to write records into."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    return Config.resolve(
        dataset="folder", data_root=str(pictures), backbone="conv4", image_size=28, classes_per_batch=3,
        samples_per_class=4, epochs=1, held_out=0.4,
    )  # fmt: skip


def test_the_cases_of_all_strategies():
    found = {(kind, name): each for kind, name, each in ablation.cases(ALL)}
    assert len(found) == 2 + 3 * len(GROUPS)
    for place, name in enumerate(GROUPS):
        expected = [name], list(GROUPS)[: place + 1], [other for other in GROUPS if other != name]
        for kind, names in zip(("alone", "cumulative", "left out"), expected, strict=True):
            assert list(found[kind, name].parts()) == names
    assert found["all", "all"] == found["cumulative", "re-ranking"] == ALL and found["none", "none"] == Strategies()
    with pytest.raises(ValueError, match="magic"):
        ALL.only(["magic"])


@pytest.mark.slow
def test_a_run_is_recorded_with_its_search(config, tmp_path):
    done = ablation.run(config, keep="tuning", progress=False)
    table = runs.load_runs(tmp_path / "data" / "results")
    assert len(table) == 1, "the trainings on the way keep nothing"
    row = table.iloc[0]
    assert (row["chapter"], row["purpose"], row["seed"]) == ("inference", "tuning", config.seed)
    assert row["config"]["epochs"] == 1 and row["R@1"] == pytest.approx(done.record["metrics"]["R@1"], rel=1e-6)
    search = done.record["search"]
    assert Strategies.from_settings(search["strategies"]) == done.strategies and search["tried"][0]["step"] == "start"
    assert max(each["score"] for each in search["tried"]) >= search["tried"][0]["score"]

    rows = ablation.as_table([row["path"], {"dataset": "glyphs", "seed": 0}])  # the second holds no ablation
    candidates = Strategies.from_settings(search["candidates"])
    assert list(candidates.parts()) == list(GROUPS), "each is measured alone, whether it was kept or not"
    assert len(rows) == len(ablation.cases(done.strategies, candidates)) and (rows["seconds"] > 0).all()
    plain, full = (rows[rows["kind"] == kind].iloc[0] for kind in ("none", "all"))
    assert plain["R@1"] == pytest.approx(row["R@1"], rel=1e-6)
    images = ablation._evaluated(config, done.model, progress=False)
    expected = inference.evaluate(done.model, images, done.strategies)
    assert full["MAP@R"] == pytest.approx(expected["MAP@R"], rel=1e-5)


def test_the_network_that_chooses_has_not_seen_the_classes_that_judge(config, monkeypatch):
    trained, judged = [], []

    def fit(config, model, images, **_):
        trained.append(images.dataset)
        return []

    def choose(model, images):
        judged.append(images.dataset)
        return ALL, []

    monkeypatch.setattr(sys.modules[training.run.__module__], "fit", fit)
    monkeypatch.setattr(ablation, "choose_hyperparameters", choose)
    done = ablation.run(config, progress=False)
    (held_out,) = judged

    def classes(part):
        return {part.class_names[label] for label in part.labels}

    first, second = map(classes, trained)
    assert not classes(held_out) & first and classes(held_out) | first == second
    assert not classes(ablation._evaluated(config, done.model, progress=False).dataset) & second
    assert [row["settings"] for row in done.record["ablation"]][-1] == ALL.as_dict()


def test_given_strategies_are_not_searched_for(config, monkeypatch):
    monkeypatch.setattr(ablation, "choose_hyperparameters", None)
    done = ablation.run(config, strategies=Strategies(mirror=True), progress=False)
    assert done.record["search"]["tried"] == [] and len(done.record["ablation"]) == 5
    assert done.record_path.parent == records.results_folder()


def test_held_out_classes_cannot_both_choose_and_judge(config):
    with pytest.raises(ValueError, match="evaluate_on='held_out': must be 'test'"):
        ablation.run(dataclasses.replace(config, evaluate_on="held_out"))
