"""What the predictor learns by: squared error of the label, and ranking losses on the norms of hop embeddings.

References:
    From RankNet to LambdaRank to LambdaMART (Burges, 2010), section 4: gradients weighted by the change of NDCG.
    A General Approximation Framework for Direct Optimization of Information Retrieval Measures (Qin et al., 2010),
    section 4: ranks as sums of sigmoids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsdm.predictor.scores import NDCG_AT

TEMPERATURE = 0.1  # in standard deviations of the scores: sharp enough to order 16 of them, soft enough for gradients


def soft_ranks(scores: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Differentiable ranks of [B], from 0.5 upwards: r_i = sum over j of sigmoid((s_i - s_j) / temperature)."""
    scaled = (scores - scores.mean()) / (scores.std() + 1e-6)
    return torch.sigmoid((scaled[:, None] - scaled[None]) / temperature).sum(dim=1)


def spearman_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """1 - correlation of soft ranks with the ranks of the labels, both [B]; in [0, 2]."""
    ranks = soft_ranks(scores)
    wanted = labels.argsort().argsort().to(scores.dtype)
    ranks, wanted = ranks - ranks.mean(), wanted - wanted.mean()
    return 1 - (ranks * wanted).sum() / (ranks.norm() * wanted.norm() + 1e-6)


def lambda_rank_loss(scores: Tensor, relevance: Tensor) -> Tensor:
    """Logistic loss of each pair, times the change of NDCG if the two swapped places.

    Args:
        scores: [B], scaled to deviation 1 inside.
        relevance: [B], not negative; see `qsdm.predictor.scores.relevance`.
    """
    scaled = (scores - scores.mean()) / (scores.std() + 1e-6)
    place = scaled.detach().argsort(descending=True).argsort()
    discount = torch.where(place < NDCG_AT, 1 / torch.log2(place + 2.0), torch.zeros(()))
    ideal = relevance.sort(descending=True).values[:NDCG_AT]
    best = (ideal / torch.log2(torch.arange(len(ideal)) + 2.0)).sum()
    swap = (
        (relevance[:, None] - relevance[None]).abs()
        * (discount[:, None] - discount[None]).abs()
        / (best + 1e-6)
    )
    better = relevance[:, None] > relevance[None]
    pairs = torch.nn.functional.softplus(scaled[None] - scaled[:, None]) * swap
    return pairs[better].sum()


def ranking_loss(kind: str, norms: Tensor, labels: Tensor, relevance: Tensor) -> Tensor:
    """Mean over hops of the loss ``kind``.

    Args:
        kind: one of `qsdm.predictor.RANKING`.
        norms: [H + 1, B].
        labels: [B], larger is better.
        relevance: [B].
    """
    total = norms.new_zeros(())
    for scores in norms:
        if kind in ("spearman", "hybrid"):
            total = total + spearman_loss(scores, labels)
        if kind in ("lambda_rank", "hybrid"):
            total = total + lambda_rank_loss(scores, relevance)
    return total / len(norms)
