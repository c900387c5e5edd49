"""Attributions of the predictor's answer to weights and to groups of weights, with Captum.

Integrated gradients: harm_w = -(x_w - x0_w) . integral over t in [0, 1] of df/dx_w (x0 + t (x - x0)), for a one-hot
configuration x and the full-precision configuration x0. The harms add up to f(x0) - f(x); the gap is reported.

Ablation, in both directions, since it does not add up where weights interact: ``to_full`` gives a group of the
quantized denoiser its full precision, ``from_full`` quantizes that group alone.

References:
    Axiomatic Attribution for Deep Networks (Sundararajan et al., 2017), Eq. 1 and proposition 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qsdm.predictor import Predictor


def answer(predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """One-hot or relaxed [B, W, M + 1] => predicted quality [B], the mean of the folds."""
    return lambda configurations: predictor.by_fold(configurations).mean(dim=0)


def integrated_gradients(
    predictor: Predictor, genes: np.ndarray, steps: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Harm of each weight in each configuration.

    Args:
        genes: int64 [B, W].
        steps: points of the Gauss-Legendre rule.

    Returns:
        Harms, float64 [B, W], and what their sums lack, [B]: f(x0) - f(x) - sum over weights.
    """
    from captum.attr import IntegratedGradients

    configurations = torch.from_numpy(predictor.encoding.one_hot(genes))
    full = torch.from_numpy(predictor.encoding.full_precision())
    function = answer(predictor)
    method = IntegratedGradients(function)
    # One configuration at a time: a path of ``steps`` points is a batch that stays in the cache.
    parts = [
        method.attribute(one[None], baselines=full, n_steps=steps).sum(dim=2)
        for one in configurations
    ]
    harms = -torch.cat(parts).detach().double().numpy()
    with torch.no_grad():
        drop = (function(full) - function(configurations)).double().numpy()
    return harms, drop - harms.sum(axis=1)


def ablation(predictor: Predictor, genes: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Harm of each group of weights, in both directions.

    Args:
        genes: int64 [B, W].
        groups: int64 [W], the group of each weight, from 0 upwards without gaps.

    Returns:
        ``to_full`` and ``from_full``, float64 [B, G] each.
    """
    from captum.attr import FeatureAblation

    encoding = predictor.encoding
    configurations = torch.from_numpy(encoding.one_hot(genes))
    full = torch.from_numpy(encoding.full_precision()).expand_as(configurations).contiguous()
    mask = torch.from_numpy(groups)[None, :, None].expand(1, *configurations.shape[1:]).contiguous()
    first = [int((groups == g).argmax()) for g in range(groups.max() + 1)]
    method = FeatureAblation(answer(predictor))
    directions = {"to_full": (configurations, full, -1), "from_full": (full, configurations, 1)}
    found = {}
    with torch.no_grad():
        for name, (inputs, baselines, sign) in directions.items():
            # f(inputs) - f(inputs with the group replaced), repeated on each element of the group: take one
            change = method.attribute(inputs, baselines=baselines, feature_mask=mask)
            found[name] = sign * change[:, first, 0].double().numpy()
    return found
