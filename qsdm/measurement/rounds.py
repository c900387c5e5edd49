"""The loop of a search: propose, measure, learn, propose again.

A round proposes the configurations of the largest expected gain (`qsdm.strategies.acquisition`),
measures them with the noise of the labels, and conditions the predictor on what came out. What a
round proposes is written before it is measured, and outcomes are stored as they arrive: a killed
run goes on where it was.

Per round:

- *optimism*: predicted minus measured quality, mean over its configurations, with the standard
  error over them
- *volume*: mean height of the measured front above the worst label, over the sizes that matter
  (hypervolume ÷ width), in units of the objective; of one size, how far the best configuration lies
  above the worst label
- with an axis of fidelity, both of what configurations are worth (`qsdm.measurement.worth`), in
  units of the objective, too; optimism stays that of quality
- *gain* of volume by the round. Its error is paired: half the difference of the gains on two halves
  of the pictures, which are the same for all configurations, as the root mean square over the ways
  to halve them

The loop ends after ``rounds``, when the pictures are spent, or when the front has stopped
improving: no gain above its error in ``patience`` rounds in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qsdm import text
from qsdm.measurement.labels import Bank, Labels
from qsdm.measurement.session import Session
from qsdm.measurement.worth import Worth
from qsdm.outcome import Objective, Protocol
from qsdm.qconfig import QuantConfig, Space
from qsdm.store.provenance import provenance
from qsdm.store.schemas import (
    ROUNDS,
    FrontPoint,
    Proposal,
    RoundReport,
    Rounds,
    RoundsReport,
)
from qsdm.strategies import Problem
from qsdm.strategies.acquisition import Believer, Region, choose_batch
from qsdm.strategies.front import front
from qsdm.text import Log, ignore

STAGE = "rounds"
Points = list[FrontPoint]


@dataclass(frozen=True, slots=True, eq=False)
class Journal:
    """The file of what rounds have proposed.

    Attributes:
        path: of the file.
        about: denoiser, space, objective and protocol; rounds of others are not continued.
    """

    path: Path
    about: dict[str, Any]

    def read(self) -> list[Points]:
        """Read the proposals of each round; none of other rounds.

        Returns:
            One list per round.

        Raises:
            StoreError: the file is damaged.
        """
        if not self.path.exists():
            return []
        stored: Rounds = ROUNDS.read(self.path, self.about["denoiser"])
        same = all(stored.get(name) == value for name, value in self.about.items())
        return stored["rounds"] if same else []

    def write(self, rounds: Sequence[Points]) -> None:
        """Write the proposals of all rounds.

        Args:
            rounds: one list per round.
        """
        content = {"schema": ROUNDS.schema, **self.about, "rounds": list(rounds)}
        ROUNDS.write(self.path, content | {"provenance": provenance()})


@dataclass(frozen=True, slots=True)
class Limits:
    """When the loop ends, and how much a round measures.

    Attributes:
        rounds: at most, those in the journal among them.
        per_round: configurations of a round.
        max_configs: configurations of all rounds; None for no limit.
        patience: rounds without gain, in a row, after which the front has stopped improving.
    """

    rounds: int
    per_round: int
    max_configs: int | None = None
    patience: int = 2

    def next_size(self, rounds: Sequence[Points]) -> int:
        """Number of configurations of the next round; 0 if there is none.

        Args:
            rounds: proposals of the rounds before it.
        """
        if len(rounds) >= self.rounds:
            return 0
        spent = sum(map(len, rounds))
        left = self.per_round if self.max_configs is None else self.max_configs - spent
        return max(0, min(self.per_round, left))

    def num_left(self, rounds: Sequence[Points]) -> int:
        """Number of configurations that rounds may still propose.

        Args:
            rounds: proposals so far.
        """
        most = (self.rounds - len(rounds)) * self.per_round
        if self.max_configs is not None:
            most = min(most, self.max_configs - sum(map(len, rounds)))
        return max(0, most)

    def has_stopped(self, reports: Sequence[RoundReport]) -> bool:
        """Whether the front has stopped improving.

        Args:
            reports: of the rounds so far.
        """
        last = reports[-self.patience :]
        return len(last) == self.patience and all(
            report["gain"] <= (report["gain_error"] or 0.0) for report in last
        )


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """Everything that the loop needs.

    Attributes:
        ready: the running session.
        objective: that labels measure.
        labels: random configurations, which the predictor has learned from.
        problem: the space with the sizes of its options.
        region: sizes that matter.
        journal: of the proposals.
        update: conditions the predictor on configurations, int64 [R, W], and what they measured,
            float64 [R].
        explore: searches with a predictor; gives all configurations that it came by, int64 [B, W].
        worth: of configurations, if fidelity counts, too; then the labels hold it, and it is what
            the region is about.
    """

    ready: Session
    objective: Objective
    labels: Labels
    problem: Problem
    region: Region
    journal: Journal
    update: Callable[[np.ndarray, np.ndarray], Believer]
    explore: Callable[[Believer], np.ndarray]
    worth: Worth | None = None

    @property
    def protocol(self) -> Protocol:
        """That of the labels."""
        return self.labels.protocol

    def run(self, limits: Limits, log: Log = ignore) -> tuple[Believer, list[RoundReport]]:
        """Go through the rounds, those of an earlier run first.

        Args:
            limits: when to end.
            log: receives the metrics of every outcome, and the report of every round.

        Returns:
            The predictor, conditioned on all that was measured, and the reports.

        Raises:
            StoreError: the store cannot be written.
            EvaluationError: full precision draws no pictures.
        """
        rounds = self.journal.read()
        for number in range(len(rounds)):
            self.measure(rounds[number], log)
        while True:
            proposed = self.proposed()
            reports = self.reports(rounds, proposed)
            model = self.model(proposed)
            if limits.has_stopped(reports):
                tqdm.write(
                    "the measured front has stopped improving: no gain above its error in "
                    f"{limits.patience} rounds"
                )
                break
            if not (num := limits.next_size(rounds)):
                break
            points = self.propose(model, rounds, proposed, num)
            if not points:
                break
            rounds = [*rounds, points]
            self.journal.write(rounds)
            self.measure(points, log)
            report = self.reports(rounds, self.proposed())[-1]
            tqdm.write(line(len(rounds), report))
            log({f"{STAGE}/volume": report["volume"], f"{STAGE}/gain": report["gain"]})
            if report["optimism"] is not None:
                log({f"{STAGE}/optimism": report["optimism"]})
        return model, reports

    def measure(self, points: Points, log: Log) -> None:
        """Measure what a round has proposed, as far as that was not done before.

        Args:
            points: the proposals.
            log: receives the metrics of every outcome.
        """
        qconfigs = [QuantConfig.from_json(point["qconfig"]) for point in points]
        self.ready.measure(qconfigs, self.protocol, STAGE, log)

    def proposed(self) -> Labels | None:
        """Read what searches have proposed and was measured since; None if there is nothing."""
        return self.bank().proposed(self.objective, self.labels)

    def bank(self) -> Bank:
        """Read what was measured in the way of the labels."""
        outcomes = tuple(self.ready.store.outcomes(self.protocol))
        return Bank(self.ready.space, outcomes, {self.protocol.digest: self.protocol})

    def model(self, proposed: Labels | None) -> Believer:
        """Condition the predictor on what was measured.

        Args:
            proposed: outcomes.
        """
        if proposed is None:
            return self.update(self.labels.genes[:0], np.zeros(0))
        return self.update(proposed.genes, proposed.values)

    def propose(
        self, model: Believer, rounds: Sequence[Points], proposed: Labels | None, num: int
    ) -> Points:
        """Choose what to measure next.

        Args:
            model: the predictor.
            rounds: earlier proposals, which are not made again even if they were set aside.
            proposed: what was measured of them.
            num: how many.

        Returns:
            At most ``num`` points.
        """
        space, measured = self.ready.space, self.valued(joined(self.labels, proposed))
        earlier = [space.encode(QuantConfig.from_json(p["qconfig"])) for r in rounds for p in r]
        tests = [genes for test in self.bank().sets(self.objective, "test") for genes in test.genes]
        known = {genes.tobytes() for genes in (*measured.genes, *earlier, *tests)}
        genes = self.explore(model)
        genes = genes[[row.tobytes() not in known for row in genes]]
        size = self.problem.size_of(genes).astype(np.float64)
        sizes = self.problem.size_of(measured.genes).astype(np.float64)
        wanted = model if self.worth is None else self.worth.of_model(model)
        known_values = (sizes, measured.values)
        chosen = genes[choose_batch(wanted, genes, size, self.region, known_values, num)]
        mean, deviation = model(chosen)
        return [
            {
                "qconfig": space.decode(row).to_json(),  # type: ignore[typeddict-item]
                "predicted": float(value),
                "std": float(std),
                "avg_bits": 8 * int(size) / space.graph.num_values,
                "size_bytes": int(size),
            }
            for row, value, std, size in zip(
                chosen, mean, deviation, self.problem.size_of(chosen), strict=True
            )
        ]

    def reports(self, rounds: Sequence[Points], proposed: Labels | None) -> list[RoundReport]:
        """Tell what each round has brought.

        Args:
            rounds: proposals of each.
            proposed: what was measured of them, and of other proposals.
        """
        rows = {} if proposed is None else {d: i for i, d in enumerate(proposed.digests)}
        before, reports = self.labels, []
        for points in rounds:
            digests = [QuantConfig.from_json(point["qconfig"]).digest for point in points]
            own = None
            if proposed is not None and (found := [rows[d] for d in digests if d in rows]):
                own = proposed.take(found)
            after = joined(before, own)
            reports.append(self._report(points, digests, own, (before, after)))
            before = after
        return reports

    def _report(
        self,
        points: Points,
        digests: Sequence[str],
        own: Labels | None,
        fronts: tuple[Labels, Labels],
    ) -> RoundReport:
        before, after = fronts
        values = {} if own is None else dict(zip(own.digests, map(float, own.values), strict=True))
        proposals: list[Proposal] = [
            {
                "predicted": point["predicted"],
                "std": point["std"],
                "avg_bits": point["avg_bits"],
                "size_bytes": point["size_bytes"],
                "digest": digest,
                "measured": values.get(digest),
            }
            for point, digest in zip(points, digests, strict=True)
        ]
        away = np.array(
            [p["predicted"] - p["measured"] for p in proposals if p["measured"] is not None]
        )
        volume = self.volume(after)
        return {
            "proposals": proposals,
            "num_images": len(values) * self.protocol.num_images,
            "optimism": float(away.mean()) if len(away) else None,
            "optimism_error": float(away.std(ddof=1) / len(away) ** 0.5) if len(away) > 1 else None,
            "volume": volume,
            "gain": volume - self.volume(before),
            "gain_error": self._gain_error(before, after),
            "front": self.front(after),
        }

    def report(self, avg_bits: float | None, reports: Sequence[RoundReport]) -> RoundsReport:
        """Summarize the rounds.

        Args:
            avg_bits: of the single size that mattered; None for the whole front.
            reports: of the rounds.

        Returns:
            Their report.
        """
        return {
            "avg_bits": avg_bits,
            "front": self.front(self.labels),
            "volume": self.volume(self.labels),
            "rounds": list(reports),
        }

    def volume(self, measured: Labels) -> float:
        """Compute the mean height of a measured front above the worst label.

        Args:
            measured: outcomes.
        """
        size = self.problem.size_of(measured.genes)
        return self.region.volume(size, self.valued(measured).values)

    def valued(self, measured: Labels) -> Labels:
        """Let outcomes tell what is maximized: the quality, or what they are worth.

        Args:
            measured: outcomes.
        """
        return measured if self.worth is None else self.worth.of_labels(measured)

    def front(self, measured: Labels) -> list[tuple[float, float]]:
        """List average bits and quality of the measured front.

        Args:
            measured: outcomes.
        """
        size = self.problem.size_of(measured.genes).astype(np.float64)
        best = front(np.stack([-measured.values, size], axis=1))
        bits = 8 * size[best] / self.ready.space.graph.num_values
        return list(zip(map(float, bits), map(float, measured.values[best]), strict=True))

    def _gain_error(self, before: Labels, after: Labels) -> float | None:
        halves = self.valued(after).halves
        if halves is None or before.halves is None:
            return None
        num_before = len(before)
        sizes = self.problem.size_of(after.genes).astype(np.float64)
        squares = []
        for pair in halves:
            gains = []
            for values in pair:
                region = Region(self.region.low_bytes, self.region.high_bytes, values.min())
                early = region.volume(sizes[:num_before], values[:num_before])
                gains.append(region.volume(sizes, values) - early)
            squares.append((gains[0] - gains[1]) ** 2 / 4)
        return float(np.sqrt(np.mean(squares)))


def joined(labels: Labels, more: Labels | None) -> Labels:
    """Add outcomes to labels, with halves if both have the same number of them.

    Args:
        labels: of a space.
        more: of the same space, measured in the same way; they come last.

    Returns:
        All of them.
    """
    from dataclasses import replace

    if more is None:
        return labels
    both = labels.joined(more)
    if labels.halves is None or more.halves is None or len(labels.halves) != len(more.halves):
        return both
    return replace(both, halves=np.concatenate([labels.halves, more.halves], axis=2))


def region_of(space: Space, problem: Problem, labels: Labels, avg_bits: float | None) -> Region:
    """Choose the sizes that matter.

    Args:
        space: of the labels.
        problem: with the sizes of the space's options.
        labels: what was measured before the first round.
        avg_bits: only the best configuration of at most this many bits matters; None for the whole
            front.

    Returns:
        The region.
    """
    size = problem.size_of(labels.genes).astype(np.float64)
    most = None if avg_bits is None else float(int(avg_bits * space.graph.num_values / 8))
    return Region.of(size, labels.values, most)


def line(number: int, report: RoundReport) -> str:
    """Say in one line what a round has brought.

    Args:
        number: of the round.
        report: of the round.
    """
    return (
        f"round {number}: optimism {_with_error(report['optimism'], report['optimism_error'])}, "
        f"measured front {report['volume']:.2f}, "
        f"gain {_with_error(report['gain'], report['gain_error'])}"
    )


def table(report: RoundsReport, fidelity: str | None = None) -> str:
    """Format a line per round.

    Args:
        report: of the rounds.
        fidelity: the metric that counts beside the quality; None for quality alone.
    """
    rows: list[list[Any]] = [["labels", "", "", f"{report['volume']:.2f}", ""]]
    for number, entry in enumerate(report["rounds"], 1):
        rows.append(
            [
                number,
                len(entry["proposals"]),
                _with_error(entry["optimism"], entry["optimism_error"]),
                f"{entry['volume']:.2f}",
                _with_error(entry["gain"], entry["gain_error"]),
            ]
        )
    at = "the whole front" if report["avg_bits"] is None else f"{report['avg_bits']:g} bits"
    of = f"of quality and {fidelity} together, " if fidelity else ""
    heads = ["round", "configurations", "optimism", "measured front", "gain"]
    return (
        f"rounds, for {at} (optimism: predicted minus measured; front: {of}above the worst label)\n"
        + text.table(heads, rows)
    )


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.2f}" + ("" if error is None else f" ± {error:.2f}")
