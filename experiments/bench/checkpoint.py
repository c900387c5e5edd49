"""SDXL's U-Net at full size, with random 16-bit weights: pack, switch, write, load and run it.

    make bench-sdxl
    python experiments/bench/checkpoint.py [--folder DIR] [--model sdxl]

1. Every weight is packed with the methods of a small space, as `qsdm.calibrate` does.
2. A configuration of 3.7 bits is written as a checkpoint, whose size is compared with the cost
   model (target: within 0.5 %).
3. In a fresh process, a bfloat16 module is switched between two random configurations, touching
   only the weights that change (target: 20 s), with at most 1.25 times the originals' bytes and
   1 GiB in memory beside mapped files.
4. The checkpoint is loaded in a fresh process, and the denoiser runs forward in bfloat16.

It needs 13 GB of disk under --folder and 13 GB of memory, 2 of them mapped from disk. The result of
step 1 is kept there and used again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

METHODS = ["uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"]
AVG_BITS = 3.7


def timed(what: str, function: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = (
        int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    )  # KiB
    print(f"{what:<58}{cpu:>9.1f} CPU-s{wall:>9.1f} s{peak:>8.2f} GiB peak", flush=True)
    return result


def random_denoiser(name: str) -> tuple[torch.nn.Module, Any]:
    """A denoiser with normal 16-bit values of deviation fan_in^-1/2, and its `Model`."""
    from random_values import fill
    from stages import model_of

    from qsdm.denoisers import denoiser_class

    model = model_of(name)
    with torch.device("meta"):
        denoiser = denoiser_class(model).from_config(dict(model.config))
    return fill(denoiser, torch.float16, np.random.default_rng(0)), model


def config_of(space: Any, avg_bits: float) -> Any:
    """A random configuration of about ``avg_bits``."""
    from qsdm.qconfig import cost
    from qsdm.strategies.random import near

    size = int(avg_bits * sum(weight.numel for weight in space.graph.weights) / 8)
    qconfig = near(space, size, 0.001, np.random.default_rng(0))
    print(f"    configuration of {cost.avg_bits(space.graph, qconfig, space.full_bits):.4f} bits")
    return qconfig


def forward(path: Path) -> None:
    """Load and run once at 64x64 latents, in a separate process."""
    from qsdm.checkpoint import load_quantized

    denoiser = timed("load the checkpoint", lambda: load_quantized(path, torch.bfloat16))
    half = {"dtype": torch.bfloat16}
    inputs = {
        "encoder_hidden_states": torch.zeros(1, 77, 2048, **half),
        "added_cond_kwargs": {
            "text_embeds": torch.zeros(1, 1280, **half),
            "time_ids": torch.zeros(1, 6, **half),
        },
    }
    with torch.inference_mode():
        noise = torch.randn(1, 4, 64, 64).to(torch.bfloat16)
        out = timed(
            "forward, 64x64 latents, bfloat16", lambda: denoiser(noise, 500, **inputs).sample
        )
    print(
        f"    output {tuple(out.shape)}, deviation {out.float().std():.3f}, "
        f"finite: {bool(out.isfinite().all())}"
    )


def written(name: str, folder: Path) -> Path:
    """Measure everything up to loading, and return the path of the checkpoint."""
    from qsdm import tracing
    from qsdm.checkpoint import save_denoiser
    from qsdm.qconfig import SpaceSpec, cost
    from qsdm.quant.calibrated import PackedWeights
    from qsdm.quant.calibration import calibrate
    from qsdm.trace import prepare

    denoiser, model = timed("random weights", lambda: random_denoiser(name))
    module, inputs, _ = prepare(model)
    space = SpaceSpec("bench", METHODS).of(
        tracing.trace(module, inputs, model.name), model.full_bits
    )
    store = folder / name
    if not (store / "weights.safetensors").exists():
        state = denoiser.state_dict()
        timed(f"pack {', '.join(METHODS)}", lambda: calibrate(state.__getitem__, space, store))
    packed = PackedWeights(store)

    mixed, target = config_of(space, AVG_BITS), folder / f"{name}-checkpoint"
    contents = timed(
        "write the checkpoint",
        lambda: save_denoiser(denoiser, space.graph, mixed, target, packed.quantized),
    )
    expected_bytes = cost.size_bytes(space.graph, mixed, space.full_bits) + sum(
        contents.plain.values()
    )
    print(f"    {contents}")
    print(
        f"    {100 * (contents.total_bytes / expected_bytes - 1):.3f} % more than the cost model "
        "and what is not quantized"
    )

    plain = folder / f"{name}-16bit"
    if not plain.exists():
        timed("write the originals", lambda: denoiser.save_pretrained(plain))
    return target


def switched(name: str, folder: Path) -> None:
    """Switch between random configurations, in a separate process as a worker does."""
    from safetensors import safe_open
    from stages import model_of

    from qsdm import tracing
    from qsdm.denoisers import denoiser_class
    from qsdm.qconfig import SpaceSpec
    from qsdm.quant.calibrated import PackedWeights
    from qsdm.quant.swap import Switch
    from qsdm.trace import prepare

    model = model_of(name)
    module, inputs, _ = prepare(model)
    graph = tracing.trace(module, inputs, name)
    space = SpaceSpec("bench", METHODS).of(graph, model.full_bits)
    plain = folder / f"{name}-16bit"
    size = sum(file.stat().st_size for file in plain.glob("*.safetensors"))
    most = [0.0]

    def watch() -> None:  # pages of files can be given back at any time: only others count
        while most:
            status = Path("/proc/self/status").read_text()
            most[0] = max(most[0], int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 2**20)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    denoiser = timed(
        "load in bfloat16",
        lambda: denoiser_class(model).from_pretrained(plain, dtype=torch.bfloat16),
    )
    (file,) = plain.glob("*.safetensors")
    packed, stored = PackedWeights(folder / name), safe_open(file, "pt")
    switch = timed(
        "compare with the originals",
        lambda: Switch(denoiser, space.graph, packed.dequantize, stored.get_tensor),
    )
    rng = np.random.default_rng(1)
    timed("switch from full precision", lambda: switch.to(space.sample(rng)))
    touched = timed(
        "switch between two random configurations", lambda: switch.to(space.sample(rng))
    )
    timed("restore full precision", switch.restore)
    print(f"    {touched} of {len(space.graph.weights)} weights touched")
    limit = 1.25 * size / 2**30 + 1
    print(
        f"    {size / 2**30:.2f} GiB of originals; at most {most[0]:.2f} GiB beside mapped files "
        f"(target: {limit:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sdxl")
    parser.add_argument(
        "--folder", type=Path, default=Path("store/bench"), help="where the files go"
    )
    parser.add_argument("--forward", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--switch", action="store_true", help="only step 3, of what is there")
    args = parser.parse_args()
    if args.forward:
        forward(args.forward)
    elif args.switch:
        switched(args.model, args.folder)
    else:
        target = written(args.model, args.folder)
        again = [sys.executable, __file__, "--model", args.model, "--folder", str(args.folder)]
        subprocess.run([*again, "--switch"], check=True)
        subprocess.run([sys.executable, __file__, "--forward", str(target)], check=True)


if __name__ == "__main__":
    main()
