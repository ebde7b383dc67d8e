"""The formulas that change an embedding at test time."""

import pytest
import torch
import torch.nn.functional as F

from gl_core.inference import beta_normalize, mixed_pooling, query_expansion


@pytest.fixture
def vectors():
    return torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_mixed_pooling_lies_between_mean_and_maximum():
    feature_map = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])  # mean 2, maximum 5
    assert mixed_pooling(feature_map, 0.6).item() == pytest.approx(0.6 * 5 + 0.4 * 2)
    assert torch.equal(mixed_pooling(feature_map, 0), feature_map.mean(dim=(2, 3)))
    assert mixed_pooling(feature_map, 1).item() == 5


def test_beta_adds_to_the_length_and_leaves_the_direction(vectors):
    assert torch.equal(beta_normalize(vectors, 0), F.normalize(vectors))
    made = beta_normalize(vectors, 0.3)
    torch.testing.assert_close(made.norm(dim=1), 1 + 0.3 * vectors.norm(dim=1))
    torch.testing.assert_close(F.normalize(made), F.normalize(vectors))
    assert not beta_normalize(torch.zeros(1, 3), 0.3).any()


@pytest.mark.parametrize("alpha", [0, 1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_expansion_equals_the_formula_one_query_at_a_time(vectors, alpha, own):
    unit = F.normalize(vectors)
    query, gallery = (unit, unit) if own else (unit[:3], unit[3:])
    expected = []
    for i, q in enumerate(query):
        scores = sorted(((float(q @ g), j) for j, g in enumerate(gallery) if not (own and i == j)), reverse=True)[:2]
        expected.append(F.normalize(q + sum(max(s, 0) ** alpha * gallery[j] for s, j in scores), dim=0))
    made = query_expansion(vectors if own else vectors[:3], None if own else vectors[3:], k=2, alpha=alpha)
    torch.testing.assert_close(made, torch.stack(expected))
    assert query_expansion(vectors, k=0, alpha=alpha).equal(vectors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mixed_pooling(x, 1.5), "weight=1.5"),
        (lambda x: mixed_pooling(x[0], 0.5), "feature_map has shape"),
        (lambda x: beta_normalize(x[0, 0], -1), "beta=-1"),
        (lambda x: query_expansion(x[0, 0], k=1, alpha=float("nan")), "alpha=nan"),
        (lambda x: query_expansion(x[0, 0], k=2, alpha=1), "k=2: must be at most 1"),
        (lambda x: query_expansion(x[0, 0], k=-1, alpha=1), "k=-1"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 1, 2, 2))
