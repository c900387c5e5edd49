"""Is one budget over the parts of a pipeline worth more than one for each?

    python experiments/components/joint.py --name emoji_unet --store store

All parts are traced and calibrated as one (``model.component=[unet,text_encoder,vae]``). What
`study.py` has measured of each part at 4 bits says what its bytes are worth; within a part, each
weight has a share of that in proportion to the error of the part's own output when it alone is
quantized, on recorded inputs. The sum predicts, and its knapsack chooses, within the total bytes of
three rivals:

- ``denoiser``: the denoiser at 3.5 bits, text encoder and VAE in 16, as tools leave them
- ``rule``: the denoiser at 3.5 bits, text encoder and VAE at 8 bits
- ``apart``: each part at 3.5 bits by its own knapsack

Each rival and the joint choice of its bytes is measured on noise that no probe has seen. Adds the
rows of the pipeline to joint.json as they come, and prints the tables of all pipelines in it; what
the store holds is not measured again. Differences are paired: the same captions and noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import qsdm
from qsdm.calibrate import calibrate
from qsdm.denoisers import parts_in, pipeline_index, prompts_of
from qsdm.engine.serial import Serial
from qsdm.graph import subgraph
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.forward import Call, output_of, squares_of
from qsdm.measurement.paired import difference
from qsdm.measurement.protocol import seed_of
from qsdm.measurement.session import open_session
from qsdm.outcome import Outcome
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec, cost
from qsdm.quant.calibrated import PackedWeights
from qsdm.store.files import write_json
from qsdm.strategies import Problem
from qsdm.strategies.greedy import filled, path
from qsdm.trace import trace
from qsdm.workspace import Workspace

RESULTS = Path(__file__).with_name("joint.json")
STUDY = Path(__file__).with_name("results.json")
METRICS = ("fd_lite0", "psnr")
SPACE = SpaceSpec("joint", ["kmeans_a-3", "kmeans_a-4", "uaq-6", "uaq-8"], splits=".*")
PROBED = "kmeans_a-4"
NUM_CALLS = 2
"""Of a part, spread over the calls that draw a picture."""
BITS = 3.5
Z95 = 1.96


def opened(name: str, store: str) -> Workspace:
    """All parts of a pipeline as one, traced and calibrated."""
    index = pipeline_index(qsdm.open(name, store=store).model)
    whole = qsdm.open(name, store=store, component=list(parts_in(index)))
    chosen = {metric: whole.model.metrics[metric] for metric in METRICS}
    model = dataclasses.replace(whole.model, metrics=chosen)
    workspace = dataclasses.replace(whole, model=model, spec=SPACE)
    if not workspace.path("graph.json").exists():
        trace(workspace, page=False)
    if not workspace.path(f"calibration/{SPACE.name}/table.safetensors").exists():
        calibrate(workspace)
    return workspace


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


def harm_of(workspace: Workspace, name: str, num_images: int) -> np.ndarray:
    """Predicted change of fd_lite0 by each option of each weight, float64 [W, O]."""
    rows = json.loads(STUDY.read_text(encoding="utf-8"))[name]["rows"]
    worth = {one["part"]: one["change"][0] for one in rows if one["method"] == PROBED}
    errors = output_errors(workspace, num_images)
    problem, space = Problem.of(workspace.space, workspace.table), workspace.space
    method = QuantMethod.parse(PROBED)
    probed = [o.index(method) if method in o else 0 for o in space.options]
    totals = dict.fromkeys(workspace.model.components, 0.0)
    for weight, error in errors.items():
        totals[weight.partition(".")[0]] += error
    harm = np.zeros_like(problem.error)
    for w, weight in enumerate(space.graph.weights):
        part = weight.name.partition(".")[0]
        share = worth[part] * errors[weight.name] / totals[part]
        num = problem.num_options[w]
        harm[w, :num] = share * problem.error[w, :num] / max(problem.error[w, probed[w]], 1e-12)
    return harm


class Chooser:
    """Chooses by the sum of harms, along the lower convex hull.

    Args:
        workspace: of all parts.
        harm: float64 [W, O], of each option.
    """

    def __init__(self, workspace: Workspace, harm: np.ndarray) -> None:
        self.space, self.harm = workspace.space, harm
        self.problem = Problem.of(self.space, workspace.table)

    def joint(self, max_bytes: float) -> QuantConfig:
        """The best of all parts together."""
        path_of_all = path(self.problem, self.harm)
        fitting = path_of_all[self.problem.size_of(path_of_all) <= max_bytes]
        return self.space.decode(filled(self.problem, self.harm, fitting[0], max_bytes))

    def within(self, part: str, bits: float) -> dict[str, Any]:
        """Methods of one part at so many bits on average, chosen by its own knapsack."""
        names = [weight.name for weight in self.space.graph.weights]
        own = np.array([name.startswith(f"{part}.") for name in names])
        weights = [w for w, is_own in zip(self.space.graph.weights, own, strict=True) if is_own]
        budget = bits * sum(weight.numel for weight in weights) / 8
        rows, harm = np.arange(len(names)), np.where(own[:, None], self.harm, 0)
        for genes in path(self.problem, harm):
            sizes = self.problem.size_bytes[rows, genes]
            if sizes[own].sum() <= budget:
                genes = filled(self.problem, harm, genes, budget + sizes[~own].sum())
                chosen = self.space.decode(genes).methods
                return {name: chosen[name] for name in chosen if name.startswith(f"{part}.")}
        raise ValueError(f"{part} has no configuration of {bits} bits")


def rivals(chooser: Chooser, parts: Sequence[str], denoiser: str) -> dict[str, QuantConfig]:
    """The rules whose bytes the joint choice gets."""
    name = chooser.space.graph.denoiser
    own = chooser.within(denoiser, BITS)
    eight = chooser.space.uniform("uaq-8").methods
    others = {w: m for w, m in eight.items() if not w.startswith(f"{denoiser}.")}
    apart = {w: m for part in parts for w, m in chooser.within(part, BITS).items()}
    return {
        "denoiser": QuantConfig(name, own),
        "rule": QuantConfig(name, {**own, **others}),
        "apart": QuantConfig(name, apart),
    }


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


def measured(workspace: Workspace, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the rivals and the joint choices, and their paired differences."""
    model = workspace.model
    chooser = Chooser(workspace, harm_of(workspace, args.name, args.probe_images))
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    result = {"seed_set": args.seed_set, "num_images": args.images, "probed": args.probe_images}
    with open_session(workspace, Serial(), 64) as ready:
        protocol = ready.protocol(args.seed_set, args.images)
        full = QuantConfig(workspace.name, {})
        rows.append(row(workspace, "", "full", ready.measure([full], protocol).of(full)))
        for rival, theirs in rivals(chooser, model.components, model.denoisers[0]).items():
            size = cost.size_bytes(chooser.space.graph, theirs, chooser.space.full_bits)
            ours = chooser.joint(size)
            done = ready.measure([theirs, ours], protocol)
            rows += [
                row(workspace, rival, who, done.of(one))
                for who, one in (("rival", theirs), ("joint", ours))
            ]
            for metric in METRICS:
                change = difference(done.of(ours), done.of(theirs), metric)
                assert change is not None
                pairs.append(
                    {
                        "rival": rival,
                        "metric": metric,
                        "joint minus rival": [change.value, change.standard_error],
                    }
                )
            write_json(RESULTS, stored() | {args.name: {**result, "rows": rows, "pairs": pairs}})
    return result


def stored() -> dict[str, Any]:
    """All results so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All rows as Markdown; the last column is joint minus rival with its 95 % interval."""
    lines = [
        "| | within the bytes of | bytes | bits: text encoder, denoiser, VAE | fd_lite0 ↓ | "
        "PSNR, dB ↑ | joint minus rival, fd_lite0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        changes = {
            one["rival"]: one["joint minus rival"]
            for one in result["pairs"]
            if one["metric"] == "fd_lite0"
        }
        for one in result["rows"]:
            value, error = changes.get(one["rival"], (0.0, 0.0))
            told = f"{value:+.1f} ± {Z95 * error:.1f}" if one["who"] == "joint" else ""
            who = {"full": "full precision", "rival": f"`{one['rival']}` itself"}
            cells = [
                f"`{name}`",
                who.get(one["who"], f"the joint choice in the bytes of `{one['rival']}`"),
                f"{one['bytes']:,}",
                ", ".join(f"{bits:.2f}" for bits in one["bits"].values()),
                f"{one['fd_lite0']:.1f}",
                "-" if one["who"] == "full" else f"{one['psnr']:.2f}",
                told,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name")
    parser.add_argument("--store", default="store")
    parser.add_argument("--seed-set", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--probe-images", type=int, default=8)
    args = parser.parse_args()
    if args.name:
        measured(opened(args.name, args.store), args)
    print(table(stored()))


if __name__ == "__main__":
    main()
