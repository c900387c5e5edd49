"""What the sections of the page say: tiles, pictures, tables, hints, and how it all was made."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from qsdm.outcome import SIGNIFICANT_Z
from qsdm.report.results import Results
from qsdm.report.summary import (
    FULL,
    OURS,
    STEPPED,
    descriptions,
    head,
    kind_of,
    main_metric,
    rows,
    shown_pictures,
    verdict,
)
from qsdm.text import size

TITLES = {FULL: "full precision", OURS: "ours", STEPPED: "ours in bins of steps"}
PREDICTORS = {
    "gnn": "graph network",
    "mean": "mean of the closed models",
    "informed": "probes and labels, in closed form",
    "drawn": "distances of pictures and labels, in closed form",
    "forward": "errors of outputs and labels, in closed form",
    "no_probes": "labels alone, in closed form",
    "additive": "additive model of weights",
    "ridge": "ridge on one-hot methods",
    "hamming": "Gaussian process of Hamming distances",
    "probes": "sum of probes",
    "error_sum": "sum of weight errors",
    "avg_bits": "average bits",
}
Report = Mapping[str, Any] | None
"""Contents of an artifact; None where its command has not run."""


def tiles(results: Results) -> list[dict[str, str]]:
    """Write the figures under the heading.

    Args:
        results: of a denoiser.

    Returns:
        value and label of each; none without a row of ours.
    """
    result = verdict(results.summary)
    if result is None:
        return []
    metric, ours = result["metric"], result["ours"]

    def change(other: float, label: str) -> dict[str, str]:
        percent = f"{100 * (ours / other - 1):+.0f} %".replace("-", "−")
        return {"value": percent, "label": f"{metric} against {label}"}

    entries = [
        {
            "value": f"{result['avg_bits']:.2f} bits",
            "label": f"per weight, {size(result['size_bytes'])} in all",
        }
    ]
    if full_bytes := result["fp_bytes"]:
        entries.append(
            {
                "value": f"{full_bytes / result['size_bytes']:.1f}×",
                "label": f"smaller than full precision, {size(full_bytes)}",
            }
        )
    against = "" if result["fp"] is None else f", {result['fp']:.1f} at full precision"
    entries.append({"value": f"{ours:.1f}", "label": f"{metric}{against}"})
    if result["random_mean"]:
        entries.append(change(result["random_mean"], "random ones of its size"))
    if rival := result["rival"]:
        entries.append(change(rival["metrics"][metric], f"uniform {rival['name']}"))
    return entries


def pictures(results: Results) -> list[dict[str, str]]:
    """Embed grids: full precision, the best uniform 4-bit and 3-bit ones, ours.

    Args:
        results: of a denoiser.

    Returns:
        kind, title, note and uri of each.
    """
    metric = main_metric(results.summary)
    by_name = {row["name"]: row for row in rows(results.summary)}
    entries = []
    for name in shown_pictures(results.summary, results.pictures):
        row = by_name.get(name)
        score = row and row["metrics"].get(metric)
        note = f"{row['avg_bits']:.2f} bits" if row else ""
        note += f" · {metric} {score:.4g}" if score is not None else ""
        uri = "data:image/png;base64," + base64.b64encode(results.pictures[name]).decode()
        title = TITLES.get(name, f"uniform {name}")
        entries.append({"kind": kind_of(name), "title": title, "note": note, "uri": uri})
    return entries


def table(results: Results) -> dict[str, Any] | None:
    """Write the measured rows as text; the best quantized value of each metric is marked.

    Args:
        results: of a denoiser.

    Returns:
        heads, and rows of kind and cells (text, best); None without measured rows.
    """
    measured = rows(results.summary)
    if not measured:
        return None
    about = descriptions(results.summary)
    present = {name for row in measured for name in row["metrics"]}
    names = [name for name in about if name in present]
    names += sorted(present - set(names))
    best: dict[str, float] = {}
    for name in names:
        values = [row["metrics"].get(name) for row in measured if row["name"] != FULL]
        defined = [value for value in values if value is not None]
        if defined and name in about:
            choose = max if about[name]["larger_is_better"] else min
            best[name] = choose(defined)
    entries = []
    for row in measured:
        cells = [
            {"text": TITLES.get(row["name"], row["name"]), "best": False},
            {"text": f"{row['avg_bits']:.3f}", "best": False},
            {"text": f"{row['size_bytes']:,}", "best": False},
        ]
        for name in names:
            value = row["metrics"].get(name)
            text = "–" if value is None else number(value, about.get(name))
            is_best = row["name"] != FULL and value is not None and value == best.get(name)
            cells.append({"text": text, "best": is_best})
        entries.append({"kind": kind_of(row["name"]), "cells": cells})
    heads = ["", "bits", "bytes", *(head(name, about.get(name)) for name in names)]
    return {"heads": heads, "rows": entries}


def number(value: float, description: Mapping[str, Any] | None) -> str:
    """Write a metric's value with its digits.

    Args:
        value: of the metric.
        description: digits; None if nothing is known about it.

    Returns:
        Text.
    """
    return f"{value:.4g}" if description is None else f"{value:.{description['digits']}f}"


def predictors(report: Report) -> list[dict[str, Any]]:
    """Write the predictors' table, and the ceiling.

    Args:
        report: of `train`.

    Returns:
        name, srcc, ndcg and ours of each.
    """
    if not report:
        return []
    entries: list[dict[str, Any]] = []
    for name, scores in report["scores"].items():
        srcc, ndcg = (
            f"{scores[q]['mean']:.3f} ± {scores[q]['std']:.3f}" for q in ("srcc", "ndcg_at_10")
        )
        title = PREDICTORS.get(name, name)
        entries.append({"name": title, "srcc": srcc, "ndcg": ndcg, "ours": name == "gnn"})
    if noise := report.get("noise"):
        ceiling = {"name": "ceiling set by the labels' noise", "srcc": f"{noise['ceiling']:.3f}"}
        entries.append(ceiling | {"ndcg": "–", "ours": False})
    return entries


def predictor_hint(report: Report) -> str:
    """Explain the predictors' table.

    Args:
        report: of `train`.

    Returns:
        A sentence.
    """
    if not report:
        return ""
    return (
        f"Learned from {report['num_outcomes']} measured configurations; every score is on "
        "configurations held out, mean and deviation over the folds."
    )


def search_hint(front: Report) -> str:
    """Explain the figure of the search.

    Args:
        front: of `search`.

    Returns:
        Sentences.
    """
    if not front:
        return ""
    volume = front["hypervolume"]
    shares = ", ".join(
        f"{name.replace('_', ' by ')} {volume[name]:.3f}" for name in volume if name != "front"
    )
    return (
        f"{front['num_evaluations']:,} configurations predicted. "
        f"Hypervolume: front {volume['front']:.3f}, {shares}. "
        "The band is the standard deviation of what measuring would give."
    )


def rounds(front: Report) -> list[list[str]]:
    """Write a row for each round of the search.

    Args:
        front: of `search`.

    Returns:
        Number, configurations, pictures, optimism and gain of each; none without rounds.
    """

    def with_error(value: float | None, error: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:+.1f}" + ("" if error is None else f" ± {error:.1f}")

    report = (front or {}).get("rounds")
    return [
        [
            str(number),
            str(len(entry["proposals"])),
            f"{entry['num_images']:,}",
            with_error(entry["optimism"], entry["optimism_error"]),
            with_error(entry["gain"], entry["gain_error"]),
        ]
        for number, entry in enumerate(report["rounds"] if report else (), 1)
    ]


def rounds_hint(front: Report) -> str:
    """Explain the rounds.

    Args:
        front: of `search`.

    Returns:
        Sentences; empty without rounds.
    """
    report = (front or {}).get("rounds")
    if not report:
        return ""
    at = "over all sizes"
    if report["avg_bits"] is not None:
        at = f"at {report['avg_bits']:g} bits"
    fidelity = (front or {}).get("fidelity")
    together = f" of quality and {fidelity} together" if fidelity else ""
    return (
        "Each round measured what promised the largest gain, with the labels' captions and noise. "
        "Optimism: predicted minus measured quality, with the standard error over the round's "
        f"configurations. Gain: of the measured front{together}, {at}, with its paired error."
    )


def sensitivity_hint(sensitivity: Report) -> str:
    """Explain the figures of sensitivity.

    Args:
        sensitivity: of `attribute`.

    Returns:
        A sentence.
    """
    if not sensitivity:
        return ""
    return (
        "What quantization costs in predicted quality, by integrated gradients from full "
        f"precision, mean over {sensitivity['attribution']['num_configs']} configurations; the "
        f"attributions miss {sensitivity['completeness']['gap']:.2%} of the whole harm at most."
    )


def certificate_hint(results: Results) -> str:
    """Say whether pictures confirm the attributions.

    Args:
        results: of a denoiser.

    Returns:
        Sentences; without a certificate, how to measure one; empty without attributions.
    """
    if results.sensitivity is None:
        return ""
    measured = results.certificate
    if measured is None:
        return (
            "No pictures have confirmed these attributions yet, so this page names no causes: run "
            f"python -m qsdm.attribute +model={results.denoiser} certificate=true."
        )
    options = measured["options"]
    verdict = "The certificate holds" if measured["holds"] else "The certificate does not hold"
    return (
        f"All weights were quantized by {measured['method']}, then restored to full precision in "
        f"the attributed order and in others; each step was measured on {options['num_images']} "
        f"pictures of fresh noise (seed set {options['seed_set']}). {verdict}: this page "
        f"{'says' if measured['holds'] else 'does not say'} what a layer is kept because of."
    )


def certificate_rows(results: Results) -> list[list[str]]:
    """Write a row for each order against which the attributions were measured.

    Args:
        results: of a denoiser.

    Returns:
        The order, and how much better the attributions are in both directions, with the half width
        of the 95 % interval; none without a certificate.
    """
    if results.certificate is None:
        return []
    gains: dict[str, dict[str, str]] = {}
    for entry in results.certificate["differences"]:
        text = f"{entry['gain']:+.1f}"
        if entry["standard_error"] is not None:
            text += f" ± {SIGNIFICANT_Z * entry['standard_error']:.1f}"
        gains.setdefault(entry["order"], {})[entry["direction"]] = text
    return [
        [order.replace("_", " "), *(pair.get(key, "–") for key in ("most_first", "least_first"))]
        for order, pair in gains.items()
    ]


def certificate_rule(results: Results) -> list[tuple[str, str]]:
    """List the parts of the rule by which a certificate holds, and whether each is met.

    Args:
        results: of a denoiser.

    Returns:
        The answer and the condition of each; none without a certificate.
    """
    if results.certificate is None:
        return []
    measured, answers = results.certificate, {True: "yes", False: "no", None: "not tried"}
    notes = [(answers[rule["holds"]], rule["condition"]) for rule in measured["conditions"]]
    if measured["folds"]:
        mean = sum(measured["folds"]) / len(measured["folds"])
        notes.append((f"{mean:.2f}", "rank correlation of the attributions of two folds"))
    for num, srcc in measured["label_counts"]:
        notes.append((f"{srcc:.2f}", f"rank correlation with what {num} labels teach"))
    if measured["shuffled"]:
        mean = sum(measured["shuffled"]) / len(measured["shuffled"])
        notes.append((f"{mean:+.2f}", "rank correlation with what shuffled measurements teach"))
    return notes


def alone_hint(sensitivity: Report, predictor: Report) -> str:
    """Explain the figure of weights that were quantized alone.

    Args:
        sensitivity: of `attribute`.
        predictor: the report of `train`, which tells whether it has learned from such measurements.

    Returns:
        Sentences.
    """
    if not sensitivity:
        return ""
    faith = sensitivity["sensitivities"]["integrated_gradients"]["faithfulness"]
    if "interventions" not in faith:
        return ""
    has_probes = "probes" in (predictor or {}).get("scores", {})
    known = (
        "The predictor has learned from such probes, so agreement is no proof"
        if has_probes
        else "The predictor never saw such configurations"
    )
    return (
        f"{len(sensitivity['interventions'])} weights were each quantized alone, all others in "
        f"full precision, and measured. {known}; correlation "
        f"{faith['interventions']:.2f}, of ranks {faith['interventions_srcc']:.2f}."
    )


def about(results: Results) -> list[tuple[str, str]]:
    """List how it was made: protocol, seeds, counts, versions.

    Args:
        results: of a denoiser.

    Returns:
        Names and texts.
    """
    entries: list[tuple[str, str]] = []
    if (graph := results.graph) is not None:
        sizes = f"{len(graph.weights)} quantizable weights, {graph.num_values:,} values"
        entries.append(("graph", f"{len(graph.nodes)} nodes, {sizes}"))
    if protocol := results.protocol:
        steps = f"{protocol['steps']} steps, guidance {protocol['guidance']:g}"
        pixels = f"{protocol['resolution_px']} px, {protocol['dtype']}"
        entries.append(("sampler", f"{protocol['sampler']}, {steps}, {pixels}"))
        each = f"{protocol['num_images']} pictures each, seed set {protocol['seed_set']}"
        entries.append(("labels", f"{len(results.outcomes)} configurations, {each}"))
        versions = "; ".join(f"{name}: {version}" for name, version in results.versions.items())
        entries.append(("metrics", versions))
    for key in ("num_images", "seed_set", "label_seed_set"):
        if results.summary and key in results.summary:
            name = f"measured rows, {key.replace('_', ' ')}"
            entries.append((name, str(results.summary[key])))
    if front := results.front:
        spent = f"{front['evaluations']:,} evaluations, kappa {front['kappa']:g}"
        given = f"{front['strategy']['name']}, {spent}, seed {front['seed']}"
        entries.append(("search", ", ".join([given, *constraints_of(front)])))
        terms = [f"{weight:+g} × {name}" for name, weight in front["objective"].items()]
        entries.append(("objective", ", ".join(terms)))
    return entries + _origin(results)


def constraints_of(front: Mapping[str, Any]) -> list[str]:
    """Spell the constraints of a search as its command line does.

    Args:
        front: what `search` wrote.

    Returns:
        A text for each.
    """
    if (given := front.get("constraints")) is None:
        return []
    texts = [f"{key}={value}" for key in ("target",) if (value := given[key])]
    texts += [f"budget.{name}={value:g}" for name, value in given["budget"].items()]
    texts += [f"limit.{name}={value:g}" for name, value in given["limit"].items()]
    texts += [f"pin.{name}={method}" for name, method in given["pin"].items()]
    return texts + [f"forbid {method}" for method in given["forbid"]]


def _origin(results: Results) -> list[tuple[str, str]]:
    """When, from which commit, and with which versions the latest artifact was made."""
    for source in (results.summary, results.front, results.predictor):
        if origin := (source or {}).get("provenance"):
            versions = [f"{name} {version}" for name, version in origin["versions"].items()]
            return [
                ("made", f"{origin['made']}, commit {origin['commit'] or 'unknown'}"),
                ("versions", ", ".join([f"python {origin['python']}", *versions])),
            ]
    return []
