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
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Greedy:
    """Options of the greedy search.

    It proposes its seeds and the path of the weights' errors, and then random changes of single
    weights only.

    Attributes:
        batch: number of configurations per `ask`.
    """

    batch: int = 100

    def __post_init__(self) -> None:
        require(1, batch=self.batch)

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> GreedySearch:
        """Begin a search (see `StrategyOptions.start`)."""
        return GreedySearch(
            problem, np.concatenate([seeds, path(problem, problem.error)]), rng, self.batch
        )


@dataclass(slots=True)
class GreedySearch:
    """Proposes a queue of configurations, then neighbors of these (one weight changed).

    Attributes:
        problem: the space as arrays.
        queue: int64 [Q, W], configurations to propose first.
        rng: source of randomness.
        batch: number of configurations per `ask`.
    """

    problem: Problem
    queue: np.ndarray
    rng: np.random.Generator
    batch: int
    _at: int = field(default=0, init=False)

    def ask(self) -> np.ndarray:
        """Propose configurations (see `Strategy.ask`)."""
        left = self.queue[self._at : self._at + self.batch]
        self._at += len(left)
        if len(left):
            return left
        genes = self.queue[self.rng.integers(len(self.queue), size=self.batch)].copy()
        weights = self.rng.integers(genes.shape[1], size=self.batch)
        genes[np.arange(self.batch), weights] = self.rng.integers(self.problem.num_options[weights])
        return genes

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Ignore the values: the order comes from the additive model."""
