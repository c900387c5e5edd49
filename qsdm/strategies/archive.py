"""What a search remembers: every configuration that was predicted, once each.

Columns of values, all to be minimized: minus the quality, bytes, and then the axes, each a metric
of fidelity with its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qsdm.strategies import Problem
from qsdm.strategies.front import front
from qsdm.strategies.greedy import spread

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Genes, int64 [B, W] => mean and standard deviation of the quality, float64 [B] each."""


class Metric(Protocol):
    """Predicts one metric."""

    @property
    def name(self) -> str:
        """Of the metric."""

    @property
    def sign(self) -> int:
        """1 if larger is better, else -1."""

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Genes, int64 [B, W] => values of the metric, float64 [B]."""


@dataclass(frozen=True, slots=True, eq=False)
class OfPart:
    """A metric's predictor for a part of its space.

    Attributes:
        metric: of the whole space.
        whole: translates genes of the part, int64 [B, W], into those of the whole space.
    """

    metric: Metric
    whole: Callable[[np.ndarray], np.ndarray]

    @property
    def name(self) -> str:
        """Of the metric."""
        return self.metric.name

    @property
    def sign(self) -> int:
        """1 if larger is better, else -1."""
        return self.metric.sign

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Genes of the part, int64 [B, W] => values of the metric, float64 [B]."""
        return self.metric(self.whole(genes))


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """What counts beside the predicted quality.

    Attributes:
        metrics: predicted of each configuration.
        axes: names of those that are minimized or maximized, too.
        limit: worst allowed value by name of a metric.
        max_bytes: of interest.
        aim_bytes: size at which the tradeoff of quality and axes matters most.
    """

    metrics: tuple[Metric, ...] = ()
    axes: tuple[str, ...] = ()
    limit: Mapping[str, float] = field(default_factory=dict)
    max_bytes: float = np.inf
    aim_bytes: float = np.inf

    def excess(self, values: np.ndarray) -> np.ndarray:
        """How far metrics lie beyond their limits.

        Args:
            values: float64 [B, E], of all metrics.

        Returns:
            Float64 [B], the sum over limits in units of the limit; 0 if all are kept.
        """
        total = np.zeros(len(values))
        for column, metric in enumerate(self.metrics):
            if (limit := self.limit.get(metric.name)) is not None:
                beyond = metric.sign * (limit - values[:, column])
                total += np.maximum(beyond, 0) / (abs(limit) or 1.0)
        return total


@dataclass(slots=True, eq=False)
class Archive:
    """Every configuration that was predicted, once each.

    Attributes:
        problem: the space with sizes of its options.
        predict: predicts the quality of configurations.
        kappa: number of standard deviations that are subtracted from the predicted mean.
        goal: what counts beside it.
    """

    problem: Problem
    predict: Predict
    kappa: float
    goal: Goal = field(default_factory=Goal)
    _rows: dict[bytes, int] = field(default_factory=dict)
    _genes: list[np.ndarray] = field(default_factory=list)
    # mean, std, bytes, metrics
    _predicted: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def genes(self) -> np.ndarray:
        """Every configuration, int64 [B, W]."""
        return np.stack(self._genes)

    @property
    def values(self) -> np.ndarray:
        """Values to minimize, float64 [B, K], see the module."""
        return self._values(self._table)

    @property
    def metrics(self) -> np.ndarray:
        """Predicted metrics of the goal, float64 [B, E]."""
        return self._table[:, 3:]

    @property
    def allowed(self) -> np.ndarray:
        """Whether each configuration keeps budget and limits, bool [B]."""
        return (self._table[:, 2] <= self.goal.max_bytes) & (self.goal.excess(self.metrics) == 0)

    @property
    def _table(self) -> np.ndarray:
        width = 3 + len(self.goal.metrics)
        return np.array(self._predicted, dtype=np.float64).reshape(-1, width)

    def _values(self, table: np.ndarray) -> np.ndarray:
        names = [metric.name for metric in self.goal.metrics]
        axes = [
            -self.goal.metrics[i].sign * table[:, 3 + i] for i in map(names.index, self.goal.axes)
        ]
        return np.stack([self.kappa * table[:, 1] - table[:, 0], table[:, 2], *axes], axis=1)

    def front(self) -> np.ndarray:
        """Genes of the front, int64 [B, W], by rising bytes."""
        return self.genes[front(self.values)]

    def rows_of(self, genes: np.ndarray) -> np.ndarray:
        """Predict configurations that were not predicted before, and find all.

        Args:
            genes: int64 [B, W].

        Returns:
            Index of each in `genes`, int64 [B].

        Raises:
            ValueError: a prediction is not finite.
        """
        keys = [row.tobytes() for row in np.ascontiguousarray(genes, dtype=np.int64)]
        new = list({key: i for i, key in enumerate(keys) if key not in self._rows}.values())
        if new:
            mean, std = self.predict(genes[new])
            metrics = [metric(genes[new]) for metric in self.goal.metrics]
            if not all(np.isfinite(column).all() for column in (mean, std, *metrics)):
                raise ValueError("the predictor gave a value that is not finite: train it again")
            columns = (mean, std, self.problem.size_of(genes[new]), *metrics)
            for i, *numbers in zip(new, *columns, strict=True):
                self._rows[keys[i]] = len(self._genes)
                self._genes.append(genes[i])
                self._predicted.append(tuple(map(float, numbers)))
        return np.array([self._rows[key] for key in keys], dtype=np.int64)

    def evaluate(self, genes: np.ndarray) -> np.ndarray:
        """Predict configurations that were not predicted before.

        Args:
            genes: int64 [B, W].

        Returns:
            Values to minimize, float64 [B, K].

        Raises:
            ValueError: a prediction is not finite.
        """
        return self._values(self._selected(self.rows_of(genes)))

    def losses(self, genes: np.ndarray) -> np.ndarray:
        """What single changes are judged by: values but bytes, then metrics that only have limits.

        Args:
            genes: int64 [B, W].

        Returns:
            Float64 [B, 1 + E], to be minimized.
        """
        table = self._selected(self.rows_of(genes))
        limited = [
            -metric.sign * table[:, 3 + i]
            for i, metric in enumerate(self.goal.metrics)
            if metric.name not in self.goal.axes
        ]
        return np.column_stack([np.delete(self._values(table), 1, axis=1), *limited])

    def excess(self, genes: np.ndarray) -> np.ndarray:
        """How far configurations lie beyond limits, 0 if they keep them; see `Goal.excess`.

        Args:
            genes: int64 [B, W], evaluated before.
        """
        return self.goal.excess(self._selected(self.rows_of(genes))[:, 3:])

    def _selected(self, rows: np.ndarray) -> np.ndarray:
        table = np.array([self._predicted[row] for row in rows], dtype=np.float64)
        return table.reshape(-1, 3 + len(self.goal.metrics))

    def points(
        self, among: np.ndarray | None = None, max_points: int = 200, qconfigs: bool = False
    ) -> list[dict[str, Any]]:
        """List the front of the evaluated configurations, by rising bytes.

        Args:
            among: genes, int64 [B, W], of evaluated configurations; None for all that keep budget
                and limits.
            max_points: number of points at most, evenly spaced over the front.
            qconfigs: whether points contain their configuration.

        Returns:
            predicted, std, avg_bits, size_bytes and, if any are predicted, metrics of each point.
        """
        rows = np.flatnonzero(self.allowed) if among is None else self.rows_of(among)
        values = self._values(self._selected(rows))
        best = front(values)
        kept = spread(best[:, None], max_points)[:, 0]
        if self.goal.axes:  # of a surface, what a budget leaves to choose from comes first
            within = np.flatnonzero(values[:, 1] <= self.goal.aim_bytes)
            choice = within[front(np.delete(values[within], 1, axis=1))]
            choice = spread(np.intersect1d(choice, best)[:, None], max_points // 2)[:, 0]
            others = spread(best[:, None], max(max_points - len(choice), 2))[:, 0]
            kept = np.union1d(choice, others)
            kept = kept[np.argsort(values[kept, 1], kind="stable")]
        points = []
        for row in rows[kept]:
            mean, std, size, *metrics = self._predicted[row]
            point: dict[str, Any] = {
                "predicted": mean,
                "std": std,
                "avg_bits": 8 * size / self.problem.space.graph.num_values,
                "size_bytes": int(size),
            }
            if metrics:
                names = (metric.name for metric in self.goal.metrics)
                point["metrics"] = dict(zip(names, metrics, strict=True))
            if qconfigs:
                qconfig = self.problem.space.decode(self._genes[row])
                point = {"qconfig": qconfig.to_json()} | point
            points.append(point)
        return points


def sensitivity(archive: Archive, contexts: np.ndarray) -> np.ndarray:
    """Compute what each option of each weight costs in predicted quality and in each metric.

    Args:
        archive: predicts.
        contexts: genes, int64 [R, W], of configurations into which the options are placed; costs
            are averaged over them.

    Returns:
        Float64 [1 + E, W, O], of the quality, of each axis and of each metric that only has a
        limit; 0 for a weight's best option, infinite beyond its options.
    """
    problem = archive.problem
    placed = []
    for weight, num in enumerate(problem.num_options):
        genes = np.repeat(contexts, num, axis=0)
        genes[:, weight] = np.tile(np.arange(num), len(contexts))
        placed.append(genes)
    values = archive.losses(np.concatenate(placed))
    losses = np.split(values, np.cumsum([len(genes) for genes in placed])[:-1])
    harm = np.full((values.shape[1], *problem.size_bytes.shape), np.inf)
    for weight, num in enumerate(problem.num_options):
        loss = losses[weight].reshape(len(contexts), num, -1).mean(axis=0).T
        harm[:, weight, :num] = loss - loss.min(axis=1, keepdims=True)
    return harm


def references(problem: Problem, rng: np.random.Generator, num: int = 4) -> np.ndarray:
    """Draw configurations into which single options are placed, from the smallest to the largest.

    Args:
        problem: the space with sizes of its options.
        rng: source of random numbers.
        num: how many.

    Returns:
        Genes, int64 [num, W].
    """
    drawn = problem.sample(rng, 25 * num)
    order = np.argsort(problem.size_of(drawn), kind="stable")
    return drawn[order[np.linspace(0, len(order) - 1, num + 2)[1:-1].astype(np.int64)]]
