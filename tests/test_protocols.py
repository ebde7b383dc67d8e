"""Every data set is judged by its own protocol, and the whole loop runs on a miniature of each."""

import numpy as np
import pandas as pd
import pytest
import torch
from miniatures import BUILDERS

from gl_core import datasets, training
from gl_core.datasets import protocol
from gl_core.datasets.base import RetrievalDataset
from gl_core.evaluation import clustering_metrics, reid_metrics, retrieval_metrics
from gl_core.training.config import Config

random = np.random.default_rng(0)
embeddings = torch.from_numpy(random.normal(size=(60, 4)))
labels = random.integers(0, 8, 60)


def dataset(**columns):
    table = pd.DataFrame({"path": [str(i) for i in range(60)], "label": labels, "split": "test"} | columns)
    return RetrievalDataset("made up", table, [str(i) for i in range(8)], images=None)


@pytest.mark.parametrize("role", [True, False])
def test_images_that_search_each_other(role):
    # Cameras do not matter, as where training classes are held out.
    part = dataset(is_query=role, is_gallery=role, camera=random.integers(1, 4, 60))
    found = protocol.judge(embeddings, part, cluster=True)
    expected = retrieval_metrics(embeddings, labels) | clustering_metrics(embeddings, labels)
    assert found == expected and protocol.headline(found) == ("R@1", "MAP@R")


def test_queries_that_search_a_gallery():
    is_query = random.random(60) < 0.4
    found = protocol.judge(embeddings, dataset(is_query=is_query, is_gallery=~is_query), cluster=True)
    expected = retrieval_metrics(embeddings[is_query], labels[is_query], embeddings[~is_query], labels[~is_query])
    assert {name: found[name] for name in expected} == expected and "NMI" in found


def test_persons_before_cameras():
    is_query, cameras = random.random(60) < 0.3, random.integers(1, 4, 60)
    found = protocol.judge(
        embeddings, dataset(is_query=is_query, is_gallery=~is_query, camera=cameras), metric="euclidean", cluster=True
    )
    sides = [(embeddings[part], labels[part], cameras[part]) for part in (is_query, ~is_query)]
    assert found == reid_metrics(*sides[0], *sides[1], metric="euclidean")
    assert protocol.headline(found) == ("Rank-1", "mAP")


def test_given_distances_take_the_place_of_the_metric():
    is_query = np.arange(60) < 20
    D = torch.cdist(embeddings[:20], embeddings[20:]) ** 2
    part = dataset(is_query=is_query, is_gallery=~is_query)
    assert protocol.judge(embeddings, part, distances=D) == protocol.judge(embeddings, part, metric="euclidean")
    assert protocol.judge(embeddings, part, distances=-D)["R@1"] != protocol.judge(embeddings, part)["R@1"]


@pytest.mark.parametrize("name", ["cub", "inshop", "market1501", "cuhk03 release"])
def test_the_whole_loop_on_a_miniature(name, tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    (known, build), root = BUILDERS[name], tmp_path / "data"
    build(root)
    config = Config.resolve(
        dataset=known, data_root=str(root), backbone="conv4", image_size=28, augmentation="crop", epochs=2,
        classes_per_batch=2, samples_per_class=2, num_anchors=1, learning_rate=1e-3, schedule="cosine",
    )  # fmt: skip
    run = training.run(config, progress=False)
    test = datasets.load(known, root, "test")
    assert ("mAP" in run.metrics) == ("camera" in test.table)
    assert run.record["metrics"] == run.metrics and len(run.history) == 2
    assert "unseen test classes" in run.report()
