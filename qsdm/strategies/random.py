"""Random search, and random configurations of a given size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsdm.qconfig import QuantConfig, Space
from qsdm.strategies import Problem, bits_of, draw, sizes_of


@dataclass(frozen=True, slots=True)
class Random:
    """Options of random search: configurations whose average bits spread evenly (see `Space.sample`).

    Attributes:
        batch: configurations per `ask`.
    """

    batch: int = 100

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"random search needs a batch of at least 1 (got {self.batch})")

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> RandomSearch:
        return RandomSearch(problem, rng, self.batch)


@dataclass(frozen=True, slots=True)
class RandomSearch:
    problem: Problem
    rng: np.random.Generator
    batch: int

    def ask(self) -> np.ndarray:
        return self.problem.sample(self.rng, self.batch)

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Nothing to learn."""


def near(
    space: Space,
    size_bytes: int,
    tolerance: float,
    rng: np.random.Generator,
    full_bits: int | None = None,
    tries: int = 100,
) -> QuantConfig:
    """A random configuration of about ``size_bytes``.

    Each weight draws its bits from a distribution that is tilted so that the expected size is the wanted one, then
    uniformly a method of these bits, as `Space.sample` does; random single changes towards the wanted size follow until
    the tolerance is met.

    Args:
        size_bytes: of the quantizable weights, overhead included.
        tolerance: relative, as 0.01.
        full_bits: must be that of the space, if it is given.

    Raises:
        ValueError: the space has nothing of this size.
    """
    if full_bits not in (None, space.full_bits):
        raise ValueError(
            f"this space is of a {space.full_bits}-bit denoiser (got full_bits {full_bits})"
        )
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
    weights = _tilted(space, sizes, size_bytes)
    for _ in range(tries):
        genes = draw(weights, rng)
        if _repair(genes, sizes, offered, size_bytes, slack, rng):
            return space.decode(genes)
    raise ValueError(
        f"found nothing within {tolerance:.2%} of {size_bytes} bytes in {tries} tries: give a larger tolerance"
    )


def _tilted(space: Space, sizes: np.ndarray, size_bytes: int) -> np.ndarray:
    """Probability of each option, float64 [W, O]: exp(t bits), shared by the options of equal bits, t such that the
    expected size fits.
    """
    bits, share = bits_of(space)
    centre = bits[share > 0].mean()
    low, high = -60.0, 60.0
    probability = share
    for _ in range(60):
        tilt = (low + high) / 2
        probability = share * np.exp(tilt * (bits - centre))
        probability /= probability.sum(axis=1, keepdims=True)
        low, high = (tilt, high) if (probability * sizes).sum() < size_bytes else (low, tilt)
    return probability


def _repair(
    genes: np.ndarray,
    sizes: np.ndarray,
    offered: np.ndarray,
    size_bytes: int,
    slack: float,
    rng: np.random.Generator,
) -> bool:
    """Change random weights, in place, until the size is within ``slack`` of the wanted one; False if no single change
    helps.
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
