"""What a comparison found: its JSON, one self-contained page, and a grid of what changed most.

The page has no scripts and loads nothing. Pictures of more than `THUMBNAIL_PX` are scaled down in
it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.measurement.comparison import ContenderOutcome, Setup, changed_most, differences
from qsdm.report import figures, grids
from qsdm.report.page import NARROW_IN, WIDE_IN, template
from qsdm.store.files import write_text
from qsdm.store.provenance import provenance
from qsdm.store.schemas import COMPARISON
from qsdm.text import size
from qsdm.text import table as text_table

if TYPE_CHECKING:
    from qsdm.store.schemas import Comparison, Limit

TEMPLATE = Path(__file__).with_name("comparison.html.j2")
PAGE, DATA, GRID = "compare.html", "compare.json", "changed_most.png"
THUMBNAIL_PX = 256
VERDICTS = ("better", "worse", "no difference seen", "too few pictures to tell")
Content = Mapping[str, Any]
"""What compare.json holds."""


def contents(
    setup: Setup, measured: Sequence[ContenderOutcome], limits: Mapping[str, float]
) -> Comparison:
    """Write down what was measured.

    Args:
        setup: of the comparison.
        measured: the reference and the others.
        limits: the worst allowed value by metric.

    Returns:
        What compare.json holds.
    """
    numbers = changed_most(setup, measured)
    others = measured[1:]
    content: Comparison = {
        "num_images": setup.num_images,
        "seed_set": setup.seed_set,
        "metrics": setup.descriptions,  # type: ignore[typeddict-item]
        "fidelity": list(measured[0].fidelity),
        "pipelines": [
            {
                "name": one.contender.name,
                "protocol": one.pictures.protocol.to_json(),
                "metrics": dict(one.outcome.metrics),
                "standard_errors": {n: one.outcome.standard_error(n) for n in setup.metrics},
                "per_drawing": {n: _plain(values) for n, values in one.per_drawing.items()},
                "size_bytes": one.size_bytes,
                "picture_s": one.picture_s,
                "load_s": max(cost.load_s for cost in one.costs),
                "peak_bytes": one.peak_bytes,
                "device": one.costs[0].device,
            }
            for one in measured
        ],
        "differences": differences(setup, measured),  # type: ignore[typeddict-item]
        "captions": [
            {
                "number": number,
                "caption": setup.captions[number],
                "values": {
                    one.contender.name: {n: float(v[number]) for n, v in one.per_drawing.items()}
                    for one in others
                },
            }
            for number in numbers
        ],
        "limits": [limit for one in others for limit in _limits(setup, one, limits)],
        "provenance": provenance(),
    }
    return content


def _plain(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _limits(setup: Setup, one: ContenderOutcome, limits: Mapping[str, float]) -> list[Limit]:
    lines: list[Limit] = []
    for metric, limit in limits.items():
        value = one.outcome.metrics[metric]
        if value is None:
            raise ValueError(f"limit.{metric}: {metric} is not defined for {one.contender.name}")
        larger = setup.metrics[metric].larger_is_better
        lines.append(
            {
                "pipeline": one.contender.name,
                "metric": metric,
                "limit": float(limit),
                "value": value,
                "kept": value >= limit if larger else value <= limit,
            }
        )
    return lines


def limit_sentence(line: Limit) -> str:
    """Say that a pipeline is worse than a limit allows.

    Args:
        line: of the limits.
    """
    side = "below" if line["value"] < line["limit"] else "above"
    return (
        f"{line['pipeline']}: {line['metric']} {line['value']:.6g} is {side} "
        f"limit.{line['metric']}={line['limit']:g}"
    )


def write(folder: Path, content: Comparison, measured: Sequence[ContenderOutcome]) -> None:
    """Write `DATA`, `GRID` and `PAGE`.

    Args:
        folder: to which they are written.
        content: what `contents` returned.
        measured: the reference and the others.

    Raises:
        StoreError: one cannot be written.
    """
    numbers = [caption["number"] for caption in content["captions"]]
    pictures = {one.contender.name: one.pictures.firsts(numbers) for one in measured}
    COMPARISON.write(folder / DATA, content)
    small = {name: grids.thumbnails(i, THUMBNAIL_PX) for name, i in pictures.items()}
    grids.write(folder / GRID, grids.strips({_broken(n): images for n, images in small.items()}))
    write_text(folder / PAGE, render(content, small))


def _broken(name: str, width: int = 18) -> str:
    """A name in lines that fit beside a row of pictures."""
    return "\n".join(name[i : i + width] for i in range(0, len(name), width))


def render(content: Content, pictures: Mapping[str, np.ndarray]) -> str:
    """Make the page.

    Args:
        content: of compare.json.
        pictures: by name of the pipeline, uint8 [N, H, W, 3]: of the captions that changed most.

    Returns:
        HTML.
    """
    import markupsafe

    from qsdm import __version__

    metric = content["fidelity"][0]
    widths = {"wide": WIDE_IN, "narrow": NARROW_IN}
    chart = {
        key: markupsafe.Markup(
            figures.svg(figures.per_drawing(content, metric, w), f"{key}-fidelity")
        )
        for key, w in widths.items()
    }
    return template(TEMPLATE).render(
        names=[entry["name"] for entry in content["pipelines"]],
        heading=heading(content),
        table=table(content),
        differences=pairs(content),
        captions=captions(content, pictures),
        chart=chart,
        chart_hint=f"{_short(content, metric)} of every picture to the one of "
        f"{content['pipelines'][0]['name']} from the same caption and noise, from what changed "
        "most to what changed least.",
        limits=content["limits"],
        limit_sentence=limit_sentence,
        about=about(content),
        version=__version__,
    )


def heading(content: Content) -> str:
    """Say how far each pipeline is from the reference.

    Args:
        content: of compare.json.

    Returns:
        A sentence: in which metrics each is better or worse, and its fidelity.
    """
    reference, *others = content["pipelines"]
    fidelity = content["fidelity"][0]
    sentences = []
    for entry in others:
        said: dict[str, list[str]] = {}
        for row in content["differences"]:
            if (row["first"], row["second"]) == (reference["name"], entry["name"]):
                said.setdefault(row["verdict"], []).append(_short(content, row["metric"]))
        parts = [f"{word} in {', '.join(said[word])}" for word in VERDICTS if word in said]
        parts.append(with_label(content, fidelity, entry["metrics"][fidelity]))
        sentences.append(f"{entry['name']}: {'; '.join(parts)}")
    return f"Against {reference['name']}. " + ". ".join(sentences) + "."


def _short(content: Content, metric: str) -> str:
    """The label of a metric without its unit."""
    label: str = content["metrics"][metric]["label"]
    return label.partition(", ")[0]


def number(content: Content, metric: str, value: float | None, sign: str = "") -> str:
    """Format a value of a metric.

    Args:
        content: of compare.json.
        metric: its name.
        value: None for a dash.
        sign: ``+`` to show it always.
    """
    if value is None:
        return "–"
    return f"{value:{sign}.{content['metrics'][metric]['digits']}f}".replace("-", "−")


def with_label(content: Content, metric: str, value: float | None) -> str:
    """Format a value with the metric's label, and with the unit behind it: PSNR 28.51 dB.

    Args:
        content: of compare.json.
        metric: its name.
        value: None for a dash.
    """
    label, _, unit = content["metrics"][metric]["label"].partition(", ")
    return f"{label} {number(content, metric, value)} {unit}".rstrip()


def table(content: Content) -> dict[str, Any]:
    """Write what was measured, with standard errors: a row for each cost and metric.

    Args:
        content: of compare.json.

    Returns:
        heads, a column for each pipeline, and rows of cells.
    """
    pipelines = content["pipelines"]

    def bytes_of(entry: Mapping[str, Any], key: str) -> str:
        return size(entry[key]) if entry[key] else "–"

    def measured(entry: Mapping[str, Any], name: str) -> str:
        value, error = entry["metrics"].get(name), entry["standard_errors"].get(name)
        cell = number(content, name, value)
        return (
            cell if value is None or error is None else f"{cell} ± {number(content, name, error)}"
        )

    rows = [
        ["denoiser's files", *(bytes_of(entry, "size_bytes") for entry in pipelines)],
        ["drawing a picture", *(f"{entry['picture_s']:.3g} s" for entry in pipelines)],
        ["peak memory", *(bytes_of(entry, "peak_bytes") for entry in pipelines)],
        *(
            [about["label"], *(measured(entry, name) for entry in pipelines)]
            for name, about in content["metrics"].items()
        ),
    ]
    return {"heads": ["", *(entry["name"] for entry in pipelines)], "rows": rows}


def pairs(content: Content) -> list[dict[str, Any]]:
    """Write the paired differences of every two pipelines.

    Args:
        content: of compare.json.

    Returns:
        title, and rows of metric, value, interval, verdict and its kind, for each pair.
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for row in content["differences"]:
        metric = row["metric"]
        low, high = (number(content, metric, row[end], "+") for end in ("low", "high"))
        tables.setdefault(f"{row['second']} − {row['first']}", []).append(
            {
                "metric": content["metrics"][metric]["label"],
                "value": number(content, metric, row["value"], "+"),
                "interval": "–" if row["low"] is None else f"{low} to {high}",
                "verdict": row["verdict"],
            }
        )
    return [{"title": title, "rows": rows} for title, rows in tables.items()]


def as_text(content: Content) -> str:
    """Write the tables for a terminal.

    Args:
        content: of compare.json.

    Returns:
        Lines without a final newline.
    """
    measured = table(content)
    blocks = [text_table(measured["heads"], measured["rows"], are_texts=True)]
    for pair in pairs(content):
        heads = [pair["title"], "paired difference", "95 % interval", ""]
        rows = [list(row.values()) for row in pair["rows"]]
        blocks.append(text_table(heads, rows, are_texts=True))
    return "\n\n".join(blocks)


def captions(content: Content, pictures: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Put the pictures of each caption side by side.

    Args:
        content: of compare.json.
        pictures: see `render`.

    Returns:
        caption, number, and pictures of name, note and uri, for each caption.
    """
    rows = []
    for i, entry in enumerate(content["captions"]):
        shown = []
        for pipeline, images in pictures.items():
            values = entry["values"].get(pipeline, {})
            note = " · ".join(with_label(content, name, v) for name, v in values.items())
            shown.append({"name": pipeline, "note": note or "reference", "uri": _uri(images[i])})
        rows.append({"caption": entry["caption"], "number": entry["number"], "pictures": shown})
    return rows


def _uri(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def about(content: Content) -> list[tuple[str, str]]:
    """List how the pictures were drawn.

    Args:
        content: of compare.json.

    Returns:
        Names and values.
    """
    entries = [("pictures", f"{content['num_images']:,} of each, seed set {content['seed_set']}")]
    for entry in content["pipelines"]:
        protocol = entry["protocol"]
        entries.append(
            (
                entry["name"],
                f"{protocol['sampler'].partition(' ')[0]}, {protocol['steps']} steps, guidance "
                f"{protocol['guidance']:g}, {protocol['resolution_px']} px, {protocol['dtype']}, "
                f"on {entry['device']}, loaded in {entry['load_s']:.1f} s",
            )
        )
    made = content["provenance"]
    entries.append(("made", made["made"]))
    entries.append(("versions", ", ".join(f"{k} {v}" for k, v in made["versions"].items())))
    return entries
