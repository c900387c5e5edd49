"""Fronts of two minimized objectives: points that no other beats, and the area they dominate."""

from __future__ import annotations

import numpy as np


def front(values: np.ndarray) -> np.ndarray:
    """Find the points that no other point dominates; of equal points, the first.

    Args:
        values: float64 [B, 2], to be minimized.

    Returns:
        Their indices, int64, in ascending order of the second objective.
    """
    order = np.lexsort((values[:, 0], values[:, 1]))
    best = (
        np.minimum.accumulate(np.concatenate([[np.inf], values[order, 0][:-1]]))
        if len(order)
        else np.empty(0)
    )
    return order[values[order, 0] < best]


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Compute the area between the front of points and a reference point.

    Args:
        values: float64 [B, 2], to be minimized.
        reference: float64 [2]; points that are not better in both objectives add nothing.

    Returns:
        The area, not negative.
    """
    from pymoo.indicators.hv import HV

    # The area of a front is that of all its points; pymoo is quick with few.
    return float(HV(ref_point=reference)(values[front(values)]))
