"""One self-contained HTML page of a denoiser's results: plotly inline, pictures as data URIs, nothing from the network.

    write(store.path("report.html"), results.read(store, "traced"))

A section is left out where its data is missing. Pictures are the PNG files of the store's ``pictures/``, named like the
measured rows: the page shows fp, the uniform 4-bit and 3-bit configurations, and ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.report import charts
from qsdm.report.results import (
    FULL,
    OURS,
    Results,
    candidates,
    harms,
    kind_of,
    main_metric,
    matrix,
    megabytes,
    rows,
    sentence,
    shown_pictures,
    verdict,
)
from qsdm.store.files import write_text

TEMPLATE = Path(__file__).with_name("page.html.j2")
TITLES = {FULL: "full precision", OURS: "ours"}


def write(path: Path, results: Results) -> None:
    """Raises StoreError if it cannot be written."""
    write_text(path, render(results))


def render(results: Results) -> str:
    """The page."""
    import jinja2

    from qsdm import __version__

    found = charts_of(results)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        denoiser=results.denoiser,
        heading=sentence(results.summary) or f"{results.denoiser}: what each layer can bear",
        tiles=tiles(results),
        pictures=pictures(results),
        table=table(results),
        charts={name: found.get(name) for name in CHARTS},
        drawn=bool(found),
        search_hint=search_hint(results.front),
        sensitivity_hint=sensitivity_hint(results.sensitivity),
        alone_hint=alone_hint(results.sensitivity),
        predictors=predictors(results.predictor),
        predictor_hint=predictor_hint(results.predictor),
        about=about(results),
        version=__version__,
        plotly=_script(_plotly()) if found else "",
        charts_json=_script(json.dumps(found, allow_nan=False)),
    )


def tiles(results: Results) -> list[dict[str, str]]:
    """The figures under the heading."""
    found = verdict(results.summary)
    if found is None:
        return []
    made = [
        {
            "value": f"{found['avg_bits']:.2f} bits",
            "label": f"per weight, {megabytes(found['size_bytes'])} in all",
        }
    ]
    if found["fp_bytes"]:
        times = found["fp_bytes"] / found["size_bytes"]
        made.append(
            {
                "value": f"{times:.1f}×",
                "label": f"smaller than full precision, {megabytes(found['fp_bytes'])}",
            }
        )
    against = "" if found["fp"] is None else f", {found['fp']:.1f} at full precision"
    made.append({"value": f"{found['ours']:.1f}", "label": f"{found['metric']}{against}"})
    if found["random_mean"]:
        change = 100 * (found["ours"] / found["random_mean"] - 1)
        made.append(
            {
                "value": f"{change:+.0f} %".replace("-", "−"),
                "label": f"{found['metric']} against random ones of its size",
            }
        )
    if found["rival"]:
        change = 100 * (found["ours"] / found["rival"]["metrics"][found["metric"]] - 1)
        made.append(
            {
                "value": f"{change:+.0f} %".replace("-", "−"),
                "label": f"{found['metric']} against uniform {found['rival']['name']}",
            }
        )
    return made


def pictures(results: Results) -> list[dict[str, str]]:
    """Grids side by side: full precision, the best uniform 4-bit and 3-bit ones, ours."""
    metric = main_metric(results.summary)
    by_name = {row["name"]: row for row in rows(results.summary)}
    made = []
    for name in shown_pictures(results):
        row = by_name.get(name)
        score = row and row["metrics"].get(metric)
        note = f"{row['avg_bits']:.2f} bits" if row else ""
        note += f" · {metric} {score:.4g}" if score is not None else ""
        uri = "data:image/png;base64," + base64.b64encode(results.pictures[name]).decode()
        title = TITLES.get(name, f"uniform {name}")
        made.append({"kind": kind_of(name), "title": title, "note": note, "uri": uri})
    return made


def table(results: Results) -> dict[str, Any] | None:
    """The measured rows as text; the best quantized value of each metric is marked."""
    measured = rows(results.summary)
    if not measured:
        return None
    about = (results.summary or {}).get("metrics", {})  # of a summary of version 0.1: nothing
    present = {name for row in measured for name in row["metrics"]}
    names = [name for name in about if name in present]
    names += sorted(present - set(names))
    best: dict[str, float] = {}
    for name in names:
        values = [row["metrics"].get(name) for row in measured if row["name"] != FULL]
        known = [value for value in values if value is not None]
        if known and name in about:
            best[name] = max(known) if about[name]["larger_is_better"] else min(known)
    made = []
    for row in measured:
        cells = [
            {"text": TITLES.get(row["name"], row["name"]), "best": False},
            {"text": f"{row['avg_bits']:.3f}", "best": False},
            {"text": f"{row['size_bytes']:,}", "best": False},
        ]
        for name in names:
            value = row["metrics"].get(name)
            text = "–" if value is None else number(value, about.get(name))
            cells.append(
                {
                    "text": text,
                    "best": row["name"] != FULL and value is not None and value == best.get(name),
                }
            )
        made.append({"kind": kind_of(row["name"]), "cells": cells})
    return {
        "heads": ["", "bits", "bytes", *(head(name, about.get(name)) for name in names)],
        "rows": made,
    }


def head(name: str, about: Mapping[str, Any] | None) -> str:
    """A metric's label; an arrow points to its better side."""
    return (
        name if about is None else f"{about['label']} {'↑' if about['larger_is_better'] else '↓'}"
    )


def number(value: float, about: Mapping[str, Any] | None) -> str:
    """A metric's value with its digits."""
    return f"{value:.4g}" if about is None else f"{value:.{about['digits']}f}"


CHARTS = ("measured", "search", "mix", "role", "op", "block", "heat", "alone", "predictor", "bits")


def charts_of(results: Results) -> dict[str, charts.Figure]:
    """Plotly figures by name; those without data are left out."""
    found: dict[str, charts.Figure | None] = {
        "measured": charts.measured(rows(results.summary), main_metric(results.summary) or ""),
        "search": charts.search(results.front, results.outcomes, candidates(results)),
        "mix": charts.mix(results.chosen, blocks(results)),
        "bits": charts.bits(results.outcomes),
    }
    if results.sensitivity:
        for name in ("role", "op", "block"):
            found[name] = charts.bars(harms(results.sensitivity, name), "harm in predicted quality")
        found["heat"] = charts.heat(*matrix(results.sensitivity), "harm")
        found["alone"] = charts.interventions(results.sensitivity.get("interventions", []))
    if results.predictor:
        noise = results.predictor.get("noise") or {}
        entries = [
            {"name": name, "srcc": scores["srcc"]["mean"], "srcc_std": scores["srcc"]["std"]}
            for name, scores in results.predictor["scores"].items()
        ]
        found["predictor"] = charts.predictor(entries, noise.get("ceiling"))
    return {name: chart for name, chart in found.items() if chart is not None}


def blocks(results: Results) -> dict[str, tuple[str, int]]:
    """Block and number of values of each weight of the chosen configuration, in the order of the graph."""
    found: dict[str, tuple[str, int]] = {}
    if results.graph is None or results.chosen is None:
        return found
    for node in results.graph.nodes:
        if node.weight is None:
            continue
        name = (
            node.weight.name
            if node.weight.name in results.chosen
            else node.weight.name.partition("#")[0]
        )
        if name in results.chosen:
            block, numel = node.block or node.stage or "other", node.weight.numel
            known = found.get(name, (block, 0)) if name != node.weight.name else (block, 0)
            found[name] = (known[0], known[1] + numel)
    return found


def predictors(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the predictors' table, and the ceiling."""
    if not report:
        return []
    made = []
    for name, scores in report["scores"].items():
        srcc, ndcg = (
            f"{scores[q]['mean']:.3f} ± {scores[q]['std']:.3f}" for q in ("srcc", "ndcg_at_10")
        )
        made.append(
            {"name": PREDICTORS.get(name, name), "srcc": srcc, "ndcg": ndcg, "ours": name == "gnn"}
        )
    noise = report.get("noise")
    if noise:
        made.append(
            {
                "name": "ceiling set by the labels' noise",
                "srcc": f"{noise['ceiling']:.3f}",
                "ndcg": "–",
                "ours": False,
            }
        )
    return made


PREDICTORS = {
    "gnn": "graph network",
    "additive": "additive model of weights",
    "ridge": "ridge on one-hot methods",
    "error_sum": "sum of weight errors",
    "avg_bits": "average bits",
}


def predictor_hint(report: Mapping[str, Any] | None) -> str:
    if not report:
        return ""
    return (
        f"Learned from {report['num_outcomes']} measured configurations; every score is on configurations held out, "
        "mean and deviation over the folds."
    )


def search_hint(front: Mapping[str, Any] | None) -> str:
    if not front:
        return ""
    volume = front["hypervolume"]
    shares = ", ".join(
        f"{name.replace('_', ' by ')} {volume[name]:.3f}" for name in volume if name != "front"
    )
    return (
        f"{front['num_evaluations']:,} configurations predicted. Hypervolume: front {volume['front']:.3f}, {shares}. "
        "The band is the deviation over the folds."
    )


def about(results: Results) -> list[tuple[str, str]]:
    """How it was made: protocol, seeds, counts, versions."""
    made: list[tuple[str, str]] = []
    if results.graph is not None:
        nodes, weights = len(results.graph.nodes), len(results.graph.weights)
        made.append(
            (
                "graph",
                f"{nodes} nodes, {weights} quantizable weights, {results.graph.num_values:,} values",
            )
        )
    if protocol := results.protocol:
        steps = f"{protocol['steps']} steps, guidance {protocol['guidance']:g}"
        made.append(
            (
                "sampler",
                f"{protocol['sampler']}, {steps}, {protocol['resolution_px']} px, {protocol['dtype']}",
            )
        )
        each = f"{protocol['num_images']} pictures each, seed set {protocol['seed_set']}"
        made.append(("labels", f"{len(results.outcomes)} configurations, {each}"))
        made.append(
            (
                "metrics",
                "; ".join(f"{name}: {version}" for name, version in results.versions.items()),
            )
        )
    if results.summary:
        for key in ("num_images", "seed_set", "label_seed_set"):
            if key in results.summary:
                made.append((f"measured rows, {key.replace('_', ' ')}", str(results.summary[key])))
    if front := results.front:
        limit = "" if front["max_bits"] is None else f", at most {front['max_bits']:g} bits"
        budget = f"budget {front['budget']:,}, kappa {front['kappa']:g}, seed {front['seed']}"
        made.append(("search", f"{front['strategy']['name']}, {budget}{limit}"))
        made.append(
            (
                "objective",
                ", ".join(f"{weight:+g} × {name}" for name, weight in front["objective"].items()),
            )
        )
    for source in (results.summary, results.front, results.predictor):
        if origin := (source or {}).get("provenance"):
            versions = ", ".join(
                f"{name} {version}" for name, version in origin["versions"].items()
            )
            made.append(("made", f"{origin['made']}, commit {origin['commit'] or 'unknown'}"))
            made.append(("versions", f"python {origin['python']}, {versions}"))
            break
    return made


def sensitivity_hint(sensitivity: Mapping[str, Any] | None) -> str:
    if not sensitivity:
        return ""
    return (
        "What quantization costs in predicted quality, by integrated gradients from full precision, mean over "
        f"{sensitivity['attribution']['num_configs']} configurations; the attributions miss "
        f"{sensitivity['completeness']['gap']:.2%} of the whole harm at most."
    )


def alone_hint(sensitivity: Mapping[str, Any] | None) -> str:
    faith = (
        sensitivity["sensitivities"]["integrated_gradients"]["faithfulness"] if sensitivity else {}
    )
    if sensitivity is None or "interventions" not in faith:
        return ""
    return (
        f"{len(sensitivity['interventions'])} weights were each quantized alone, all others in full precision, and "
        f"measured. The predictor never saw such configurations; correlation {faith['interventions']:.2f}, of ranks "
        f"{faith['interventions_srcc']:.2f}."
    )


def _script(text: str) -> str:
    """Text that may stand inside a script element."""
    import markupsafe

    return markupsafe.Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
