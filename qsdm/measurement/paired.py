"""Differences of outcomes whose pictures have the same captions and starting noise.

What captions and noise do to a metric they do to both outcomes alike, so the standard error of the
difference is smaller than that of either: often a quarter of it. It is the error of
`qsdm.outcome.Outcome.standard_error`, taken of the differences on halves of the pictures instead of
the values.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qsdm.outcome import SIGNIFICANT_Z, Outcome, error_of_halves


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of some pictures minus the same metric of others.

    Attributes:
        value: in the metric's units.
        standard_error: over captions and noise, paired; None for fewer than four pictures.

    Example:
        >>> from qsdm.measurement.paired import Difference
        >>> difference = Difference(value=-7.0, standard_error=2.0)
        >>> difference.interval
        (-10.92, -3.08)
        >>> difference.verdict(larger_is_better=False)
        'better'
        >>> Difference(3.0, 2.5).verdict(larger_is_better=False)
        'no difference seen'
    """

    value: float
    standard_error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the 95 % interval; None without a standard error."""
        if self.standard_error is None:
            return None
        half = SIGNIFICANT_Z * self.standard_error
        return self.value - half, self.value + half

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, and 0 where it does not or is not known."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return (low > 0) - (high < 0)

    def verdict(self, larger_is_better: bool) -> str:
        """Say what the difference shows.

        Args:
            larger_is_better: of the metric.

        Returns:
            ``better`` or ``worse`` only where the interval excludes 0; else ``no difference
            seen``, or ``too few pictures to tell`` where there is no interval.
        """
        if self.interval is None:
            return "too few pictures to tell"
        if self.sign == 0:
            return "no difference seen"
        return "better" if (self.sign > 0) == larger_is_better else "worse"


def difference(outcome: Outcome, reference: Outcome, metric: str) -> Difference | None:
    """Compute the difference of two outcomes in a metric.

    Args:
        outcome: of any configuration or pipeline.
        reference: subtracted from it; of pictures with the same captions and noise.
        metric: its name.

    Returns:
        The difference; None where either outcome lacks the metric, or it is not defined for it.
    """
    return mean_difference([outcome], reference, metric)


def mean_difference(
    outcomes: Sequence[Outcome], reference: Outcome, metric: str
) -> Difference | None:
    """Compute the difference between the mean of some outcomes and another one in a metric.

    Args:
        outcomes: one or more.
        reference: subtracted from their mean; the pictures of all have the same captions and
            noise.
        metric: its name.

    Returns:
        The difference; None where an outcome lacks the metric, or it is not defined for it.

    Raises:
        ValueError: there are no outcomes, or they are not of equally many pictures.
    """
    if not outcomes:
        raise ValueError("wanted one or more outcomes to compare with the reference (got none)")
    for outcome in outcomes:
        if outcome.num_images != reference.num_images:
            raise ValueError(
                "paired outcomes need the same pictures "
                f"(got {outcome.num_images} and {reference.num_images} of them)"
            )
    values = [outcome.metrics.get(metric) for outcome in outcomes]
    defined, subtracted = [v for v in values if v is not None], reference.metrics.get(metric)
    if len(defined) < len(values) or subtracted is None:
        return None
    value = statistics.fmean(defined) - subtracted
    halves = [outcome.halves.get(metric, ()) for outcome in outcomes]
    own = reference.halves.get(metric, ())
    if not own or any(len(pairs) != len(own) for pairs in halves):
        return Difference(value, None)
    pairs = [
        (
            statistics.fmean(first for first, _ in split) - a,
            statistics.fmean(second for _, second in split) - b,
        )
        for (a, b), *split in zip(own, *halves, strict=True)
    ]
    return Difference(value, error_of_halves(pairs))
