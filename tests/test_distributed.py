"""Two processes that share a group compute, train and evaluate as one process with the whole group does."""

import json
import os
import subprocess
import sys

import pytest
import torch
import two_processes
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gl_core import datasets, distributed, models, training
from gl_core.evaluation import reid_metrics, retrieval_metrics
from gl_core.inference import embed
from gl_core.loss import CrossEntropyLoss, GroupLoss, group_loss
from gl_core.training import components
from gl_core.training.config import Config

# Every case below runs in this process, where the functions of `distributed` do nothing, and in two others.


def data(n=12, d=8, C=20):
    random = torch.Generator().manual_seed(0)
    # Classes in an order in which each has images, and anchors, in the parts of both processes.
    labels = torch.tensor([3, 7, 3, 0, 7, 0, 0, 3, 7, 7, 0, 3])
    return torch.randn(n, d, dtype=torch.float64, generator=random), labels


class Network(nn.Module):
    """A backbone, and a loss of the whole batch."""

    def __init__(self, loss):
        super().__init__()
        self.backbone, self.loss = nn.Linear(8, 6), loss

    def forward(self, images, labels):
        return self.loss(*distributed.whole_batch(self.backbone(images), labels))


class Functional(Network):
    """Logits of one's own images; features, logits and labels are gathered."""

    def __init__(self):
        super().__init__(nn.Linear(6, 20))

    def forward(self, images, labels):
        features = self.backbone(images)
        return group_loss(*distributed.whole_batch(features, self.loss(features), labels), temperature=2.0)


def parallel(network):
    """The network as each of several processes trains it."""
    return DistributedDataParallel(network) if distributed.num_processes() > 1 else network


def gradients(build):
    torch.manual_seed(0)
    network = build().double()
    images, labels = data()
    part = distributed.share(len(images))
    wrapped = parallel(network)  # which must outlive the backward pass
    loss = wrapped(images[part], labels[part])
    loss.backward()
    return {"loss": loss.detach()} | {name: value.grad for name, value in network.named_parameters()}


def learner():
    """What `training.fit` trains, in float64."""
    torch.manual_seed(0)
    loss = GroupLoss(8, 256, num_anchors=1)
    network = components.Learner(models.build("conv4"), loss, freeze_batch_norm=False).double()
    images, labels = torch.rand(12, 3, 28, 28, dtype=torch.float64), data()[1]
    part = distributed.share(12)
    wrapped = parallel(network)
    with distributed.whole_batch_norm(network):
        loss, embeddings = wrapped(images[part], labels[part])
        loss.backward()
    found = {name: value.grad for name, value in network.named_parameters()}
    return found | {"loss": loss.detach(), "embeddings": embeddings} | network.state_dict()


def losses():
    settings = {"num_anchors": 2, "temperature": 2.0}
    return {
        "learner": learner(),
        "plain": gradients(lambda: Network(GroupLoss(20, 6, path="plain", num_iterations=3, **settings))),
        "fast": gradients(lambda: Network(GroupLoss(20, 6, path="fast", **settings))),
        "functional": gradients(Functional),
        "cross-entropy": gradients(lambda: Network(CrossEntropyLoss(20, 6))),
    }


def batch_norm():
    torch.manual_seed(0)
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.BatchNorm2d, BatchNormAct2d]
    layers = nn.Sequential(
        kinds[0](3, 4, 3), kinds[1](4), kinds[2](), kinds[3](4, momentum=None), kinds[4](4, act_layer=nn.Tanh)
    ).double()
    images, weights = torch.randn(6, 3, 5, 5).double(), torch.rand(6, 4, 3, 3).double()
    wrapped = parallel(layers)
    with distributed.whole_batch_norm(layers):
        for _ in range(2):
            layers.zero_grad()
            output = distributed.gather(wrapped(images[distributed.share(6)]))
            (output * weights).sum().backward()
        layers.eval()
        evaluated = layers(images)
    found = {name: value for name, value in layers.state_dict().items() if "running" in name or "tracked" in name}
    found |= {name: value.grad for name, value in layers.named_parameters()}
    assert [type(layer) for layer in layers] == kinds
    return found | {"output": output.detach(), "evaluated": evaluated.detach()}


def evaluation():
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(37, 4, generator=random)
    embeddings[20:25] = embeddings[3]
    labels = torch.randint(0, 9, (37,), generator=random)
    joined = distributed.join(embeddings[distributed.share(37)], 37)
    metrics = retrieval_metrics(joined, labels, recall_at=(1, 2, 40), shared=True)
    crossed = retrieval_metrics(embeddings[:5], labels[:5], embeddings[5:], labels[5:], shared=True)
    cameras = torch.arange(37) % 3
    sides = (embeddings[:9], labels[:9], cameras[:9], embeddings[9:], labels[9:], cameras[9:])
    persons = reid_metrics(*sides, shared=True)
    torch.manual_seed(0)
    model, images = models.build("conv4"), torch.rand(5, 3, 28, 28)
    assert embed(model, images, shared=True).allclose(embed(model, images), atol=1e-6)
    return {"joined": joined, "metrics": metrics, "crossed": crossed, "persons": persons, "main": distributed.is_main()}


def everything():
    return {"losses": losses(), "batch norm": batch_norm(), "evaluation": evaluation()}


@pytest.mark.slow
def test_two_processes_have_the_loss_the_gradients_and_the_evaluation_of_one(tmp_path):
    two, one = two_processes.run(everything, tmp_path), everything()
    for found in two:
        for what in ("losses", "batch norm"):
            torch.testing.assert_close(found[what], one[what], rtol=1e-6, atol=1e-9)
        assert found["evaluation"]["joined"].equal(one["evaluation"]["joined"])
        for name in ("metrics", "crossed", "persons"):
            assert found["evaluation"][name] == pytest.approx(one["evaluation"][name], rel=1e-12)
    assert [found["evaluation"]["main"] for found in two] == [True, False]


@pytest.mark.thorough
@pytest.mark.slow
def test_two_processes_train_as_one_and_leave_one_record(tmp_path, monkeypatch):
    # Twelve classes of eight glyphs as files, half of them for training: two batches of 3 x 8 are an epoch.
    dataset = datasets.load("glyphs", split="train")
    for label in range(12):
        (tmp_path / "glyphs" / str(label)).mkdir(parents=True)
        for number, index in enumerate((dataset.labels == label).nonzero()[0][:8]):
            dataset[int(index)][0].save(tmp_path / "glyphs" / str(label) / f"{number}.png")
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    settings = {
        "dataset": "folder", "data_root": str(tmp_path / "glyphs"), "backbone": "conv4", "image_size": 28, "epochs": 1,
        "augmentation": "none", "classes_per_batch": 3, "samples_per_class": 8, "device": "cpu",
    }  # fmt: skip
    one = training.run(Config.resolve(**settings), progress=False)
    one.record_path.unlink()
    words = [str(word) for setting in settings.items() for word in ("-p", *setting)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, "-m", "glbook", "train", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unseen test classes") == done.stdout.count("record: ") == 1
    (path,) = (tmp_path / "_build" / "results").iterdir()
    two = json.loads(path.read_text())
    assert two["device"].startswith("2 x ")
    assert two["untrained"] == pytest.approx(one.untrained, rel=1e-5)
    for name in ("epoch", "loss", "batch R@1", "learning_rate"):
        assert two["history"][0][name] == pytest.approx(one.history[0][name], rel=1e-4)
    # Rounding may decide between neighbours that are almost equally near: for two of the 48 queries, say.
    for name in one.untrained:
        assert two["metrics"][name] == pytest.approx(one.metrics[name], abs=2.1 / 48)


def test_a_batch_normalisation_of_its_own_kind_is_refused_by_name(monkeypatch):
    class Own(nn.BatchNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    with pytest.raises(ValueError, match="Own: several processes cannot share the statistics of this layer"):
        distributed.whole_batch_norm(nn.Sequential(Own(4))).__enter__()


def test_shares_cover_everything_once(monkeypatch):
    monkeypatch.setattr(distributed, "num_processes", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.share(10))
    assert [index for part in parts for index in range(10)[part]] == list(range(10))
    assert {len(range(10)[part]) for part in parts} == {3, 4}
