"""What constraints leave: the reachable bits and bytes, and from where on a limit can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qsdm.qconfig import Space
from qsdm.qconfig.cost import MethodTable
from qsdm.strategies import Problem
from qsdm.strategies.archive import Archive, Metric, OfPart, references, sensitivity
from qsdm.strategies.constraints import Constraints, Holds, reach
from qsdm.strategies.greedy import path


def reachable(
    space: Space,
    table: MethodTable | None,
    constraints: Constraints,
    holds: Holds | None = None,
    metrics: Sequence[Metric] = (),
) -> tuple[dict[str, float | None], list[str]]:
    """Compute what constraints leave.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods; only limits need it.
        constraints: budget, limits and what restricts the options.
        holds: whether the target holds a method; None: it holds all.
        metrics: predicted, those with a limit.

    Returns:
        min_bits, max_bits, min_bytes and max_bytes; by metric, the fewest bytes at which its limit
        is predicted to be kept, None if it is nowhere. And lines that say the same.

    Raises:
        Infeasible: a weight has no option left.
        ValueError: a name does not exist.
    """
    whole = replace(constraints, size_bytes=None, avg_bits=None, tera_bops=None)
    part = whole.restrict(space, holds)
    low, high = reach(part.space)
    num = space.graph.num_values
    lines = [
        f"methods: {', '.join(map(str, part.space.methods))}",
        f"reachable: {8 * low / num:.3f} to {8 * high / num:.3f} bits, {low:,} to {high:,} bytes",
    ]
    result: dict[str, float | None] = {
        "min_bits": 8 * low / num,
        "max_bits": 8 * high / num,
        "min_bytes": low,
        "max_bytes": high,
    }
    if budget := constraints.budget_text:
        is_met = low <= constraints.max_bytes(num)
        lines.append(f"{budget}: {'reachable' if is_met else 'out of reach'}")
    for metric in metrics:
        assert table is not None
        problem = Problem(part.space, part.errors(Problem.of(space, table).error))
        limit = constraints.limit[metric.name]
        least = least_bytes(problem, OfPart(metric, part.whole), limit)
        result[metric.name] = least
        where = (
            "out of reach, as predicted"
            if least is None
            else f"from {8 * least / num:.3f} bits, {least:,} bytes on, as predicted"
        )
        lines.append(f"limit.{metric.name}={limit:g}: {where}")
    return result, lines


def least_bytes(problem: Problem, metric: Metric, limit: float) -> int | None:
    """Find the smallest configuration on a metric's own greedy path that keeps its limit.

    Args:
        problem: the space as arrays.
        metric: predicts.
        limit: worst allowed value.

    Returns:
        Bytes; None if nothing on the path keeps it.
    """

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return metric.sign * metric(genes), np.zeros(len(genes))

    contexts = references(problem, np.random.default_rng(0))
    genes = path(problem, sensitivity(Archive(problem, predict, 0.0), contexts)[0])
    kept = metric.sign * (metric(genes) - limit) >= 0
    return int(problem.size_of(genes[kept]).min()) if kept.any() else None
