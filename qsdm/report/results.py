"""A store's artifacts as plain data, and the numbers that page, notebooks and W&B draw from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qsdm import cost
from qsdm.graph import Graph, merge_splits
from qsdm.measurement.labels import Bank, Labels, avg_bits
from qsdm.outcome import Objective
from qsdm.qconfig import QuantMethod, Space
from qsdm.store import Store, StoreError
from qsdm.store.artifacts import Artifact
from qsdm.store.schemas import CHOSEN, FRONT, GRAPH, REPORT, SENSITIVITIES, SUMMARY
from qsdm.store.tensors import read_tensors

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
OURS, FULL = "ours", "fp"


@dataclass(frozen=True, slots=True)
class Results:
    """What a store holds of one denoiser and space. A field is None, or empty, where its command has not run.

    Attributes:
        graph: as traced (`trace`).
        outcomes: labels of the space's measured configurations: avg_bits, metrics, predicted-quality scale ``quality``
            if the objective is known; only those of the protocol that has most.
        predictor: quality of the predictor (`train`).
        sensitivity: of weights, ops, roles, blocks (`attribute`).
        front: of the search (`search`).
        summary: the measured table (`realize`).
        chosen: method by weight name of the configuration that was chosen.
        pictures: PNG by name, in the order of the page.
        protocol: of the labels.
        versions: of their metrics, by name.
    """

    denoiser: str
    graph: Graph | None = None
    outcomes: Sequence[Mapping[str, Any]] = ()
    predictor: Mapping[str, Any] | None = None
    sensitivity: Mapping[str, Any] | None = None
    front: Mapping[str, Any] | None = None
    summary: Mapping[str, Any] | None = None
    chosen: Mapping[str, str] | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    protocol: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def read(store: Store, space: str = "traced", full_bits: int = 16) -> Results:
    """All that ``store`` holds; what is missing is left out.

    Args:
        space: name of the space that was calibrated and searched.

    Raises:
        StoreError: an artifact is damaged.
    """
    graph = _optional(store, GRAPH, "graph.json")
    front = _optional(store, FRONT, f"search/{space}.json")
    summary = _optional(store, SUMMARY, "summary.json")
    chosen = _optional(store, CHOSEN, "chosen.json")
    objective = None if front is None else Objective(front["objective"])
    calibrated = None if graph is None else calibrated_space(store, graph, space, full_bits)
    labels = None if calibrated is None else most_labels(store, calibrated, objective)
    folder = _found(store, "pictures")
    return Results(
        denoiser=store.denoiser,
        graph=graph,
        outcomes=[]
        if labels is None or calibrated is None
        else table_of(labels, calibrated, objective),
        predictor=_optional(store, REPORT, f"predictor/{space}/report.json"),
        sensitivity=_optional(store, SENSITIVITIES, f"sensitivity/{space}.json"),
        front=front,
        summary=summary,
        chosen=None if chosen is None else {k: str(m) for k, m in chosen.methods.items()},
        pictures={}
        if folder is None
        else {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))},
        protocol=None if labels is None else labels.protocol.to_json(),
        versions={}
        if labels is None
        else {n: version for o in labels.outcomes for n, version in sorted(o.versions.items())},
    )


def calibrated_space(store: Store, graph: Graph, name: str, full_bits: int) -> Space | None:
    """The space that was calibrated.

    Args:
        store: of the model.
        graph: as traced.
        name: of the space.
        full_bits: bits of full precision.

    Returns:
        The space; None if it was not calibrated, or from another graph.

    Raises:
        StoreError: its table is damaged.
    """
    path = _found(store, f"calibration/{name}/table.safetensors")
    if path is None:
        return None
    arrays, about = read_tensors(path, cost.TableFile, "run python -m qsdm.calibrate again")
    errors, shape = arrays.get("rel_error"), (len(about["weights"]), len(about["methods"]))
    if errors is None or errors.shape != shape:
        raise StoreError(f"{path} holds no errors of weights: run python -m qsdm.calibrate again")
    methods = [QuantMethod.parse(text) for text in about["methods"]]
    offered = {
        weight: tuple(sorted(compress(methods, row), key=lambda method: method.bits))
        for weight, row in zip(about["weights"], ~np.isnan(errors), strict=True)
    }
    # The space may have merged what the graph splits.
    split = sorted({weight.partition("#")[0] for weight in offered if "#" in weight})
    kept = "|".join(f"^{re.escape(module)}$" for module in split) or r"\A\b\Z"
    own = merge_splits(graph, kept)
    if {weight.name for weight in own.weights} != offered.keys():
        return None
    return Space(own, tuple(offered[weight.name] for weight in own.weights), full_bits)


def most_labels(store: Store, space: Space, objective: Objective | None) -> Labels | None:
    """The labels that were measured in one way, of the way with most of them.

    Args:
        store: of the model.
        space: whose configurations have labels.
        objective: whose metrics a label has; None before a search, when any outcome is one.

    Returns:
        The labels; None if there are none.

    Raises:
        StoreError: the outcomes are damaged.
    """
    sets = Bank.read(store, space).sets(objective or Objective({"avg_bits": -1.0}), "measure")
    return sets[0] if sets else None


def table_of(
    labels: Labels, space: Space, objective: Objective | None = None
) -> list[dict[str, Any]]:
    """Average bits, metrics and, on the objective's scale, quality of each label.

    Args:
        labels: of the space.
        space: whose weights are counted.
        objective: by which the labels were made; None if there is none.
    """
    rows: list[dict[str, Any]] = [
        {"avg_bits": bits, "metrics": dict(outcome.metrics)}
        for outcome, bits in zip(labels.outcomes, avg_bits(space, labels.outcomes), strict=True)
    ]
    if objective is not None:
        for row, value in zip(rows, labels.values.tolist(), strict=True):
            row["quality"] = value
    return rows


def rows(summary: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The measured rows, in the order in which they are read: full precision, ours, uniform by bits, random."""
    found = list(summary["rows"]) if summary else []

    def place(row: Mapping[str, Any]) -> tuple[int, float]:
        kind = kind_of(row["name"])
        return ("fp", "ours", "uniform", "random").index(kind), -row[
            "avg_bits"
        ] if kind == "uniform" else 0.0

    return sorted(found, key=place)


def kind_of(name: str) -> str:
    """fp, ours, random or uniform, from the name of a row."""
    if name in (FULL, OURS):
        return name
    return "random" if name.startswith("random") else "uniform"


def main_metric(summary: Mapping[str, Any] | None) -> str | None:
    """The Fréchet distance that was measured, `fid` before others: what the heading and the plots speak of."""
    found = {
        name for row in rows(summary) for name, value in row["metrics"].items() if value is not None
    }
    distances = sorted(name for name in found if name.startswith("fd_"))
    return "fid" if "fid" in found else distances[0] if distances else None


def verdict(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Ours against what it must beat, on `main_metric`, of which less is better.

    Returns:
        ours, fp, random_mean, random_best (values, or None), rival (the best uniform row that is not larger) and
        ``better_than_random``, ``better_than_uniform``; None without a row of ours.
    """
    metric = main_metric(summary)
    found = {row["name"]: row for row in rows(summary)}
    if metric is None or OURS not in found or found[OURS]["metrics"].get(metric) is None:
        return None
    ours = found[OURS]
    value = ours["metrics"][metric]
    random = [row["metrics"][metric] for name, row in found.items() if kind_of(name) == "random"]
    smaller = [
        row
        for name, row in found.items()
        if kind_of(name) == "uniform" and row["size_bytes"] <= ours["size_bytes"]
    ]
    rival = min(smaller, key=lambda row: row["metrics"][metric], default=None)
    return {
        "metric": metric,
        "ours": value,
        "avg_bits": ours["avg_bits"],
        "size_bytes": ours["size_bytes"],
        "fp": found[FULL]["metrics"][metric] if FULL in found else None,
        "fp_bytes": found[FULL]["size_bytes"] if FULL in found else None,
        "random_mean": float(np.mean(random)) if random else None,
        "random_best": min(random) if random else None,
        "num_random": len(random),
        "rival": rival,
        "better_than_random": bool(random) and value < float(np.mean(random)),
        "better_than_uniform": rival is not None and value < rival["metrics"][metric],
    }


def sentence(summary: Mapping[str, Any] | None) -> str | None:
    """The result in one sentence, whichever way it went."""
    found = verdict(summary)
    if found is None:
        return None
    score = f"{found['metric']} {found['ours']:.4g}"
    text = f"At {found['avg_bits']:.2f} bits per weight, mixed precision scores {score}"
    if found["fp"] is not None:
        text += f" ({found['fp']:.4g} at full precision)"
    parts = []
    if found["rival"] is not None:
        other = found["rival"]["metrics"][found["metric"]]
        word = "below" if found["better_than_uniform"] else "not below"
        parts.append(
            f"{word} the best uniform configuration of no larger size ({found['rival']['name']}, {other:.4g})"
        )
    if found["random_mean"] is not None:
        word = "below" if found["better_than_random"] else "not below"
        parts.append(
            f"{word} the mean of {found['num_random']} random ones of its size ({found['random_mean']:.4g})"
        )
    return text + (": " if parts else "") + " and ".join(parts) + "."


def harms(sensitivity: Mapping[str, Any], kind: str, most: int = 24) -> list[dict[str, Any]]:
    """What quantization costs each role, op or block: name and value, the ``most`` most harmful."""
    found = []
    for row in sensitivity["tables"][kind]:
        note = f"{row['num_weights']} weights, {row['share_of_values']:.1%} of the values"
        found.append({"name": row["name"], "value": row["integrated_gradients"], "note": note})
    return sorted(found, key=lambda entry: -entry["value"])[:most]


def matrix(sensitivity: Mapping[str, Any]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Weights, methods, and the harm of each weight under each method; None where a method is not on offer."""
    found = sensitivity["sensitivities"]["integrated_gradients"]
    return found["weights"], found["methods"], found["scores"]


def shown_pictures(results: Results) -> list[str]:
    """Which pictures stand side by side: full precision, the best uniform 4-bit and 3-bit ones, ours."""
    metric = main_metric(results.summary) or ""
    value = {row["name"]: row["metrics"].get(metric) for row in rows(results.summary)}

    def best(bits: str) -> str:
        names = [
            name for name in results.pictures if kind_of(name) == "uniform" and name.endswith(bits)
        ]
        return min(
            names, key=lambda name: np.inf if value.get(name) is None else value[name], default=""
        )

    return [name for name in (FULL, best("-4"), best("-3"), OURS) if name in results.pictures]


def table(summary: Mapping[str, Any] | None) -> pandas.DataFrame:
    """The measured rows as a table: bits, bytes, metrics."""
    import pandas

    entries = [
        {key: row[key] for key in ("avg_bits", "size_bytes")} | dict(row["metrics"])
        for row in rows(summary)
    ]
    return pandas.DataFrame(entries, index=[row["name"] for row in rows(summary)])


def largest(graph: Graph, most: int = 12) -> pandas.DataFrame:
    """The weights with most values: role, block, shape, values, multiply-accumulates."""
    import pandas

    entries = []
    for weight in sorted(graph.weights, key=lambda weight: -weight.numel)[:most]:
        node = graph.node_of(weight.name)
        shape = " × ".join(map(str, weight.shape))
        about = {
            "role": str(node.role),
            "block": node.block,
            "shape": shape,
            "values": weight.numel,
            "macs": node.macs,
        }
        entries.append({"weight": weight.name} | about)
    return pandas.DataFrame(entries).set_index("weight")


def candidates(results: Results) -> list[dict[str, Any]]:
    """The front's points that `realize` measured under the protocol of the labels: avg_bits, predicted, quality."""
    if not results.summary or not results.front:
        return []
    objective = Objective(results.front["objective"])
    return [
        {
            "avg_bits": row["avg_bits"],
            "predicted": row["predicted"],
            "quality": objective({**row["metrics"], "avg_bits": row["avg_bits"]}),
        }
        for row in results.summary.get("candidates", [])
    ]


def megabytes(size_bytes: float) -> str:
    """10^6 bytes, to three figures."""
    return f"{size_bytes / 1e6:.3g} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.3g} GB"


def _found(store: Store, name: str) -> Path | None:
    try:
        return store.find(name, "realize")
    except StoreError:
        return None


def _optional(store: Store, artifact: Artifact[T], name: str) -> T | None:
    return None if _found(store, name) is None else store.read(artifact, name)
