"""Which points of a front are measured, and which of those is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.measurement.labels import label_of_full
from qsdm.measurement.memory import checkpoint_bytes
from qsdm.measurement.paired import Difference
from qsdm.measurement.retention import Retaining, in_percent
from qsdm.measurement.session import Measured, Session
from qsdm.outcome import (
    LORA_RETENTION,
    EvaluationError,
    Objective,
    Outcome,
    require_measured,
)
from qsdm.qconfig import QuantConfig, QuantMethod, Space, cost
from qsdm.recipes.targets import held_by
from qsdm.store.room import require_disk
from qsdm.strategies.choice import Tradeoff, choose
from qsdm.strategies.constraints import Constraints, reach
from qsdm.text import Log, ignore

if TYPE_CHECKING:
    from qsdm.metrics import Metric
    from qsdm.outcome import Protocol


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What was chosen among the front's points.

    Attributes:
        qconfig: the configuration.
        why: one sentence.
        candidates: predicted quality and outcome of each that was measured.
    """

    qconfig: QuantConfig
    why: str
    candidates: list[tuple[float, Outcome]]


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """By what candidates are chosen.

    Attributes:
        space: of the candidates.
        objective: what is good; with an axis of fidelity, the knee of both is chosen.
        constraints: that a candidate must keep; limits are of what it measures.
        metrics: that are measured, by name.
        retaining: measures what candidates retain of the adapter that a limit is about.

    Raises:
        Infeasible: nothing in the space keeps the constraints.
        ValueError: a name does not exist.
    """

    space: Space
    objective: Objective
    constraints: Constraints
    metrics: Mapping[str, Metric]
    retaining: Retaining | None = None
    _offered: Mapping[str, Sequence[QuantMethod]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        retained = () if self.retaining is None else (LORA_RETENTION,)
        names = (*self.constraints.limit, *filter(None, [self.objective.fidelity]))
        if asked := [name for name in names if name not in retained]:
            require_measured(asked, self.metrics)
        graph = self.space.graph
        part = self.constraints.restrict(self.space, held_by(self.constraints.target, graph)).space
        offered = {w.name: options for w, options in zip(graph.weights, part.options, strict=True)}
        object.__setattr__(self, "_offered", offered)

    @property
    def max_bytes(self) -> float:
        """The budget."""
        return self.constraints.max_bytes(self.space.graph.num_values)

    def allow(self, qconfig: QuantConfig) -> bool:
        """Whether a configuration keeps budget, pins, forbidden methods and target.

        Args:
            qconfig: of the space; with bins of steps, a budget of bits is one of their mean.
        """
        graph, full_bits = self.space.graph, self.space.full_bits
        size = cost.size_bytes(graph, qconfig, full_bits)
        if qconfig.steps:  # all versions are stored
            most = (self.constraints.size_bytes or inf, self.constraints.avg_bits or inf)
            fits = size <= most[0] and cost.avg_bits(graph, qconfig, full_bits) <= most[1]
        else:
            fits = size <= self.max_bytes
        if not fits:
            return False
        operations = self.constraints.tera_bops
        if operations is not None and cost.tera_bops(graph, qconfig, full_bits) > operations:
            return False
        return all(
            method in self._offered[name]
            for _, part in qconfig.parts
            for name, method in part.decisions.items()
        )

    def without_budget(self) -> Terms:
        """The same terms for configurations of any size."""
        free = replace(self.constraints, size_bytes=None, avg_bits=None, tera_bops=None)
        return replace(self, constraints=free)

    def sign(self, metric: str) -> int:
        """1 if a larger value of a metric is better, else -1."""
        return 1 if metric == LORA_RETENTION or self.metrics[metric].larger_is_better else -1

    def enough(self, outcomes: Sequence[Outcome], protocol: Protocol) -> float:
        """Look up the quality of full precision, beyond which a tradeoff pays for nothing.

        Args:
            outcomes: of the model.
            protocol: of the candidates.

        Returns:
            See `enough_of`.
        """
        return enough_of(self.objective, outcomes, protocol, self.space.full_bits)

    def tradeoff(
        self, points: Sequence[Mapping[str, Any]], enough: float = np.inf
    ) -> Tradeoff | None:
        """Measure the predicted tradeoff of quality and fidelity.

        Args:
            points: of the front, those that keep the constraints.
            enough: quality beyond which more of it counts for nothing.

        Returns:
            The tradeoff; None if fidelity is no axis, or there are no points.

        Raises:
            ValueError: the front was searched without this axis.
        """
        if (name := self.objective.fidelity) is None or not points:
            return None
        if any(name not in point.get("metrics", {}) for point in points):
            raise ValueError(
                f"the front was searched without the axis {name!r}: run python -m qsdm.search "
                "with this objective, or realize with objective=quality"
            )
        quality = np.array([point["predicted"] for point in points])
        values = np.array([point["metrics"][name] for point in points])
        return Tradeoff.of(name, self.sign(name), quality, values, enough)

    def allowed_points(self, front: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Select the points of a front that keep the constraints.

        Args:
            front: what `search` wrote.

        Returns:
            The points.

        Raises:
            ValueError: there is none, or the front ends below the budget.
        """
        searched = Constraints.of((front.get("constraints") or {}).get("budget"))
        end = searched.max_bytes(self.space.graph.num_values)
        if end < min(self.max_bytes, reach(self.space)[1]):
            raise ValueError(
                f"the front was searched within {searched.budget_text}, which is less than "
                f"{self.constraints.budget_text}: run python -m qsdm.search with this budget first"
            )
        points = [p for p in front["points"] if self.allow(QuantConfig.from_json(p["qconfig"]))]
        if not points:
            bits = [point["avg_bits"] for point in front["points"]]
            raise ValueError(
                f"no point of the front keeps {self.constraints.budget_text} and what else was "
                f"asked for (it reaches from {min(bits):.4f} to {max(bits):.4f} bits): run "
                "python -m qsdm.search with the same constraints first"
            )
        return points

    def choose(
        self,
        measured: Measured,
        proposed: Sequence[QuantConfig],
        tradeoff: Tradeoff | None,
        retention: Mapping[str, Difference] = MappingProxyType({}),
    ) -> tuple[QuantConfig, str]:
        """Choose the candidate with the best measured outcome.

        Args:
            measured: outcomes of the candidates.
            proposed: the candidates.
            tradeoff: of quality and fidelity.
            retention: of an adapter's effect, by digest.

        Returns:
            The best one, and why.

        Raises:
            EvaluationError: no candidate could be measured.
            ValueError: no candidate keeps the limits.
        """
        finite = [qconfig for qconfig in proposed if qconfig.digest in measured.outcomes]
        if not finite:
            reason = next(iter(measured.failures.values()), "there is none")
            raise EvaluationError(f"no candidate could be measured: {reason}")
        metrics = [dict(measured.outcomes[qconfig.digest].metrics) for qconfig in finite]
        for qconfig, values in zip(finite, metrics, strict=True):
            if qconfig.digest in retention:
                values[LORA_RETENTION] = retention[qconfig.digest].value
        bits = [cost.avg_bits(self.space.graph, q, self.space.full_bits) for q in finite]
        pairs = zip(metrics, bits, strict=True)
        quality = [self.objective({**values, "avg_bits": b}) for values, b in pairs]
        limit = self.constraints.limit
        choice = choose(quality, metrics, {n: self.sign(n) for n in limit}, limit, tradeoff)
        chosen, why = finite[choice.index], choice.why
        if (own := retention.get(chosen.digest)) is not None:
            why += f"; it retains {in_percent(own)} of the adapter's effect"
        return chosen, why

    def measured_choice(
        self,
        ready: Session,
        front: Mapping[str, Any],
        protocol: Protocol,
        num: int,
        log: Log = ignore,
    ) -> Choice:
        """Measure points of the front, and take the best.

        Args:
            ready: the running session.
            front: what `search` has written; what its rounds have measured counts, too.
            protocol: with the noise of the labels.
            num: of points to measure.
            log: receives the metrics of every outcome.

        Returns:
            The choice.

        Raises:
            EvaluationError: no candidate can be measured.
            NoRoom: the disk does not suffice for the checkpoint.
            ValueError: the front has nothing that keeps the constraints.
        """
        points = self.allowed_points(front)
        enough = self.enough(ready.store.outcomes(protocol), protocol)
        tradeoff = self.tradeoff(points, enough)
        points = best_points(points, num, tradeoff)
        proposed = [QuantConfig.from_json(point["qconfig"]) for point in points]
        measured = measure_candidates(ready, proposed, protocol, log)
        for entry, outcome in of_rounds(ready, front, protocol):
            if outcome.qconfig.digest not in measured.outcomes and self.allow(outcome.qconfig):
                measured.outcomes[outcome.qconfig.digest] = outcome
                points.append(entry)
                proposed.append(outcome.qconfig)
        finite = [qconfig for qconfig in proposed if qconfig.digest in measured.outcomes]
        retention = {} if self.retaining is None else self.retaining.measure(finite)
        ours, why = self.choose(measured, proposed, tradeoff, retention)
        found = [
            (point["predicted"], measured.of(qconfig))
            for point, qconfig in zip(points, proposed, strict=True)
            if qconfig.digest in measured.outcomes
        ]
        return Choice(ours, why, found)


def enough_of(
    objective: Objective, outcomes: Sequence[Outcome], protocol: Protocol, full_bits: int
) -> float:
    """Look up the quality of full precision, beyond which a tradeoff pays for nothing.

    Args:
        objective: of quality.
        outcomes: of the model.
        protocol: of the labels.
        full_bits: of the denoiser's own values.

    Returns:
        The objective; infinite if it has a cost, or if full precision was not measured.
    """
    if len(objective.metrics) < len(objective.weights):
        return np.inf
    label = label_of_full(outcomes, protocol.digest, objective, full_bits)
    return np.inf if label is None else label


def measure_candidates(
    ready: Session, qconfigs: Sequence[QuantConfig], protocol: Protocol, log: Log = ignore
) -> Measured:
    """Measure configurations, if the checkpoint of one of them has room.

    Args:
        ready: the running session.
        qconfigs: the candidates.
        protocol: with the noise of the labels.
        log: receives the metrics of every outcome.

    Returns:
        Their outcomes.

    Raises:
        NoRoom: the disk does not suffice for the checkpoint.
    """
    if not (folder := ready.store.path("checkpoint")).exists():  # else it takes its place
        written = checkpoint_bytes(ready.model, ready.space.graph, qconfigs)
        require_disk("the checkpoint", written, folder)
    return ready.measure(qconfigs, protocol, "candidates", log)


def best_points(
    points: Sequence[dict[str, Any]], num: int, tradeoff: Tradeoff | None = None
) -> list[dict[str, Any]]:
    """Choose the best predicted points of a front.

    Neighbors on a front are near copies of each other: points that differ in fewer than one weight
    in twenty from a better one are taken only where nothing else is left.

    Args:
        points: of the front.
        num: how many.
        tradeoff: by which points are compared; None for the predicted objective alone.

    Returns:
        The points, best first.
    """

    def score(point: Mapping[str, Any]) -> tuple[bool, float]:
        if tradeoff is None:
            return True, float(point["predicted"])
        return tradeoff.score(point["predicted"], point["metrics"][tradeoff.metric])

    ordered = sorted(points, key=score, reverse=True)
    distinct: list[dict[str, Any]] = []
    for point in ordered:
        if all(
            20 * num_changed(point["qconfig"], other["qconfig"]) >= len(point["qconfig"]["methods"])
            for other in distinct
        ):
            distinct.append(point)
    copies = [point for point in ordered if point not in distinct]
    return (distinct + copies)[:num]


def num_changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """Count the weights whose method differs between two configurations.

    Args:
        a: a configuration as JSON.
        b: another one.
    """
    return sum(method != b["methods"].get(name) for name, method in a["methods"].items())


def of_rounds(
    ready: Session, front: Mapping[str, Any], labels: Protocol
) -> list[tuple[dict[str, Any], Outcome]]:
    """Find what the search's rounds have measured.

    Args:
        ready: the running session.
        front: what `search` wrote.
        labels: protocol of the labels.

    Returns:
        Proposals with their outcomes; none if rounds measured under another protocol.
    """
    stored = {outcome.qconfig.digest: outcome for outcome in ready.store.outcomes(labels)}
    report = front.get("rounds") or {"rounds": []}
    return [
        (entry, stored[entry["digest"]])
        for one_round in report["rounds"]
        for entry in one_round["proposals"]
        if entry["digest"] in stored
    ]
