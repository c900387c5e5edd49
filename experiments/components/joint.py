"""Is one budget over the parts of a pipeline worth more than one for each?

    python experiments/components/joint.py --name emoji_unet --store store

All parts are traced and calibrated as one (``model.component=[unet,text_encoder,vae]``). Each part
has a ladder of configurations from 3 to 8 bits: the denoiser's are the shipped recipes and, above
4 bits, the knapsack of its output's errors, as are those of all other parts. Each rung is measured
alone, the other parts in full precision; what it costs, made monotone in its bytes, is a curve of
the part. A joint choice takes from each ladder the rung with which the sum of the curves is least
within the total bytes: the sum of changes of fd_lite0, or that of squared errors of pixels. The
bytes are those of four rivals:

- ``denoiser``: the denoiser at 3.5 bits, text encoders and VAE in 16, as tools leave them
- ``rule``: the denoiser at 3.5 bits, text encoders and VAE at 8 bits
- ``apart``: each part at 3.5 bits
- ``tight``: each part at 3.25 bits

Rivals and joint choices have the same ladders, so that they differ in how the bytes are divided
alone. They are measured on noise that neither recipes nor curves have seen. Adds the rows of the
pipeline to joint.json, and prints the tables of all pipelines in it; what the store holds is not
measured again. Differences are paired: the same captions and noise.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import METRICS, Results, prepared, run
from scipy.optimize import isotonic_regression
from torch import nn

import qsdm
from qsdm.denoisers import parts_in, pipeline_index, prompts_of
from qsdm.engine.serial import Serial
from qsdm.graph import subgraph
from qsdm.measurement.decibels import squared
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.forward import Call, output_of, squares_of
from qsdm.measurement.paired import difference
from qsdm.measurement.protocol import seed_of
from qsdm.measurement.session import open_session
from qsdm.outcome import Outcome
from qsdm.qconfig import QuantConfig, SpaceSpec, cost
from qsdm.quant.calibrated import PackedWeights
from qsdm.store.files import read_json
from qsdm.strategies import Problem
from qsdm.strategies.greedy import filled, path
from qsdm.workspace import Workspace

RESULTS = Results(Path(__file__).with_name("joint.json"))
RECIPES = Path(__file__).parents[2] / "recipes"
OF_RECIPES = ["uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4"]
SPACE = SpaceSpec("joint", [*OF_RECIPES, "uaq-6", "uaq-8"], splits=".*")
PROBED = "kmeans_a-4"
NUM_CALLS = 2
"""Of a part, spread over the calls that draw a picture."""
RUNGS = (3.01, 3.25, 3.5, 3.75, 4.0, 5.0, 6.2)
"""Bits; the last rung of a ladder is uaq-8 in all weights."""
FROM_RECIPES = (3.25, 3.5, 3.75, 4.0)
BITS, TIGHT = 3.5, 3.25
FULL, RIVAL = "full precision", "rival"
SUMS = ("fd_lite0", "squared error")
"""Of what a joint choice minimizes the sum."""
Z95 = 1.96


def opened(name: str, store: str) -> Workspace:
    """All parts of a pipeline as one, traced and calibrated."""
    index = pipeline_index(qsdm.open(name, store=store).model)
    return prepared(qsdm.open(name, store=store, component=list(parts_in(index))), SPACE)


def ladders(workspace: Workspace, num_images: int) -> dict[str, list[QuantConfig]]:
    """Configurations of each part from few bits to many, the other parts in full precision.

    Within a part, the harm of a weight's method is the error of the part's output when the weight
    alone is quantized, scaled by the error of the method.
    """
    space, model = workspace.space, workspace.model
    problem = Problem.of(space, workspace.table)
    probed = space.encode(space.uniform(PROBED))
    of_probed = problem.error[np.arange(len(probed)), probed]
    errors = output_errors(workspace, num_images)
    own = np.array([errors[weight.name] for weight in space.graph.weights])
    offered = np.isfinite(problem.error)
    harm = np.where(offered, problem.error, 0) * (own / np.maximum(of_probed, 1e-12))[:, None]
    result = {}
    for part in model.components:
        recipes = FROM_RECIPES if part in model.denoisers else ()
        result[part] = [
            recipe_of(workspace, part, bits)
            if bits in recipes
            else within(problem, harm, part, bits)
            for bits in RUNGS
        ]
        result[part].append(only(space.uniform("uaq-8"), part))
    return result


def only(qconfig: QuantConfig, part: str) -> QuantConfig:
    """What a configuration of all parts says of one of them."""
    own = {w: m for w, m in qconfig.methods.items() if w.startswith(f"{part}.")}
    return QuantConfig(qconfig.denoiser, own)


def together(qconfigs: Iterable[QuantConfig], name: str) -> QuantConfig:
    """One configuration of several parts."""
    return QuantConfig(name, {w: m for one in qconfigs for w, m in one.methods.items()})


def recipe_of(workspace: Workspace, denoiser: str, bits: float) -> QuantConfig:
    """The shipped recipe of a denoiser, as a configuration of all parts."""
    base = workspace.model.base_name
    found = QuantConfig.from_json(read_json(RECIPES / base / f"{base}-{bits}.json"))
    methods = {f"{denoiser}.{weight}": method for weight, method in found.methods.items()}
    return QuantConfig(workspace.name, methods)


def within(problem: Problem, harm: np.ndarray, part: str, bits: float) -> QuantConfig:
    """The least harm [W, O] of one part at so many bits on average."""
    weights = problem.space.graph.weights
    own = np.array([weight.name.startswith(f"{part}.") for weight in weights])
    budget = bits * sum(w.numel for w, is_own in zip(weights, own, strict=True) if is_own) / 8
    rows, of_part = np.arange(len(weights)), np.where(own[:, None], harm, 0)
    for genes in path(problem, of_part):
        sizes = problem.size_bytes[rows, genes]
        if sizes[own].sum() <= budget:
            genes = filled(problem, of_part, genes, budget + sizes[~own].sum())
            return only(problem.space.decode(genes), part)
    raise ValueError(f"{part} has no configuration of {bits} bits")


def squared_error(psnr: float) -> float:
    """Mean squared error of pixels of so many dB, in millionths of the squared range."""
    return -1e6 * squared(psnr)


@dataclass(frozen=True, slots=True)
class Rung:
    """A configuration of one part, and what it costs.

    Attributes:
        qconfig: of the part, the others in full precision.
        num_bytes: of the part.
        harm: for each of `SUMS`, falling with the bytes along a ladder.
    """

    qconfig: QuantConfig
    num_bytes: int
    harm: tuple[float, ...]


def curve(
    workspace: Workspace, part: str, outcomes: Sequence[Outcome], full: Outcome
) -> tuple[list[Rung], list[dict[str, Any]]]:
    """The rungs of a part by rising bytes, full precision the last, and what was measured."""
    own = subgraph(workspace.space.graph, part, part)
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        change = difference(outcome, full, "fd_lite0")
        assert change is not None
        size = cost.size_bytes(own, outcome.qconfig.part(part), workspace.model.full_bits)
        rows.append(
            {
                "bytes": size,
                "bits": 8 * size / own.num_values,
                "fd_lite0": [change.value, change.standard_error],
                "psnr": outcome.metrics["psnr"],
            }
        )
    harms = [(row["fd_lite0"][0], squared_error(row["psnr"])) for row in rows]
    qconfigs = [*(outcome.qconfig for outcome in outcomes), full.qconfig]
    sizes = [*(row["bytes"] for row in rows), own.num_values * workspace.model.full_bits // 8]
    order = np.argsort(sizes)
    columns = np.array([*harms, (0.0, 0.0)])[order].T
    falling = [np.maximum(isotonic_regression(one, increasing=False).x, 0) for one in columns]
    rungs = [
        Rung(qconfigs[i], sizes[i], tuple(map(float, harm)))
        for i, *harm in zip(order, *falling, strict=True)
    ]
    return rungs, rows


def joint(
    curves: Mapping[str, Sequence[Rung]], max_bytes: int, which: int, name: str
) -> QuantConfig:
    """One rung of each ladder: the least sum of one harm, of equal ones that of the other."""
    fitting = (
        rungs
        for rungs in itertools.product(*curves.values())
        if sum(rung.num_bytes for rung in rungs) <= max_bytes
    )

    def harms(rungs: Sequence[Rung]) -> tuple[float, float]:
        sums = [sum(rung.harm[i] for rung in rungs) for i in (which, 1 - which)]
        return round(sums[0], 6), sums[1]

    return together((rung.qconfig for rung in min(fitting, key=harms)), name)


def rivals(steps: Mapping[str, Sequence[QuantConfig]], denoiser: str) -> dict[str, QuantConfig]:
    """The rules whose bytes the joint choice gets."""
    name = steps[denoiser][0].denoiser
    middle = {part: ladder[RUNGS.index(BITS)] for part, ladder in steps.items()}
    others = [ladder[-1] for part, ladder in steps.items() if part != denoiser]
    return {
        "denoiser": middle[denoiser],
        "rule": together([middle[denoiser], *others], name),
        "apart": together(middle.values(), name),
        "tight": together((ladder[RUNGS.index(TIGHT)] for ladder in steps.values()), name),
    }


def output_errors(workspace: Workspace, num_images: int) -> dict[str, float]:
    """Relative squared error of a part's output when a weight alone is quantized, by weight."""
    model, graph = workspace.model, workspace.space.graph
    drawer = Drawer(model, graph, PackedWeights(workspace.packed), num_images)
    seen: dict[str, list[Call]] = {part: [] for part in model.components}
    prompts = prompts_of(model)
    drawings = [Drawing(i, prompts[i], seed_of(0, i)) for i in range(num_images)]

    def kept(part: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen[part].append(Call((), (args, kwargs), output_of(output)))

        return keep

    hooks = [
        module.register_forward_hook(kept(part), with_kwargs=True)
        for part, module in drawer.parts.items()
    ]
    drawer.draw(QuantConfig(workspace.name, {}), drawings)
    for hook in hooks:
        hook.remove()
    errors: dict[str, float] = {}
    uniform = workspace.space.uniform(PROBED).methods
    for weight in graph.weights:
        part = weight.name.partition(".")[0]
        calls = seen[part]
        places = np.unique(np.linspace(0, len(calls) - 1, NUM_CALLS + 2).round().astype(int))
        inner = places[1:-1] if len(places) > NUM_CALLS else places
        drawer.switch(QuantConfig(workspace.name, {weight.name: uniform[weight.name]}))
        errors[weight.name] = float(
            np.mean([error_of(drawer.parts[part], calls[i]) for i in inner])
        )
    return errors


@torch.inference_mode()
def error_of(module: nn.Module, call: Call) -> float:
    """Squared error of a module's output over the squared norm of what was recorded."""
    args, kwargs = call.arguments
    output = output_of(module(*args, **kwargs))
    return float(squares_of(output - call.output, 1)[0] / squares_of(call.output, 1)[0])


def row(workspace: Workspace, rival: str, who: str, outcome: Outcome) -> dict[str, Any]:
    """What the table says of a measured configuration."""
    graph, bits = workspace.space.graph, workspace.space.full_bits
    by_part = {
        part: cost.avg_bits(subgraph(graph, part, part), outcome.qconfig.part(part), bits)
        for part in workspace.model.components
    }
    return {
        "rival": rival,
        "who": who,
        "bytes": cost.size_bytes(graph, outcome.qconfig, bits),
        "bits": by_part,
        **{metric: outcome.metrics[metric] for metric in METRICS},
        "qconfig": outcome.qconfig.to_json(),
    }


def measure(args: argparse.Namespace) -> None:
    """Measure the curves of the parts, the rivals and the joint choices."""
    workspace = opened(args.name, args.store)
    model, graph = workspace.model, workspace.space.graph
    steps = ladders(workspace, args.probe_images)
    full = QuantConfig(workspace.name, {})
    with open_session(workspace, Serial(), 64) as ready:
        learned = ready.protocol(args.curve_seed_set, args.curve_images)
        every = [qconfig for ladder in steps.values() for qconfig in ladder]
        alone = ready.measure([full, *every], learned)
        curves, measured = {}, {}
        for part, ladder in steps.items():
            outcomes = [alone.of(qconfig) for qconfig in ladder]
            curves[part], measured[part] = curve(workspace, part, outcomes, alone.of(full))
        protocol = ready.protocol(args.seed_set, args.images)
        rows = [row(workspace, "", FULL, ready.measure([full], protocol).of(full))]
        for rival, theirs in rivals(steps, model.denoisers[0]).items():
            size = cost.size_bytes(graph, theirs, model.full_bits)
            ours = {f"by {SUMS[i]}": joint(curves, size, i, workspace.name) for i in (0, 1)}
            done = ready.measure(list(dict.fromkeys([theirs, *ours.values()])), protocol)
            rows.append(row(workspace, rival, RIVAL, done.of(theirs)))
            for who, one in ours.items():
                changes = {m: difference(done.of(one), done.of(theirs), m) for m in METRICS}
                minus = {m: [d.value, d.standard_error] for m, d in changes.items() if d}
                rows.append({**row(workspace, rival, who, done.of(one)), "minus rival": minus})
    drawn = {key: value for key, value in vars(args).items() if isinstance(value, int)}
    RESULTS.add(args.name, {**drawn, "curves": measured, "rows": rows})


def table() -> str:
    """Curves and choices as Markdown; a change has its standard error, a difference 95 %."""
    lines = [
        "| | part | bits | bytes | change of fd_lite0 ↓ | PSNR, dB ↑ |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in RESULTS.read().items():
        for part, rungs in result["curves"].items():
            for rung in rungs:
                value, error = rung["fd_lite0"]
                lines.append(
                    f"| `{name}` | `{part}` | {rung['bits']:.2f} | {rung['bytes']:,} "
                    f"| {value:+.1f} ± {error:.1f} | {rung['psnr']:.2f} |"
                )
    lines += [
        "",
        "| | within the bytes of | bytes | bits of the parts | fd_lite0 ↓ | PSNR, dB ↑ "
        "| joint minus rival: fd_lite0 | PSNR, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in RESULTS.read().items():
        for one in result["rows"]:
            who = one["who"]
            told = {FULL: FULL, RIVAL: f"`{one['rival']}` itself"}
            minus = one.get("minus rival", {})
            cells = [
                f"`{name}`",
                told.get(who, f"`{one['rival']}`, joint {who}"),
                f"{one['bytes']:,}",
                ", ".join(f"{part} {bits:.2f}" for part, bits in one["bits"].items()),
                f"{one['fd_lite0']:.1f}",
                "-" if who == FULL else f"{one['psnr']:.2f}",
                *(
                    f"{minus[m][0]:+.{digits}f} ± {Z95 * minus[m][1]:.{digits}f}" if minus else ""
                    for m, digits in zip(METRICS, (1, 2), strict=True)
                ),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        table,
        seed_set=5,
        images=256,
        curve_seed_set=1,
        curve_images=128,
        probe_images=8,
    )
