"""What is one byte worth in the denoiser, in a text encoder, in the VAE?

    python experiments/components/study.py --name emoji_unet --store store

Every part of a pipeline is traced and calibrated, and measured with one method in all its weights:
alone, and all parts together. Adds the pipeline's rows to results.json as they come, and prints the
tables of all pipelines in it; what is in the store or the results is not measured again.
Differences from full precision are paired: the same captions and noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Results, prepared, run

import qsdm
from qsdm.denoisers import load_pipeline, parts_in, pipeline_index, prompts_of
from qsdm.engine.serial import Serial
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.paired import difference
from qsdm.measurement.session import open_session
from qsdm.measurement.worker import read_full
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, cost
from qsdm.quant.calibrated import PackedWeights
from qsdm.quant.swap import Switch
from qsdm.tracing.entry import as_forward
from qsdm.workspace import Workspace

RESULTS = Results(Path(__file__).with_name("results.json"))
ALONE = ("kmeans_a-4", "kmeans_a-3")
TOGETHER = ("kmeans_a-4", "kmeans_a-3")
ALL = "all parts"


def opened(name: str, store: str) -> dict[str, Workspace]:
    """The parts of a pipeline, the denoiser first, traced and calibrated."""
    first = qsdm.open(name, store=store)
    own = first.model.component
    others = [part for part in parts_in(pipeline_index(first.model)) if part != own]
    return {part: prepared(qsdm.open(name, store=store, component=part)) for part in (own, *others)}


def full_bytes(workspace: Workspace) -> int:
    """Bytes of a part's weights in full precision."""
    return workspace.graph.num_values * workspace.model.full_bits // 8


def alone(workspace: Workspace, part: str, seed_set: int, num: int) -> list[dict[str, Any]]:
    """One part with one method in all its weights, the others in full precision."""
    space = workspace.space
    with open_session(workspace, Serial(), 32) as ready:
        protocol = ready.protocol(seed_set, num)
        full = QuantConfig(workspace.name, {})
        uniform = {method: space.uniform(method) for method in ALONE}
        measured = ready.measure([full, *uniform.values()], protocol)
        return [
            row(part, method, measured.of(one), measured.of(full))
            | {"bytes": cost.size_bytes(space.graph, one), "full_bytes": full_bytes(workspace)}
            for method, one in uniform.items()
        ]


def together(
    parts: Mapping[str, Workspace], method: str, seed_set: int, num: int
) -> dict[str, Any]:
    """All parts with one method in all their weights; the denoiser with few bits is a rival."""
    (_, denoiser), *others = parts.items()
    with open_session(denoiser, Serial(), 32) as ready:
        protocol: Protocol = ready.protocol(seed_set, num)
        full, low = QuantConfig(denoiser.name, {}), denoiser.space.uniform(ALONE[-1])
        measured = ready.measure([full, low], protocol)
        reference, rival = measured.of(full), measured.of(low)
        images = read_full(ready.full(protocol))
    pipeline = load_pipeline(denoiser.model)
    for part, workspace in others:
        packed = PackedWeights(workspace.packed)
        switch = Switch(
            as_forward(getattr(pipeline, part)), workspace.space.graph, packed.dequantize
        )
        switch.to(workspace.space.uniform(method))
    drawer = Drawer(
        denoiser.model, denoiser.space.graph, PackedWeights(denoiser.packed), 32, pipeline
    )
    metrics = denoiser.model.metrics
    evaluator = Evaluator(drawer, metrics, protocol, prompts_of(denoiser.model))
    evaluator.full(images)
    outcome = evaluator.outcome(denoiser.space.uniform(method))
    change = difference(outcome, rival, "fd_lite0")
    assert change is not None
    sizes = [cost.size_bytes(w.space.graph, w.space.uniform(method)) for w in parts.values()]
    return row(ALL, method, outcome, reference) | {
        "bytes": sum(sizes),
        "minus the denoiser alone": {ALONE[-1]: [change.value, change.standard_error]},
        "full_bytes": sum(map(full_bytes, parts.values())),
    }


def row(part: str, method: str, outcome: Outcome, full: Outcome) -> dict[str, Any]:
    """What a row of the tables says of a measured configuration."""
    change = difference(outcome, full, "fd_lite0")
    assert change is not None
    return {
        "part": part,
        "method": method,
        "fd_lite0": outcome.metrics["fd_lite0"],
        "change": [change.value, change.standard_error],
        "psnr": outcome.metrics["psnr"],
        "psnr_error": outcome.standard_error("psnr"),
    }


def table() -> str:
    """All rows as Markdown; the last column is harm for each 100 kB that are saved."""
    lines = [
        "| | part | method | bytes | saved | fd_lite0 ↓ | change | PSNR, dB ↑ | of 100 kB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in RESULTS.read().items():
        for one in measured["rows"]:
            saved = one["full_bytes"] - one["bytes"]
            value, error = one["change"]
            worth = [number / saved * 1e5 for number in (value, error)]
            cells = [
                f"`{name}`",
                one["part"] if one["part"] == ALL else f"`{one['part']}`",
                one["method"],
                f"{one['bytes']:,}",
                f"{saved:,}",
                f"{one['fd_lite0']:.1f}",
                f"{value:+.1f} ± {error:.1f}",
                f"{one['psnr']:.2f}",
                f"{worth[0]:+.2f} ± {worth[1]:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> None:
    """Measure the parts of a pipeline, except for what the results hold."""
    drawn = {"seed_set": args.seed_set, "num_images": args.images}
    own = RESULTS.read().get(args.name, {})
    rows = own.get("rows", []) if drawn.items() <= own.items() else []
    parts = opened(args.name, args.store)
    for part, workspace in parts.items():
        if not any(one["part"] == part for one in rows):
            rows += alone(workspace, part, args.seed_set, args.images)
            RESULTS.add(args.name, {**drawn, "rows": rows})
    for method in TOGETHER:
        if not any((one["part"], one["method"]) == (ALL, method) for one in rows):
            rows.append(together(parts, method, args.seed_set, args.images))
            RESULTS.add(args.name, {**drawn, "rows": rows})


if __name__ == "__main__":
    run(__doc__, measure, table, seed_set=1, images=128)
