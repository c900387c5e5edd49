"""The certificate of attributions: do pictures confirm the order in which they rank the weights?

Curves of harm (see `qsdm.sensitivity.curves`) are measured on noise that no label has seen. The
rule by which the certificate holds:

1. in both directions, the attributions' order is better than random orders, by a paired difference
   whose 95 % interval excludes 0;
2. in neither direction is an order that needs no pictures (weight error, size) better by such a
   difference;
3. attributions that are learned from shuffled measurements do not rank the weights like these (see
   `qsdm.sensitivity.stability`).

The order of probes is measured, too, and shown: it is no part of the rule, because probes are
pictures themselves. Only where the certificate holds, the page and `qsdm.why` say "because".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import text
from qsdm.outcome import SIGNIFICANT_Z, EvaluationError, Objective
from qsdm.qconfig import QuantConfig, Space
from qsdm.qconfig.cost import size_bytes
from qsdm.sensitivity.curves import (
    DIRECTIONS,
    RANDOM,
    AreaDifference,
    Curve,
    Way,
    along,
    area_differences,
    counts_of,
    curve,
)
from qsdm.sensitivity.stability import Stability
from qsdm.text import MANY, Log, ignore, require

if TYPE_CHECKING:
    from qsdm.measurement.session import Session
    from qsdm.outcome import Protocol
    from qsdm.store.schemas import MeasuredCurve

WITHOUT_PICTURES = ("weight_error", "size")  # orders that nothing is measured for
STAGE = "certificate"  # what its outcomes were measured for


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """How the certificate is measured.

    Attributes:
        points: configurations of a curve, both ends among them.
        num_images: pictures per configuration.
        seed_set: starting noise; another one than that of the labels.
        method: of all weights where curves begin; by default, the one of fewest bytes.
        num_random: random orders.
        trainings: how often the predictor is trained on shuffled measurements, and on each part of
            the labels.
        seed: of the random orders and of shuffling.
    """

    points: int = 8
    num_images: int = 256
    seed_set: int = 2
    method: str | None = None
    num_random: int = 3
    trainings: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require(3, MANY, points=self.points)
        require(4, MANY, num_images=self.num_images)
        require(0, MANY, seed_set=self.seed_set, seed=self.seed, trainings=self.trainings)
        require(2, MANY, num_random=self.num_random)


def start(space: Space, method: str | None) -> QuantConfig:
    """Choose where curves begin: every weight under one method.

    Args:
        space: of the weights.
        method: of all weights, or its substitutes where it is not on offer; None for the method
            whose uniform configuration has fewest bytes.

    Returns:
        The configuration.

    Raises:
        OutsideSpace: no method of these bits is on offer.
        ValueError: the text is not a method.
    """
    if method is not None:
        return space.uniform(method)
    uniform = [space.uniform(str(m)) for m in space.methods if not m.is_full]
    return min(uniform, key=lambda q: size_bytes(space.graph, q, space.full_bits))


def configurations(
    qconfig: QuantConfig, ways: Sequence[Way], counts: np.ndarray
) -> list[QuantConfig]:
    """List what is to be measured, full precision first, each configuration once.

    Args:
        qconfig: where curves begin.
        ways: the orders.
        counts: weights that are restored at each point.

    Returns:
        The configurations.
    """
    full = QuantConfig(qconfig.denoiser, {})
    listed = {full.digest: full}
    for way in ways:
        for point in along(qconfig, way, counts):
            listed.setdefault(point.digest, point)
    return list(listed.values())


def measure(
    ready: Session,
    protocol: Protocol,
    objective: Objective,
    qconfig: QuantConfig,
    ways: Sequence[Way],
    points: int,
    log: Log = ignore,
) -> list[Curve]:
    """Measure the curves of some orders; what the store holds is not measured again.

    Args:
        ready: the running session.
        protocol: how pictures are drawn.
        objective: whose loss is harm.
        qconfig: where curves begin.
        ways: the orders.
        points: of each curve.
        log: receives the metrics of every outcome.

    Returns:
        A curve for each order.

    Raises:
        EvaluationError: a configuration cannot be measured.
        StoreError: the store is damaged or cannot be written.
    """
    if lacking := [name for name in objective.metrics if name not in ready.model.metrics]:
        raise EvaluationError(
            f"the objective needs the metric {lacking[0]!r}, which is not measured: "
            "add metrics=NAME, with a NAME of conf/metrics"
        )
    counts = counts_of(len(qconfig.methods), points)
    measured = ready.measure(configurations(qconfig, ways, counts), protocol, STAGE, log)
    return [
        curve(
            ready.space,
            objective,
            way,
            counts,
            [measured.of(point) for point in along(qconfig, way, counts)],
        )
        for way in ways
    ]


def conditions(differences: Sequence[AreaDifference], stability: Stability) -> list[dict[str, Any]]:
    """Apply the rule.

    Args:
        differences: areas of other orders minus that of the attributions.
        stability: of the attributions.

    Returns:
        ``condition``, a sentence, and ``holds`` of each; None where it was not tried.
    """
    against_chance = [d for d in differences if d.order == RANDOM]
    rivals = [d for d in differences if d.order in WITHOUT_PICTURES]
    better = sorted({d.order.replace("_", " ") for d in rivals if d.sign < 0})
    return [
        {
            "condition": "better than random orders in both directions",
            "holds": len(against_chance) == len(DIRECTIONS)
            and all(d.sign > 0 for d in against_chance),
        },
        {
            "condition": "no order that needs no pictures is better"
            + (f" (better: {', '.join(better)})" if better else ""),
            "holds": not better,
        },
        {
            "condition": "shuffled measurements give other attributions",
            "holds": stability.is_of_measurements,
        },
    ]


def contents(
    curves: Sequence[Curve], stability: Stability, options: CurveOptions, protocol: Protocol
) -> dict[str, Any]:
    """Describe a certificate as plain data.

    Args:
        curves: that were measured.
        stability: of the attributions.
        options: how it was measured.
        protocol: how pictures were drawn.

    Returns:
        See `qsdm.store.schemas.Certificate`; without what names model, space and attributions.
    """
    differences = area_differences(curves)
    rules = conditions(differences, stability)
    return {
        "options": dataclasses.asdict(options),
        "protocol": protocol.to_json(),
        "counts": curves[0].counts.tolist(),
        "curves": [described(one) for one in curves],
        "differences": [
            {
                "order": d.order,
                "direction": d.direction,
                "value": d.value,
                "standard_error": d.standard_error,
                "gain": d.gain,
                "sign": d.sign,
            }
            for d in differences
        ],
        "folds": list(stability.folds),
        "label_counts": [list(pair) for pair in stability.label_counts.items()],
        "shuffled": list(stability.shuffled),
        "conditions": rules,
        "holds": all(rule["holds"] for rule in rules),
    }


def described(one: Curve) -> MeasuredCurve:
    """Describe a curve as plain data.

    Args:
        one: the curve.
    """
    errors = one.errors
    return {
        "order": one.way.order,
        "direction": one.way.direction,
        "number": one.way.number,
        "area": one.area,
        "harms": one.harms.tolist(),
        "errors": None if errors is None else errors.tolist(),
    }


def as_text(certificate: Mapping[str, Any]) -> str:
    """Format a certificate for the terminal.

    Args:
        certificate: what `contents` returned.

    Returns:
        Several lines.
    """
    areas: dict[tuple[str, str], list[float]] = {}
    for one in certificate["curves"]:
        areas.setdefault((one["order"], one["direction"]), []).append(one["area"])
    gains = {(d["order"], d["direction"]): d for d in certificate["differences"]}
    rows = []
    for order in dict.fromkeys(order for order, _ in areas):
        cells: list[object] = [order.replace("_", " ")]
        for direction in DIRECTIONS:
            area = areas.get((order, direction))
            gain = gains.get((order, direction))
            cells.append(None if area is None else float(np.mean(area)))
            cells.append(None if gain is None else with_interval(gain))
        rows.append(cells)
    heads = ("order", "most first", "ours better by", "least first", "ours better by")
    lines = [
        "mean harm while weights are restored to full precision, the most harmful first (less is "
        "better) or last (more is better):",
        text.table(heads, rows, ".2f"),
    ]
    if folds := certificate["folds"]:
        lines.append(f"attributions of two folds: rank correlation {np.mean(folds):.3f}")
    lines += [f"learned from {num} labels: {srcc:.3f}" for num, srcc in certificate["label_counts"]]
    if shuffled := certificate["shuffled"]:
        lines.append(f"learned from shuffled measurements: {np.mean(shuffled):+.3f}")
    answers = {True: "yes", False: "no", None: "not tried"}
    lines += [
        f"{answers[rule['holds']]:>9}: {rule['condition']}" for rule in certificate["conditions"]
    ]
    lines.append("the certificate " + ("holds" if certificate["holds"] else "does not hold"))
    return "\n".join(lines)


def with_interval(difference: Mapping[str, Any]) -> str:
    """Format how much better the attributions are, with the half width of the 95 % interval.

    Args:
        difference: with gain and standard_error.
    """
    error = difference["standard_error"]
    return f"{difference['gain']:+.2f}" + (
        "" if error is None else f" ± {SIGNIFICANT_Z * error:.2f}"
    )
