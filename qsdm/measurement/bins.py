"""In which bins of a sampler's steps a larger and in which a smaller configuration applies.

`probe steps=5` has measured what quantization in each bin costs. With the bins' shares s of what
all of them cost together, a configuration that is c₁ in some bins and c₂ in the others is predicted
to be as good as

    Σ s·f(c₁) + Σ s·f(c₂)

by the front's predictions f. So of any number of bins, the larger configuration belongs into those
with the largest shares, and all pairs of the front's points can be compared. An axis of fidelity is
predicted in the same way by its own shares: PSNR as the squared error of pixels, any other metric
as the distance that it is. Pairs then have the same tradeoff of both as single points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.measurement.candidates import Terms, measure_candidates
from qsdm.measurement.decibels import PSNR, in_decibels, squared
from qsdm.outcome import Objective
from qsdm.qconfig import QuantConfig, cost
from qsdm.qconfig.steps import StepBin
from qsdm.store import Store, StoreError
from qsdm.store.schemas import STEPS, STEPS_FILE, ChosenBin, StepRow
from qsdm.strategies.choice import Tradeoff
from qsdm.text import Log

if TYPE_CHECKING:
    from qsdm.measurement.session import Session
    from qsdm.outcome import Outcome, Protocol


@dataclass(frozen=True, slots=True)
class Suffering:
    """A bin of steps, and its share of what quantization costs.

    Attributes:
        name: as ``last``.
        start: fraction of the steps.
        stop: fraction of the steps.
        share: 0 to 1; that of all bins together is 1.
        fidelity_share: the same of the distance to full precision; None without such an axis.
    """

    name: str
    start: float
    stop: float
    share: float
    fidelity_share: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """Two configurations of a front, one of them in some bins of steps.

    Attributes:
        qconfig: with bins of steps.
        predicted: its objective.
    """

    qconfig: QuantConfig
    predicted: float


@dataclass(frozen=True, slots=True)
class Proposals:
    """What is measured, and how it is compared.

    Attributes:
        best: of one number of bins each, best first.
        tradeoff: of quality and fidelity; None for quality alone.
    """

    best: Sequence[Proposal]
    tradeoff: Tradeoff | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What was chosen of the proposals.

    Attributes:
        qconfig: with bins of steps.
        why: one sentence.
        candidates: predicted quality and outcome of each that was measured.
    """

    qconfig: QuantConfig
    why: str
    candidates: list[tuple[float, Outcome]]


def read_bins(store: Store, objective: Objective) -> list[Suffering]:
    """Read what each bin of steps suffers.

    Args:
        store: of the model whose steps were probed.
        objective: whose loss counts.

    Returns:
        The bins, those that suffer most first.

    Raises:
        StoreError: the steps were not probed, or not in a metric of the objective.
        ValueError: there is one bin alone, or quantization costs nothing in any of them; or a
            metric of fidelity is no distance to full precision.
    """
    remedy = f"run python -m qsdm.probe +model={store.denoiser} steps=5"
    if not store.path(STEPS_FILE).is_file():
        raise StoreError(f"the steps of {store.denoiser} were not probed: {remedy}")
    rows = store.read(STEPS, STEPS_FILE)["rows"][:-1]

    def found(row: StepRow, metric: str) -> float:
        # A distance to full precision has no value there: it is a difference itself.
        value = row["differences"].get(metric, [row["metrics"].get(metric)])[0]
        if value is None:
            raise StoreError(
                f"{store.path(STEPS_FILE)} lacks {metric}, a metric of the "
                f"objective: {remedy} with this objective"
            )
        return value

    harms = [
        # What is less than nothing is noise.
        max(0.0, -sum(objective.weights[m] * found(row, m) for m in objective.metrics))
        for row in rows
    ]
    if len(rows) < 2 or not sum(harms):
        raise ValueError(
            "wanted two or more bins of steps of which one suffers "
            f"(got {len(rows)}, which suffer {sum(harms):g}): {remedy}, with config=FILE for one "
            "of fewer bits"
        )
    fidelity: Sequence[float | None] = [None] * len(rows)
    if (metric := objective.fidelity) is not None:
        fidelity = shares_of(metric, np.array([found(row, metric) for row in rows]))
    bins = [
        Suffering(row["name"], row["start"], row["stop"], harm / sum(harms), share)
        for row, harm, share in zip(rows, harms, fidelity, strict=True)
    ]
    return sorted(bins, key=lambda one: one.share, reverse=True)


def shares_of(metric: str, values: np.ndarray) -> list[float | None]:
    """The shares of bins of steps in the distance to full precision.

    Args:
        metric: of fidelity.
        values: float64 [B], of the bins.

    Returns:
        B shares whose sum is 1.
    """
    distance = distance_of(metric, values)
    return list((distance / distance.sum()).tolist())


def distance_of(metric: str, values: np.ndarray) -> np.ndarray:
    """The distance to full precision, which is 0 there.

    Args:
        metric: of fidelity, ``psnr`` or a distance.
        values: of any shape.

    Returns:
        Values of the same shape.
    """
    return -squared(values) if metric == PSNR else values


def value_of(metric: str, distance: np.ndarray) -> np.ndarray:
    """The inverse of `distance_of`.

    Args:
        metric: of fidelity, ``psnr`` or a distance.
        distance: of any shape.
    """
    return in_decibels(-distance) if metric == PSNR else distance


def propose(
    terms: Terms, bins: Sequence[Suffering], front: Mapping[str, Any], enough: float = np.inf
) -> Proposals:
    """For each number of bins, find the best predicted pair of points within the budget.

    Args:
        terms: that a proposal must keep; its budget of bits is that of the mean over the steps,
            and its budget of bytes that of both configurations. With an axis of fidelity, its
            points within the budget say what the tradeoff is.
        bins: equally long, those that suffer most first.
        front: what `search` has written; of its points, those count that keep all other terms.
        enough: quality beyond which more of it counts for nothing.

    Returns:
        The proposals.

    Raises:
        ValueError: none keeps the budget, or no point is larger than it.
    """
    free, graph, full_bits = terms.without_budget(), terms.space.graph, terms.space.full_bits
    read = [(QuantConfig.from_json(point["qconfig"]), point) for point in front["points"]]
    points = [(qconfig, point) for qconfig, point in read if free.allow(qconfig)]
    qconfigs = [qconfig for qconfig, _ in points]
    bits = np.array([cost.avg_bits(graph, qconfig, full_bits) for qconfig in qconfigs])
    most = 8 * terms.max_bytes / graph.num_values
    if not len(points) or bits.max() <= most:
        raise ValueError(
            f"bins of steps need points of the front above {terms.constraints.budget_text}, for "
            f"those that suffer most (it ends at {max(bits, default=0):.4f} bits): run python -m "
            "qsdm.search with a larger budget, or without one"
        )
    tradeoff = None
    if terms.objective.fidelity is not None:
        tradeoff = terms.tradeoff(terms.allowed_points(front), enough)
    found: list[tuple[tuple[float, float], Proposal]] = []
    for num in range(1, len(bins)):
        mean = (num * bits[:, None] + (len(bins) - num) * bits[None, :]) / len(bins)
        predicted, score = scores([point for _, point in points], bins, num, tradeoff)
        fits = np.argwhere((mean <= most) & (bits[:, None] > bits[None, :]))
        order = np.lexsort([-one[tuple(fits.T)].astype(float) for one in reversed(score)])
        for high, low in fits[order]:
            qconfig = in_bins(bins[:num], qconfigs[high], qconfigs[low])
            if terms.allow(qconfig):
                rank = float(score[0][high, low]), float(score[1][high, low])
                found.append((rank, Proposal(qconfig, float(predicted[high, low]))))
                break
    if not found:
        raise ValueError(
            f"no two points of the front keep {terms.constraints.budget_text} in bins of steps: "
            "give a larger budget; of bytes, both of them count"
        )
    best = sorted(found, key=lambda one: one[0], reverse=True)
    return Proposals([proposal for _, proposal in best], tradeoff)


def scores(
    points: Sequence[Mapping[str, Any]],
    bins: Sequence[Suffering],
    num: int,
    tradeoff: Tradeoff | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Predict all pairs of points, the first of each in the bins that suffer most.

    Args:
        points: P of a front.
        bins: those that suffer most first.
        num: of the bins in which the first point applies.
        tradeoff: of quality and fidelity; None for quality alone.

    Returns:
        The predicted quality, float64 [P, P]; by what pairs are compared, and by what those that
        are equal in it: two of the same shape.
    """

    def mixed(values: np.ndarray, shares: Sequence[float | None]) -> np.ndarray:
        share = sum(one or 0.0 for one in shares)
        return share * values[:, None] + (1 - share) * values[None, :]

    quality = np.array([point["predicted"] for point in points])
    predicted = mixed(quality, [one.share for one in bins[:num]])
    if tradeoff is None:
        return predicted, (predicted, predicted)
    name = tradeoff.metric
    distance = distance_of(name, np.array([point["metrics"][name] for point in points]))
    value = value_of(name, mixed(distance, [one.fidelity_share for one in bins[:num]]))
    return predicted, tradeoff.scores(predicted, value)


def in_bins(bins: Sequence[Suffering], within: QuantConfig, elsewhere: QuantConfig) -> QuantConfig:
    """Let a configuration apply in some bins, and another one elsewhere.

    Args:
        bins: one or more, in any order; neighbors become one bin.
        within: without bins.
        elsewhere: without bins.

    Returns:
        The configuration.
    """
    edges: list[tuple[float, float]] = []
    for start, stop in sorted((one.start, one.stop) for one in bins):
        if edges and edges[-1][1] == start:
            start, _ = edges.pop()
        edges.append((start, stop))
    steps = tuple(StepBin(start, stop, within) for start, stop in edges)
    return QuantConfig(elsewhere.denoiser, elsewhere.methods, steps=steps)


def measured_choice(
    ready: Session, terms: Terms, proposals: Proposals, protocol: Protocol, log: Log
) -> Stepped:
    """Measure proposals, and take the best.

    Args:
        ready: the running session.
        terms: by which they are compared.
        proposals: of `propose`.
        protocol: with the noise of the labels.
        log: receives the metrics of every outcome.

    Returns:
        The choice.

    Raises:
        EvaluationError: none can be measured.
        NoRoom: the disk does not suffice for the checkpoint.
        ValueError: none keeps the limits.
    """
    qconfigs = [proposal.qconfig for proposal in proposals.best]
    measured = measure_candidates(ready, qconfigs, protocol, log)
    qconfig, why = terms.choose(measured, qconfigs, proposals.tradeoff)
    found = [
        (proposal.predicted, measured.of(proposal.qconfig))
        for proposal in proposals.best
        if proposal.qconfig.digest in measured.outcomes
    ]
    return Stepped(qconfig, why, found)


def chosen_bins(terms: Terms, bins: Sequence[Suffering], qconfig: QuantConfig) -> list[ChosenBin]:
    """Describe what applies in each bin.

    Args:
        terms: whose space says what is counted.
        bins: in any order.
        qconfig: with bins of steps.

    Returns:
        The bins, by their start.
    """
    graph, full_bits = terms.space.graph, terms.space.full_bits
    described: list[ChosenBin] = []
    for one in sorted(bins, key=lambda one: one.start):
        middle = (one.start + one.stop) / 2
        holding = (b.qconfig for b in qconfig.steps if b.start <= middle < b.stop)
        part = next(holding, qconfig.elsewhere)
        described.append(
            {
                "name": one.name,
                "start": one.start,
                "stop": one.stop,
                "share": one.share,
                "avg_bits": cost.avg_bits(graph, part, full_bits),
                "qconfig": part.digest,
            }
        )
    return described
