"""Explain the trained predictor: how sensitive every weight is to every method.

    python -m qsdm.attribute +model=emoji_unet
    python -m qsdm.attribute +model=emoji_unet attribution.num_configs=96 attribution.steps=64
    python -m qsdm.attribute +model=emoji_unet certificate=true     # do pictures confirm them?
    python -m qsdm.attribute +model=emoji_unet certificate=true plan=true price_per_hour=2.5

Writes ``sensitivity/<space>.json``, and pictures of it in
``sensitivity/<space>-{role,block,weights,interventions}.png``::

    schema              qsdm/sensitivities/1
    denoiser, space, objective, attribution (options), num_configs
    sensitivities       by attribution: weights, methods, scores (harm by [weight][method]; null
                        where not on offer), faithfulness
    hops                by hop: harm of each weight's subgraph, mean over configurations
    interventions       weight, method, measured harm and integrated gradients of each weight that
                        was quantized alone
    tables              by role, op and block: rows (see `qsdm.sensitivity.tables.table`)
    full_precision      predicted label, from which harms are counted, and the measured one (null if
                        it was not measured)
    completeness        harm (mean of f(x0) - f(x)), gap (greatest share of it that the attributions
                        miss)
    provenance

With ``certificate=true``, weights are restored to full precision in the attributed order and in
others, and each step is drawn and measured: see `qsdm.sensitivity.certificate`, which states when
the certificate holds. What was measured before is not measured again, so a killed run continues.
It is written to ``sensitivity/<space>-certificate.json``, with a figure beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import text
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.outcome import Objective, Outcome, require_measured
from qsdm.qconfig import QuantConfig, QuantMethod, Space
from qsdm.qconfig.cost import avg_bits
from qsdm.sensitivity import AttributionOptions, Sensitivity
from qsdm.sensitivity.certificate import CurveOptions
from qsdm.store.provenance import provenance
from qsdm.store.schemas import CERTIFICATE, SENSITIVITIES, digest_of_attributions
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qsdm.engine import Engine
    from qsdm.predictor import Predictor
    from qsdm.sensitivity.stability import Stability


@takes_workspace("model", "space", "objective", "store", "attribution")
def attribute(
    workspace: Workspace,
    objective: Objective,
    attribution: AttributionOptions = AttributionOptions(),  # noqa: B008 (frozen)
    certificate: bool = False,
    curves: CurveOptions = CurveOptions(),  # noqa: B008 (frozen)
    batch_size: int = 16,
    engine: Engine = Local(),  # noqa: B008 (frozen)
    plan: bool = False,
    price_per_hour: float | None = None,
    log: Log = ignore,
) -> dict[str, Any]:
    """Compute and store sensitivities.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        attribution: how many configurations are explained, and how finely.
        certificate: measure whether pictures confirm the attributions.
        curves: how that is measured.
        batch_size: pictures that are drawn at a time.
        engine: where workers run.
        plan: of the certificate, only print what is missing and how long it takes.
        price_per_hour: of one worker, in any currency; for the plan.
        log: receives the harms by role and op.

    Returns:
        The content of the JSON file of sensitivities.

    Raises:
        StoreError: an earlier stage has not run, or for another objective.
        EvaluationError: the certificate needs a configuration that cannot be measured.
        ValueError: the certificate's noise is that of the labels, or it needs what is not measured.

    Example:
        >>> import qsdm
        >>> from qsdm.attribute import attribute
        >>> from qsdm.outcome import Objective
        >>> from qsdm.sensitivity import AttributionOptions
        >>> few = AttributionOptions(num_configs=4, steps=4)
        >>> result = attribute(qsdm.open("emoji_unet"), Objective({"fd_lite0": -1}), few)
        >>> sorted(result["tables"])
        ['block', 'op', 'role']
    """
    from qsdm.measurement.labels import label_of_full
    from qsdm.predictor import one_thread
    from qsdm.report.tracked import track

    require(1, MANY, batch_size=batch_size)
    require(0, price_per_hour=price_per_hour)
    space, predictor = workspace.space, workspace.predictor(objective)
    if certificate or plan:
        require_curves(workspace, curves)
        require_measured(objective.metrics, workspace.model.metrics)
    held_out, protocol = workspace.report["held_out"], workspace.report["protocol"]
    outcomes = workspace.store.outcomes()
    qconfigs = {outcome.qconfig.digest: outcome.qconfig for outcome in outcomes}
    pairs = [
        (qconfigs[str(digest)], float(value))
        for digest, value in zip(held_out["qconfig"], held_out["measured"], strict=True)
        if digest in qconfigs
    ]
    labels = np.array([value for _, value in pairs])
    genes = np.array([space.encode(qconfig) for qconfig, _ in pairs], dtype=np.int64)
    genes = genes.reshape(len(pairs), len(space.options))

    full = label_of_full(outcomes, protocol, objective, space.full_bits)
    single = {} if full is None else alone(outcomes, protocol, objective, full, space)
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
    draw(result, target)
    log(
        {
            f"attribute/harm_{kind}_{row['name']}": row["integrated_gradients"]
            for kind in ("role", "op")
            for row in result["tables"][kind]
        }
        | {"attribute/completeness_gap": result["completeness"]["gap"]}
    )
    print_sensitivity(result)
    track(log, "attribute", workspace.store, workspace.space_name, workspace.model.full_bits)
    if certificate or plan:
        certify(
            workspace, objective, curves, Measuring(batch_size, engine, plan, price_per_hour), log
        )
    return result


@dataclass(frozen=True, slots=True)
class Measuring:
    """How pictures of the certificate are drawn.

    Attributes:
        batch_size: pictures that are drawn at a time.
        engine: where workers run.
        plan: only print what is missing and how long it takes.
        price_per_hour: of one worker, in any currency.
    """

    batch_size: int
    engine: Engine
    plan: bool
    price_per_hour: float | None


def certify(
    workspace: Workspace,
    objective: Objective,
    curves: CurveOptions,
    measuring: Measuring,
    log: Log = ignore,
) -> Mapping[str, Any] | None:
    """Measure whether pictures confirm the stored attributions, and store the answer.

    Args:
        workspace: model, space and store.
        objective: whose loss is harm.
        curves: how it is measured.
        measuring: how pictures are drawn.
        log: receives the metrics of every outcome, and the figure.

    Returns:
        The content of the certificate's file; None for a plan.

    Raises:
        StoreError: an earlier stage has not run.
        EvaluationError: a configuration cannot be measured.
        ValueError: the noise is that of the labels.
    """
    from qsdm.measurement.plan import plan_session
    from qsdm.measurement.session import open_session
    from qsdm.report import figures
    from qsdm.report.results import Results
    from qsdm.sensitivity import certificate
    from qsdm.sensitivity.curves import counts_of, scores_of, ways

    begin = require_curves(workspace, curves)
    space, name = workspace.space, workspace.space_name
    sensitivities = workspace.store.read(SENSITIVITIES, f"sensitivity/{name}.json")
    gradients = Sensitivity.from_json(sensitivities["sensitivities"]["integrated_gradients"])
    scores = scores_of(begin, space, workspace.table, gradients, probed(workspace, objective))
    orders = ways(begin, scores, curves.num_random, curves.seed)
    engine = Serial() if measuring.plan else measuring.engine  # a plan starts no workers
    with open_session(workspace, engine, measuring.batch_size) as ready:
        protocol = ready.protocol(curves.seed_set, curves.num_images)
        counts = counts_of(len(begin.methods), curves.points)
        planned = plan_session(ready, certificate.configurations(begin, orders, counts), protocol)
        print(
            dataclasses.replace(
                planned,
                num_workers=measuring.engine.num_workers,
                price_per_hour=measuring.price_per_hour,
            ),
            flush=True,
        )
        if measuring.plan:
            return None
        measured = certificate.measure(
            ready, protocol, objective, begin, orders, curves.points, log
        )
    steady = trained_again(workspace, objective, curves, begin)
    content = {
        "denoiser": workspace.name,
        "space": name,
        "objective": dict(objective.weights),
        "attributions": digest_of_attributions(sensitivities),
        "method": ", ".join(sorted({str(method) for method in begin.decisions.values()})),
        **certificate.contents(measured, steady, curves, protocol),
        "provenance": provenance(),
    }
    target = workspace.path(f"sensitivity/{name}-certificate.json")
    CERTIFICATE.write(target, content)
    print(certificate.as_text(content))
    picture = target.with_suffix(".png")
    results = Results(workspace.name, certificate=content)
    figures.write(picture, figures.certificate(results))
    log({"attribute/certificate": picture, "attribute/certificate_holds": content["holds"]})
    log({"attribute/certificate_areas": content["differences"]})
    return content


def require_curves(workspace: Workspace, curves: CurveOptions) -> QuantConfig:
    """Check what the certificate needs, before anything is attributed or drawn.

    Args:
        workspace: model, space and store.
        curves: how it is measured.

    Returns:
        Where curves begin.

    Raises:
        OutsideSpace: the space does not offer the method of the curves.
        ValueError: the noise is that of the labels.
    """
    from qsdm.sensitivity.certificate import start

    if curves.seed_set == workspace.report["seed_set"]:
        raise ValueError(
            f"wanted fresh noise, but the predictor's labels have seed_set={curves.seed_set}: "
            "give another curves.seed_set"
        )
    return start(workspace.space, curves.method)


def probed(workspace: Workspace, objective: Objective) -> np.ndarray | None:
    """Compute the damage of each decision that probes predict, for the order that they give.

    Args:
        workspace: model, space and store.
        objective: whose loss is harm.

    Returns:
        As `qsdm.predictor.probes.Probes.damage` gives it; None without probes that fit, said with
        the reason.
    """
    from qsdm.predictor.probes import ProbeError

    try:
        return workspace.probes(objective).damage(workspace.space, workspace.table)
    except ProbeError as error:
        print(f"the order of probes is left out: {error}")
        return None


def trained_again(
    workspace: Workspace, objective: Objective, curves: CurveOptions, begin: QuantConfig
) -> Stability:
    """Train again on other folds, fewer labels and random ones, as `train` did.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        curves: how many trainings.
        begin: whose weights are attributed.

    Returns:
        How steady the attributions are.
    """
    from qsdm.measurement.labels import label_of_full
    from qsdm.predictor import FitOptions
    from qsdm.predictor.best_probes import best_of_each_fidelity
    from qsdm.predictor.mean import priors_of
    from qsdm.sensitivity.stability import stability

    report, bank = workspace.report, workspace.bank()
    table, predictor = workspace.table, workspace.predictor(objective)
    num_images = bank.protocols[report["protocol"]].num_images
    labels = bank.labels(objective, report["seed_set"], num_images)
    at_full = label_of_full(bank.outcomes, report["protocol"], objective, workspace.space.full_bits)
    # Without probes, train has nothing to compare their model with.
    kinds = best_of_each_fidelity(bank, table, objective) if "no_probes" in report["scores"] else {}
    priors = priors_of(predictor.encoding, table, objective, labels, kinds, at_full)
    given: dict[str, Any] = dict(report["predictor"])
    return stability(predictor, priors, FitOptions(**given), begin, curves.trainings, curves.seed)


def alone(
    outcomes: Sequence[Outcome], protocol: str, objective: Objective, full: float, space: Space
) -> dict[tuple[str, QuantMethod], float]:
    """Compute the measured harm of each weight that was quantized alone.

    Args:
        outcomes: of the model.
        protocol: digest of the labels' protocol.
        objective: makes a value of an outcome's metrics.
        full: label of full precision, from which harms are counted.
        space: of the weights.

    Returns:
        Harms by weight and method.
    """
    harms = {}
    for outcome in outcomes:
        if not outcome.qconfig.has_methods_alone:
            continue
        if outcome.protocol == protocol and len(outcome.qconfig.methods) == 1:
            values = {
                **outcome.metrics,
                "avg_bits": avg_bits(space.graph, outcome.qconfig, space.full_bits),
            }
            if all(values.get(name) is not None for name in objective.weights):
                harms[next(iter(outcome.qconfig.methods.items()))] = full - objective(values)
    return harms


def attributions(
    predictor: Predictor,
    options: AttributionOptions,
    genes: np.ndarray,
    labels: np.ndarray,
    measured: Mapping[tuple[str, QuantMethod], float],
) -> dict[str, Any]:
    """Compute sensitivities and their faithfulness.

    Args:
        predictor: a trained predictor.
        options: how many configurations are explained, and how finely.
        genes: int64 [B, W], measured configurations, for the faithfulness; may be empty.
        labels: float64 [B], their labels.
        measured: harm of weights that were quantized alone, by weight and method; may be empty.

    Returns:
        Plain data, see `attribute`.
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
    # Ablation of single weights asks 2 W times per configuration.
    few = explained[: max(4, options.num_configs // 9)]
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

    quantized_alone = single["from_full"].mean(axis=0)
    sensitivities: dict[str, Sensitivity] = {}
    for name, values, used in (
        ("integrated_gradients", harms, explained),
        ("ablation_to_full", single["to_full"], few),
        ("ablation_from_full", single["from_full"], few),
        ("hops", hops.sum(axis=0), explained),
    ):
        scores = by_decision(space, used, values)
        sensitivity = Sensitivity(names, space.methods, scores, name)
        faithfulness: dict[str, float] = {
            "deletion": deletion(
                predictor, used[0], values[0], np.random.default_rng(options.seed)
            ),
            "agreement": srcc(values.mean(axis=0), quantized_alone),
        }
        if len(labels) > 2:
            columns = predictor.encoding.columns_of(genes)
            faithfulness["additive_srcc"] = additive_srcc(sensitivity, columns, labels)
        faithfulness |= interventions(sensitivity, measured)
        sensitivities[name] = dataclasses.replace(sensitivity, faithfulness=faithfulness)
    total = harms.sum(axis=1) + gaps
    gradients = sensitivities["integrated_gradients"]
    compared = [
        {"weight": weight, "method": str(method), "measured": harm, "integrated_gradients": score}
        for (weight, method), harm in measured.items()
        if (score := gradients.score(weight, method)) is not None
    ]
    with torch.no_grad():
        full = float(answer(predictor)(torch.from_numpy(predictor.encoding.full_precision())))
    return {
        "attribution": dataclasses.asdict(options),
        "sensitivities": {name: one.to_json() for name, one in sensitivities.items()},
        "hops": {
            str(m): dict(zip(names, hop.mean(axis=0).tolist(), strict=True))
            for m, hop in enumerate(hops)
        },
        "interventions": compared,
        "tables": tables,
        "completeness": {"harm": float(total.mean()), "gap": float(np.abs(gaps / total).max())},
        "full_precision": {"predicted": full, "measured": None},
    }


def draw(result: dict[str, Any], path: Path) -> dict[str, Path]:
    """Write the figures beside ``path``.

    Args:
        result: contents of the sensitivity file.
        path: of that file.

    Returns:
        Paths by name: role, block, weights and, if weights were measured alone, interventions.
    """
    from qsdm.report import figures
    from qsdm.report.results import NotRun, Results

    results = Results(result["denoiser"], sensitivity=result)
    draws: dict[str, Callable[[], Figure]] = {
        "role": lambda: figures.sensitivity(results, ["role"]),
        "block": lambda: figures.sensitivity(results, ["block"], width=9),
        "weights": lambda: figures.heat(results, width=16, most=120),
        "interventions": lambda: figures.interventions(results),
    }
    paths = {}
    for name, drawn in draws.items():
        target = path.with_name(f"{path.stem}-{name}.png")
        try:
            figures.write(target, drawn())
        except NotRun:  # weights alone are measured by hand, if at all
            continue
        paths[name] = target
    return paths


def print_sensitivity(result: dict[str, Any]) -> None:
    """Print tables by role and by block, completeness and faithfulness.

    Args:
        result: what `attribute` returns.
    """
    from qsdm.sensitivity.tables import most_harmful

    for kind in ("role", "block"):
        print(most_harmful(kind, result["tables"][kind]))
        print()
    gap, harm = result["completeness"]["gap"], result["completeness"]["harm"]
    print(
        f"mean harm of the explained configurations: {harm:.3f}; attributions miss {gap:.2%} "
        "of it at most"
    )
    full = result["full_precision"]
    measured = "not measured" if full["measured"] is None else f"measured {full['measured']:.3f}"
    print(f"full precision, from which harms count: predicted {full['predicted']:.3f}, {measured}")
    metrics = list(
        dict.fromkeys(
            key for kind in result["sensitivities"].values() for key in kind["faithfulness"]
        )
    )
    rows = [
        [name, *(kind["faithfulness"].get(metric) for metric in metrics)]
        for name, kind in result["sensitivities"].items()
    ]
    print(text.table(["faithfulness", *metrics], rows, ".3f"))


if __name__ == "__main__":
    from qsdm import run

    run.main(attribute)
