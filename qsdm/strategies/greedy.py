"""The greedy path of an additive model: from the least harm to the fewest bytes, one weight at a time, least harm per
saved byte first.

For each weight only options on the lower convex hull of (bytes, harm) are taken; then the steps of all weights sort by
slope into one path, and every configuration on it is the best of its size (the linear relaxation of the multiple-choice
knapsack problem).

References: Sinha and Zoltners, The Multiple-Choice Knapsack Problem (1979), sections 1 and 2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from qsdm.bounds import require
from qsdm.strategies import Problem


def path(problem: Problem, harm: np.ndarray) -> np.ndarray:
    """Configurations from least harm to fewest bytes.

    Args:
        harm: float64 [W, O], what each option of each weight costs in quality, on one scale for all weights (an error,
            or a loss of predicted quality); whatever stands beyond a weight's options is ignored.

    Returns:
        Genes, int64 [P, W], by falling bytes.

    Raises:
        ValueError: a harm is not finite.
    """
    offered = np.arange(problem.size_bytes.shape[1]) < problem.num_options[:, None]
    if harm.shape != offered.shape or not np.isfinite(harm[offered]).all():
        raise ValueError(
            f"greedy needs a finite harm of each option, shape {offered.shape} (got shape {harm.shape})"
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
    """Options on the lower convex hull, from the least harm (fewest bytes among equals) to the fewest bytes."""
    hull: list[int] = []
    for option in np.lexsort((harm, -size)):  # by falling bytes
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


def spread(genes: np.ndarray, num: int) -> np.ndarray:
    """At most ``num`` configurations of a path, evenly spaced, ends included: [P, W] => [min(P, num), W]."""
    if len(genes) <= num:
        return genes
    return genes[np.unique(np.linspace(0, len(genes) - 1, num).round().astype(np.int64))]


@dataclass(frozen=True, slots=True)
class Greedy:
    """Options of the greedy search: it proposes its seeds and the path of the weights' errors, and then only random
    single changes.

    Attributes:
        batch: configurations per `ask`.
    """

    batch: int = 100

    def __post_init__(self) -> None:
        require(1, batch=self.batch)

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> GreedySearch:
        return GreedySearch(
            problem, np.concatenate([seeds, path(problem, problem.error)]), rng, self.batch
        )


@dataclass(slots=True)
class GreedySearch:
    """Proposes the queue, then neighbours of what was queued (one weight changed)."""

    problem: Problem
    queue: np.ndarray
    rng: np.random.Generator
    batch: int
    _at: int = field(default=0, init=False)

    def ask(self) -> np.ndarray:
        left = self.queue[self._at : self._at + self.batch]
        self._at += len(left)
        if len(left):
            return left
        genes = self.queue[self.rng.integers(len(self.queue), size=self.batch)].copy()
        weights = self.rng.integers(genes.shape[1], size=self.batch)
        genes[np.arange(self.batch), weights] = self.rng.integers(self.problem.num_options[weights])
        return genes

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Nothing to learn: the order comes from the additive model."""
