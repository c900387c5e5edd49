"""Measured outcomes as what a predictor learns and is judged by: labels, their noise, and test sets.

A test set was measured for judging alone (``measure test=true``): often with more pictures than the labels, and with
other starting noise, which tells how far labels of two seed sets agree at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from qsdm import cost
from qsdm.denoisers import (
    Model,
    denoiser_tensors,
    frames_of,
    pipeline_digest,
    source_digest,
    weights_digest,
)
from qsdm.graph import Graph
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.qconfig import OutsideSpace, Space
from qsdm.store import Store, StoreError


def of_model(files: Store, model: Model) -> dict[str, Protocol]:
    """Protocols with the model's present weights and sampling, by digest."""
    wanted = {
        "weights": weights_digest(model),
        "pipeline": pipeline_digest(model),
        "steps": model.steps,
        "guidance": model.guidance,
        "resolution_px": model.resolution_px,
        "dtype": model.dtype,
        "frames": frames_of(model),
    }
    return {
        digest: protocol
        for digest, protocol in files.protocols().items()
        if all(getattr(protocol, name) == value for name, value in wanted.items())
    }


def under_protocol(files: Store, model: Model, seed_set: int, num_images: int) -> list[Outcome]:
    """Labels that were measured with the model's present weights and sampling, this noise and this many pictures.

    Raises:
        StoreError: there are labels, but none such.
    """
    wanted = {"seed_set": seed_set, "num_images": num_images}
    same = {
        digest
        for digest, protocol in of_model(files, model).items()
        if all(getattr(protocol, name) == value for name, value in wanted.items())
    }
    labels = [outcome for outcome in files.outcomes() if outcome.is_label]
    found = [outcome for outcome in labels if outcome.protocol in same]
    if labels and not found:
        raise StoreError(
            f"none of the {len(labels)} labels of {model.name!r} was measured with its present weights and sampling, "
            f"seed_set={seed_set} and num_images={num_images}: run python -m qsdm.measure +model={model.name} with them"
        )
    return found


def require_fitted(model: Model, table: cost.MethodTable, graph: Graph) -> None:
    """Compare the weights that a table of methods was computed from with the model's present ones.

    They are read only if the pipeline is not as it was then, as after it was saved again.

    Args:
        model: as it is today.
        table: that `calibrate` wrote.
        graph: of the space.

    Raises:
        OtherWeights: they differ, or the table does not tell.
        ModelError: the weights are not here.
    """
    from qsdm.quant.calibration import OtherWeights, fitted_digest  # with torch: --help is fast

    remedy = f"run python -m qsdm.calibrate +model={model.name}"
    if not table.fitted:
        raise OtherWeights(
            f"the table of methods of {model.name!r} does not tell which weights it was computed from, "
            f"as those of qsdm 0.1.0: {remedy} again"
        )
    if table.source == source_digest(model):
        return
    if fitted_digest(denoiser_tensors(model), graph) != table.fitted:
        raise OtherWeights(
            f"the table of methods was computed from other weights of {model.name!r}: {remedy}"
        )


def usable(
    outcomes: Sequence[Outcome], space: Space, objective: Objective, denoiser: str
) -> list[Outcome]:
    """The outcomes of the space's configurations under the protocol that has most of them; others are named, not used.

    Raises:
        StoreError: there are none.
    """
    found = in_space(outcomes, space, objective)
    if not found:
        metrics = [name for name in objective.weights if name != "avg_bits"]
        raise StoreError(
            f"no outcomes with {', '.join(metrics) or 'any metric'} for {denoiser!r} in this space "
            f"({len(outcomes)} others): run python -m qsdm.measure +model={denoiser}"
        )
    (chosen, number), *others = Counter(way_of(o, objective) for o in found).most_common()
    if others:
        told = [
            f"{n} of {way[0][:12]}" + " with other versions of the metrics" * (way[0] == chosen[0])
            for way, n in others
        ]
        print(f"{number} outcomes of protocol {chosen[0][:12]}; not used: {', '.join(told)}")
    return [outcome for outcome in found if way_of(outcome, objective) == chosen]


def way_of(outcome: Outcome, objective: Objective) -> tuple[str, tuple[str, ...]]:
    """Protocol and versions of the objective's metrics: what must agree for two labels to be compared."""
    names = sorted(name for name in objective.weights if name != "avg_bits")
    return outcome.protocol, tuple(outcome.versions.get(name, "") for name in names)


def in_space(outcomes: Sequence[Outcome], space: Space, objective: Objective) -> list[Outcome]:
    """Those of the space's configurations that have the objective's metrics."""
    metrics = [name for name in objective.weights if name != "avg_bits"]
    found = []
    for outcome in outcomes:
        try:
            space.encode(outcome.qconfig)
        except OutsideSpace:
            continue  # full precision, and configurations of other spaces
        if all(outcome.metrics.get(name) is not None for name in metrics):
            found.append(outcome)
    return found


def labels_of(
    outcomes: Sequence[Outcome], space: Space, objective: Objective
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels, float64 [B], and those of the two halves of the pictures in several ways, [S, 2, B]; None if any outcome
    lacks them."""
    bits = [cost.avg_bits(space.graph, outcome.qconfig, space.full_bits) for outcome in outcomes]
    labels = np.array(
        [objective({**o.metrics, "avg_bits": b}) for o, b in zip(outcomes, bits, strict=True)]
    )
    names = [name for name in objective.weights if name != "avg_bits"]
    num = min((len(o.halves.get(name, ())) for o in outcomes for name in names), default=0)
    if num == 0:
        return labels, None
    halves = [
        [
            [
                objective({**{name: o.halves[name][s][k] for name in names}, "avg_bits": b})
                for o, b in zip(outcomes, bits, strict=True)
            ]
            for k in (0, 1)
        ]
        for s in range(num)
    ]
    return labels, np.array(halves)


def noise(halves: np.ndarray | None) -> dict[str, float] | None:
    from qsdm.predictor.scores import noise_ceiling

    return None if halves is None else noise_ceiling(halves)


def test_report(
    files: Store,
    model: Model,
    space: Space,
    objective: Objective,
    predict: Callable[[np.ndarray], dict[str, np.ndarray]],
) -> dict[str, Any] | None:
    """How predictions rank the configurations of the test set, under every protocol that it was measured with.

    Args:
        predict: genes int64 [B, W] => predictions by name, float64 [B].

    Returns:
        ``sets``: seed_set, num_images, num_configs, srcc by name, noise (see `noise`). ``between``: rank correlation of
        the labels of two seed sets, over the configurations of both. None without a test set.
    """
    from qsdm.predictor.scores import srcc

    sets, labelled = [], []
    for protocol in sorted(
        of_model(files, model).values(), key=lambda p: (p.seed_set, p.num_images)
    ):
        tested = [o for o in files.outcomes(protocol) if o.provenance.get("stage") == "test"]
        found = in_space(tested, space, objective)
        if found:
            most = Counter(way_of(o, objective) for o in found).most_common(1)[0][0]
            found = [outcome for outcome in found if way_of(outcome, objective) == most]
        if len(found) < 3:
            continue
        labels, halves = labels_of(found, space, objective)
        predicted = predict(np.stack([space.encode(outcome.qconfig) for outcome in found]))
        about = {
            "seed_set": protocol.seed_set,
            "num_images": protocol.num_images,
            "num_configs": len(found),
        }
        ranks = {name: srcc(values, labels) for name, values in predicted.items()}
        sets.append(about | {"srcc": ranks, "noise": noise(halves)})
        labelled.append(
            (protocol, dict(zip((o.qconfig.digest for o in found), labels.tolist(), strict=True)))
        )
    between = []
    for (p, first), (q, second) in combinations(labelled, 2):
        both = sorted(first.keys() & second.keys())
        if p.seed_set != q.seed_set and len(both) >= 3:
            r = srcc(np.array([first[d] for d in both]), np.array([second[d] for d in both]))
            between.append(
                {"sets": [[p.seed_set, p.num_images], [q.seed_set, q.num_images]], "srcc": r}
            )
    return {"sets": sets, "between": between} if sets else None
