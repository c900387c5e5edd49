"""Read the trained predictor: sensitivity of every weight under every method, per role, op and block.

    python -m qsdm.attribute +model=emoji_unet
    python -m qsdm.attribute +model=emoji_unet attribution.num_configs=96 attribution.steps=64

Writes ``sensitivity/<space>-{role,block,weights,interventions}.png`` and ``sensitivity/<space>.json``::

    schema              qsdm/sensitivities/1
    denoiser, space, objective, attribution (options), num_configs
    sensitivities       by attribution: weights, methods, scores (harm by [weight][method]; null where not on offer),
                        faithfulness
    hops                by hop: harm of each weight's subgraph, mean over configurations
    interventions       weight, method, measured harm and integrated gradients of each weight that was quantized alone
    tables              by role, op and block: rows (see `qsdm.sensitivity.tables.table`)
    full_precision      predicted label, from which harms count, and the measured one (null if it was not measured)
    completeness        harm (mean of f(x0) - f(x)), gap (greatest share of it that the attributions miss)
    provenance
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.cost import avg_bits
from qsdm.log import Log, ignore
from qsdm.outcome import Objective, Outcome
from qsdm.qconfig import QuantMethod, Space
from qsdm.sensitivity import AttributionOptions
from qsdm.store.provenance import provenance
from qsdm.store.schemas import SENSITIVITIES
from qsdm.workspace import Workspace, takes_workspace


@takes_workspace("model", "space", "objective", "store", "attribution")
def attribute(
    workspace: Workspace,
    objective: Objective,
    attribution: AttributionOptions = AttributionOptions(),  # noqa: B008 (frozen)
    log: Log = ignore,
) -> dict[str, Any]:
    """Compute and store sensitivities.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        attribution: how many configurations are explained, and how finely.
        log: takes what is logged.

    Returns:
        What was written.

    Raises:
        StoreError: an earlier stage has not run, or for another objective.
    """
    from qsdm.predictor import one_thread

    made, predictor = workspace.space, workspace.predictor(objective)
    measured, protocol = workspace.report["held_out"], workspace.report["protocol"]
    outcomes = workspace.store.outcomes()
    known = {o.qconfig.digest: o.qconfig for o in outcomes}
    pairs = [
        (known[d], y)
        for d, y in zip(measured["qconfig"], measured["measured"], strict=True)
        if d in known
    ]
    labels = np.array([y for _, y in pairs])
    genes = np.array([made.encode(qconfig) for qconfig, _ in pairs], dtype=np.int64).reshape(
        len(pairs), len(made.options)
    )

    full = full_precision(outcomes, protocol, objective, made.full_bits)
    single = {} if full is None else alone(outcomes, protocol, objective, full, made)
    with one_thread():
        result = attributions(predictor, attribution, genes, labels, single)
    result["full_precision"]["measured"] = full
    about = {
        "denoiser": workspace.name,
        "space": workspace.space_name,
        "objective": dict(objective.weights),
    }
    result = {"schema": SENSITIVITIES.schema, **about, **result, "provenance": provenance()}
    target = workspace.path(f"sensitivity/{workspace.space_name}.json")
    SENSITIVITIES.write(target, result)
    draw(result, target, objective)
    log(
        {
            f"attribute/harm_{kind}_{row['name']}": row["integrated_gradients"]
            for kind in ("role", "op")
            for row in result["tables"][kind]
        }
        | {"attribute/completeness_gap": result["completeness"]["gap"]}
    )
    print_sensitivity(result)
    return result


def full_precision(
    outcomes: Sequence[Outcome], protocol: str, objective: Objective, full_bits: int
) -> float | None:
    """The measured label of full precision; None if this protocol has not measured all of it."""
    for outcome in outcomes:
        if outcome.protocol == protocol and not outcome.qconfig.methods:
            values = {**outcome.metrics, "avg_bits": float(full_bits)}
            if all(values.get(name) is not None for name in objective.weights):
                return objective(values)
    return None


def alone(
    outcomes: Sequence[Outcome], protocol: str, objective: Objective, full: float, space: Space
) -> dict[tuple[str, QuantMethod], float]:
    """Measured harm of each weight that was quantized alone under the protocol, by weight and method.

    Args:
        full: label of full precision, from which harms count.
    """
    found = {}
    for outcome in outcomes:
        if outcome.protocol == protocol and len(outcome.qconfig.methods) == 1:
            values = {
                **outcome.metrics,
                "avg_bits": avg_bits(space.graph, outcome.qconfig, space.full_bits),
            }
            if all(values.get(name) is not None for name in objective.weights):
                found[next(iter(outcome.qconfig.methods.items()))] = full - objective(values)
    return found


def attributions(
    predictor: Any,
    options: AttributionOptions,
    genes: np.ndarray,
    labels: np.ndarray,
    measured: Mapping[tuple[str, QuantMethod], float],
) -> dict[str, Any]:
    """Everything that is computed, as plain data; see `attribute`.

    Args:
        genes, labels: measured configurations, int64 [B, W] and float64 [B], for the faithfulness; may be empty.
        measured: harm of weights that were quantized alone, by weight and method; may be empty.
    """
    import torch
    from tqdm import tqdm

    from qsdm.predictor.scores import srcc
    from qsdm.sensitivity import Sensitivity, balanced_genes, by_decision
    from qsdm.sensitivity.attribution import ablation, answer, integrated_gradients
    from qsdm.sensitivity.faithfulness import additive_srcc, deletion, interventions
    from qsdm.sensitivity.hops import hop_harms
    from qsdm.sensitivity.tables import KINDS, groups_of, table

    space = predictor.encoding.space
    rng = np.random.default_rng(options.seed)
    explained = balanced_genes(space, options.num_configs, rng)
    names = tuple(weight.name for weight in space.graph.weights)
    progress = tqdm(total=2 + len(KINDS), desc="attribute", unit="pass", disable=None)
    parts = [integrated_gradients(predictor, row[None], options.steps) for row in explained]
    harms, gaps = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    progress.update()
    hops = hop_harms(predictor, explained)
    few = explained[
        : max(4, options.num_configs // 9)
    ]  # ablation of single weights asks 2 W times per configuration
    single = ablation(predictor, few, np.arange(len(names)))
    progress.update()
    tables = {}
    for kind in KINDS:
        ablated = ablation(
            predictor, explained[: max(4, options.num_configs // 3)], groups_of(space, kind)[1]
        )
        tables[kind] = table(
            space, kind, harms, ablated["to_full"], ablated["from_full"], hops.sum(axis=0)
        )
        progress.update()
    progress.close()

    columns = predictor.encoding.columns_of(genes)
    seen_alone = single["from_full"].mean(axis=0)
    found = {}
    for name, values, used in (
        ("integrated_gradients", harms, explained),
        ("ablation_to_full", single["to_full"], few),
        ("ablation_from_full", single["from_full"], few),
        ("hops", hops.sum(axis=0), explained),
    ):
        scores = by_decision(space, used, values)
        made = Sensitivity(names, space.methods, scores, name)
        faith = {
            "deletion": deletion(
                predictor, used[0], values[0], np.random.default_rng(options.seed)
            ),
            "agreement": srcc(values.mean(axis=0), seen_alone),
        }
        if len(labels) > 2:
            faith["additive_srcc"] = additive_srcc(made, columns, labels)
        faith |= interventions(made, measured)
        found[name] = dataclasses.replace(made, faithfulness=faith)
    total = harms.sum(axis=1) + gaps
    gradients = found["integrated_gradients"]
    compared = [
        {"weight": weight, "method": str(method), "measured": harm, "integrated_gradients": score}
        for (weight, method), harm in measured.items()
        if (score := gradients.score(weight, method)) is not None
    ]
    with torch.no_grad():
        full = float(answer(predictor)(torch.from_numpy(predictor.encoding.full_precision())))
    return {
        "attribution": dataclasses.asdict(options),
        "sensitivities": {name: made.to_json() for name, made in found.items()},
        "hops": {
            str(m): dict(zip(names, hop.mean(axis=0).tolist(), strict=True))
            for m, hop in enumerate(hops)
        },
        "interventions": compared,
        "tables": tables,
        "completeness": {"harm": float(total.mean()), "gap": float(np.abs(gaps / total).max())},
        "full_precision": {"predicted": full, "measured": None},
    }


def draw(result: dict[str, Any], path: Path, objective: Objective) -> None:
    """Write the pictures beside ``path``."""
    from qsdm.sensitivity import Sensitivity
    from qsdm.sensitivity.plots import against_measured, bars, heat_map

    unit = (
        "predicted "
        + " ".join(f"{-w:+g} {name}" for name, w in objective.weights.items())
        .replace("+1 ", "")
        .strip()
    )
    for kind in ("role", "block"):
        bars(result["tables"][kind], kind, unit).savefig(
            path.with_name(f"{path.stem}-{kind}.png"), dpi=150
        )
    made = Sensitivity.from_json(result["sensitivities"]["integrated_gradients"])
    heat_map(made, unit).savefig(path.with_name(f"{path.stem}-weights.png"), dpi=150)
    if len(result["interventions"]) > 2:
        figure = against_measured(result["interventions"], unit)
        figure.savefig(path.with_name(f"{path.stem}-interventions.png"), dpi=150)


def print_sensitivity(result: dict[str, Any]) -> None:
    """Tables per role and per block, completeness and faithfulness, on the terminal."""
    from qsdm.sensitivity.tables import text

    for kind in ("role", "block"):
        print(text(kind, result["tables"][kind]))
        print()
    gap, harm = result["completeness"]["gap"], result["completeness"]["harm"]
    print(
        f"mean harm of the explained configurations: {harm:.3f}; attributions miss {gap:.2%} of it at most"
    )
    full = result["full_precision"]
    measured = "not measured" if full["measured"] is None else f"measured {full['measured']:.3f}"
    print(f"full precision, from which harms count: predicted {full['predicted']:.3f}, {measured}")
    for name, made in result["sensitivities"].items():
        print(
            f"{name:<22}"
            + ", ".join(f"{key} {value:.3f}" for key, value in made["faithfulness"].items())
        )


if __name__ == "__main__":
    from qsdm import run

    run.main(attribute)
