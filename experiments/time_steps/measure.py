"""Which of a sampler's steps suffer from quantization, and is it worth more bits there?

    python experiments/time_steps/measure.py --names emoji_unet emoji_mmdit emoji_pixart
    python experiments/time_steps/measure.py                     # only the tables and the figure

Measures the parts `PARTS`, one after the other, skipping what the store holds, and adds each to
results.json. Prints the tables of all pipelines in it and draws docs/time_steps.png. All
differences are paired: the same captions and noise. Their errors are those of the pictures; of
several draws of weights, each draw's difference is printed, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.engine.serial import Serial
from qsdm.measurement.paired import mean_difference
from qsdm.measurement.session import open_session
from qsdm.outcome import Objective, Outcome
from qsdm.probe import probe
from qsdm.qconfig import QuantConfig, Space, cost
from qsdm.qconfig.steps import StepBin
from qsdm.report.figures.canvas import PALETTE, canvas, title, write
from qsdm.report.figures.steps import COLORS, draw_bins
from qsdm.store.schemas import STEPS, StepRow, StepTable
from qsdm.strategies.random import near
from qsdm.workspace import Workspace, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOW, HIGH = "uaq-3", "uaq-4"
METRICS = {"fd_lite0": 1, "psnr": 2, "lite0_distance": 1}  # and their digits
QUALITY = Objective({"fd_lite0": -1})
NUM_BINS = 5
BINS = 32  # pictures
COUNTS = 16
NUM_RANDOM = 5
NUM_STEPS = (4, 10, 20, 50)


def at_equal_bits(space: Space, probed: StepTable) -> dict[str, list[QuantConfig]]:
    """Configurations by name: more bits in one bin, or in some weights at all steps."""
    graph = space.graph
    low, high = space.uniform(LOW), space.uniform(HIGH)
    bins = sorted(probed["rows"][:-1], key=lambda row: row["differences"]["fd_lite0"][0] or 0)

    def within(row: Mapping[str, Any], qconfig: QuantConfig) -> QuantConfig:
        return replace(low, steps=(StepBin(row["start"], row["stop"], qconfig),))

    worst, least = bins[-1], bins[0]
    stepped = within(worst, high)
    size = round(cost.avg_bits(graph, stepped, space.full_bits) * graph.num_values / 8)
    two = Space.of(graph, [LOW, HIGH], space.full_bits)
    random = [near(two, size, 0.002, np.random.default_rng(seed)) for seed in range(NUM_RANDOM)]
    return {
        f"{HIGH} in the {worst['name']} bin, {LOW} elsewhere": [stepped],
        f"{HIGH} in random weights at all steps, mean of {NUM_RANDOM}": random,
        f"{HIGH} in the {least['name']} bin, {LOW} elsewhere": [within(least, high)],
        f"{LOW} at all steps": [low],
        f"{HIGH} at all steps": [high],
    }


def paired(outcomes: Sequence[Outcome], reference: Outcome) -> dict[str, list[float | None]]:
    """Mean differences in `METRICS` where both have them."""
    changes = {metric: mean_difference(outcomes, reference, metric) for metric in METRICS}
    return {m: [d.value, d.standard_error] for m, d in changes.items() if d is not None}


def values(outcome: Outcome) -> dict[str, Any]:
    """Values of `METRICS` and their standard errors."""
    return {metric: [outcome.metrics[metric], outcome.standard_error(metric)] for metric in METRICS}


def bins(workspace: Workspace) -> list[StepRow]:
    """Probe the bins of steps."""
    probe(workspace, QUALITY, [LOW], steps=NUM_BINS, num_images=BINS, engine=Serial())
    return workspace.store.read(STEPS, "steps.json")["rows"]


def equal_bits(workspace: Workspace) -> list[dict[str, Any]]:
    """Measure configurations of one average of bits over the steps, and their ends."""
    probed = workspace.store.read(STEPS, "steps.json")
    space, full = workspace.space, QuantConfig(workspace.name, {})
    groups = at_equal_bits(space, probed)
    with open_session(workspace, Serial()) as ready:
        protocol = ready.protocol(0, BINS)
        every = [full, *(qconfig for group in groups.values() for qconfig in group)]
        measured = ready.measure(every, protocol, "realize")
    first = measured.of(next(iter(groups.values()))[0])
    rows = []
    for name, group in groups.items():
        outcomes = [measured.of(qconfig) for qconfig in group]
        costs = [
            [one(space.graph, qconfig, space.full_bits) for qconfig in group]
            for one in (cost.avg_bits, cost.size_bytes)
        ]
        rows.append(
            {
                "name": name,
                "avg_bits": fmean(costs[0]),
                "size_bytes": round(fmean(costs[1])),
                "values": [values(outcome) for outcome in outcomes],
                "from_first": paired(outcomes, first),
                "from_full": paired(outcomes, measured.of(full)),
            }
        )
    return rows


def counts(workspace: Workspace) -> list[dict[str, Any]]:
    """Measure one configuration beside full precision at several numbers of steps."""
    low, full = workspace.space.uniform(LOW), QuantConfig(workspace.name, {})
    rows = []
    for num in NUM_STEPS:
        other = replace(workspace, model=replace(workspace.model, steps=num))
        with open_session(other, Serial()) as ready:
            protocol = ready.protocol(0, COUNTS)
            measured = ready.measure([full, low], protocol, "realize")
        whole, outcome = measured.of(full), measured.of(low)
        rows.append(
            {
                "steps": num,
                "full": values(whole),
                "values": values(outcome),
                "from_full": paired([outcome], whole),
            }
        )
    return rows


def number(pair: list[float | None] | None, digits: int, signed: bool = False) -> str:
    """A value with its standard error."""
    if pair is None or pair[0] is None:
        return "–"
    value, error = pair
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables as Markdown."""
    lines = ["| | quantized in | fd_lite0 ↑ worse | PSNR, dB | feature distance |", "|---|---|---|---|---|"]  # noqa: E501  # fmt: skip
    for name, measured in results.items():
        for row in measured["bins"]:
            cells = [number(row["differences"]["fd_lite0"], 1, signed=True)]
            cells += [
                number([row["metrics"][metric], row["standard_errors"][metric]], METRICS[metric])
                for metric in ("psnr", "lite0_distance")
            ]
            lines.append(f"| `{name}` | {row['name']} | {' | '.join(cells)} |")
    lines += ["", "| | configuration | mean bits | bytes | fd_lite0, minus full precision's | minus the first row's | of single draws | PSNR, minus the first row's |", "|---|---|---|---|---|---|---|---|"]  # noqa: E501  # fmt: skip
    for name, measured in results.items():
        for row in measured.get("equal", []):
            first = measured["equal"][0]
            changes = [
                "" if row is first else number(pair, METRICS[metric], signed=True)
                for metric in ("fd_lite0", "psnr")
                for pair in [row["from_first"][metric]]
            ]
            of_first = first["values"][0]["fd_lite0"][0]
            draws = sorted(one["fd_lite0"][0] - of_first for one in row["values"])
            changes.insert(1, ", ".join(f"{one:+.0f}" for one in draws if len(draws) > 1))
            lines.append(
                f"| `{name}` | {row['name']} | {row['avg_bits']:.2f} | {row['size_bytes']:,} "
                f"| {number(row['from_full']['fd_lite0'], 1, signed=True)} "
                f"| {' | '.join(changes)} |"
            )
    lines += ["", "| | steps | fd_lite0, full precision | quantized, minus that | PSNR, dB | feature distance |", "|---|---|---|---|---|---|"]  # noqa: E501  # fmt: skip
    for name, measured in results.items():
        for row in measured.get("counts", []):
            lines.append(
                f"| `{name}` | {row['steps']} | {row['full']['fd_lite0'][0]:.1f} "
                f"| {number(row['from_full']['fd_lite0'], 1, signed=True)} "
                f"| {number(row['values']['psnr'], 2)} "
                f"| {number(row['values']['lite0_distance'], 1)} |"
            )
    return "\n".join(lines)


def figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Left, what each bin of steps loses; right, PSNR against the number of steps."""
    drawn, (left, right) = canvas(9, 3.4, 2)
    draw_bins(
        left,
        [
            {"denoiser": name, "protocol": {}, "qconfig": {}, "full": {}, "rows": measured["bins"]}
            for name, measured in results.items()
        ],
        "fd_lite0",
    )
    left.legend(frameon=False, fontsize=8)
    title(left, f"{LOW} within one fifth of the steps", "fd_lite0 above full precision")
    for color, (name, measured) in zip(COLORS, results.items(), strict=False):
        rows = measured.get("counts", [])
        pairs = [row["values"]["psnr"] for row in rows]
        right.errorbar(
            [row["steps"] for row in rows],
            [pair[0] for pair in pairs],
            yerr=[pair[1] for pair in pairs],
            color=PALETTE[color],
            marker="o",
            label=name,
        )
    right.set_xscale("log")
    right.set_xticks(NUM_STEPS, [str(num) for num in NUM_STEPS])
    right.minorticks_off()
    title(right, f"number of steps, all with {LOW}", "PSNR to full precision, dB")
    return drawn


PARTS = {"bins": bins, "equal": equal_bits, "counts": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=[], help="of pipelines that were calibrated")
    parser.add_argument("--parts", nargs="*", default=list(PARTS))
    parser.add_argument("--store", default="store")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "time_steps.png")
    args = parser.parse_args()
    results = json.loads(args.results.read_text("utf-8")) if args.results.exists() else {}
    for part in args.parts:
        for name in args.names:
            workspace = named(name, store=args.store)
            metrics = {metric: workspace.model.metrics[metric] for metric in METRICS}
            model = replace(workspace.model, metrics=metrics)
            measured = PARTS[part](replace(workspace, model=model))
            results.setdefault(name, {})[part] = measured
            args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tables(results))
    write(args.figure, figure(results))


if __name__ == "__main__":
    main()
