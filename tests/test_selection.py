"""Choosing the constants of the strategies: what is tried, what is kept, and by which score."""

import dataclasses

import pytest
import torch

from gl_core import datasets, inference, models
from gl_core.datasets.store import ImageStore
from gl_core.inference import selection
from gl_core.inference.selection import Measurement, choose_hyperparameters, score
from gl_core.inference.strategies import GROUPS, Strategies


@pytest.fixture(scope="module")
def held_out():
    part = datasets.load("glyphs", split="train").hold_out(0.2, seed=0)[1]
    return ImageStore(part.subset(range(120)), 28)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build("conv4")


@pytest.fixture
def judged_by(monkeypatch):
    """Let the score be a function of the strategies, without images."""

    def replace(function):
        def call(self, strategies):
            value = function(strategies)
            return {"R@1": value, "MAP@R": value}, 0.0

        monkeypatch.setattr(Measurement, "__call__", call)

    return replace


def test_the_fine_grid_finds_what_lies_between_the_coarse_values(judged_by):
    judged_by(lambda s: 1 - (s.mixed_pooling - 0.375) ** 2 - s.mirror - s.beta)
    chosen, tried = choose_hyperparameters(None, None)
    assert chosen == Strategies(mixed_pooling=0.375)
    pooling = [row["settings"]["mixed_pooling"] for row in tried if row["strategy"] == "mixed pooling"]
    assert pooling[:3] == [0.25, 0.5, 1.0] and set(pooling[3:5]) == {0.125, 0.375}
    best = selection.best_of_each(tried)
    assert best.mirror and best.mixed_pooling == 0.375, "also of a strategy that was not kept"
    assert best.beta == 0.00025, "half way from the smallest to off"
    assert selection.best_of_each([]) == Strategies()


def test_what_does_not_help_stays_off_and_what_a_later_one_makes_superfluous_is_dropped(judged_by):
    judged_by(lambda s: 0.5)
    assert choose_hyperparameters(None, None)[0] == Strategies()
    judged_by(lambda s: 1.0 if s.expansion else 0.8 if s.beta else 0.5)
    chosen, tried = choose_hyperparameters(None, None)
    assert list(chosen.parts()) == ["query expansion"]
    assert [row["strategy"] for row in tried if row["step"] == "left out"] == ["beta-normalisation", "query expansion"]


def test_a_measurement_equals_the_evaluation(model, held_out):
    measure = Measurement(model, held_out)
    for each in (Strategies(), Strategies(mixed_pooling=0.5, mirror=True, beta=0.1, lambda_value=0.5, k1=6, k2=2)):
        metrics, seconds = measure(each)
        assert metrics == pytest.approx(inference.evaluate(model, held_out, each)) and seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("end", ["ReLU", "ReLU6", "batch normalisation"])
@pytest.mark.parametrize("neck", [False, True])
def test_what_is_made_of_one_pass_is_what_a_pass_of_its_own_gives(held_out, monkeypatch, end, neck):
    model = models.build("conv4")
    # Channels that are negative at every place, and some above 6, are what the largest entry could get wrong.
    body = [model.body, torch.nn.Conv2d(256, 32, 1), torch.nn.BatchNorm2d(32), torch.nn.Upsample(scale_factor=3)]
    body += [torch.nn.Conv2d(32, 32, 3), torch.nn.BatchNorm2d(32)]
    body += [] if end == "batch normalisation" else [getattr(torch.nn, end)()]
    model.body, model.embedding_size = torch.nn.Sequential(*body), 32
    torch.nn.init.normal_(body[5].bias, std=8)
    if neck:
        model.add_neck()
        torch.nn.init.normal_(model.neck.running_mean)
    measure, passes = Measurement(model, held_out, batch_size=50), []
    model.body.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(selection, "search_and_judge", lambda embeddings, *_: embeddings)
    slopes = (0.0,) if end == "batch normalisation" else (0.0, 0.3, 1.0)
    wanted = [
        Strategies(leaky_slope=slope, mixed_pooling=weight, mirror=mirror)
        for slope in slopes
        for weight in (0.0, 0.4, 1.0)
        for mirror in (False, True)
    ]
    found = [measure(each)[0] for each in wanted]
    # 120 images in batches of 50, straight and mirrored; a backbone without a rectifier shows it in the first batch.
    assert len(passes) == 6 + (end == "batch normalisation") and model.training
    for each, one in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, inference.embed(model, held_out, each), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_best_of_all_that_was_tried_is_chosen_and_no_slope_without_a_last_activation(held_out):
    model = models.build("conv4")
    model.body = torch.nn.Sequential(model.body, torch.nn.BatchNorm2d(model.embedding_size))
    chosen, tried = choose_hyperparameters(model, held_out)
    best = max(row["score"] for row in tried)
    assert score(inference.evaluate(model, held_out, chosen)) == pytest.approx(best) and best >= tried[0]["score"]
    assert chosen.leaky_slope == 0 and {row["strategy"] for row in tried} >= set(GROUPS) - {"leaky activation"}
    with pytest.raises(ValueError, match="leaky_slope"):
        Measurement(model, held_out)(dataclasses.replace(chosen, leaky_slope=0.5))


def test_re_identification_is_scored_by_its_own_metrics():
    assert score({"mAP": 0.4, "Rank-1": 0.8, "R@1": 0.0}) == pytest.approx(0.6)
    assert selection.score({"R@1": 0.5, "MAP@R": 0.25}) == 0.375
