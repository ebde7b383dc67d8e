"""The Group Loss as a loss: closed forms, hard inputs, precision, and the manners of a module."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_weights
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gl_core.loss import SIMILARITIES, CrossEntropyLoss, GroupLoss, group_loss
from gl_core.propagation import DYNAMICS


def batch(n=12, d=8, C=6, dtype=torch.float32, seed=0, classes=3):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, dtype=dtype, generator=random)
    logits = torch.randn(n, C, dtype=dtype, generator=random)
    labels = torch.arange(classes).repeat_interleave(n // classes)
    return features, logits, labels


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.1, 100))
def test_without_iterations_and_anchors_it_is_cross_entropy_at_that_temperature(seed, temperature):
    features, logits, labels = batch(dtype=torch.float64, seed=seed)
    loss = group_loss(features, logits, labels, num_anchors=0, num_iterations=0, temperature=temperature)
    assert loss.item() == pytest.approx(F.cross_entropy(logits / temperature, labels).item(), rel=1e-10)


def test_closed_form_of_two_images():
    # One anchor of class 0 and one image with flat softmax, their correlation r: the image's share of class 0 after one
    # iteration is (r + 1/2) / (r + 1), since it listens to itself with weight 1.
    features = torch.tensor([[1.0, 2, 3, 4], [1.0, 2, 4, 3]], dtype=torch.float64)
    r = np.corrcoef(features.numpy())[0, 1]
    loss = group_loss(features, torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 0]), num_anchors=1)
    assert loss.item() == pytest.approx(-math.log((r + 0.5) / (r + 1)) / 2, rel=1e-12)


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_all_anchors_leave_nothing_to_learn(path):
    features, logits, labels = batch()
    value, *found = gradients(lambda f, z: group_loss(f, z, labels, num_anchors=99, path=path), features, logits)
    assert value == 0 and not found[1].any() and found[0].abs().max() < 1e-7


HARD = {
    "constant": torch.ones(12, 8),
    "zero": torch.zeros(12, 8),
    "identical": torch.arange(8.0).repeat(12, 1),
    "huge": torch.full((12, 8), 1e38) * torch.tensor([1.0, -1] * 4),
    "tiny": torch.eye(12, 8) * 1e-38,
    "denormal": torch.linspace(-1, 1, 12 * 8).view(12, 8) * 1e-40,
    "small": torch.linspace(-1, 1, 12 * 8).view(12, 8) * 1e-33,
    "opposed": -torch.eye(12),
}


@pytest.mark.parametrize("num_iterations", [0, 1, 2, 10])
@pytest.mark.parametrize("num_anchors", [0, 2])
@pytest.mark.parametrize("similarity", ["pearson", "cosine", lambda f: torch.zeros(len(f), len(f))])
@pytest.mark.parametrize("kind", HARD)
def test_hard_features_give_finite_loss_and_gradients(kind, similarity, num_anchors, num_iterations):
    features = HARD[kind].clone().requires_grad_()
    logits = torch.linspace(-200, 200, 12 * 6).view(12, 6).flip(0).requires_grad_()
    settings = {"num_anchors": num_anchors, "num_iterations": num_iterations, "similarity": similarity}
    loss = group_loss(features, logits, torch.arange(3).repeat_interleave(4), temperature=1.0, **settings)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert features.grad is None or features.grad.isfinite().all()


@pytest.mark.parametrize("method", [GroupLoss, CrossEntropyLoss])
def test_module_trains_its_classifier_and_the_features_under_bf16_autocast(method):
    torch.manual_seed(0)
    loss = method(6, 8)
    features, _, labels = batch()
    features.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(features, labels)
    value.backward()
    assert value.dtype == torch.float32
    for gradient in (features.grad, loss.classifier.weight.grad, loss.classifier.bias.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_cross_entropy_weight_scales_the_second_term():
    features, _, labels = batch()
    torch.manual_seed(0)
    loss = GroupLoss(6, 8)
    values = {}
    for weight in (0.0, 1.0, 3.0):
        loss.settings.cross_entropy_weight = weight
        values[weight] = loss(features, labels).item()
    logits = loss.classifier(features)
    assert values[0.0] == pytest.approx(group_loss(features, logits, labels).item(), rel=1e-6)
    assert values[1.0] - values[0.0] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert values[3.0] - values[0.0] == pytest.approx(3 * (values[1.0] - values[0.0]), rel=1e-5)


def test_it_can_overfit_one_batch():
    features, _, labels = batch(n=12, d=16)
    torch.manual_seed(0)
    loss = GroupLoss(6, 16, temperature=2.0)
    features = torch.nn.Parameter(features)
    optimizer = torch.optim.Adam([features, *loss.parameters()], lr=0.05)
    before = loss(features, labels).item()
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(features, labels)
        value.backward()
        optimizer.step()
    assert value.item() < before / 10
    assert (loss.classifier(features).argmax(1) == labels).all()


@pytest.mark.parametrize("counts", [(5, 5, 5), (4, 4, 9, 9), (0, 0, 3, 3), (0, 0, 0), (0, 0, 0, 0)])
def test_mined_indices_weigh_as_in_pytorch_metric_learning(counts):
    features, _, labels = batch()
    loss = GroupLoss(6, 8)
    random = torch.Generator().manual_seed(0)
    mined = tuple(torch.randint(0, 12, (count,), generator=random) for count in counts)
    weights = convert_to_weights(mined, labels, torch.float32)
    torch.testing.assert_close(loss(features, labels, mined), (loss.losses(features, labels) * weights).mean())


def test_labels_and_whole_numbers_of_any_kind():
    features, logits, labels = batch()
    expected = group_loss(features, logits, labels)
    for other in (labels.to(torch.uint8), labels.to(torch.uint16), labels.numpy(), list(labels), labels.tolist()):
        assert group_loss(features, logits, other, num_anchors=np.int64(2), num_iterations=np.uint8(1)).equal(expected)
    loss = GroupLoss(labels.numpy().max() + 1, np.int32(8), num_anchors=np.int64(1))
    assert loss(features, labels.numpy()).isfinite() and "num_anchors=1" in repr(loss)
    assert loss.logits(features).equal(loss.classifier(features))


def gradients(function, *arguments):
    """The value of a function, and its gradients with respect to the arguments that are floats."""
    arguments = [a.clone().requires_grad_(a.is_floating_point()) for a in arguments]
    value = function(*arguments)
    return [value.detach(), *torch.autograd.grad(value, [a for a in arguments if a.requires_grad])]


@pytest.mark.slow
@pytest.mark.parametrize(("C", "T"), [(6, 3), (3000, 0), (3000, 1), (3000, 2)])
def test_compiles_to_one_graph(C, T):
    loss = GroupLoss(C, 8, num_iterations=T)
    features, _, labels = batch()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = (gradients(lambda embeddings, m=module: m(embeddings, labels), features) for module in (loss, compiled))
    for actual, wanted in zip(*found, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-7)
    # Nothing can be raised inside a graph: the loss is NaN, and says so when it is asked.
    assert compiled(features, labels + C).isnan()
    with pytest.raises(ValueError, match="labels holds"):
        loss.check()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_every_variant_has_a_finite_loss_and_gradients_that_differ(similarity, dynamics):
    features, logits, labels = batch()
    variant = {"similarity": similarity, "dynamics": dynamics}
    value, *found = gradients(lambda f, z: group_loss(f, z, labels, **variant), features, logits)
    assert value > 0 and all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in found)
    if variant != {"similarity": "pearson", "dynamics": "replicator"}:
        assert value != group_loss(features, logits, labels)
    module = GroupLoss(6, 8, cross_entropy_weight=0.0, **variant)
    torch.testing.assert_close(
        module(features, labels), group_loss(features, module.classifier(features), labels, **variant)
    )


def test_the_plain_path_has_second_derivatives():
    features, logits, labels = batch(dtype=torch.float64)
    f, z = features.requires_grad_(), logits.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda f, z: group_loss(f, z, labels, num_iterations=2), (f, z))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.full((12, 8), float("nan"))}, r"features\[0, 0\]=nan: must be finite"),
        ({"logits": torch.full((12, 6), float("inf"))}, r"logits\[0, 0\]=inf: must be finite"),
        ({"logits": torch.ones(11, 6)}, "logits has 11 rows: must have 12"),
        ({"labels": torch.full((12,), 6)}, r"labels holds 6: must lie in 0\.\.5"),
        ({"labels": torch.zeros(11, dtype=torch.long)}, "labels has 11 entries: must have 12"),
        ({"temperature": 0}, "temperature=0: must be above 0"),
        ({"num_anchors": -1}, "num_anchors=-1"),
        ({"num_iterations": 1.0}, "num_iterations=1.0"),
        ({"similarity": "euclid"}, "similarity='euclid': must be one of pearson, cosine"),
        ({"dynamics": "best"}, "dynamics='best': must be one of replicator, exponential"),
        ({"path": "short"}, "path='short': must be one of auto, plain, fast"),
        ({"path": "fast", "num_iterations": 3}, "path='fast': knows replicator dynamics of up to 2 iterations"),
        ({"path": "fast", "dynamics": "exponential"}, "not exponential dynamics of 1"),
        ({"similarity": lambda f: -torch.eye(12)}, "similarity holds -1.0"),
    ],
)
def test_bad_input_is_named(changes, message):
    features, logits, labels = batch()
    arguments = {"features": features, "logits": logits, "labels": labels} | changes
    with pytest.raises(ValueError, match=message):
        group_loss(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"embedding_size": 0}, "embedding_size=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"cross_entropy_weight": -1.0}, "cross_entropy_weight=-1.0"),
        ({"checks": "never"}, "checks='never': must be one of auto, sync, deferred"),
        ({"embedding_size": 9}, "embeddings has 8 columns: must have embedding_size=9"),
    ],
)
def test_bad_settings_of_the_module_are_named(settings, message):
    for call in (GroupLoss.logits, lambda loss, features: loss(features, torch.zeros(12, dtype=torch.long))):
        with pytest.raises(ValueError, match=message):
            call(GroupLoss(**({"num_classes": 6, "embedding_size": 8} | settings)), torch.ones(12, 8))


BAD = [
    ({"features": torch.full((12, 8), float("nan"))}, "embeddings"),
    ({"features": torch.full((12, 8), -float("inf"))}, "embeddings"),
    ({"labels": torch.full((12,), 6)}, "labels"),
    ({"labels": torch.full((12,), -1)}, "labels"),
]


@pytest.mark.parametrize(("changes", "name"), BAD)
@pytest.mark.parametrize("method", [GroupLoss, CrossEntropyLoss])
def test_where_the_device_is_not_waited_for_a_bad_batch_gives_nan_and_raises_when_asked(method, changes, name):
    features, _, labels = batch()
    good = {"features": features, "labels": labels}
    bad = good | changes
    loss = method(6, 8, checks="deferred")
    expected = method.forward(loss, features, labels)
    loss.check()
    bad["features"] = bad["features"].clone().requires_grad_()
    value = loss(bad["features"], bad["labels"])
    assert value.isnan() and loss.losses(bad["features"], bad["labels"]).isnan().all()
    value.backward()
    if name == "labels":  # a batch that cannot be used moves nothing
        assert not bad["features"].grad.any() and not loss.classifier.weight.grad.any()
    # The batches after it are none the worse, and it is not forgotten until asked about.
    assert loss(features, labels).equal(expected)
    with pytest.raises(ValueError, match=f"^{name} holds .*: must "):
        loss.check()
    loss.check()
    with pytest.raises(ValueError, match=name):
        method(6, 8, checks="sync")(bad["features"], bad["labels"])


@pytest.mark.parametrize(
    "changes",
    [
        {"features": torch.full((12, 8), float("inf"))},
        {"logits": torch.full((12, 6), -float("inf"))},
        {"labels": torch.full((12,), 99)},
        {"similarity": lambda f: -torch.eye(len(f))},
        {"similarity": lambda f: torch.full((len(f), len(f)), float("nan"))},
    ],
)
@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize("num_anchors", [0, 2, 99])
def test_the_function_too_gives_nan_where_the_device_is_not_waited_for(changes, path, num_anchors):
    features, logits, labels = batch()
    given = {"features": features, "logits": logits, "labels": labels, "path": path, "num_anchors": num_anchors}
    assert group_loss(**given, checks="deferred").equal(group_loss(**given))
    assert group_loss(**(given | changes), checks="deferred").isnan()
    with pytest.raises(ValueError, match=f"{next(iter(changes))}"):
        group_loss(**(given | changes))


class Operations(TorchDispatchMode):
    """Counts what a device is asked to do: every operation but views and questions that the host answers itself."""

    HOST = {"promote_types", "device", "detach", "_unsafe_view", "alias", "lift_fresh"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not (operation.is_view or operation.overloadpacket.__name__ in self.HOST)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", ["auto", "plain"])
@pytest.mark.parametrize("num_iterations", [0, 1, 2, 3])
def test_on_a_gpu_the_host_never_waits(num_iterations, path):
    # Tensors without values: whatever would read one from the device, or take a shape from it, fails.
    with FakeTensorMode(), torch.device("cuda"):
        loss = GroupLoss(11_318, 512, num_iterations=num_iterations, path=path)
        features, labels = torch.randn(60, 512, requires_grad=True), torch.zeros(60, dtype=torch.long)
        with Operations() as operations:
            value = loss(features, labels)
        half = group_loss(
            features.bfloat16(), loss.logits(features).bfloat16(), labels, num_iterations=num_iterations, path=path
        )
    assert value.shape == half.shape == () and value.dtype == half.dtype == torch.float32
    if path == "auto" and num_iterations == 1:
        assert operations.count <= 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("path", ["plain", "fast"])
def test_a_gpu_survives_bad_values_and_graphs_are_captured(path):
    features, _, labels = (tensor.cuda() for tensor in batch(n=54, C=2000, classes=6))
    loss = GroupLoss(2000, 8, path=path).cuda()
    expected = loss(features.requires_grad_(), labels).detach()
    for bad in ((features * torch.nan, labels), (features, labels + 1999)):
        assert loss(*bad).isnan()
        with pytest.raises(ValueError, match="must"):
            loss.check()
    captured = torch.cuda.make_graphed_callables(loss, (features, labels))
    value = captured(features, labels)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert captured(features, labels + 1999).isnan()
    with pytest.raises(ValueError, match="labels"):
        loss.check()
