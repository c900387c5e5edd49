"""A store's artifacts as plain data, for the page, the notebooks and W&B."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qsdm.graph import Graph, merge_splits
from qsdm.measurement.labels import Bank, Labels
from qsdm.outcome import Objective
from qsdm.qconfig import QuantConfig, QuantMethod, Space, cost
from qsdm.report.parts import Part, parts
from qsdm.store import Store, StoreError
from qsdm.store.artifacts import Artifact
from qsdm.store.schemas import (
    CERTIFICATE,
    CHOSEN,
    FRONT,
    GRAPH,
    REPORT,
    SENSITIVITIES,
    STEPS,
    STEPS_FILE,
    SUMMARY,
    WHY,
    Certificate,
    StepTable,
    Why,
    digest_of_attributions,
)
from qsdm.store.tensors import read_tensors

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")


class NotRun(ValueError):
    """A figure needs what no command has made yet; the message names the command.

    Args:
        denoiser: name of the model.
        what: the data that is missing.
        command: that makes it, with arguments if it needs any.
    """

    def __init__(self, denoiser: str, what: str, command: str) -> None:
        name, _, arguments = command.partition(" ")
        line = f"python -m qsdm.{name} +model={denoiser} {arguments}".rstrip()
        super().__init__(f"no {what} of {denoiser!r}: run {line}")


@dataclass(frozen=True, slots=True)
class Results:
    """What a store holds of one denoiser and space.

    A field is None, or empty, where its command has not run.

    Attributes:
        denoiser: its name.
        graph: as traced (`trace`).
        outcomes: labels of the space's measured configurations: avg_bits, metrics and, if the
            objective is known, quality on its scale; only those of the protocol that has most.
        predictor: quality of the predictor (`train`).
        sensitivity: of weights, ops, roles, blocks (`attribute`).
        certificate: what pictures say of these attributions (`attribute certificate=true`); None,
            too, if it is about earlier ones.
        why: cards of decisions of the chosen configuration (`why`).
        why_pictures: PNG by the file that a card names.
        front: of the search (`search`).
        summary: the measured table (`realize`).
        steps: what each bin of the sampler's steps suffers (`probe`).
        chosen: method by weight name of the configuration that was chosen.
        parts: what each part of the pipeline takes of it; none if the graph is of one.
        pictures: PNG by name, in the order of the page.
        protocol: of the labels.
        versions: of their metrics, by name.

    Example:
        >>> from pathlib import Path
        >>> from qsdm.report import results
        >>> from qsdm.store import Store
        >>> empty = results.read(Store(Path("no/such/store"), "emoji_unet"))
        >>> empty.graph is None, len(empty.outcomes)
        (True, 0)
    """

    denoiser: str
    graph: Graph | None = None
    outcomes: Sequence[Mapping[str, Any]] = ()
    predictor: Mapping[str, Any] | None = None
    sensitivity: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None
    why: Why | None = None
    why_pictures: Mapping[str, bytes] = field(default_factory=dict)
    front: Mapping[str, Any] | None = None
    summary: Mapping[str, Any] | None = None
    steps: StepTable | None = None
    chosen: Mapping[str, str] | None = None
    parts: tuple[Part, ...] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    protocol: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def read(store: Store, space: str = "traced", full_bits: int = 16) -> Results:
    """Read all that a store holds of a space; what is missing is left out.

    Args:
        store: of the model.
        space: name of the space that was calibrated and searched.
        full_bits: bits of full precision.

    Returns:
        Plain data.

    Raises:
        StoreError: an artifact is damaged.
    """
    graph = _optional(store, GRAPH, "graph.json")
    front = _optional(store, FRONT, f"search/{space}.json")
    chosen = _optional(store, CHOSEN, "chosen.json")
    objective = None if front is None else Objective(front["objective"])
    calibrated = None if graph is None else calibrated_space(store, graph, space, full_bits)
    labels = None if calibrated is None else most_labels(store, calibrated, objective)
    outcomes = labels.outcomes if labels else ()
    folder = _path(store, "pictures")
    pictures = sorted(folder.glob("*.png")) if folder else []
    sensitivity = _optional(store, SENSITIVITIES, f"sensitivity/{space}.json")
    certificate = certificate_of(store, space, sensitivity)
    why, why_pictures = cards_of(store, chosen, certificate)
    return Results(
        denoiser=store.denoiser,
        graph=graph,
        outcomes=table_of(labels, calibrated, objective) if labels and calibrated else (),
        predictor=_optional(store, REPORT, f"predictor/{space}/report.json"),
        sensitivity=sensitivity,
        certificate=certificate,
        why=why,
        why_pictures=why_pictures,
        front=front,
        summary=_optional(store, SUMMARY, "summary.json"),
        steps=_optional(store, STEPS, STEPS_FILE),
        chosen=None if chosen is None else {k: str(m) for k, m in chosen.decisions.items()},
        parts=parts(calibrated.graph, chosen, full_bits) if chosen and calibrated else (),
        pictures={path.stem: path.read_bytes() for path in pictures},
        protocol=labels.protocol.to_json() if labels else None,
        versions={name: version for o in outcomes for name, version in sorted(o.versions.items())},
    )


def certificate_of(
    store: Store, space: str, sensitivity: Mapping[str, Any] | None
) -> Certificate | None:
    """Read the certificate of a space's present attributions.

    Args:
        store: of the model.
        space: its name.
        sensitivity: the present attributions; None if there are none.

    Returns:
        The certificate; None if there is none, or of other attributions.

    Raises:
        StoreError: it is damaged.
    """
    measured = _optional(store, CERTIFICATE, f"sensitivity/{space}-certificate.json")
    if measured is None or sensitivity is None:
        return None
    return measured if measured["attributions"] == digest_of_attributions(sensitivity) else None


def cards_of(
    store: Store, chosen: QuantConfig | None, certificate: Certificate | None
) -> tuple[Why | None, dict[str, bytes]]:
    """Read the cards of the chosen configuration, and their pictures.

    Args:
        store: of the model.
        chosen: the configuration; None if there is none.
        certificate: of the present attributions, which may be younger than the cards.

    Returns:
        The cards, None if there are none; and PNG by the file that a card names.

    Raises:
        StoreError: they are damaged.
    """
    if chosen is None:
        return None, {}
    why = _optional(store, WHY, f"why/{chosen.digest[:16]}.json")
    if why is None:
        return None, {}
    files = [card["pictures"]["file"] for card in why["cards"] if card["pictures"] is not None]
    paths = {file: store.path(f"why/{file}") for file in files}
    why["certified"] = None if certificate is None else certificate["holds"]
    return why, {file: path.read_bytes() for file, path in paths.items() if path.exists()}


def calibrated_space(store: Store, graph: Graph, name: str, full_bits: int) -> Space | None:
    """Read the space that was calibrated.

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
    path = _path(store, f"calibration/{name}/table.safetensors")
    if path is None:
        return None
    arrays, header = read_tensors(path, cost.TableFile, "run python -m qsdm.calibrate again")
    errors, shape = arrays.get("rel_error"), (len(header["weights"]), len(header["methods"]))
    if errors is None or errors.shape != shape:
        raise StoreError(f"{path} holds no errors of weights: run python -m qsdm.calibrate again")
    methods = [QuantMethod.parse(text) for text in header["methods"]]
    every = [QuantMethod.parse(text) for text in header.get("offered", header["methods"])]
    offered = {}
    for weight, row in zip(header["weights"], ~np.isnan(errors), strict=True):
        own_methods = set(compress(methods, row))
        on_offer = [method for method in every if method.of_weight in own_methods]
        offered[weight] = tuple(sorted(on_offer, key=lambda method: method.bits))
    # The space may have merged what the graph splits.
    split = sorted({weight.partition("#")[0] for weight in offered if "#" in weight})
    kept = "|".join(f"^{re.escape(module)}$" for module in split) or r"\A\b\Z"
    own = merge_splits(graph, kept)
    if {weight.name for weight in own.weights} != offered.keys():
        return None
    return Space(own, tuple(offered[weight.name] for weight in own.weights), full_bits)


def most_labels(store: Store, space: Space, objective: Objective | None) -> Labels | None:
    """Choose the labels that were measured in one way: the way that has most.

    Args:
        store: of the model.
        space: whose configurations have labels.
        objective: whose metrics a label has; None before a search, when any outcome is one.

    Returns:
        The labels; None if there are none.

    Raises:
        StoreError: the outcomes are damaged.
    """
    measure = objective or Objective({"avg_bits": -1.0})
    protocols = store.protocols()
    most: Labels | None = None
    for digest, count in Counter(store.counts()).most_common():
        if most is not None and len(most) >= count:  # no other protocol can have more
            break
        if digest in protocols:
            own = {digest: protocols[digest]}
            sets = Bank(space, store.outcomes(own), own).sets(measure, "measure")
            most = max(filter(None, [most, *sets[:1]]), key=len, default=None)
    return most


def table_of(
    labels: Labels, space: Space, objective: Objective | None = None
) -> list[dict[str, Any]]:
    """Reduce labels to what figures show.

    Args:
        labels: of the space.
        space: whose weights are counted.
        objective: by which the labels were made; None if there is none.

    Returns:
        avg_bits, metrics and, with an objective, quality of each label.
    """
    sizes = cost.avg_bits_of(space, labels.genes)
    rows: list[dict[str, Any]] = [
        {"avg_bits": bits, "metrics": dict(outcome.metrics)}
        for outcome, bits in zip(labels.outcomes, sizes.tolist(), strict=True)
    ]
    if objective is not None:
        for row, value in zip(rows, labels.values.tolist(), strict=True):
            row["quality"] = value
    return rows


def harms(sensitivity: Mapping[str, Any], kind: str, most: int = 24) -> list[dict[str, Any]]:
    """List what quantization costs each role, op or block.

    Args:
        sensitivity: contents of the space's sensitivity file.
        kind: role, op or block.
        most: number of groups, the most harmful ones.

    Returns:
        name, value (integrated gradients), to_full, from_full (ablations) and note of each.
    """
    entries = [
        {
            "name": row["name"],
            "value": row["integrated_gradients"],
            "to_full": row["to_full"],
            "from_full": row["from_full"],
            "note": f"{row['num_weights']} weights, {row['share_of_values']:.1%} of the values",
        }
        for row in sensitivity["tables"][kind]
    ]
    return sorted(entries, key=lambda entry: -entry["value"])[:most]


def matrix(sensitivity: Mapping[str, Any]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Read the harm of each weight under each method.

    Args:
        sensitivity: contents of the space's sensitivity file.

    Returns:
        Weights, methods, and harms by weight and method; None where a method is not on offer.
    """
    gradients = sensitivity["sensitivities"]["integrated_gradients"]
    return gradients["weights"], gradients["methods"], gradients["scores"]


def parts_of_blocks(results: Results) -> dict[str, tuple[str, int]]:
    """Find the block and size of each weight of the chosen configuration.

    Args:
        results: of a denoiser.

    Returns:
        Block and number of values by weight, in the order of the graph; empty without a graph or
        a chosen configuration.
    """
    parts: dict[str, tuple[str, int]] = {}
    if results.graph is None or results.chosen is None:
        return parts
    for node in results.graph.nodes:
        if node.weight is None:
            continue
        block, num_values = node.block or node.stage or "other", node.weight.numel
        name, whole = node.weight.name, node.weight.name.partition("#")[0]
        if name in results.chosen:
            parts[name] = block, num_values
        elif whole in results.chosen:  # the space merges the slices of this weight
            block, earlier = parts.get(whole, (block, 0))
            parts[whole] = block, earlier + num_values
    return parts


def largest(graph: Graph, most: int = 12) -> pandas.DataFrame:
    """Tabulate the weights with most values.

    Args:
        graph: of a denoiser.
        most: number of weights.

    Returns:
        role, block, shape, values and macs (multiply-accumulates) by weight.
    """
    import pandas

    entries = []
    for weight in sorted(graph.weights, key=lambda weight: -weight.numel)[:most]:
        node = graph.node_of(weight.name)
        entries.append(
            {
                "weight": weight.name,
                "role": str(node.role),
                "block": node.block,
                "shape": " × ".join(map(str, weight.shape)),
                "values": weight.numel,
                "macs": node.macs,
            }
        )
    return pandas.DataFrame(entries).set_index("weight")


def _path(store: Store, name: str) -> Path | None:
    try:
        return store.find(name, "realize")
    except StoreError:
        return None


def _optional(store: Store, artifact: Artifact[T], name: str) -> T | None:
    return None if _path(store, name) is None else store.read(artifact, name)
