from __future__ import annotations

import pytest
import torch

from qsdm.predictor import RANKING
from qsdm.predictor.losses import lambda_rank_loss, ranking_loss, soft_ranks, spearman_loss
from qsdm.predictor.scores import ndcg, relevance


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randn(24, generator=torch.Generator().manual_seed(0))


def gain(labels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(relevance(labels.double().numpy())).float()


def test_soft_ranks_become_ranks(labels: torch.Tensor) -> None:
    ranks = soft_ranks(labels, temperature=1e-4)
    torch.testing.assert_close(ranks, labels.argsort().argsort() + 0.5)
    torch.testing.assert_close(soft_ranks(labels).sum(), torch.tensor(24 * 24 / 2.0))


def test_spearman_loss_runs_from_0_to_2(labels: torch.Tensor) -> None:
    assert spearman_loss(labels, labels) < 0.05
    assert spearman_loss(-labels, labels) > 1.95
    torch.testing.assert_close(spearman_loss(3 * labels + 7, labels), spearman_loss(labels, labels))


@pytest.mark.parametrize("kind", [kind for kind in RANKING if kind != "none"])
def test_descent_on_the_loss_ranks_the_best_first(kind: str, labels: torch.Tensor) -> None:
    """Descent takes NDCG@10 from that of a reversed order to above 0.9."""
    scores = (
        -labels + 0.1 * torch.randn(24, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    before = ndcg(scores.detach().numpy(), labels.numpy())
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        ranking_loss(kind, scores[None], labels, gain(labels)).backward()
        optimizer.step()
    assert before < 0.5
    assert ndcg(scores.detach().numpy(), labels.numpy()) > 0.9


def test_only_swaps_with_the_first_ten_places_count() -> None:
    """The one relevant configuration, at rank 15, is compared with the first ten only."""
    scores = torch.linspace(2, -2, 24)
    scores = (scores - scores.mean()) / scores.std()
    gains = torch.zeros(24)
    gains[14] = 5.0
    discount = 1 / torch.log2(torch.arange(10) + 2.0)
    expected = (torch.nn.functional.softplus(scores[:10] - scores[14]) * discount).sum()
    torch.testing.assert_close(lambda_rank_loss(scores, gains), expected, rtol=1e-4, atol=1e-4)


def test_hybrid_is_the_sum_of_both(labels: torch.Tensor) -> None:
    norms = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    parts = [
        ranking_loss(kind, norms, labels, gain(labels)) for kind in ("spearman", "lambda_rank")
    ]
    torch.testing.assert_close(ranking_loss("hybrid", norms, labels, gain(labels)), sum(parts))
    assert ranking_loss("none", norms, labels, gain(labels)) == 0
