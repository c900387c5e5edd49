"""Write checkpoints of SDNQ and torchao that are no smaller than ours, as near to it as they come.

    python experiments/compare_engines/make.py --name emoji_unet --store store --out engines

Run it where SDNQ and torchao are installed (`make bench` sets up .venv-peers). What is there
already is kept.

sdnq            dynamic quantization, which gives each layer the first dtype whose error is below
                a threshold; the threshold is bisected for the file's size. All weights take part:
                with its usual exceptions (convolutions, small layers, projections), no file of
                SDNQ is as small as ours. A scale for every row, as those of groups cost bytes.
torchao-int4    int4 weights of Linear layers, a scale for every row. On a CPU, torchao keeps a byte
                for each of them, so the file is as large as that of int8; `packed_bytes` is what
                two in a byte would take. diffusers leaves convolutions to 16 bits.
torchao-int8    int8 weights of Linear layers, a scale for every row.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qsdm.denoisers import Model, denoiser_class
from qsdm.run.conf import load

NUM_BISECTIONS = 9
THRESHOLDS = (1e-4, 1.0)  # relative squared error: about 8 bits and below 2


def denoiser_of(model: Model, **options: Any) -> torch.nn.Module:
    """The denoiser of a shipped pipeline, quantized while diffusers loads it."""
    folder = model.directory / model.component
    return denoiser_class(model).from_pretrained(folder, dtype=torch.bfloat16, **options)


def size_of(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write(folder: Path, denoiser: torch.nn.Module) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    denoiser.save_pretrained(folder)
    return size_of(folder)


def sdnq(model: Model, least: int, folder: Path) -> dict[str, Any]:
    """The smallest file of at least ``least`` bytes among those of the thresholds tried."""
    from sdnq import SDNQConfig

    scratch, low, high = folder.with_name("sdnq-scratch"), *THRESHOLDS
    smallest: dict[str, Any] = {}
    for _ in range(NUM_BISECTIONS):
        threshold = (low * high) ** 0.5
        config = SDNQConfig(
            weights_dtype="uint2",
            group_size=-1,
            quant_conv=True,
            add_skip_keys=False,
            minimum_allowed_numel=0,
            minimum_allowed_channel_size=0,
            use_dynamic_quantization=True,
            dynamic_loss_threshold=threshold,
        )
        size = write(scratch, denoiser_of(model, quantization_config=config))
        print(f"    SDNQ, threshold {threshold:.5f}: {size:,} bytes", flush=True)
        if size < least:
            high = threshold
            continue
        low = threshold
        if size < smallest.get("size_bytes", size + 1):
            smallest = {"size_bytes": size, "threshold": threshold}
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(scratch, folder)
    shutil.rmtree(scratch)
    return smallest


def torchao(bits: int) -> Callable[[Model, int, Path], dict[str, Any]]:
    def make(model: Model, _least: int, folder: Path) -> dict[str, Any]:
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

        kind = Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(torch.int4)
        denoiser = denoiser_of(model, quantization_config=TorchAoConfig(kind))
        about = {"size_bytes": write(folder, denoiser)}
        if bits == 4:
            quantized = [
                parameter
                for parameter in denoiser.parameters()
                if type(parameter.data) is not torch.Tensor and hasattr(parameter, "qdata")
            ]
            if not quantized:
                raise SystemExit("torchao has quantized nothing")
            about["packed_bytes"] = about["size_bytes"] - sum(p.numel() for p in quantized) // 2
        return about

    return make


ENGINES = {"sdnq": sdnq, "torchao-int4": torchao(4), "torchao-int8": torchao(8)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of conf/model")
    parser.add_argument("--store", type=Path, default=Path("store"), help="with our checkpoint")
    parser.add_argument("--out", type=Path, default=Path("engines"), help="where they are written")
    args = parser.parse_args()
    model = load("model", args.name)
    ours = size_of(args.store / args.name / "checkpoint" / model.component)
    print(f"{args.name}: ours has {ours:,} bytes", flush=True)
    for engine, make in ENGINES.items():
        folder = args.out / args.name / engine
        about = folder.with_suffix(".json")
        if not about.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            about.write_text(json.dumps(make(model, ours, folder)))
        print(f"  {engine}: {about.read_text()}", flush=True)


if __name__ == "__main__":
    main()
