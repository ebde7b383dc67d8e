"""The other losses: each against its own equation, and all of them in the training loop."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gl_core import _checks, datasets, devices, models, training
from gl_core.datasets.store import ImageStore
from gl_core.training.baselines import BASELINES, MetricLoss
from gl_core.training.config import Config

N, D, C = 12, 8, 5


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(N, D, dtype=torch.float64, generator=random, requires_grad=True)
    return embeddings, torch.arange(4).repeat_interleave(3)


def made(method, **options) -> MetricLoss:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return MetricLoss(method, C, D, options).double()


def directions(embeddings):
    return F.normalize(embeddings.detach(), dim=1)


def proxies(loss, name):
    return F.normalize(dict(loss.loss.named_parameters())[name].detach(), dim=0 if name in ("W", "fc") else 1)


def pairs(labels, same):
    return [(i, j) for i, j in itertools.permutations(range(len(labels)), 2) if (labels[i] == labels[j]) == same]


def softmax_loss(logits, labels):
    return F.cross_entropy(logits, labels).item()


def test_normalised_softmax(batch):
    f, y = batch
    loss = made("normalised_softmax", temperature=0.2)
    assert loss(f, y).item() == pytest.approx(softmax_loss(directions(f) @ proxies(loss, "W") / 0.2, y))


def test_contrastive(batch):
    f, y = batch
    distance = torch.cdist(directions(f), directions(f))
    pulled = [distance[i, j].item() - 0.1 for i, j in pairs(y, True)]
    pushed = [1.3 - distance[i, j].item() for i, j in pairs(y, False)]
    expected = sum(
        sum(term for term in terms if term > 0) / sum(term > 0 for term in terms) for terms in (pulled, pushed)
    )
    assert made("contrastive", pos_margin=0.1, neg_margin=1.3)(f, y).item() == pytest.approx(expected)


def test_triplet_takes_the_semi_hard(batch):
    f, y = batch
    squared = torch.cdist(directions(f), directions(f)).square()
    margins = [(squared[a, n] - squared[a, p]).item() for a, p in pairs(y, True) for n in range(N) if y[n] != y[a]]
    taken = [0.3 - margin for margin in margins if 0 < margin < 0.3]
    assert 0 < len(taken) < len(margins)
    assert made("triplet", margin=0.3)(f, y).item() == pytest.approx(sum(taken) / len(taken))


def test_multi_similarity_mines_and_weighs(batch):
    f, y = batch
    s = directions(f) @ directions(f).T
    terms = []
    for i in range(N):
        same = [s[i, j].item() for j in range(N) if j != i and y[j] == y[i]]
        other = [s[i, j].item() for j in range(N) if y[j] != y[i]]
        pulled = [v for v in same if v - 0.2 < max(other)]
        pushed = [v for v in other if v + 0.2 > min(same)]
        terms.append(
            math.log1p(sum(math.exp(-3 * (v - 0.6)) for v in pulled)) / 3
            + math.log1p(sum(math.exp(20 * (v - 0.6)) for v in pushed)) / 20
        )
    loss = made("multi_similarity", alpha=3, beta=20, base=0.6, epsilon=0.2)
    assert loss(f, y).item() == pytest.approx(sum(terms) / N)


def test_proxy_anchor(batch):
    f, y = batch
    loss = made("proxy_anchor", alpha=16, margin=0.2)
    s = directions(f) @ proxies(loss, "proxies").T
    own = F.one_hot(y, C).bool()
    pulled = torch.where(own, (-16 * (s - 0.2)).exp(), 0).sum(0).log1p().sum() / 4  # four of the five classes are there
    pushed = torch.where(own, 0, (16 * (s + 0.2)).exp()).sum(0).log1p().sum() / C
    assert loss(f, y).item() == pytest.approx((pulled + pushed).item())


def test_proxy_nca_is_the_probability_of_the_own_proxy(batch):
    f, y = batch
    loss = made("proxy_nca", softmax_scale=4)
    logits = -4 * torch.cdist(directions(f), proxies(loss, "proxies")).square()
    assert loss(f, y).item() == pytest.approx(softmax_loss(logits, y))


@pytest.mark.parametrize("tau", [0, 0.3])
def test_soft_triple(batch, tau):
    f, y = batch
    loss = made("soft_triple", centers_per_class=3, la=5, gamma=0.2, margin=0.1, tau=tau)
    centres = proxies(loss, "fc").T.reshape(C, 3, D)
    s = torch.einsum("nd,ckd->nck", directions(f), centres)
    logits = 5 * (((s / 0.2).softmax(2) * s).sum(2) - 0.1 * F.one_hot(y, C))
    apart = sum(
        math.sqrt(2 - 2 * (c[i] @ c[j]).item()) for c in centres for i, j in itertools.combinations(range(3), 2)
    )
    # The paper's regulariser: the mean over the C K (K - 1) ordered pairs.
    assert loss(f, y).item() == pytest.approx(softmax_loss(logits, y) + tau * apart / (C * 3 * 2), rel=1e-6)


def test_arcface(batch):
    f, y = batch
    loss = made("arcface", margin=20, scale=8)
    cosine = directions(f) @ proxies(loss, "W")
    angle = cosine.acos()
    assert (angle < math.pi - math.radians(20)).all(), "beyond that the library continues the cosine by a line"
    logits = 8 * torch.where(F.one_hot(y, C).bool(), (angle + math.radians(20)).cos(), cosine)
    assert loss(f, y).item() == pytest.approx(softmax_loss(logits, y))


def test_supervised_contrastive(batch):
    f, y = batch
    s = directions(f) @ directions(f).T / 0.3
    s.fill_diagonal_(-torch.inf)
    log_share = s.log_softmax(1)
    expected = -sum(log_share[i, j].item() for i, j in pairs(y, True)) / (N * 2)
    assert made("supervised_contrastive", temperature=0.3)(f, y).item() == pytest.approx(expected)


@pytest.mark.parametrize("method", BASELINES)
class TestEveryBaseline:
    def test_half_precision_is_computed_in_float32_and_leaves_the_proxies_as_they_are(self, batch, method):
        f, y = batch
        half = f.detach().bfloat16()
        loss = made(method).float()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(half, y)
        assert value.dtype == torch.float32 and value.item() == loss(half.float(), y).item()
        assert {p.dtype for p in loss.parameters()} <= {torch.float32}

    def test_gradients_are_finite_and_reach_network_and_proxies(self, batch, method):
        f, y = batch
        loss = made(method)
        loss(f, y).backward()
        assert (len(list(loss.parameters())) > 0) == BASELINES[method].has_proxies
        for tensor in (f, *loss.parameters()):
            assert tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0

    def test_hard_inputs_give_a_finite_loss(self, batch, method):
        y = torch.arange(4).repeat_interleave(3)
        for f in (torch.zeros(N, D), torch.ones(N, D), torch.eye(N, D) * 1e-30, torch.eye(N, D)):
            f.requires_grad_()
            value = made(method).float()(f, y)
            value.backward()
            assert value.isfinite() and f.grad.isfinite().all()
        one_class = made(method)(batch[0], torch.zeros(N, dtype=torch.long))
        assert one_class.ndim == 0 and one_class.isfinite() and one_class.requires_grad

    def test_bad_input_is_named(self, batch, method):
        f, y = batch
        loss = made(method)
        for bad in ((f[:, :3], y), (f, y + C), (f, y[:3]), (f / 0, y)):
            with pytest.raises(ValueError, match="embeddings|labels"):
                loss(*bad)

    def test_on_a_gpu_it_is_noted_and_named_when_the_loss_is_read(self, batch, method, monkeypatch):
        monkeypatch.setattr(_checks.Values, "wait_for", lambda *_: False)
        (f, y), loss = batch, made(method)
        assert loss(f, y).isfinite()
        loss.check()
        for bad, message in (((f / 0, y), "embeddings holds NaN or infinity"), ((f, y + C), "labels holds numbers")):
            assert loss(*bad).isnan()
            loss(f, y)
            with pytest.raises(ValueError, match=message):
                loss.check()
        loss.check()

    @pytest.mark.slow
    def test_trains_better_than_no_training(self, method, glyphs):
        train, test = glyphs
        config, cpu = Config.resolve(method=method, classes_per_batch=6, samples_per_class=4), torch.device("cpu")
        with devices.seeded(0, cpu):
            model = models.build(config.backbone)
            untrained = training.evaluate(model, test)
            history = training.fit(config, model, train, device=cpu, progress=False)
        assert history[-1]["loss"] < history[0]["loss"]
        trained = training.evaluate(model, test)
        assert trained["R@1"] > untrained["R@1"] and trained["MAP@R"] > untrained["MAP@R"] + 0.02


@pytest.fixture(scope="module")
def glyphs():
    """A few images of a few classes, to train on and to test on; on one thread, quickest where others work too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def part(split, classes, images):
        data = datasets.load("glyphs", split=split)
        taken = [np.flatnonzero(data.labels == label)[:images] for label in np.unique(data.labels)[:classes]]
        return ImageStore(data.subset(np.concatenate(taken)), 28)

    yield part("train", 16, 12), part("test", 30, 10)
    torch.set_num_threads(threads)


def test_options_are_filled_in_and_recorded():
    config = Config.resolve(method="soft_triple", loss_options={"la": 10})
    assert config.as_dict()["loss_options"] == {
        "centers_per_class": 10, "la": 10.0, "gamma": 0.1, "margin": 0.01, "tau": 0.2
    }  # fmt: skip
    assert Config(**config.as_dict()) == config
    loss = training.build_loss(config, 7, 16)
    assert "la=10" in repr(loss) and loss.loss.fc.shape == (16, 70)
    assert Config.resolve(method="group_loss").loss_options is None


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("triplet", {"alpha": 1}, "loss_options has 'alpha': triplet has margin"),
        ("triplet", {"margin": 0}, r"loss_options\['margin'\]=0: must lie in \(0, inf\)"),
        ("triplet", {"margin": float("nan")}, r"loss_options\['margin'\]=nan: must be a number"),
        ("soft_triple", {"centers_per_class": 2.5}, r"\['centers_per_class'\]=2.5: must be a whole number"),
        ("arcface", {"margin": 200}, r"\['margin'\]=200: must lie in \[0, 180\)"),
        ("group_loss", {"margin": 0.1}, "loss_options={'margin': 0.1}: must be None for group_loss"),
        ("triplet", [0.1], r"loss_options=\[0.1\]: must be a mapping of names to values or None"),
    ],
)
def test_bad_options_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        Config.resolve(method=method, loss_options=options)
