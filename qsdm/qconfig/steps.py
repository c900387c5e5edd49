"""Bins of a sampler's steps in which another configuration applies.

A bin is a part of the sampling as fractions, from 0 (noise) to 1 (the picture), so that it means
the same for 10 and for 50 steps. Step i of n has its middle at (i + 1/2) / n and belongs to the bin
that holds its middle; the bins of a partition hold every step once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsdm.qconfig import QuantConfig

FIFTHS = ("first", "early", "middle", "late", "last")


@dataclass(frozen=True, slots=True)
class StepBin:
    """A part of a sampler's steps, and the configuration that applies there.

    Attributes:
        start: fraction of the steps, 0 to 1.
        stop: fraction of the steps, greater than ``start``, up to 1.
        qconfig: without bins of its own; one without methods is full precision.

    Raises:
        ValueError: the bin is outside of the steps, or empty, or its configuration has bins.
    """

    start: float
    stop: float
    qconfig: QuantConfig

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                "wanted a bin of steps as fractions of all of them, from 0 to 1, as from 0.8 to 1 "
                f"(got from {self.start:g} to {self.stop:g})"
            )
        if self.qconfig.steps:
            raise ValueError(
                f"the configuration of the bin {self} has bins of steps of its own: list all bins "
                "side by side"
            )
        object.__setattr__(self, "start", float(self.start))
        object.__setattr__(self, "stop", float(self.stop))

    def __str__(self) -> str:
        return f"{self.start:g} to {self.stop:g}"

    @property
    def share(self) -> float:
        """Share of the steps."""
        return self.stop - self.start

    def holds(self, step: int, num_steps: int) -> bool:
        """Whether a step belongs to the bin.

        Args:
            step: its number, from 0.
            num_steps: of the sampler.
        """
        return self.start <= (step + 0.5) / num_steps < self.stop


def in_order(bins: Sequence[StepBin]) -> tuple[StepBin, ...]:
    """Sort bins that have no step in common.

    Args:
        bins: in any order.

    Returns:
        The bins by their start.

    Raises:
        ValueError: two of them overlap.
    """
    ordered = tuple(sorted(bins, key=lambda one: one.start))
    for first, second in itertools.pairwise(ordered):
        if second.start < first.stop:
            raise ValueError(f"the bins of steps {first} and {second} overlap: end one earlier")
    return ordered


def require_steps(qconfig: QuantConfig, num_steps: int) -> None:
    """Check that every bin of a configuration holds a step of a sampler.

    Args:
        qconfig: the configuration.
        num_steps: of the sampler.

    Raises:
        ValueError: a bin holds none.
    """
    for one in qconfig.steps:
        if not any(one.holds(step, num_steps) for step in range(num_steps)):
            raise ValueError(
                f"the bin of steps {one} holds none of the sampler's {num_steps} steps: "
                "widen it, or give more steps"
            )


def equal_bins(num: int, num_steps: int) -> list[tuple[float, float]]:
    """Divide a sampler's steps into equal parts.

    Args:
        num: of bins.
        num_steps: of the sampler.

    Returns:
        Start and stop of each.

    Raises:
        ValueError: there is no bin, or there are more bins than steps.

    Example:
        >>> from qsdm.qconfig.steps import equal_bins
        >>> equal_bins(4, 10)
        [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    """
    if not 1 <= num <= num_steps:
        raise ValueError(
            f"wanted 1 to {num_steps} bins of steps, as the sampler has {num_steps} steps "
            f"(got steps={num})"
        )
    return [(i / num, (i + 1) / num) for i in range(num)]


def bin_name(number: int, num: int) -> str:
    """Name one of several equal bins.

    Args:
        number: of the bin, from 0.
        num: of bins.
    """
    return FIFTHS[number] if num == len(FIFTHS) else f"{number + 1} of {num}"
