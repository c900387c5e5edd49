"""How much of a LoRA's effect survives a configuration of the weights below it?

    python -m qsdm.trace +model=emoji_unet
    python -m qsdm.calibrate +model=emoji_unet space=wide
    python experiments/lora_retention/retention.py --name emoji_unet

The effect on a picture is the picture with the adapter minus the one without it, of the same
caption and starting noise. Retention is the part of full precision's effect that a quantized
denoiser under the same 16-bit adapter still has: the projection of its effect on that one.

    style     of the mean effect in features (lite0): what the adapter does to pictures on the whole
    picture   picture by picture, in pixels: does each one change as it would have?
    color     of the color (mean chroma) that the adapter takes away

Intervals are of 95 %, over pictures (jackknife, all drawings of a picture together). Pictures are
kept in ``--out``; a killed run goes on. ``results.json`` gets the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.denoisers import prompts_of
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.paired import Difference
from qsdm.measurement.protocol import of_pictures, seed_of
from qsdm.measurement.retention import Adapter
from qsdm.metrics import networks
from qsdm.outcome import SIGNIFICANT_Z
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.qconfig.cost import avg_bits
from qsdm.quant.calibrated import PackedWeights
from qsdm.shelf import SHELF, recipes
from qsdm.store.files import read_json, write_json
from qsdm.store.tensors import load_tensors, write_tensors
from qsdm.workspace import Workspace, named

HERE = Path(__file__).parent
BUDGETS = (3.25, 3.5, 4.0)
UNIFORM = ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4")
FULL = "full precision"
AT_ONCE = 32  # pictures of each configuration before the next
SEED_SET = 3  # noise that neither labels nor the shelf's tables have seen


def configurations(workspace: Workspace) -> Iterator[tuple[str, QuantConfig]]:
    """Full precision, uniform configurations, the measured recipes of the shelf."""
    yield FULL, QuantConfig(workspace.name, {})
    for method in UNIFORM:
        yield method, workspace.space.uniform(QuantMethod.parse(method))
    for name, entry in recipes().items():
        if entry["denoiser"] == workspace.name and entry["budget_bits"] in BUDGETS:
            yield name, QuantConfig.from_json(read_json(SHELF / entry["files"]["qsdm"]))


def draw(
    workspace: Workspace, adapter: Path, num_images: int, out: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pictures uint8 [N, H, W, 3] without and with the adapter, by configuration."""
    model, graph = workspace.model, workspace.space.graph
    prompts = of_pictures(prompts_of(model), num_images)
    drawings = [Drawing(i, p, seed_of(SEED_SET, i)) for i, p in enumerate(prompts)]
    configs, digest = dict(configurations(workspace)), Adapter(adapter).digest
    files: dict[str, list[Path]] = {name: [] for name in configs}
    drawer: Drawer | None = None
    for start in range(0, num_images, AT_ONCE):
        part = drawings[start : start + AT_ONCE]
        for name, qconfig in configs.items():
            stem = f"{qconfig.digest[:16]}-{digest}-{start}-{start + len(part)}"
            file = out / f"{stem}.safetensors"
            files[name].append(file)
            if file.exists():
                continue
            if drawer is None:
                drawer = Drawer(model, graph, PackedWeights(workspace.packed))
                drawer.pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
            drawer.pipeline.enable_lora()
            adapted = drawer.draw(qconfig, part)
            drawer.pipeline.disable_lora()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file, {"without": drawer.draw(qconfig, part), "with": adapted}, {})
            print(f"{name}: {start + len(part)} pictures", flush=True)
    parts = {name: [load_tensors(file) for file in files[name]] for name in configs}
    return {
        name: (
            np.concatenate([tensors["without"] for tensors in parts[name]]),
            np.concatenate([tensors["with"] for tensors in parts[name]]),
        )
        for name in configs
    }


def chroma(images: np.ndarray) -> np.ndarray:
    """Largest minus smallest channel, mean over pixels: float64 [N]."""
    return (images.max(-1).astype(float) - images.min(-1)).mean((1, 2))


class Effect:
    """What the adapter does to N pictures under one configuration, in three measures.

    Args:
        without: uint8 [N, H, W, 3], drawn without the adapter.
        adapted: the same pictures with it.
    """

    def __init__(self, without: np.ndarray, adapted: np.ndarray) -> None:
        change = adapted.astype(np.float64) - without
        self.pixels = change.reshape(len(change), -1)
        self.style = networks.lite0(adapted).astype(np.float64) - networks.lite0(without)
        self.color_without, self.color_with = chroma(without), chroma(adapted)


def shares(effect: Effect, full: Effect, chosen: np.ndarray) -> dict[str, float]:
    """The shares of full precision's effect that are left, over the chosen pictures (indices)."""

    def products(a: np.ndarray, b: np.ndarray) -> float:
        """Mean product of two different pictures' effects: the noise of one picture drops out."""
        a, b = a[chosen], b[chosen]
        return float(a.sum(0) @ b.sum(0) - (a * b).sum())

    pixels, full_pixels = effect.pixels[chosen], full.pixels[chosen]
    taken = (effect.color_without - effect.color_with)[chosen].sum()
    return {
        "style": products(effect.style, full.style) / products(full.style, full.style),
        "picture": float((pixels * full_pixels).sum() / (full_pixels**2).sum()),
        "color": float(taken / (full.color_without - full.color_with)[chosen].sum()),
    }


def with_errors(effect: Effect, full: Effect) -> dict[str, Difference]:
    """Each retention with its standard error: of leaving out one picture after the other."""
    everything = np.arange(len(full.pixels))
    values = shares(effect, full, everything)
    left_out = [shares(effect, full, np.delete(everything, i)) for i in everything]
    scale = len(everything) - 1
    return {
        measure: Difference(value, float(np.sqrt(scale * np.var([s[measure] for s in left_out]))))
        for measure, value in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=("emoji_unet", "emoji_mmdit"), default="emoji_unet")
    parser.add_argument("--store", default="store", help="with the calibration of space=wide")
    parser.add_argument("--adapters", type=Path, default=HERE / "adapters")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("outputs/lora_retention"))
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    workspace = named(args.name, "wide", args.store)
    adapter = args.adapters / f"{args.name}.safetensors"
    pictures = draw(workspace, adapter, args.images, args.out / args.name)
    effects = {name: Effect(*pair) for name, pair in pictures.items()}
    rows = {}
    for name, qconfig in configurations(workspace):
        effect = effects[name]
        rows[name] = {
            "digest": qconfig.digest,
            "avg_bits": avg_bits(workspace.space.graph, qconfig, workspace.model.full_bits),
            "color": [round(float(c.mean()), 3) for c in (effect.color_without, effect.color_with)],
            "retention": {
                measure: [round(left.value, 4), round(left.standard_error or 0, 4)]
                for measure, left in with_errors(effect, effects[FULL]).items()
            },
        }
    results = read_json(args.results) if args.results.exists() else {}
    measured = {"pictures": args.images, "seed_set": SEED_SET, "rows": rows}
    results[args.name] = {**results.get(args.name, {}), **measured}
    write_json(args.results, results)
    print(table(rows))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows in Markdown: retention in percent with its 95 % interval."""
    lines = ["| | bits | style | picture | color |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        cells = [
            f"{100 * value:.1f} ± {100 * SIGNIFICANT_Z * error:.1f}"
            for value, error in row["retention"].values()
        ]
        lines.append(f"| {name} | {row['avg_bits']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
