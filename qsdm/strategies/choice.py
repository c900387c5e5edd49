"""Which configuration to take of a front: the best one, or the knee of quality and fidelity.

The *knee* of the two at a budget is the point farthest from the line between the front's ends, each
axis in units of the ends' difference. That is the point of the largest

    quality ÷ span of quality - distance to full precision ÷ span of distance,

so measured values can be compared by it, too, whatever the offset of their predictions.

Quality beyond that of full precision counts for nothing: a configuration that is *better* by a
Fréchet distance draws other pictures than the denoiser that the user has, and the search would pay
for them with fidelity. So where points are as good as full precision, the one of them that is
nearest to it is taken. The spans are those of the whole front.

References:
    Finding Knees in Multi-objective Optimization (Branke et al., 2004), section 1: knees as what a
    user without further preferences takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.strategies.front import front


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """How much of the distance to full precision a unit of quality is worth.

    Attributes:
        metric: of fidelity.
        sign: 1 if larger is better, else -1.
        quality_span: between the ends of the front.
        metric_span: between the ends of the front.
        enough: quality beyond which more of it counts for nothing, that of full precision.
    """

    metric: str
    sign: int
    quality_span: float
    metric_span: float
    enough: float = np.inf

    def score(self, quality: float, value: float) -> tuple[bool, float]:
        """Compute how good a point is.

        Args:
            quality: by the objective.
            value: of the metric.

        Returns:
            Whether it is as good as full precision, and its score; larger is better.
        """
        is_enough, score = self.scores(np.array(quality), np.array(value))
        return bool(is_enough), float(score)

    def scores(self, quality: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`score` of many points.

        Args:
            quality: float64 of any shape.
            values: of the same shape.

        Returns:
            Bool and float64 of this shape.
        """
        counted = np.minimum(quality, self.enough)
        score = counted / self.quality_span + self.sign * values / self.metric_span
        return quality >= self.enough, score

    def worth(self, quality: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Compute the score of points in units of quality, a span more for those that are as good
        as full precision: along the front, that counts for more than any score.

        Args:
            quality: float64 [...], by the objective.
            values: float64 [...], of the metric.

        Returns:
            Float64 [...]; larger is better.
        """
        is_enough, score = self.scores(quality, values)
        return self.quality_span * (score + is_enough)

    @staticmethod
    def of(
        metric: str, sign: int, quality: np.ndarray, values: np.ndarray, enough: float = np.inf
    ) -> Tradeoff:
        """Measure the front of quality and fidelity, whatever the bytes.

        Args:
            metric: of fidelity.
            sign: 1 if larger is better, else -1.
            quality: float64 [B], B is positive.
            values: float64 [B], of the metric.
            enough: quality beyond which more of it counts for nothing.

        Returns:
            The tradeoff; a span is 1 where the front is one point.
        """
        # Of the whole front: what is left of it below ``enough`` may be next to nothing.
        best = front(np.stack([-quality, -sign * values], axis=1))
        spans = (float(np.ptp(quality[best])) or 1.0, float(np.ptp(values[best])) or 1.0)
        return Tradeoff(metric, sign, *spans, enough)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Attributes:
        index: of the candidate.
        why: one sentence.
    """

    index: int
    why: str


def choose(
    quality: Sequence[float],
    metrics: Sequence[Mapping[str, float | None]],
    signs: Mapping[str, int],
    limit: Mapping[str, float],
    tradeoff: Tradeoff | None = None,
) -> Choice:
    """Choose among measured candidates.

    Args:
        quality: of each, by the objective.
        metrics: of each.
        signs: of the metrics with a limit, 1 if larger is better, else -1.
        limit: worst allowed value by metric.
        tradeoff: of quality and fidelity; None for quality alone.

    Returns:
        The choice.

    Raises:
        ValueError: no candidate keeps the limits.
    """

    def keeps(values: Mapping[str, float | None], name: str) -> bool:
        value = values.get(name)
        return value is not None and signs[name] * (value - limit[name]) >= 0

    kept = [i for i, values in enumerate(metrics) if all(keeps(values, name) for name in limit)]
    if not kept:
        worst = "; ".join(_nearest(name, metrics, signs[name], limit[name]) for name in limit)
        raise ValueError(
            f"none of {len(metrics)} measured candidates keeps the limits ({worst}): give more "
            "candidates, a larger budget, or search with a stricter limit"
        )
    given = ", ".join(f"limit.{name}={value:g}" for name, value in limit.items())
    among = f"{len(kept)} of {len(metrics)} measured candidates that keep {given}"
    if not limit:
        among = "the measured candidates" if len(metrics) > 1 else "the only candidate"
    if tradeoff is None:
        best = max(kept, key=lambda i: quality[i])
        return Choice(best, f"chosen for the best objective, {quality[best]:.4g}, of {among}")

    def score(i: int) -> tuple[bool, float]:
        value = metrics[i].get(tradeoff.metric)
        return (False, -np.inf) if value is None else tradeoff.score(quality[i], value)

    best = max(kept, key=score)
    top = max(kept, key=lambda i: quality[i])
    name = tradeoff.metric
    value, at_top = (f"{metrics[i][name]:.4g}" for i in (best, top))
    if quality[best] >= tradeoff.enough:
        return Choice(
            best,
            f"chosen for {name} ({value}; the best objective, {quality[top]:.4g}, has {at_top}) of "
            f"what reaches full precision's objective, {tradeoff.enough:.4g}, among {among}",
        )
    return Choice(
        best,
        f"chosen as the knee of the objective ({quality[best]:.4g}; the best has "
        f"{quality[top]:.4g}) and {name} ({value}; there {at_top}) among {among}",
    )


def _nearest(
    name: str, metrics: Sequence[Mapping[str, float | None]], sign: int, limit: float
) -> str:
    values = [value for one in metrics if (value := one.get(name)) is not None]
    best = f"{sign * max(sign * value for value in values):.4g}" if values else "not measured"
    return f"limit.{name}={limit:g}, the best has {best}"
