"""Search strategies: `Strategy.ask` proposes configurations, `Strategy.tell` receives their values.

A strategy never evaluates anything: the command that runs it owns budget, scoring and logging. An
entry of ``conf/strategy`` names a frozen dataclass of options, whose ``start`` begins a search;
each module here holds one strategy.

Axes: B configurations, W weights, O options of the weight that has the most, K objectives.

Example:
    >>> import numpy as np
    >>> from qsdm.graph import Graph, Node, Op, Role, Weight
    >>> from qsdm.qconfig import SpaceSpec
    >>> from qsdm.strategies import Problem
    >>> from qsdm.strategies.random import Random
    >>> proj = Node("proj", Op.LINEAR, Role.FF_IN, weight=Weight("proj", "proj.weight", (64, 512)))
    >>> space = SpaceSpec("two", ["uaq-3", "uaq-4"]).of(Graph("tiny", (proj,), ()))
    >>> problem = Problem(space, error=np.array([[0.03, 0.01]]))
    >>> rng, seeds = np.random.default_rng(0), np.empty((0, 1), dtype=np.int64)
    >>> search = Random(batch=5).start(problem, seeds, rng)
    >>> genes = search.ask()
    >>> search.tell(genes, np.zeros((5, 2)))
    >>> genes.shape
    (5, 1)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from qsdm.qconfig import Space, tilted
from qsdm.qconfig.cost import MethodTable


class Strategy(Protocol):
    """A search in progress."""

    def ask(self) -> np.ndarray:
        """Propose configurations to evaluate.

        Returns:
            Genes, int64 [B, W] (see `Space.encode`).
        """

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Receive the values of the configurations of the last `ask`.

        Args:
            genes: int64 [B, W], as `ask` returned them.
            values: float64 [B, K], to be minimized.
        """


class StrategyOptions(Protocol):
    """One entry of ``conf/strategy``."""

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> Strategy:
        """Begin a search.

        Args:
            problem: the space as arrays.
            seeds: int64 [S, W], good configurations to start from; S may be 0.
            rng: source of randomness.

        Returns:
            The search.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A space as arrays: all that a strategy needs to know about it.

    Attributes:
        space: W weights and the methods on offer for each.
        error: float64 [W, O], relative squared error of the weight (see `MethodTable`); infinite
            beyond a weight's options.
        harm: float64 [K - 1, W, O], predicted loss of quality (and of further axes) by single
            changes, see `qsdm.strategies.archive.sensitivity`; None where nothing was predicted.
        limited: float64 [L, W, O], the same of metrics that have a limit and are no axis; None
            where there are none.
        max_bytes: size above which configurations are of no interest.
        aim_bytes: size at which the best configuration is wanted most.
        num_options: int64 [W], number of options.
        size_bytes: int64 [W, O], size of the weight; 0 beyond a weight's options.
    """

    space: Space
    error: np.ndarray
    harm: np.ndarray | None = None
    limited: np.ndarray | None = None
    max_bytes: float = np.inf
    aim_bytes: float = np.inf
    num_options: np.ndarray = field(init=False)
    size_bytes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        options, sizes = sizes_of(self.space)
        if self.error.shape != sizes.shape:
            raise ValueError(
                f"wanted errors of shape {sizes.shape}, weights by options (got {self.error.shape})"
            )
        object.__setattr__(self, "num_options", options)
        object.__setattr__(self, "size_bytes", sizes)

    @staticmethod
    def of(space: Space, table: MethodTable) -> Problem:
        """Combine a space with the errors of its weights.

        Args:
            space: W weights and the methods on offer for each.
            table: errors of the weights under the methods.

        Returns:
            The problem.

        Raises:
            ValueError: the table lacks a weight or a method of the space.
        """
        column = {method: i for i, method in enumerate(table.methods)}
        row = {name: i for i, name in enumerate(table.weights)}
        error = np.full(sizes_of(space)[1].shape, np.inf)
        for i, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
            for o, method in enumerate(m.of_weight for m in offered):
                in_table = weight.name in row and method in column
                error[i, o] = (
                    table.rel_error[row[weight.name], column[method]] if in_table else np.nan
                )
                if np.isnan(error[i, o]):
                    raise ValueError(
                        f"{method} was not calibrated for {weight.name!r}: "
                        "calibrate this space again"
                    )
        return Problem(space, error)

    def size_of(self, genes: np.ndarray) -> np.ndarray:
        """Compute the size of configurations.

        Args:
            genes: int64 [B, W].

        Returns:
            Bytes, int64 [B].
        """
        return self.size_bytes[np.arange(len(self.num_options)), genes].sum(axis=-1)

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Draw many random configurations at once, by the rule of `Space.sample`.

        Args:
            rng: source of randomness.
            num: number of configurations.

        Returns:
            Genes, int64 [num, W].
        """
        bits, share = bits_of(self.space)
        widths = np.unique(bits[share > 0])
        column = np.searchsorted(widths, bits)  # beyond a weight's options anything: its share is 0
        genes = np.empty((num, len(bits)), dtype=np.int64)
        for row, target in zip(genes, rng.uniform(widths[0], widths[-1], size=num), strict=True):
            probability = tilted(widths, np.ones(len(widths)), widths, target)
            row[:] = draw(share * probability[column], rng)
        return genes


def draw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one option for each weight.

    Args:
        weights: float64 [W, O], not negative, proportional to the probability of each option.
        rng: source of randomness.

    Returns:
        Genes, int64 [W].
    """
    cumulative = weights.cumsum(axis=1)
    return (rng.random((len(weights), 1)) * cumulative[:, -1:] >= cumulative).sum(axis=1)


def bits_of(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate the bits of each option.

    Args:
        space: W weights and the methods on offer for each.

    Returns:
        The bits, and 1 / (number of the weight's options with these bits); float64 [W, O], 0 beyond
        the weight's options.
    """
    num = max(len(offered) for offered in space.options)
    bits, share = np.zeros((2, len(space.options), num))
    for i, offered in enumerate(space.options):
        bits[i, : len(offered)] = [method.bits for method in offered]
        share[i, : len(offered)] = [
            1 / sum(other.bits == method.bits for other in offered) for method in offered
        ]
    return bits, share


def sizes_of(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate the sizes of each option.

    Args:
        space: W weights and the methods on offer for each.

    Returns:
        Number of options, int64 [W], and their bytes, int64 [W, O], 0 beyond the weight's options.
    """
    options = np.array([len(offered) for offered in space.options], dtype=np.int64)
    sizes = np.zeros((len(options), options.max()), dtype=np.int64)
    for i, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
        sizes[i, : len(offered)] = [
            method.size_bits(weight, space.full_bits) // 8 for method in offered
        ]
    return options, sizes
