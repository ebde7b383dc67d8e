"""The strategies at test time: their formulas, their order, and that they leave everything else alone."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from gl_core import models
from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.protocol import judge
from gl_core.evaluation import retrieval_metrics
from gl_core.inference import (
    Strategies,
    beta_normalize,
    embed,
    mixed_pooling,
    query_expansion,
    search_and_judge,
)  # fmt: skip
from gl_core.inference.strategies import PUBLISHED
from gl_core.models.last_activation import leaky_last_activation
from gl_core.rerank import k_reciprocal


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(name):
    torch.manual_seed(0)
    options = {} if name == "conv4" else {"pretrained": False}
    model = models.build(name, **options).eval()
    for module in model.modules():
        # Statistics of a trained network are not 0 and 1.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.3)
    return model


BACKBONES = ["conv4", "efficientnet_lite0", "resnet50", "bn_inception"]
images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_last_activation_lets_negatives_through(name):
    model, seen = network(name), {}
    with torch.no_grad():
        plain = model.feature_map(images)
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs: seen.update(before=inputs[0].clone()))
            for module in model.body.modules()
            if isinstance(module, (torch.nn.ReLU, torch.nn.ReLU6))
        ]
        model.feature_map(images)
        for hook in hooks:
            hook.remove()
        with leaky_last_activation(model, 0.75):
            found = model.feature_map(images)
    assert (seen["before"] < 0).any() and model.feature_map(images).equal(plain)
    assert found.equal(torch.where(seen["before"] < 0, 0.75 * seen["before"], plain))


class Centred(torch.nn.Module):
    """Changes its input in place and returns it: what lies where an activation lay must not be taken for it."""

    def forward(self, x):
        return x.sub_(x.mean())


@pytest.mark.parametrize("end", [torch.nn.Conv2d(4, 4, 1), Centred()])
def test_a_backbone_without_a_last_activation_is_refused(end):
    model = models.EmbeddingNet(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), end), 4)
    with pytest.raises(ValueError, match="leaky_slope=0.5: must be 0, as this backbone does not end in a ReLU"):
        embed(model, images, Strategies(leaky_slope=0.5))
    assert not model.body._forward_hooks and not model.body[1]._forward_hooks


@pytest.mark.parametrize("name", BACKBONES)
def test_identity_is_the_plain_embedding_to_the_last_bit_and_the_model_is_left_as_it_came(name):
    model = network(name)
    with torch.inference_mode():
        plain = model(images.contiguous(memory_format=torch.channels_last))
    model.train()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms[1:]:
        module.eval()  # frozen by the caller
    before = {key: value.clone() for key, value in model.state_dict().items()}
    embed(model, images, Strategies(leaky_slope=0.5, mixed_pooling=0.5, mirror=True, beta=0.1))
    assert embed(model, images).equal(plain)
    assert model.training and norms[0].training and not any(module.training for module in norms[1:])
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_embedding_that_is_not_finite_is_an_error():
    model = network("conv4")
    model.body[1].running_var[0] = -1.0
    with pytest.raises(ValueError, match="the embedding of image 0 is not finite; its weights or statistics hold NaN"):
        embed(model, images)


def test_the_strategies_of_an_image_compose_in_their_order():
    model = network("conv4")
    settings = Strategies(leaky_slope=0.5, mixed_pooling=0.4, mirror=True, beta=0.2)
    with torch.inference_mode(), leaky_last_activation(model, 0.5):
        pooled = [mixed_pooling(model.feature_map(each), 0.4) for each in (images, images.flip(3))]
    expected = beta_normalize((pooled[0] + pooled[1]) / 2, 0.2)
    torch.testing.assert_close(embed(model, images, settings), expected)
    torch.testing.assert_close(embed(model, images.flip(3), settings), expected)


def dataset(n, **columns):
    labels = np.arange(n) % 7
    table = pd.DataFrame({"path": [str(i) for i in range(n)], "label": labels, "split": "test"} | columns)
    return RetrievalDataset("made up", table, [str(i) for i in range(7)], images=None)


ONE_SET = dataset(60, is_query=True, is_gallery=True)
TWO_SETS = dataset(60, is_query=np.arange(60) % 3 == 0, is_gallery=np.arange(60) % 3 != 0)
vectors = (seeded(7, 12)[torch.arange(60) % 7] + 1.2 * seeded(60, 12, seed=1)).double()


@pytest.mark.parametrize("part", [ONE_SET, TWO_SETS])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_no_strategy_is_the_protocol_itself(part, beta):
    found = search_and_judge(vectors, part, Strategies(beta=beta), cluster=True)
    assert found == judge(vectors, part, metric="euclidean" if beta else "cosine", cluster=True)


def test_expansion_searches_with_moved_queries():
    settings = Strategies(expansion=4, alpha=2.0)
    moved = query_expansion(vectors, k=4, alpha=2.0)
    expected = retrieval_metrics(moved, ONE_SET.labels, vectors, ONE_SET.labels, same_images=True)
    assert search_and_judge(vectors, ONE_SET, settings) == expected
    both = dataclasses.replace(settings, database_side=True)
    expected = retrieval_metrics(moved, ONE_SET.labels, moved, ONE_SET.labels, same_images=True)
    assert search_and_judge(vectors, ONE_SET, both) == expected
    query, gallery = (np.flatnonzero(TWO_SETS.table[name]) for name in ("is_query", "is_gallery"))
    moved = query_expansion(vectors[query], vectors[gallery], k=4, alpha=2.0)
    labels = TWO_SETS.labels
    expected = retrieval_metrics(moved, labels[query], vectors[gallery], labels[gallery])
    assert search_and_judge(vectors, TWO_SETS, settings) == pytest.approx(expected)


@pytest.mark.parametrize("part", [ONE_SET, TWO_SETS])
def test_re_ranking_is_that_of_the_library(part):
    settings = Strategies(k1=8, k2=3, lambda_value=0.3)
    unit = torch.nn.functional.normalize(vectors)
    if part is ONE_SET:
        distances = k_reciprocal(unit, k1=8, k2=3, lambda_value=0.3)
    else:
        sides = (unit[np.flatnonzero(part.table[name])] for name in ("is_query", "is_gallery"))
        distances = k_reciprocal(*sides, k1=8, k2=3, lambda_value=0.3)
    assert search_and_judge(vectors, part, settings) == judge(vectors, part, distances=distances)


def test_an_image_never_finds_itself():
    # Each image is alone in its class but for one: whoever counted itself would score 1.
    part = RetrievalDataset(
        "pairs", ONE_SET.table.assign(label=np.arange(60) // 2), [str(i) for i in range(30)], images=None
    )
    random = seeded(60, 3).double()
    for settings in (Strategies(expansion=2), Strategies(lambda_value=0.5, k1=4, k2=2)):
        assert search_and_judge(random, part, settings)["R@1"] < 0.5


def test_parts_are_what_is_on_each_alone_and_settings_survive_a_record():
    parts = PUBLISHED["cub"].parts()
    assert list(parts) == ["leaky activation", "mixed pooling", "beta-normalisation", "re-ranking"]
    assert parts["re-ranking"] == Strategies(k1=50, k2=20, lambda_value=0.94)
    assert Strategies().parts() == {}
    assert Strategies.from_settings(PUBLISHED["cub"].as_dict()) == PUBLISHED["cub"]
    with pytest.raises(ValueError, match="unknown strategy 'gamma': must be one of alpha"):
        Strategies.from_settings({"gamma": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leaky_slope": -0.1}, r"leaky_slope=-0.1: must lie in \[0, 1\]"),
        ({"mixed_pooling": 1.5}, "mixed_pooling=1.5"),
        ({"lambda_value": float("nan")}, "lambda_value=nan"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"expansion": -1}, "expansion=-1"),
        ({"k1": 3, "k2": 5}, "k2=5: must be at most k1=3"),
        ({"mirror": 1}, "mirror=1: must be True or False"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        Strategies(**settings)
