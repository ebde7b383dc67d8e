"""A classifier dealt out over two processes has the loss and the gradients of one in one piece."""

import pytest
import torch
import torch.distributed as dist
import two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gl_core import distributed
from gl_core.loss import GroupLoss
from gl_core.sharded import ShardedGroupLoss

LABELS = torch.tensor([3, 17, 3, 0, 17, 0, 0, 3, 17, 17, 0, 3])
SETTINGS = [
    {"num_anchors": 2, "temperature": 2.0, "cross_entropy_weight": 0.7},
    {"num_anchors": 0, "temperature": 0.5, "cross_entropy_weight": 0.0, "similarity": "cosine_shifted"},
    {"num_anchors": 9, "temperature": 5.0, "cross_entropy_weight": 1.0},
]


def problem(C=21, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    images, weight, bias = (torch.randn(*shape, dtype=dtype, generator=random) for shape in ((12, 8), (C, 6), (C,)))
    torch.manual_seed(1)
    return images, weight, bias, nn.Linear(8, 6).to(dtype)


def step(build, settings, C=21):
    """The loss, and the gradients of the backbone and of the classifier of this process's classes."""
    images, weight, bias, backbone = problem(C)
    loss = build(C, 6, **settings).double()
    classes = getattr(loss, "classes", slice(0, C))
    loss.classifier.load_state_dict({"weight": weight[classes], "bias": bias[classes]})
    part = distributed.share(len(images))
    wrapped = DistributedDataParallel(backbone) if distributed.num_processes() > 1 else backbone
    value = loss(wrapped(images[part]), LABELS[part])
    value.backward()
    found = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    return {"loss": value.detach(), **found}, [p.grad for p in loss.classifier.parameters()]


def steps():
    return [step(ShardedGroupLoss, settings) for settings in SETTINGS]


def traffic():
    """How many numbers a step sends, for few and for many classes."""
    sent = []
    reduce, collect = dist.all_reduce, dist.all_gather
    dist.all_reduce = lambda x, *a, **k: sent.append(x.numel()) or reduce(x, *a, **k)
    dist.all_gather = lambda parts, x, *a, **k: sent.append(x.numel()) or collect(parts, x, *a, **k)
    counted = []
    for C in (21, 2100):
        sent.clear()
        torch.manual_seed(0)
        loss = ShardedGroupLoss(C, 6, num_anchors=0)
        part = distributed.share(12)
        loss(torch.rand(12, 6)[part].requires_grad_(), LABELS[part]).backward()
        counted.append(sum(sent))
    return counted


def both_in_turn():
    return {"steps": steps(), "traffic": traffic()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return two_processes.run(both_in_turn, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_two_processes_have_the_loss_and_all_gradients_of_one(two, number):
    expected, of_classifier = step(GroupLoss, SETTINGS[number])
    for process in two:
        torch.testing.assert_close(process["steps"][number][0], expected, rtol=1e-6, atol=1e-12)
    for name, part in enumerate(zip(*(process["steps"][number][1] for process in two), strict=True)):
        torch.testing.assert_close(torch.cat(part), of_classifier[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_in_one_process_it_is_the_group_loss(settings):
    torch.testing.assert_close(step(ShardedGroupLoss, settings), step(GroupLoss, settings), rtol=1e-9, atol=1e-12)


def test_messages_do_not_grow_with_the_number_of_classes(two):
    n, d = 12, 6
    forward = n // 2 * d + n // 2 + n + 2 * n * n + 3 * n  # embeddings and labels of one's own images; maxima; sums
    backward = n * d
    for process in two:
        assert process["traffic"] == [forward + backward] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_within_a_percent(dtype):
    torch.manual_seed(0)
    loss = ShardedGroupLoss(50, 8)
    embeddings = torch.randn(12, 8)
    exact = loss(embeddings, LABELS)
    with torch.autocast("cpu", dtype):
        half = loss(embeddings, LABELS)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=0.01)


def test_bad_input_is_named():
    for settings, message in [
        ({"num_classes": 0}, "num_classes=0"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"similarity": "nope"}, "similarity='nope'"),
        ({"cross_entropy_weight": -1.0}, "cross_entropy_weight=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ShardedGroupLoss(**({"num_classes": 5, "embedding_size": 4} | settings))
    loss = ShardedGroupLoss(5, 4)
    with pytest.raises(ValueError, match="embeddings has 3 columns: must have embedding_size=4"):
        loss(torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels holds 5: must lie in 0\.\.4"):
        loss(torch.rand(2, 4), torch.tensor([0, 5]))
