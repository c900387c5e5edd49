"""Attributions of the predictor's estimate to weights and to groups of weights.

Integrated gradients (by Captum), for a one-hot configuration x and full precision x0::

    harm_w = -(x_w - x0_w) . integral over t in [0, 1] of df/dx_w (x0 + t (x - x0))

The harms add up to f(x0) - f(x), up to an integration error that is reported.

Ablation is done in both directions, because it does not add up where weights interact: ``to_full``
restores a group of the quantized denoiser to full precision, ``from_full`` quantizes that group
alone.

References:
    Axiomatic Attribution for Deep Networks (Sundararajan et al., 2017), Eq. 1 and proposition 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from qsdm.predictor import Predictor


def answer(predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """Return the function that is explained: the mean of the folds' estimates.

    Args:
        predictor: a trained predictor.

    Returns:
        A differentiable function from configurations, one-hot or relaxed, float32 [B, W, M + 1], to
        predicted quality, float32 [B].
    """
    return lambda configurations: predictor.by_fold(configurations).mean(dim=0)


def integrated_gradients(
    predictor: Predictor, genes: np.ndarray, steps: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the harm of each weight in each configuration by integrated gradients.

    Args:
        predictor: trained on the space of the genes.
        genes: int64 [B, W].
        steps: number of points of the Gauss-Legendre rule.

    Returns:
        Harms, float64 [B, W], and the integration error, float64 [B]: f(x0) - f(x) minus the sum of
        the harms.
    """
    from captum.attr import IntegratedGradients

    configurations = torch.from_numpy(predictor.encoding.one_hot(genes))
    full = torch.from_numpy(predictor.encoding.full_precision())
    function = answer(predictor)
    rows = predictor.folds[0].gnn.wiring.separate(steps)
    # One configuration and one fold at a time, as gradients of a mean are the mean of gradients: a
    # batch of ``steps`` points stays in the cache, and only one network's embeddings are kept.
    methods = [IntegratedGradients(partial(fold.predict, rows=rows)) for fold in predictor.folds]
    parts = [
        torch.stack(
            [method.attribute(one[None], baselines=full, n_steps=steps) for method in methods]
        )
        .mean(dim=0)
        .sum(dim=2)
        for one in configurations
    ]
    harms = -torch.cat(parts).detach().double().numpy()
    with torch.no_grad():
        drop = (function(full) - function(configurations)).double().numpy()
    return harms, drop - harms.sum(axis=1)


def ablation(predictor: Predictor, genes: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the harm of each group of weights by ablation, in both directions.

    Args:
        predictor: trained on the space of the genes.
        genes: int64 [B, W].
        groups: int64 [W], the group of each weight, from 0 to G - 1 without gaps.

    Returns:
        ``to_full`` and ``from_full``, float64 [B, G] each.
    """
    columns = predictor.encoding.columns_of(genes)
    full = np.full_like(columns, len(predictor.encoding.methods))
    in_group = np.arange(groups.max() + 1)[:, None, None] == groups  # [G, 1, W]
    harms = {}
    for name, start, end, sign in (("to_full", columns, full, 1), ("from_full", full, columns, -1)):
        changed = np.where(in_group, end, start)  # [G, B, W]
        values = predictor.at(np.concatenate([changed.reshape(-1, columns.shape[1]), start]))
        after, before = np.split(values.mean(axis=0), [len(changed) * len(columns)])
        harms[name] = sign * (after.reshape(-1, len(columns)) - before).T
    return harms
