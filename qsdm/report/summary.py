"""What the measured rows of `realize` say: which beat which, and the result in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.outcome import Objective
from qsdm.qconfig import activations as widths

if TYPE_CHECKING:
    import pandas

OURS, FULL, STEPPED = "ours", "fp", "ours-steps"
KINDS = (FULL, OURS, "steps", "uniform", "random")
Row = Mapping[str, Any]
Summary = Mapping[str, Any] | None
"""Contents of summary.json; None where nothing was realized."""


def rows(summary: Summary) -> list[Row]:
    """Sort the measured rows as they are read: full precision, ours, uniform by bits, random.

    Ours in bins of steps follows ours.

    Args:
        summary: contents of summary.json.

    Returns:
        Mappings with name, avg_bits, size_bytes and metrics.
    """

    def rank(row: Row) -> tuple[int, float]:
        kind = kind_of(row["name"])
        return KINDS.index(kind), -row["avg_bits"] if kind == "uniform" else 0.0

    return sorted(summary["rows"], key=rank) if summary else []


def kind_of(name: str) -> str:
    """Tell what a row is from its name.

    Args:
        name: of a measured row.

    Returns:
        fp, ours, steps, random or uniform.
    """
    if name in (FULL, OURS):
        return name
    if name == STEPPED:
        return "steps"
    return "random" if name.startswith("random") else "uniform"


def main_metric(summary: Summary) -> str | None:
    """Choose the metric that the heading and the figures speak of: a Fréchet distance, `fid` first.

    Args:
        summary: contents of summary.json.

    Returns:
        Its name; None if no such distance was measured.
    """
    present = {
        name for row in rows(summary) for name, value in row["metrics"].items() if value is not None
    }
    distances = sorted(name for name in present if name.startswith("fd_"))
    return "fid" if "fid" in present else distances[0] if distances else None


def verdict(summary: Summary) -> dict[str, Any] | None:
    """Compare ours with what it must beat, on `main_metric`, of which less is better.

    Args:
        summary: contents of summary.json.

    Returns:
        ours, fp, random_mean, random_best (values, or None), rival (the best uniform row that is
        not larger), better_than_random and better_than_uniform, among others; None without a row
        of ours.
    """
    metric = main_metric(summary)
    by_name = {row["name"]: row for row in rows(summary)}
    if metric is None or OURS not in by_name or by_name[OURS]["metrics"].get(metric) is None:
        return None
    ours, full = by_name[OURS], by_name.get(FULL)
    value = ours["metrics"][metric]
    random = [row["metrics"][metric] for name, row in by_name.items() if kind_of(name) == "random"]
    smaller = [
        row
        for name, row in by_name.items()
        if kind_of(name) == "uniform" and row["size_bytes"] <= ours["size_bytes"]
    ]
    rival = min(smaller, key=lambda row: row["metrics"][metric], default=None)
    return {
        "metric": metric,
        "ours": value,
        "avg_bits": ours["avg_bits"],
        "size_bytes": ours["size_bytes"],
        "fp": full and full["metrics"][metric],
        "fp_bytes": full and full["size_bytes"],
        "random_mean": float(np.mean(random)) if random else None,
        "random_best": min(random) if random else None,
        "num_random": len(random),
        "rival": rival,
        "better_than_random": bool(random) and value < float(np.mean(random)),
        "better_than_uniform": rival is not None and value < rival["metrics"][metric],
    }


def sentence(summary: Summary) -> str | None:
    """Say the result in one sentence, whichever way it went.

    Args:
        summary: contents of summary.json.

    Returns:
        The sentence; None without a row of ours.
    """
    result = verdict(summary)
    if result is None:
        return None
    score = f"{result['metric']} {result['ours']:.4g}"
    text = f"At {result['avg_bits']:.2f} bits per weight, mixed precision scores {score}"
    if result["fp"] is not None:
        text += f" ({result['fp']:.4g} at full precision)"
    parts = []
    metric = result["metric"]
    if (rival := result["rival"]) is not None:
        word = "below" if result["better_than_uniform"] else "not below"
        other = rival["metrics"][metric]
        best = "the best uniform configuration of no larger size"
        away = difference(summary, rival["name"], metric)
        parts.append(f"{word} {best} ({rival['name']}, {other:.4g}{away})")
    if result["random_mean"] is not None:
        word = "below" if result["better_than_random"] else "not below"
        parts.append(
            f"{word} the mean of {result['num_random']} random ones of its size "
            f"({result['random_mean']:.4g}{difference(summary, 'random', metric)})"
        )
    return text + (": " if parts else "") + " and ".join(parts) + "."


def difference(summary: Summary, name: str, metric: str) -> str:
    """Write how far a row is from ours, with the paired standard error.

    Args:
        summary: contents of summary.json.
        name: of the row; ``random`` for the mean of the random ones.
        metric: that both have.

    Returns:
        Text to follow the row's value; empty if the summary does not tell.
    """
    value, error = (summary or {}).get("differences", {}).get(name, {}).get(metric, (0, None))
    return "" if error is None else f"; paired difference {value:+.4g} ± {error:.2g}"


def step_sentence(summary: Summary) -> str | None:
    """Say what two configurations over the sampler's steps are worth.

    Args:
        summary: contents of summary.json.

    Returns:
        The sentence; None if there are none.
    """
    from qsdm.measurement.paired import Difference

    found = (summary or {}).get("steps")
    by_name = {row["name"]: row for row in rows(summary)}
    if not summary or not found or STEPPED not in by_name:
        return None
    row, own = by_name[STEPPED], by_name[OURS]
    most = max(one["avg_bits"] for one in found["bins"])
    more = [one["name"] for one in found["bins"] if one["avg_bits"] == most]
    least = min(one["avg_bits"] for one in found["bins"])
    text = (
        f"With {most:.2f} bits in {len(more)} of {len(found['bins'])} bins of steps "
        f"({', '.join(more)}) and {least:.2f} elsewhere, {row['avg_bits']:.2f} on average, both "
        f"versions take {row['size_bytes']:,} bytes, {row['size_bytes'] / own['size_bytes']:.2f} "
        "times those of ours"
    )
    changes = []
    for metric, (value, error) in summary.get("differences", {}).get(STEPPED, {}).items():
        about = descriptions(summary).get(metric)
        if about is not None:
            change = f"{metric} {value:+.4g}" + ("" if error is None else f" ± {error:.2g}")
            verdict = Difference(value, error).verdict(about["larger_is_better"])
            changes.append(f"{change} ({verdict})")
    return text + (f"; minus ours, paired: {', '.join(changes)}." if changes else ".")


def table(summary: Summary) -> pandas.DataFrame:
    """Tabulate the measured rows: bits, bytes, metrics.

    Args:
        summary: contents of summary.json.

    Returns:
        One line per row, by name.
    """
    import pandas

    measured = rows(summary)
    entries = [
        {key: row[key] for key in ("avg_bits", "size_bytes")} | dict(row["metrics"])
        for row in measured
    ]
    return pandas.DataFrame(entries, index=[row["name"] for row in measured])


def head(name: str, description: Mapping[str, Any] | None) -> str:
    """Label a metric; an arrow points to its better side.

    Args:
        name: of the metric.
        description: label and larger_is_better; None if nothing is known about it.

    Returns:
        Text.
    """
    if description is None:
        return name
    return f"{description['label']} {'↑' if description['larger_is_better'] else '↓'}"


def descriptions(summary: Summary) -> Mapping[str, Any]:
    """Look up what the metrics are called.

    Args:
        summary: contents of summary.json.

    Returns:
        label and larger_is_better by name; empty for a summary of version 0.1.
    """
    found: Mapping[str, Any] = (summary or {}).get("metrics", {})
    return found


def activation_table(summary: Summary) -> tuple[list[str], list[list[str]]] | None:
    """Tabulate what activations of fewer bits do, with paired differences in `main_metric`.

    Args:
        summary: contents of summary.json.

    Returns:
        Heads and cells, the rows of the chosen configuration first; None if it was not measured.
    """
    found = (summary or {}).get("activations")
    if not found:
        return None
    metric = main_metric(summary) or next(iter(found["rows"][0]["metrics"]))
    names = [name for name, value in found["rows"][0]["metrics"].items() if value is not None]
    paired = {
        (*one["first"], *one["second"]): one["metrics"].get(metric) for one in found["differences"]
    }

    def against(*key: str | int) -> str:
        if (pair := paired.get(key)) is None:
            return "–"
        value, error = pair
        return f"{value:+.4g}" + ("" if error is None else f" ± {error:.2g}")

    cells = []
    for row in found["rows"]:
        name, bits = row["name"], row["activations"]
        values = (row["metrics"].get(metric) for metric in names)
        cells.append(
            [
                name,
                widths.name_of(row["avg_bits"], bits),
                f"{row['tera_bops']:.4g}",
                *("–" if value is None else f"{value:.4g}" for value in values),
                against(name, widths.FULL, name, bits),
                against(OURS, bits, name, bits),
            ]
        )
    about = descriptions(summary)
    heads = ["", "bits", "tera bit operations", *(head(name, about.get(name)) for name in names)]
    changed = about[metric]["label"] if metric in about else metric
    return [*heads, f"{changed}, of rounding", f"{changed}, against ours"], cells


def candidates(summary: Summary, front: Mapping[str, Any] | None) -> list[dict[str, float]]:
    """List the points of the front that were measured under the protocol of the labels.

    Args:
        summary: contents of summary.json.
        front: of the search, with its objective.

    Returns:
        avg_bits, predicted and quality of each.
    """
    if not summary or not front:
        return []
    objective = Objective(front["objective"])
    return [
        {
            "avg_bits": row["avg_bits"],
            "predicted": row["predicted"],
            "quality": objective({**row["metrics"], "avg_bits": row["avg_bits"]}),
        }
        for row in summary.get("candidates", [])
    ]


def shown_pictures(summary: Summary, pictures: Mapping[str, bytes]) -> list[str]:
    """Choose the pictures to compare: full precision, best uniform 4-bit and 3-bit ones, ours.

    Args:
        summary: contents of summary.json.
        pictures: PNG by the name of a measured row.

    Returns:
        Names, side by side.
    """
    metric = main_metric(summary) or ""
    value = {row["name"]: row["metrics"].get(metric) for row in rows(summary)}

    def best(bits: str) -> str:
        names = [name for name in pictures if kind_of(name) == "uniform" and name.endswith(bits)]
        return min(
            names, key=lambda name: np.inf if value.get(name) is None else value[name], default=""
        )

    return [name for name in (FULL, best("-4"), best("-3"), OURS) if name in pictures]
