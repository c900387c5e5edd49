"""Why a weight has its method: everything that is known of one decision of a configuration.

The runner-up is the other method that the configuration would take next: of the greatest predicted
quality minus price × bytes, where the price is the slope of the search's front at the
configuration's size. Without a front, it is the best predicted one that takes no more bytes, or
else the best of all.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.graph import Graph, Weight
from qsdm.outcome import SIGNIFICANT_Z, Objective, Outcome
from qsdm.predictor import Predictor
from qsdm.predictor.probes import Probes, harm_of
from qsdm.qconfig import QuantConfig, QuantMethod, Space
from qsdm.sensitivity import Sensitivity

if TYPE_CHECKING:
    from qsdm.predictor.interactions import Interaction
    from qsdm.predictor.retention import ProbedRetention
    from qsdm.store.schemas import Alone, Card, CardInteraction, CardLora, MeasuredChange, Swap

NEIGHBORS = 0.05  # of the bytes: points of a front between which its slope is taken


class NoWeight(ValueError):
    """No weight has such a name, nor a block."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of a configuration and of the weights of its space.

    Attributes:
        space: of the configuration.
        qconfig: whose decisions are explained.
        objective: that the predictor was trained for; larger is better.
        predictor: predicts swaps.
        sensitivities: contents of the sensitivity file.
        price: quality that a byte is worth; None if it is not known.
        probes: of each weight alone; None without any.
        interactions: measured pairs.
        outcomes: everything that was measured of the model's present weights.
        retention: of a LoRA's effect under each weight alone; None without one.
    """

    space: Space
    qconfig: QuantConfig
    objective: Objective
    predictor: Predictor
    sensitivities: Mapping[str, Any]
    price: float | None = None
    probes: Probes | None = None
    interactions: Sequence[Interaction] = ()
    outcomes: Sequence[Outcome] = ()
    retention: ProbedRetention | None = None


def select(graph: Graph, text: str) -> list[str]:
    """Find the weights that a text means.

    Args:
        graph: of the space.
        text: name of a weight or of its module, of a block, the beginning of names up to a dot, or
            a pattern with ``*`` and ``?``.

    Returns:
        Names of weights, in the order of the graph.

    Raises:
        NoWeight: there are none; the message names some that are near.
    """
    blocks = {weight.name: graph.node_of(weight.name).block for weight in graph.weights}
    chosen = [
        name
        for name, block in blocks.items()
        if text in (name, name.partition("#")[0], block)
        or name.startswith(f"{text}.")
        or fnmatchcase(name, text)
    ]
    if not chosen:
        every = list(dict.fromkeys([*blocks, *filter(None, blocks.values())]))
        bare = text.strip("*?.")
        near = difflib.get_close_matches(bare, every, 3, 0.4)
        near = near or [name for name in every if bare and bare in name][:3] or every[:3]
        raise NoWeight(
            f"no weight or block of {graph.denoiser!r} matches {text!r}: did you mean "
            f"{', '.join(map(repr, near))}?"
        )
    return chosen


def price_of(points: Sequence[Mapping[str, Any]], size_bytes: int) -> float | None:
    """Read off a front what quality a byte is worth at a size.

    Args:
        points: of the front, with size_bytes and predicted.
        size_bytes: of the configuration.

    Returns:
        The slope between the points around it, not negative; None for fewer than two points.
    """
    ordered = sorted(points, key=lambda point: point["size_bytes"])
    if len(ordered) < 2:
        return None
    sizes = np.array([point["size_bytes"] for point in ordered], dtype=np.float64)
    low = int(np.searchsorted(sizes, size_bytes * (1 - NEIGHBORS), side="right")) - 1
    high = int(np.searchsorted(sizes, size_bytes * (1 + NEIGHBORS)))
    low = min(max(low, 0), len(ordered) - 2)
    high = min(max(high, low + 1), len(ordered) - 1)
    if sizes[high] == sizes[low]:
        return None
    rise = ordered[high]["predicted"] - ordered[low]["predicted"]
    return max(0.0, float(rise / (sizes[high] - sizes[low])))


def cards(evidence: Evidence, names: Sequence[str]) -> list[Card]:
    """Collect what is known of some decisions.

    Args:
        evidence: of the configuration.
        names: of its weights.

    Returns:
        A card for each weight, without pictures.

    Raises:
        OutsideSpace: the configuration is not one of the space.
    """
    gradients = Sensitivity.from_json(
        evidence.sensitivities["sensitivities"]["integrated_gradients"]
    )
    per_weight = dict(zip(gradients.weights, gradients.per_weight.tolist(), strict=True))
    hops = evidence.sensitivities["hops"]
    swaps = _swaps(evidence, names)
    result = []
    for name in names:
        node = evidence.space.graph.node_of(name)
        weight, method = _weight(evidence.space, name), evidence.qconfig.decisions[name]
        full_bits = evidence.space.full_bits
        own = _bytes(method, weight, full_bits)
        card: Card = {
            "weight": name,
            "op": str(node.op),
            "role": str(node.role),
            "block": node.block or node.stage,
            "shape": list(weight.shape),
            "share_of_values": weight.numel / evidence.space.graph.num_values,
            "method": str(method),
            "bits": method.bits,
            "size_bytes": own,
            "saved_bytes": _bytes(QuantMethod("fp", full_bits), weight, full_bits) - own,
            "swaps": swaps[name],
            "runner_up": runner_up(swaps[name], own, evidence.price),
            "attribution": gradients.score(name, method),
            "attribution_rank": _rank(per_weight, name),
            "num_weights": len(per_weight),
            "hops": [hops[m][name] for m in sorted(hops, key=int)],
            "hop_rank": _rank(hops["0"], name) if "0" in hops else None,
            "probe": _probe(evidence.probes, name),
            "alone": _alone(evidence, name),
            "interactions": _interactions(evidence.interactions, name),
            "pictures": None,
        }
        if evidence.retention is not None:
            card["lora"] = _lora(evidence.retention, name)
        result.append(card)
    return result


def most_telling(evidence: Evidence, num: int) -> list[str]:
    """Choose the weights whose method matters most: a swap is predicted to change most.

    Args:
        evidence: of the configuration.
        num: how many.

    Returns:
        Names, the most telling first.
    """
    names = [weight.name for weight in evidence.space.graph.weights]
    swaps = _swaps(evidence, names)
    change = {
        name: max((abs(s["predicted"]) for s in swaps[name] if not s["is_full"]), default=0.0)
        for name in names
    }
    return sorted(names, key=lambda name: -change[name])[:num]


def runner_up(swaps: Sequence[Swap], own_bytes: int, price: float | None) -> str | None:
    """Choose the method that a weight would have instead.

    Args:
        swaps: of the weight.
        own_bytes: of the weight under its method.
        price: quality that a byte is worth; None if it is not known.

    Returns:
        A method; None if the space offers no other.
    """
    offered = [swap for swap in swaps if not swap["is_full"]]
    if not offered:
        return None
    if price is None:
        offered = [s for s in offered if s["size_bytes"] <= own_bytes] or offered
    rate = price or 0.0
    return max(offered, key=lambda s: s["predicted"] - rate * s["size_bytes"])["method"]


def swapped(qconfig: QuantConfig, name: str, method: QuantMethod) -> QuantConfig:
    """Change the method of one weight.

    Args:
        qconfig: a configuration.
        name: of the weight.
        method: the new one; of full precision, the weight is not named any more.

    Returns:
        Another configuration.
    """
    methods = qconfig.decisions | {name: method}
    if method.is_full:
        del methods[name]
    return QuantConfig(qconfig.denoiser, methods)


def _swaps(evidence: Evidence, names: Sequence[str]) -> dict[str, list[Swap]]:
    """Predict each other method of some weights, and look up what was measured of it."""
    space, encoding = evidence.space, evidence.predictor.encoding
    rows = {weight.name: i for i, weight in enumerate(space.graph.weights)}
    base = encoding.columns_of(space.encode(evidence.qconfig)[None])[0]
    column = {method: i for i, method in enumerate(encoding.methods)}
    full = QuantMethod("fp", space.full_bits)
    chosen = evidence.qconfig.decisions
    others = [
        (name, method)
        for name in names
        for method in (*space.options[rows[name]], full)
        if method != chosen[name]
    ]
    columns = np.repeat(base[None], len(others) + 1, axis=0)
    for row, (name, method) in zip(columns[1:], others, strict=True):
        row[rows[name]] = column.get(method, len(encoding.methods))
    values = evidence.predictor.at(columns)  # [folds, swaps + 1]
    change = values[:, 1:] - values[:, :1]
    mean = change.mean(axis=0)
    half = SIGNIFICANT_Z * change.std(axis=0, ddof=1) if len(change) > 1 else np.zeros_like(mean)
    measured = {
        (outcome.protocol, outcome.qconfig.digest): outcome for outcome in evidence.outcomes
    }
    result: dict[str, list[Swap]] = {name: [] for name in names}
    for i, (name, method) in enumerate(others):
        result[name].append(
            {
                "method": str(method),
                "is_full": method.is_full,
                "size_bytes": _bytes(method, _weight(space, name), space.full_bits),
                "predicted": float(mean[i]),
                "low": float(mean[i] - half[i]),
                "high": float(mean[i] + half[i]),
                "measured": _measured(evidence, measured, name, method),
            }
        )
    return result


def _measured(
    evidence: Evidence,
    outcomes: Mapping[tuple[str, str], Outcome],
    name: str,
    method: QuantMethod,
) -> MeasuredChange | None:
    """What a swap changed in pictures, of the protocol with most of them."""
    before = evidence.qconfig.digest
    after = swapped(evidence.qconfig, name, method).digest
    pairs = [
        (outcome, outcomes[protocol, after])
        for (protocol, digest), outcome in outcomes.items()
        if digest == before and (protocol, after) in outcomes
    ]
    names = evidence.objective.metrics
    known = [
        pair for pair in pairs if all(o.metrics.get(n) is not None for o in pair for n in names)
    ]
    if not known:
        return None
    first, second = max(known, key=lambda pair: pair[0].num_images)
    loss, error = harm_of(second, first, evidence.objective)
    half = SIGNIFICANT_Z * error
    return {
        "value": -loss,
        "low": -loss - half if error else None,
        "high": -loss + half if error else None,
        "num_images": first.num_images,
    }


def _alone(evidence: Evidence, name: str) -> list[Alone]:
    """What quantizing the weight alone did to pictures, by method; those with most pictures."""
    names = evidence.objective.metrics
    full = {o.protocol: o for o in evidence.outcomes if o.qconfig.is_full}
    best: dict[QuantMethod, Alone] = {}
    for outcome in evidence.outcomes:
        reference = full.get(outcome.protocol)
        if list(outcome.qconfig.methods) != [name] or not outcome.qconfig.has_methods_alone:
            continue
        if reference is None:
            continue
        if any(o.metrics.get(n) is None for o in (outcome, reference) for n in names):
            continue
        method = outcome.qconfig.methods[name]
        if method in best and best[method]["num_images"] >= outcome.num_images:
            continue
        harm, error = harm_of(outcome, reference, evidence.objective)
        half = SIGNIFICANT_Z * error
        best[method] = {
            "method": str(method),
            "harm": harm,
            "low": harm - half if error else None,
            "high": harm + half if error else None,
            "num_images": outcome.num_images,
        }
    return [best[method] for method in sorted(best)]


def _probe(probes: Probes | None, name: str) -> dict[str, float | str | int] | None:
    """What the predictor was told of the weight alone: the greatest harm among probed methods."""
    if probes is None:
        return None
    row = probes.weights.index(name)
    k = int(np.argmax(probes.harm[row]))
    return {
        "harm": float(probes.harm[row, k]),
        "half_width": float(SIGNIFICANT_Z * probes.standard_error[row, k]),
        "fidelity": probes.fidelity,
        "num_images": probes.num_images,
        "rank": int((probes.harm.max(axis=1) > probes.harm[row].max()).sum()) + 1,
    }


def _lora(retention: ProbedRetention, name: str) -> CardLora:
    """What the weight alone leaves of an adapter's effect, under the method that leaves least."""
    method, (value, error) = min(retention.alone[name].items(), key=lambda pair: pair[1][0])
    loss = {
        other: 1 - min(kept for kept, _ in methods.values())
        for other, methods in retention.alone.items()
    }
    return {
        "file": retention.adapter.path.name,
        "method": str(method),
        "retention": value,
        "half_width": SIGNIFICANT_Z * error,
        "num_images": retention.content["num_images"],
        "rank": _rank(loss, name),
    }


def _interactions(measured: Sequence[Interaction], name: str) -> list[CardInteraction]:
    """Confirmed pairs that the weight is part of, the greatest excess first."""
    result: list[CardInteraction] = []
    for one in measured:
        first, second = one.groups
        if one.is_confirmed and name in (*first, *second):
            half = SIGNIFICANT_Z * one.standard_error
            result.append(
                {
                    "own": list(first if name in first else second),
                    "other": list(second if name in first else first),
                    "excess": one.excess,
                    "low": one.excess - half,
                    "high": one.excess + half,
                }
            )
    return sorted(result, key=lambda entry: -abs(entry["excess"]))


def _rank(values: Mapping[str, float], name: str) -> int:
    """1 for the largest value; a weight without one comes last."""
    own = values.get(name, float("nan"))
    if np.isnan(own):
        return len(values)
    return 1 + sum(other > own for other in values.values())


def _weight(space: Space, name: str) -> Weight:
    weight = space.graph.node_of(name).weight
    assert weight is not None
    return weight


def _bytes(method: QuantMethod, weight: Weight, full_bits: int) -> int:
    return method.size_bits(weight, full_bits) // 8
