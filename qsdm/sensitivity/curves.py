"""Curves of harm while weights are restored to full precision, one group after the other.

All curves begin with the same quantized denoiser and end at full precision. If an order ranks
weights by what they do, harm falls early when the most harmful weights are restored first
(deletion), and late when they are restored last (insertion: from the right, the curve shows full
precision into which the most harmful weights are quantized first).

The area under a curve is the mean harm along the way. It is a sum of harms, so its paired error is
that of `qsdm.outcome.Outcome.standard_error`, taken of the sum on halves of the pictures.

References:
    RISE: Randomized Input Sampling for Explanation of Black-box Models (Petsiuk et al., 2018),
    section 3.4: deletion and insertion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.outcome import SIGNIFICANT_Z, Objective, Outcome, error_of_halves
from qsdm.qconfig import QuantConfig, Space
from qsdm.qconfig.cost import MethodTable, avg_bits
from qsdm.sensitivity import Sensitivity

ATTRIBUTION, RANDOM = "attribution", "random"
MOST_FIRST, LEAST_FIRST = "most_first", "least_first"
DIRECTIONS = (MOST_FIRST, LEAST_FIRST)


@dataclass(frozen=True, slots=True)
class Way:
    """One order in which weights are restored.

    Attributes:
        order: what the order is by.
        direction: most_first or least_first.
        weights: names, in the order in which they are restored.
        number: tells random orders apart.
    """

    order: str
    direction: str
    weights: tuple[str, ...]
    number: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Harm along a way.

    Attributes:
        way: the order.
        harms: float64 [P], from the quantized denoiser to full precision.
        halves: float64 [S, 2, P], the same on the two halves of the pictures in S ways; S may be 0.
        counts: int64 [P], weights that are restored.
    """

    way: Way
    harms: np.ndarray
    halves: np.ndarray
    counts: np.ndarray

    @property
    def errors(self) -> np.ndarray | None:
        """Paired standard error of each harm, float64 [P]; None without halves."""
        if not len(self.halves):
            return None
        return np.array([_error(self.halves[..., p]) for p in range(len(self.harms))])

    @property
    def area(self) -> float:
        """The mean harm along the way."""
        return float(mean_along(self.harms, self.counts))


@dataclass(frozen=True, slots=True)
class AreaDifference:
    """Area of another order minus that of the attributions.

    Attributes:
        order: the other one.
        direction: most_first or least_first.
        value: in units of the objective; for most_first a positive one says that the attributions
            are better, for least_first a negative one.
        standard_error: over captions and noise, paired, and over the random orders where the other
            order is random; None without halves.
    """

    order: str
    direction: str
    value: float
    standard_error: float | None

    @property
    def gain(self) -> float:
        """How much better the attributions' order is; negative if it is worse."""
        return self.value if self.direction == MOST_FIRST else -self.value

    @property
    def sign(self) -> int:
        """1 if the attributions' order is better, -1 if worse; 0 if the interval includes 0."""
        if self.standard_error is None:
            return 0
        half = SIGNIFICANT_Z * self.standard_error
        return (self.gain > half) - (self.gain < -half)


def ways(
    qconfig: QuantConfig, scores: Mapping[str, np.ndarray], num_random: int, seed: int
) -> list[Way]:
    """List the orders whose curves are compared.

    Args:
        qconfig: a method for each of W weights.
        scores: float64 [W] by name of the order, the weights in the order of ``qconfig``; the
            largest is restored first. Of equal ones the first.
        num_random: number of random orders.
        seed: of the random orders.

    Returns:
        Each order in both directions, then the random ones.
    """
    names = np.array(list(qconfig.methods))
    result = []
    for order, values in scores.items():
        ranks = np.argsort(-values, kind="stable")
        result.append(Way(order, MOST_FIRST, tuple(names[ranks].tolist())))
        result.append(Way(order, LEAST_FIRST, tuple(names[ranks[::-1]].tolist())))
    rng = np.random.default_rng(seed)
    for number in range(num_random):
        result.append(Way(RANDOM, MOST_FIRST, tuple(rng.permutation(names).tolist()), number))
    return result


def scores_of(
    qconfig: QuantConfig,
    space: Space,
    table: MethodTable,
    sensitivity: Sensitivity,
    damage: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Score the weights of a configuration by each order.

    Args:
        qconfig: a method for each of W weights.
        space: of the weights.
        table: errors of the weights under the methods.
        sensitivity: the attributions.
        damage: float64 [W', M + 1], what probes say of the space's weights under its methods; None
            without probes.

    Returns:
        Float64 [W] by name of the order: attribution, probes, weight_error, size.
    """
    rows = {weight.name: i for i, weight in enumerate(space.graph.weights)}
    columns = {method: i for i, method in enumerate(space.methods)}
    chosen = list(qconfig.decisions.items())
    scores = {
        ATTRIBUTION: np.array([sensitivity.score(name, method) or 0.0 for name, method in chosen])
    }
    if damage is not None:
        scores["probes"] = np.array([damage[rows[name], columns[m]] for name, m in chosen])
    error = dict(zip(table.weights, table.of(qconfig)[0].tolist(), strict=True))
    numel = {weight.name: weight.numel for weight in space.graph.weights}
    scores["weight_error"] = np.array([error[name] for name, _ in chosen])
    scores["size"] = np.array([float(numel[name]) for name, _ in chosen])
    return scores


def counts_of(num_weights: int, points: int) -> np.ndarray:
    """Choose how many weights are restored at each point of a curve.

    Args:
        num_weights: in all.
        points: of the curve, both ends among them.

    Returns:
        Int64 [P], rising from 0; fewer than ``points`` where there are fewer weights.
    """
    return np.unique(np.linspace(0, num_weights, points).round().astype(np.int64))


def along(qconfig: QuantConfig, way: Way, counts: np.ndarray) -> list[QuantConfig]:
    """List the configurations of a curve.

    Args:
        qconfig: where it begins.
        way: the order.
        counts: int64 [P], weights that are restored at each point.

    Returns:
        P configurations, the last of which has full precision if all weights are restored.
    """
    restored = [set(way.weights[:count]) for count in counts.tolist()]
    return [
        QuantConfig(qconfig.denoiser, {n: m for n, m in qconfig.decisions.items() if n not in done})
        for done in restored
    ]


def curve(
    space: Space, objective: Objective, way: Way, counts: np.ndarray, outcomes: Sequence[Outcome]
) -> Curve:
    """Read a curve off the outcomes of its configurations.

    Args:
        space: whose weights are counted.
        objective: whose loss is harm.
        way: the order.
        counts: int64 [P], weights that are restored at each point.
        outcomes: P of them, the last of full precision; all of the same pictures.

    Returns:
        The curve.
    """
    labels = np.array([label_of(space, objective, outcome) for outcome in outcomes])
    names = objective.metrics
    num = min((len(o.halves.get(name, ())) for o in outcomes for name in names), default=0)
    parts = np.zeros((num, 2, len(outcomes)))
    for name in names:
        for p, outcome in enumerate(outcomes):
            parts[..., p] += objective.weights[name] * np.array(outcome.halves[name][:num])
    return Curve(way, labels[-1] - labels, parts[..., -1:] - parts, counts)


def label_of(space: Space, objective: Objective, outcome: Outcome) -> float:
    """Compute the label of an outcome.

    Args:
        space: whose weights are counted.
        objective: of the label.
        outcome: of a configuration.
    """
    bits = avg_bits(space.graph, outcome.qconfig, space.full_bits)
    return objective({**outcome.metrics, "avg_bits": bits})


def mean_along(harms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average harm along a way, by the trapezoidal rule.

    Args:
        harms: float64 [..., P].
        counts: int64 [P], weights that are restored at each point.

    Returns:
        Float64 [...].
    """
    return np.trapezoid(harms, counts / counts[-1], axis=-1)


def area_differences(curves: Sequence[Curve]) -> list[AreaDifference]:
    """Compare the areas of all orders with those of the attributions, in pairs.

    Args:
        curves: of all orders, the attributions among them.

    Returns:
        A difference for each other order and direction; random orders are compared by their mean.
    """
    own = {c.way.direction: c for c in curves if c.way.order == ATTRIBUTION}
    groups: dict[tuple[str, str], list[Curve]] = {}
    for one in curves:
        if one.way.order == RANDOM:  # without a direction: compared with both
            for direction in DIRECTIONS:
                groups.setdefault((RANDOM, direction), []).append(one)
        elif one.way.order != ATTRIBUTION:
            groups.setdefault((one.way.order, one.way.direction), []).append(one)
    return [
        _difference(order, direction, others, own[direction])
        for (order, direction), others in groups.items()
    ]


def _difference(order: str, direction: str, others: Sequence[Curve], own: Curve) -> AreaDifference:
    areas = np.array([other.area for other in others])
    value = float(areas.mean() - own.area)
    num = min(len(one.halves) for one in (*others, own))
    if not num:
        return AreaDifference(order, direction, value, None)
    mean = np.mean([mean_along(other.halves[:num], other.counts) for other in others], axis=0)
    paired = _error(mean - mean_along(own.halves[:num], own.counts))
    # Other random orders would have other areas.
    between = float(areas.var(ddof=1) / len(areas)) if len(areas) > 1 else 0.0
    return AreaDifference(order, direction, value, float(np.hypot(paired, np.sqrt(between))))


def _error(pairs: np.ndarray) -> float:
    return error_of_halves([(float(first), float(second)) for first, second in pairs])
