"""Ranking losses on the norms of hop embeddings, used in addition to the squared error of labels.

References:
    From RankNet to LambdaRank to LambdaMART (Burges, 2010), section 4: gradients weighted by the
    change of NDCG.

    A General Approximation Framework for Direct Optimization of Information Retrieval Measures
    (Qin et al., 2010), section 4: ranks as sums of sigmoids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsdm.predictor.scores import NDCG_AT

# In standard deviations of the scores: sharp enough to order 16 of them, soft enough for gradients
TEMPERATURE = 0.1


def soft_ranks(scores: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Compute differentiable ranks: r_i = sum over j of sigmoid((s_i - s_j) / temperature).

    Args:
        scores: [..., B].
        temperature: positive, in standard deviations of the scores.

    Returns:
        Float32 [..., B], from 0.5 upward.
    """
    scaled = _standard(scores)
    differences = scaled[..., :, None] - scaled[..., None, :]
    return torch.sigmoid(differences / temperature).sum(dim=-1)


def spearman_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute 1 minus the correlation of soft ranks with the ranks of the labels.

    Args:
        scores: [..., B].
        labels: [B], larger is better.

    Returns:
        [...], each in [0, 2].
    """
    ranks = soft_ranks(scores)
    target = labels.argsort().argsort().to(scores.dtype)
    ranks, target = ranks - ranks.mean(dim=-1, keepdim=True), target - target.mean()
    return 1 - (ranks * target).sum(dim=-1) / (ranks.norm(dim=-1) * target.norm() + 1e-6)


def lambda_rank_loss(scores: Tensor, relevance: Tensor) -> Tensor:
    """Compute the logistic loss of each pair, weighted by how much swapping it would change NDCG.

    Args:
        scores: [..., B]; they need not be standardized.
        relevance: [B], not negative; see `qsdm.predictor.scores.relevance`.

    Returns:
        [...], not negative.
    """
    scaled = _standard(scores)
    position = scaled.detach().argsort(dim=-1, descending=True).argsort(dim=-1)
    discount = torch.where(position < NDCG_AT, 1 / torch.log2(position + 2.0), torch.zeros(()))
    ideal = relevance.sort(descending=True).values[:NDCG_AT]
    best = (ideal / torch.log2(torch.arange(len(ideal)) + 2.0)).sum()
    swap = (
        (relevance[:, None] - relevance[None]).abs()
        * (discount[..., :, None] - discount[..., None, :]).abs()
        / (best + 1e-6)
    )
    better = relevance[:, None] > relevance[None]
    pairs = torch.nn.functional.softplus(scaled[..., None, :] - scaled[..., :, None]) * swap
    return (pairs * better).sum(dim=(-2, -1))


def ranking_loss(kind: str, norms: Tensor, labels: Tensor, relevance: Tensor) -> Tensor:
    """Compute the mean of a ranking loss over hops.

    Args:
        kind: one of `qsdm.predictor.RANKING`.
        norms: [H + 1, B], norms of the hops' embeddings.
        labels: [B], larger is better.
        relevance: [B], not negative.

    Returns:
        A scalar; 0 for ``none``.
    """
    total = norms.new_zeros(len(norms))
    if kind in ("spearman", "hybrid"):
        total = total + spearman_loss(norms, labels)
    if kind in ("lambda_rank", "hybrid"):
        total = total + lambda_rank_loss(norms, relevance)
    return total.mean()


def _standard(scores: Tensor) -> Tensor:
    middle, spread = scores.mean(dim=-1, keepdim=True), scores.std(dim=-1, keepdim=True)
    return (scores - middle) / (spread + 1e-6)
