"""Fronts of minimized objectives: points that no other beats, and the volume they dominate."""

from __future__ import annotations

import numpy as np


def front(values: np.ndarray) -> np.ndarray:
    """Find the points that no other point dominates; of equal points, the first.

    Args:
        values: float64 [B, K], to be minimized; K is 2 or more.

    Returns:
        Their indices, int64, in ascending order of the second objective.
    """
    if values.shape[1] > 2:
        return _surface(values)
    order = np.lexsort((values[:, 0], values[:, 1]))
    best = (
        np.minimum.accumulate(np.concatenate([[np.inf], values[order, 0][:-1]]))
        if len(order)
        else np.empty(0)
    )
    return order[values[order, 0] < best]


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Compute the volume between the front of points and a reference point.

    Args:
        values: float64 [B, K], to be minimized.
        reference: float64 [K]; points that are not better in all objectives add nothing.

    Returns:
        The volume (of two objectives, the area), not negative.
    """
    from pymoo.indicators.hv import HV

    # The volume of a front is that of all its points; pymoo is quick with few.
    return float(HV(ref_point=reference)(values[front(values)]))


def _surface(values: np.ndarray) -> np.ndarray:
    """Front of three objectives or more; a point can be dominated by earlier ones alone."""
    order = np.lexsort((*values.T[2:], values[:, 0], values[:, 1]))
    kept = np.empty_like(values)
    rows: list[int] = []
    for row in order:
        if not (kept[: len(rows)] <= values[row]).all(axis=1).any():
            kept[len(rows)] = values[row]
            rows.append(int(row))
    return np.array(rows, dtype=np.int64)
