"""Search strategies: `Strategy.ask` proposes configurations, `Strategy.tell` learns what they are worth.

A strategy never evaluates anything: the command that runs it owns budget, scoring and logging. What is chosen on the command line (one
entry of ``conf/strategy``) is a small frozen dataclass of options whose ``start`` makes the strategy; every other file here is one of them.

Axes: B configurations, W weights, O options of the weight that has most, K objectives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from qsdm.cost import MethodTable
from qsdm.qconfig import Space


class Strategy(Protocol):
    """One search in progress."""

    def ask(self) -> np.ndarray:
        """Configurations to evaluate: genes, int64 [B, W] (see `Space.encode`)."""

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """What the configurations of the last `ask` are worth.

        Args:
            genes: int64 [B, W], as asked.
            values: float64 [B, K], to be minimised.
        """


class StrategyOptions(Protocol):
    """One entry of ``conf/strategy``."""

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> Strategy:
        """A new search.

        Args:
            seeds: configurations that are known to be good, int64 [S, W]; S may be 0.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A space as arrays: what a strategy needs to know of it.

    Attributes:
        num_options: int64 [W].
        size_bytes: int64 [W, O]; 0 beyond a weight's options.
        error: float64 [W, O], relative squared error of the weight (see `MethodTable`); infinite beyond a weight's options.
    """

    space: Space
    error: np.ndarray
    num_options: np.ndarray = field(init=False)
    size_bytes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        options, sizes = sizes_of(self.space)
        if self.error.shape != sizes.shape:
            raise ValueError(f"wanted errors of shape {sizes.shape}, weights by options (got {self.error.shape})")
        object.__setattr__(self, "num_options", options)
        object.__setattr__(self, "size_bytes", sizes)

    @staticmethod
    def of(space: Space, table: MethodTable) -> Problem:
        """Raises ValueError if the table lacks a weight or a method of the space."""
        column = {method: i for i, method in enumerate(table.methods)}
        row = {name: i for i, name in enumerate(table.weights)}
        options, sizes = sizes_of(space)
        error = np.full(sizes.shape, np.inf)
        for i, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
            for o, method in enumerate(offered):
                if (
                    weight.name not in row
                    or method not in column
                    or np.isnan(table.rel_error[row[weight.name], column[method]])
                ):
                    raise ValueError(
                        f"{method} was not calibrated for {weight.name!r}: run calibrate with this space again"
                    )
                error[i, o] = table.rel_error[row[weight.name], column[method]]
        return Problem(space, error)

    def size_of(self, genes: np.ndarray) -> np.ndarray:
        """Bytes of configurations: genes, int64 [B, W] => int64 [B]."""
        return self.size_bytes[np.arange(len(self.num_options)), genes].sum(axis=-1)

    def sample(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Random configurations (see `Space.sample`): genes, int64 [num, W]."""
        drawn = [self.space.encode(self.space.sample(rng)) for _ in range(num)]
        return np.array(drawn, dtype=np.int64).reshape(num, len(self.num_options))


def sizes_of(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Number of options, int64 [W], and their bytes, int64 [W, O]."""
    options = np.array([len(offered) for offered in space.options], dtype=np.int64)
    sizes = np.zeros((len(options), options.max()), dtype=np.int64)
    for i, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
        sizes[i, : len(offered)] = [method.size_bits(weight, space.full_bits) // 8 for method in offered]
    return options, sizes
