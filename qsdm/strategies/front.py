"""Fronts of two objectives that are both minimised: which points no other point beats, and the area that they
dominate.
"""

from __future__ import annotations

import numpy as np


def front(values: np.ndarray) -> np.ndarray:
    """The points that no other point dominates, the first of equal ones.

    Args:
        values: float64 [B, 2], to be minimised.

    Returns:
        Indices, int64, by rising second objective.
    """
    order = np.lexsort((values[:, 0], values[:, 1]))
    best = (
        np.minimum.accumulate(np.concatenate([[np.inf], values[order, 0][:-1]]))
        if len(order)
        else np.empty(0)
    )
    return order[values[order, 0] < best]


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Area between the front of ``values`` and the point ``reference``; points that are not better than it in both add
    nothing.

    Args:
        values: float64 [B, 2], to be minimised.
        reference: float64 [2].
    """
    inside = values[(values < reference).all(axis=1)]
    inside = inside[front(inside)]
    width = np.diff(np.append(inside[:, 1], reference[1]))
    return float(((reference[0] - inside[:, 0]) * width).sum())
