"""Random search, and random configurations of a given size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdm.qconfig import QuantConfig, Space, tilted
from qsdm.strategies import Problem, bits_of, draw, sizes_of


@dataclass(frozen=True, slots=True)
class Random:
    """Options of random search; average bits are spread evenly (see `Space.sample`).

    Attributes:
        batch: number of configurations per `ask`, at least 1.
    """

    batch: int = 100

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"random search needs a batch of at least 1 (got {self.batch})")

    def start(
        self,
        problem: Problem,
        seeds: np.ndarray,  # noqa: ARG002, an argument of the contract
        rng: np.random.Generator,
    ) -> RandomSearch:
        """Begin a search; seeds are not used (see `StrategyOptions.start`)."""
        return RandomSearch(problem, rng, self.batch)


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Proposes random configurations.

    Attributes:
        problem: the space as arrays.
        rng: source of randomness.
        batch: number of configurations per `ask`.
    """

    problem: Problem
    rng: np.random.Generator
    batch: int

    def ask(self) -> np.ndarray:
        """Propose configurations (see `Strategy.ask`)."""
        return self.problem.sample(self.rng, self.batch)

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Ignore the values."""


def near(
    space: Space,
    size_bytes: int,
    tolerance: float,
    rng: np.random.Generator,
    tries: int = 100,
) -> QuantConfig:
    """Draw a random configuration of a certain size.

    Each weight draws its bits from a distribution whose expected size is ``size_bytes``, and then a
    method of these bits, uniformly, as in `Space.sample`. Random changes of single weights follow
    until the size is within the tolerance.

    Args:
        space: W weights and the methods on offer for each.
        size_bytes: of the quantizable weights, overhead included.
        tolerance: largest relative difference from ``size_bytes``, for example 0.01.
        rng: source of randomness.
        tries: number of configurations to draw before giving up.

    Returns:
        The configuration.

    Raises:
        ValueError: no configuration of this size exists or was found.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative (got {tolerance})")
    options, sizes = sizes_of(space)
    offered = np.arange(sizes.shape[1]) < options[:, None]
    smallest = int(np.where(offered, sizes, np.iinfo(np.int64).max).min(axis=1).sum())
    largest = int(sizes.max(axis=1).sum())
    slack = tolerance * size_bytes
    if size_bytes + slack < smallest or size_bytes - slack > largest:
        raise ValueError(
            f"the space reaches from {smallest} to {largest} bytes (wanted {size_bytes})"
        )
    weights = tilted(*bits_of(space), sizes, size_bytes)
    for _ in range(tries):
        genes = draw(weights, rng)
        if _repair(genes, sizes, offered, size_bytes, slack, rng):
            return space.decode(genes)
    raise ValueError(
        f"found no configuration within {tolerance:.2%} of {size_bytes} bytes in {tries} tries: "
        "give a larger tolerance"
    )


def _repair(
    genes: np.ndarray,
    sizes: np.ndarray,
    offered: np.ndarray,
    size_bytes: int,
    slack: float,
    rng: np.random.Generator,
) -> bool:
    """Change random weights, in place, until the size is within ``slack`` of ``size_bytes``.

    Returns False if no change of a single weight helps.
    """
    rows = np.arange(len(genes))
    while abs(excess := int(sizes[rows, genes].sum()) - size_bytes) > slack:
        change = sizes - sizes[rows, genes][:, None]
        helps = np.argwhere(offered & (np.abs(excess + change) < abs(excess)) & (change != 0))
        if not len(helps):
            return False
        weight, option = helps[rng.integers(len(helps))]
        genes[weight] = option
    return True
