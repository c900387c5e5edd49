"""Do figures that draw no picture say what `retention.py` measures in pictures?

    python experiments/lora_retention/computed.py --name emoji_unet

Of every configuration that ``results.json`` holds pictures of:

    output      retention in the denoiser's output on recorded inputs, as ``qsdm.probe`` measures it
    predicted   the same, predicted from probes of single weights under ``uaq-3``
    error       1 - the output's relative squared error, without any adapter
    fused       of the adapter D added to the weights before they are quantized: the coefficient of
                Q(W + D) - Q(W) on D, over all adapted weights
    share       |D|² over |D|² + |Q(W) - W|², over all adapted weights

Each is compared with the retention of pictures by Spearman's rank correlation and by its mean
distance. The calibration's store keeps the probes; a killed run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from retention import FULL, HERE, configurations
from safetensors.torch import load_file

from qsdm.denoisers import denoiser_tensors
from qsdm.engine.local import Local
from qsdm.measurement.forward import METRIC
from qsdm.measurement.retention import Adapter, Retaining
from qsdm.measurement.session import open_session
from qsdm.predictor.retention import read_retention
from qsdm.predictor.scores import srcc
from qsdm.probing.forwards import run_forwards
from qsdm.probing.lora import probe_lora
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.calibrated import PackedWeights
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.swap import sliced
from qsdm.store.files import read_json, write_json
from qsdm.text import ignore
from qsdm.workspace import Workspace, named

NUM_IMAGES, NUM_STEPS, SEED_SET = 8, 3, 0
COMPUTED = ("output", "predicted", "error", "fused", "share")


def in_outputs(
    workspace: Workspace, file: Path, configs: Mapping[str, QuantConfig]
) -> dict[str, dict[str, Any]]:
    """output, predicted and error of configurations."""
    with open_session(workspace, Local(num_workers=1)) as ready:
        drawings = ready.drawing(SEED_SET, NUM_IMAGES)
        retaining = Retaining(ready, Adapter(file), drawings, NUM_STEPS)
        probe_lora(retaining, [QuantMethod("uaq", 3)], False, print)
        measured = retaining.measure(list(configs.values()))
        plain = run_forwards(ready, list(configs.values()), drawings, NUM_STEPS, ignore)
    model, space = read_retention(workspace, file).model(workspace.table), workspace.space
    rows = {}
    for (name, qconfig), outcome in zip(configs.items(), plain, strict=True):
        output = measured[qconfig.digest]
        rows[name] = {
            "output": [round(output.value, 4), round(output.standard_error or 0, 4)],
            "predicted": round(float(model(space.encode(qconfig)[None])[0]), 4),
            "error": round(1 - (outcome.metrics[METRIC] or 0), 4),
        }
    return rows


def of_weights(
    workspace: Workspace, file: Path, configs: Mapping[str, QuantConfig]
) -> dict[str, dict[str, float]]:
    """fused and share of configurations."""
    tensors, component = load_file(file), workspace.model.component
    read, packed = denoiser_tensors(workspace.model), PackedWeights(workspace.packed)
    weights = {weight.name: weight for weight in workspace.space.graph.weights}
    known: dict[tuple[str, QuantMethod], np.ndarray] = {}

    def products(name: str, method: QuantMethod) -> np.ndarray:
        """|D|², <Q(W + D) - Q(W), D> and |Q(W) - W|²; zeros without an adapter."""
        weight = weights[name]
        path = f"{component}.{weight.parameter.removesuffix('.weight')}"
        if f"{path}.lora_A.weight" not in tensors:
            return np.zeros(3)
        down, up = (tensors[f"{path}.lora_{part}.weight"].float() for part in "AB")
        delta = sliced(up @ down, weight)
        plain = sliced(read(weight.parameter), weight).float()
        before = packed.dequantize(name, method).reshape(plain.shape)
        after = dequantize(fit(plain + delta, method)).reshape(plain.shape)
        values = (delta**2, (after - before) * delta, (before - plain) ** 2)
        return np.array([float(value.sum()) for value in values])

    rows = {}
    for name, qconfig in configs.items():
        for key in qconfig.methods.items():
            if key not in known:
                known[key] = products(*key)
        own, fused, error = np.sum([known[key] for key in qconfig.methods.items()], axis=0)
        rows[name] = {
            "fused": round(float(fused / own), 4),
            "share": round(float(own / (own + error)), 4),
        }
        print(name, rows[name], flush=True)
    return rows


def compared(
    rows: Mapping[str, Mapping[str, Any]], computed: Mapping[str, Mapping[str, Any]]
) -> str:
    """Rank correlation with pictures, and mean distance to them, of each figure; in Markdown."""
    lines = [
        "| | rank correlation: picture | style | mean distance to picture |",
        "|---|---|---|---|",
    ]
    measured = {
        kind: np.array([rows[name]["retention"][kind][0] for name in computed])
        for kind in ("picture", "style")
    }
    for figure in COMPUTED:
        values = np.array([np.atleast_1d(row[figure])[0] for row in computed.values()])
        ranks = [f"{srcc(values, of):+.2f}" for of in measured.values()]
        distance = 100 * np.abs(values - measured["picture"]).mean()
        lines.append(f"| {figure} | {' | '.join(ranks)} | {distance:.1f} points |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=("emoji_unet", "emoji_mmdit"), default="emoji_unet")
    parser.add_argument("--store", default="store", help="with the calibration of space=wide")
    parser.add_argument("--adapters", type=Path, default=HERE / "adapters")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    workspace = named(args.name, "wide", args.store)
    file = args.adapters / f"{args.name}.safetensors"
    configs = {name: q for name, q in configurations(workspace) if name != FULL}
    outputs = in_outputs(workspace, file, configs)
    weights = of_weights(workspace, file, configs)
    results = read_json(args.results)
    computed = {name: {**outputs[name], **weights[name]} for name in configs}
    results[args.name]["computed"] = computed
    write_json(args.results, results)
    print(compared(results[args.name]["rows"], computed))


if __name__ == "__main__":
    main()
