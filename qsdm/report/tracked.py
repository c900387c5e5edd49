"""What a command hands to a tracker when it has finished: its tables, figures and files.

`PANELS` lists the keys by command; a dashboard shows these. A key whose data is missing, as the
rounds of a search without rounds, is left out. Nothing is drawn where nothing is tracked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qsdm.report import figures, results, summary
from qsdm.report.results import NotRun, Results
from qsdm.store import Store, StoreError
from qsdm.text import Log, ignore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
FIGURES: dict[str, dict[str, Callable[[Results], Figure]]] = {
    "measure": {"bits": figures.bits},
    "train": {"rank_correlation": figures.predictor},
    "search": {"front": figures.search, "measured_after_rounds": figures.rounds},
    "realize": {"measured": figures.measured, "mix": figures.mix},
}
"""Figures by command and key; attribute writes its own as files."""

FILES: dict[str, dict[str, str]] = {
    "trace": {"graph": "graph.json", "page": "graph.html"},
    "calibrate": {"errors": "calibration/{space}/table.safetensors"},
    "measure": {"bank": "outcomes.sqlite"},
    "probe": {"bank": "outcomes.sqlite"},
    "train": {"predictor": "predictor/{space}"},
    "attribute": {
        "sensitivities": "sensitivity/{space}.json",
        **{k: f"sensitivity/{{space}}-{k}.png" for k in ("role", "block", "weights")},
        "interventions": "sensitivity/{space}-interventions.png",
    },
    "search": {"file": "search/{space}.json"},
    "realize": {
        "summary": "summary.json",
        "configuration": "chosen.json",
        "configuration_in_steps": "chosen-steps.json",
        "pictures": "pictures/comparison.png",
        "page": "report.html",
    },
}
"""Files and folders of the store by command and key: pictures, pages, and artifacts."""


def weights(found: Results) -> Rows:
    """The weights of the graph: role, block, shape and values.

    Args:
        found: results of a denoiser.
    """
    graph = found.graph
    assert graph is not None
    return [
        {
            "weight": weight.name,
            "role": str(graph.node_of(weight.name).role),
            "block": graph.node_of(weight.name).block,
            "shape": " × ".join(map(str, weight.shape)),
            "values": weight.numel,
            "macs": graph.node_of(weight.name).macs,
        }
        for weight in graph.weights
    ]


def labels(found: Results) -> Rows:
    """The measured labels: average bits and metrics.

    Args:
        found: results of a denoiser.
    """
    return [{"avg_bits": row["avg_bits"], **row["metrics"]} for row in found.outcomes]


def scores(found: Results) -> Rows:
    """Scores of the predictors on held-out labels.

    Args:
        found: results of a denoiser.
    """
    return [
        {"predictor": name}
        | {f"{q}_{part}": one[q][part] for q in ("srcc", "ndcg_at_10") for part in ("mean", "std")}
        for name, one in (found.predictor or {}).get("scores", {}).items()
    ]


def harms(found: Results) -> Rows:
    """What quantization costs each role, op and block.

    Args:
        found: results of a denoiser.
    """
    tables = (found.sensitivity or {}).get("tables", {})
    return [{"by": kind, **row} for kind, rows in tables.items() for row in rows]


def points(found: Results) -> Rows:
    """The front of the search, without its configurations.

    Args:
        found: results of a denoiser.
    """
    keys = ("avg_bits", "size_bytes", "predicted", "std")
    return [{k: point[k] for k in keys} for point in (found.front or {}).get("points", [])]


def measured(found: Results) -> Rows:
    """The final table.

    Args:
        found: results of a denoiser.
    """
    return [
        {"name": row["name"], "avg_bits": row["avg_bits"], "size_bytes": row["size_bytes"]}
        | dict(row["metrics"])
        for row in summary.rows(found.summary)
    ]


TABLES: dict[str, dict[str, Callable[[Results], Rows]]] = {
    "trace": {"weights": weights},
    "measure": {"labels": labels},
    "train": {"scores": scores},
    "attribute": {"harms": harms},
    "search": {"points": points},
    "realize": {"rows": measured},
}
"""Tables by command and key."""


class Kind(StrEnum):
    """How a tracker shows the value of a key."""

    media = "media"
    """A figure, picture or page."""

    table = "table"
    file = "file"
    """A file or folder."""


OWN: dict[str, dict[str, Kind]] = {
    "attribute": {"certificate": Kind.media, "certificate_areas": Kind.table},
    "why": {"cards": Kind.table},
    "compare": {
        "page": Kind.media,
        "pictures": Kind.media,
        "file": Kind.file,
        "differences": Kind.table,
    },
}
"""Keys of pictures, pages, tables and files that commands log themselves."""


def _kinds(command: str) -> dict[str, Kind]:
    kinds = dict.fromkeys(TABLES.get(command, ()), Kind.table)
    kinds |= dict.fromkeys(FIGURES.get(command, ()), Kind.media)
    for key, name in FILES.get(command, {}).items():
        kinds[key] = Kind.media if name.endswith((".html", ".png")) else Kind.file
    return kinds | OWN.get(command, {})


PANELS: dict[str, dict[str, Kind]] = {
    command: {f"{command}/{key}": kind for key, kind in _kinds(command).items()}
    for command in dict.fromkeys([*TABLES, *FIGURES, *FILES, *OWN])
}
"""Keys of all tables, figures, pictures, pages and files by command."""


def track(log: Log, command: str, store: Store, space: str = "", full_bits: int = 16) -> None:
    """Hand a command's tables, figures and files to its log.

    Args:
        log: of the command; nothing is drawn for one that drops everything.
        command: that has finished.
        store: of the model.
        space: name of the space; empty for trace, which needs none.
        full_bits: bits of full precision.
    """
    if log is ignore:
        return
    try:
        found = results.read(store, space or "traced", full_bits)
    except StoreError as error:  # the command has written what it made; this does not undo it
        log({f"{command}/not_tracked": str(error)})
        return
    values: dict[str, Any] = {}
    for key, rows in TABLES.get(command, {}).items():
        if table := rows(found):
            values[key] = table
    for key, name in FILES.get(command, {}).items():
        if (path := store.path(name.format(space=space))).exists():
            values[key] = path
    with TemporaryDirectory() as folder:
        for key, draw in FIGURES.get(command, {}).items():
            path = Path(folder, f"{key}.png")
            try:
                figures.write(path, draw(found))
            except NotRun:  # for example a search without rounds
                continue
            values[key] = path
        log(named(command, values))


def named(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Put a command's name before keys.

    Args:
        command: its name.
        values: by key.
    """
    return {f"{command}/{key}": value for key, value in values.items()}
