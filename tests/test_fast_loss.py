"""The fast path of the Group Loss equals the plain one, in value and gradient, and costs less."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gl_core import fast_loss
from gl_core.fast_loss import fast_losses
from gl_core.loss import GroupLoss, group_loss, plain_losses
from gl_core.propagation import pearson_similarity, select_anchors

PATHS = ("plain", "fast")
# In float32, of what float64 gives: the plain path, too, is up to 1.3e-6 away in 2,500 random problems, the fast one
# 1.5e-6.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-9}


@pytest.fixture(params=["on a CPU", "on a GPU", "the Gram matrix in blocks"], scope="module")
def way(request):
    """The ways the fast path works, all of them run on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "on a GPU":
            patch.setattr(fast_loss, "_ordinary", lambda anchors: None)
        elif request.param == "the Gram matrix in blocks":
            patch.setattr(fast_loss, "GRAM_BLOCK", 3)
        yield request.param


def problem(seed, n, C, num_anchors, *, scale=3.0, sparse=False, alike=False, dtype=torch.float64):
    """Similarity, logits, labels, anchors and the weights of the images in the loss."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (n,), generator=random)
    W = pearson_similarity(torch.randn(n, 5, dtype=dtype, generator=random))
    if sparse:
        # Any function may be a similarity: here one that is not symmetric, and by which images can be all alone.
        W = torch.rand(n, n, dtype=dtype, generator=random) * (torch.rand(n, n, generator=random) < 0.15)
    logits = scale * torch.randn(n, C, dtype=dtype, generator=random)
    if alike:
        W, logits = torch.ones_like(W), logits[:1].expand(n, C).clone()
    return W, logits, labels, select_anchors(labels, num_anchors), torch.rand(n, dtype=dtype, generator=random)


def loss_and_gradients(path, W, logits, labels, anchors, weights, **keywords):
    W, logits = W.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = path(W, logits, labels, anchors, **{"cross_entropy_weight": 0.0} | keywords)
    (losses * weights).sum().backward()
    return losses.detach(), logits.grad, torch.zeros_like(W) if W.grad is None else W.grad


def assert_paths_agree(case, **keywords):
    fast = loss_and_gradients(fast_losses, *case, **keywords)
    plain = loss_and_gradients(plain_losses, *case, **keywords)
    wide = [part.double() if part.is_floating_point() else part for part in case]
    exact = loss_and_gradients(plain_losses, *wide, **keywords)
    for actual, same, expected in zip(fast, plain, exact, strict=True):
        assert actual.dtype == same.dtype
        largest = max(expected.abs().max().item(), 1)
        assert (actual - expected).abs().max() <= TOLERANCE[actual.dtype] * largest


@pytest.mark.slow
@settings(max_examples=150)
@given(data=st.data())
def test_it_equals_the_plain_path_in_float64(way, data):
    draw = data.draw
    case = problem(
        draw(st.integers(0, 2**31)),
        draw(st.integers(1, 14)),
        draw(st.integers(1, 12)),
        draw(st.integers(0, 5)),
        scale=draw(st.sampled_from([0.0, 1.0, 5.0, 30.0])),
        sparse=draw(st.booleans()),
        alike=draw(st.booleans()),
    )
    assert_paths_agree(
        case,
        num_iterations=draw(st.sampled_from(fast_loss.ITERATIONS)),
        temperature=draw(st.sampled_from([0.5, 1.0, 10.0, 54.0])),
        cross_entropy_weight=draw(st.sampled_from([0.0, 0.3, 1.0])),
    )


@pytest.mark.parametrize("num_iterations", fast_loss.ITERATIONS)
@pytest.mark.parametrize("cross_entropy_weight", [0.0, 1.0])
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 140), C=st.integers(2, 400), num_anchors=st.sampled_from([0, 1, 2, 99])
)
def test_it_equals_the_plain_path_in_float32(num_iterations, cross_entropy_weight, seed, n, C, num_anchors):
    case = problem(seed, n, C, num_anchors, dtype=torch.float32)
    keywords = {"num_iterations": num_iterations, "cross_entropy_weight": cross_entropy_weight}
    assert_paths_agree(case, temperature=2.0, **keywords)


@pytest.mark.parametrize("num_iterations", fast_loss.ITERATIONS)
def test_gradcheck(way, num_iterations):
    W, logits, labels, anchors, _ = problem(3, 9, 4, 1)
    W = (0.1 + 0.8 * W).requires_grad_()
    logits.requires_grad_()

    def losses(W, logits):
        return fast_losses(
            W, logits, labels, anchors, num_iterations=num_iterations, temperature=2.0, cross_entropy_weight=0.5
        )

    assert torch.autograd.gradcheck(losses, (W, logits))


@pytest.mark.parametrize("num_iterations", fast_loss.ITERATIONS)
@pytest.mark.parametrize("num_anchors", [0, 2])
@pytest.mark.parametrize("temperature", [1.0, 1e-4, 1e-30])
@pytest.mark.parametrize(
    "features",
    [torch.ones(12, 8), torch.zeros(12, 8), torch.arange(8.0).repeat(12, 1), torch.eye(12, 8) * 1e-38, -torch.eye(12)],
    ids=["constant", "zero", "identical", "tiny", "opposed"],
)
def test_hard_input_gives_what_the_plain_path_gives(way, features, temperature, num_anchors, num_iterations):
    labels, found = torch.arange(3).repeat_interleave(4), {}
    settings = {"num_anchors": num_anchors, "num_iterations": num_iterations, "temperature": temperature}
    for path in PATHS:
        f = features.clone().requires_grad_()
        logits = torch.linspace(-200, 200, 12 * 6).view(12, 6).flip(0).requires_grad_()
        loss = group_loss(f, logits, labels, path=path, **settings)
        loss.backward()
        found[path] = loss.detach(), logits.grad, torch.zeros(1) if f.grad is None else f.grad
    for actual, expected in zip(found["fast"], found["plain"], strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_iterations", fast_loss.ITERATIONS)
def test_rows_without_support_keep_their_assignments(way, num_iterations):
    # Nothing resembles anything, not even itself: propagation changes nothing, however often.
    _, logits, labels, anchors, weights = problem(0, 8, 5, 1)
    case = torch.zeros(8, 8, dtype=torch.float64), logits, labels, anchors, weights
    losses, *_ = loss_and_gradients(fast_losses, *case, num_iterations=num_iterations, temperature=2.0)
    expected = -(logits / 2).log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(losses, expected.masked_fill(anchors, 0))
    assert_paths_agree(case, num_iterations=num_iterations, temperature=2.0)


def test_large_problems_take_the_fast_path_and_small_ones_the_plain(monkeypatch):
    taken = []
    monkeypatch.setattr("gl_core.loss.fast_losses", lambda *a, **k: taken.append(1) or fast_losses(*a, **k))
    for C, T, fast in ((300, 1, False), (2000, 0, True), (2000, 1, True), (2000, 2, True), (2000, 3, False)):
        taken.clear()
        loss = group_loss(torch.randn(54, 8), torch.randn(54, C), torch.arange(54) // 9, num_iterations=T)
        assert loss.isfinite() and bool(taken) == fast


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_there_is_no_second_derivative(num_iterations):
    W, logits, labels, anchors, _ = problem(0, 8, 5, 1)
    logits.requires_grad_()
    losses = fast_losses(W, logits, labels, anchors, num_iterations=num_iterations, temperature=2.0)
    with pytest.raises(RuntimeError, match="no second derivative: pass path='plain'"):
        torch.autograd.grad(losses.sum(), logits, create_graph=True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_iterations", fast_loss.ITERATIONS)
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_stays_within_a_percent(path, dtype, num_iterations, backward_inside):
    torch.manual_seed(0)
    loss = GroupLoss(2000, 32, num_iterations=num_iterations, path=path)
    features, labels = torch.randn(54, 32), torch.arange(54) // 9
    found = {}
    for enabled in (False, True):
        embeddings = features.clone().requires_grad_()
        loss.zero_grad()
        with torch.autocast("cpu", dtype, enabled=enabled):
            value = loss(embeddings.to(dtype) if enabled else embeddings, labels)
            if backward_inside:
                value.backward()
        if not backward_inside:
            value.backward()
        assert value.dtype == torch.float32
        found[enabled] = value.detach(), embeddings.grad, loss.classifier.weight.grad
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0.01, atol=0)
    for half, exact in zip(found[True][1:], found[False][1:], strict=True):
        assert half.isfinite().all()
        assert (half - exact).norm() <= 0.05 * exact.norm()


def test_it_keeps_half_the_memory_for_its_gradient():
    features, logits = torch.randn(60, 16), torch.randn(60, 11318, requires_grad=True)
    kept = {path: {} for path in PATHS}
    for path, sizes in kept.items():

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            group_loss(features, logits, torch.arange(60) // 6, path=path).backward()
    assert sum(kept["fast"].values()) <= 0.5 * sum(kept["plain"].values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_iterations", [0, 1, 2])
def test_the_step_never_makes_the_host_wait(path, num_iterations):
    loss = GroupLoss(2000, 32, num_iterations=num_iterations, path=path).cuda()
    embeddings, labels = torch.randn(54, 32, device="cuda", requires_grad=True), torch.arange(54, device="cuda") // 9
    loss(embeddings, labels).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(embeddings, labels)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.isfinite()
