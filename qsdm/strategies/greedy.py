"""Greedy search along the path of an additive model, from the least harm to the fewest bytes.

The path changes one weight at a time, in the order of harm per saved byte. For each weight, only
options on the lower convex hull of (bytes, harm) are used. Sorting the steps of all weights by
slope then gives one path, and every configuration on it is the best of its size (by the linear
relaxation of the multiple-choice knapsack problem).

References:
    The Multiple-Choice Knapsack Problem (Sinha and Zoltners, 1979), sections 1 and 2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from qsdm.strategies import Problem
from qsdm.text import require


def path(problem: Problem, harm: np.ndarray) -> np.ndarray:
    """Compute the path of configurations from the least harm to the fewest bytes.

    Args:
        problem: the space as arrays.
        harm: float64 [W, O], loss of quality by each option of each weight, on one scale for all
            weights (an error, or a loss of predicted quality); entries beyond a weight's options
            are ignored.

    Returns:
        Genes, int64 [P, W], in descending order of bytes.

    Raises:
        ValueError: a harm is not finite, or the shape is wrong.
    """
    offered = np.arange(problem.size_bytes.shape[1]) < problem.num_options[:, None]
    if harm.shape != offered.shape or not np.isfinite(harm[offered]).all():
        raise ValueError(
            f"greedy needs a finite harm for each option, shape {offered.shape} "
            f"(got shape {harm.shape}, {np.isfinite(harm).sum()} finite values)"
        )
    start = np.empty(len(problem.num_options), dtype=np.int64)
    steps: list[tuple[float, int, int]] = []  # (harm per saved byte, weight, option)
    for weight, num in enumerate(problem.num_options):
        hull = _hull(problem.size_bytes[weight, :num], harm[weight, :num])
        start[weight] = hull[0]
        for a, b in itertools.pairwise(hull):
            saved = problem.size_bytes[weight, a] - problem.size_bytes[weight, b]
            steps.append(((harm[weight, b] - harm[weight, a]) / saved, weight, b))
    genes = np.repeat(start[None], len(steps) + 1, axis=0)
    for i, (_, weight, option) in enumerate(sorted(steps, key=lambda step: step[:2]), start=1):
        genes[i:, weight] = option
    return genes


def _hull(size: np.ndarray, harm: np.ndarray) -> list[int]:
    """Options on the lower convex hull, from the least harm to the fewest bytes.

    Of equally harmful options, the smallest comes first.
    """
    hull: list[int] = []
    for option in np.lexsort((harm, -size)):  # in descending order of bytes
        while hull and harm[option] <= harm[hull[-1]]:
            hull.pop()
        if hull and size[option] == size[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(size, harm, hull[-2], hull[-1]) >= _slope(
            size, harm, hull[-1], option
        ):
            hull.pop()
        hull.append(int(option))
    return hull


def _slope(size: np.ndarray, harm: np.ndarray, a: int, b: int) -> float:
    return float((harm[b] - harm[a]) / (size[a] - size[b]))


def mixes(problem: Problem, harm: np.ndarray, num: int = 5) -> np.ndarray:
    """Weigh quality and further axes against each other, from the one alone to the other alone.

    Args:
        problem: the space as arrays.
        harm: float64 [K - 1, W, O], of single changes.
        num: of mixes, if there is more than the quality.

    Returns:
        Float64 [num, K - 1], [1, 1] for the quality alone; 1 is the total harm of the worst
        options, so that all count alike in the middle.
    """
    if len(harm) == 1:
        return np.ones((1, 1))
    offered = np.arange(harm.shape[2]) < problem.num_options[:, None]
    totals = np.where(offered, harm, 0).max(axis=2).sum(axis=1)
    share = np.linspace(0, 1, num)[:, None]
    others = len(harm) - 1
    return np.concatenate([1 - share, *[share / others] * others], axis=1) / np.maximum(
        totals, 1e-12
    )


def spread(genes: np.ndarray, num: int) -> np.ndarray:
    """Pick evenly spaced configurations of a path, its ends included.

    Args:
        genes: int64 [P, W].
        num: maximum number of configurations, at least 2.

    Returns:
        Int64 [min(P, num), W].
    """
    if len(genes) <= num:
        return genes
    return genes[np.unique(np.linspace(0, len(genes) - 1, num).round().astype(np.int64))]


def filled(problem: Problem, harm: np.ndarray, genes: np.ndarray, max_bytes: float) -> np.ndarray:
    """Spend what a budget leaves over: the best change per byte that still fits, again and again.

    Args:
        problem: the space as arrays.
        harm: float64 [W, O], finite, of single changes.
        genes: int64 [W], a configuration within the budget.
        max_bytes: the budget.

    Returns:
        A configuration of no more harm, int64 [W].
    """
    genes, rows = genes.copy(), np.arange(len(genes))
    offered = np.arange(harm.shape[1]) < problem.num_options[:, None]
    while True:
        gain = harm[rows, genes][:, None] - harm
        grows = problem.size_bytes - problem.size_bytes[rows, genes][:, None]
        fits = offered & (gain > 0) & (grows <= max_bytes - problem.size_of(genes))
        if not fits.any():
            return genes
        per_byte = np.where(fits, gain / np.maximum(grows, 1), 0)
        weight, option = np.unravel_index(per_byte.argmax(), per_byte.shape)
        genes[weight] = option


@dataclass(frozen=True, slots=True)
class Greedy:
    """Options of the greedy search.

    It proposes its seeds and the whole path of predicted single changes, and ends. With further
    axes, or with limits, it walks one path for each of several mixes of them with the quality.
    Where a budget ends a path, single weights use up what is left of it.

    Attributes:
        points: of each path, at most.
        mixes: number of paths, if there is more than the quality.
        batch: number of configurations per `ask`.
    """

    points: int = 200
    mixes: int = 33
    batch: int = 100

    def __post_init__(self) -> None:
        require(2, points=self.points, mixes=self.mixes)
        require(1, batch=self.batch)

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> Queue:
        """Begin a search (see `StrategyOptions.start`)."""
        harm = problem.error[None] if problem.harm is None else problem.harm
        if problem.limited is not None:
            harm = np.concatenate([harm, problem.limited])
        harm = np.where(np.isfinite(harm), harm, 0)  # beyond a weight's options
        budgets = {problem.max_bytes, min(problem.aim_bytes, problem.max_bytes)} - {np.inf}
        first: list[np.ndarray] = [seeds]
        rest: list[np.ndarray] = []
        for mix in mixes(problem, harm, self.mixes):
            total = np.tensordot(mix, harm, 1)
            walked = path(problem, total)
            sizes = problem.size_of(walked)
            for budget in budgets:
                within = walked[sizes <= budget][:1]  # the largest comes first
                first += [filled(problem, total, genes, budget)[None] for genes in within]
            rest.append(spread(walked[sizes <= problem.max_bytes], self.points))
        # In random order, few evaluations see a part of all paths, not all of the first ones.
        genes = np.concatenate([*first, rng.permutation(np.concatenate(rest))])
        _, index = np.unique(genes, axis=0, return_index=True)
        return Queue(self.batch, genes[np.sort(index)])


@dataclass(slots=True, eq=False)
class Queue:
    """Proposes what is known beforehand.

    Attributes:
        batch: number of configurations per `ask`.
        queue: int64 [Q, W].
    """

    batch: int
    queue: np.ndarray

    def ask(self) -> np.ndarray:
        """Propose configurations; none when all were proposed (see `Strategy.ask`)."""
        asked, self.queue = self.queue[: self.batch], self.queue[self.batch :]
        return asked

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Ignore the values: the order comes from the additive model."""
