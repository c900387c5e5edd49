"""CPU seconds and memory of tracing, compared with torch.export on the same module and inputs.

    make bench
    python experiments/bench/trace.py [sdxl flux ...]

Each figure comes from a separate process on one thread. It covers everything from the published
config to the graph, including the inputs but not the imports of torch and diffusers. The peak is
that of the whole process; `imports` is its memory before tracing. `flux_40b` has the class and
depth of FLUX.1, and is wide enough for more than 40 billion parameters.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from stages import model_of

from qsdm.denoisers import Model, denoiser_class

MODELS = ("sdxl", "flux", "flux_40b")
WIDE = {"num_attention_heads": 45}  # of 128 channels each; FLUX.1 has 24


def widened(name: str) -> Model:
    model = model_of(name.removesuffix("_40b"))
    if name.endswith("_40b"):
        return dataclasses.replace(
            model, name=name, config={**model.config, **WIDE}, num_params=None
        )
    return model


def memory_mb(field: str) -> float:
    """VmHWM, the peak of this program, or VmRSS."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def measure(name: str, way: str) -> dict[str, float]:
    """In a process of its own: trace a denoiser in one of two ways."""
    import torch

    from qsdm import tracing
    from qsdm.trace import prepare

    model = widened(name)
    denoiser_class(model)  # its import is not counted
    imports = memory_mb("VmHWM")
    began = time.process_time()
    module, inputs, _ = prepare(model)
    if way == "qsdm":
        nodes = len(tracing.trace(module, inputs, name, model.exclude, model.tied).nodes)
    else:
        nodes = len(torch.export.export(module, (), inputs, strict=False).graph.nodes)
    seconds = time.process_time() - began
    parameters = sum(parameter.numel() for parameter in module.parameters()) / 1e9
    peak = memory_mb("VmHWM")
    return {
        "parameters": parameters,
        "nodes": nodes,
        "seconds": seconds,
        "imports_mb": imports,
        "peak_mb": peak,
    }


def main(names: list[str]) -> None:
    heads = ("10^9 parameters", "", "nodes", "CPU-s", "ratio", "imports, MB", "peak, MB")
    print(
        " " * 12
        + "".join(
            f"{head:>{width}}" for head, width in zip(heads, (16, 16, 8, 8, 7, 13, 10), strict=True)
        )
    )
    for name in names or MODELS:
        base = 0.0
        for way in ("qsdm", "torch.export"):
            command = [sys.executable, __file__, "--child", name, way]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            figures = json.loads(done.stdout)
            base = base or figures["seconds"]
            print(
                f"{name:<12}{figures['parameters']:>16.2f}{way:>16}{figures['nodes']:>8}{figures['seconds']:>8.2f}"
                f"{figures['seconds'] / base:>7.1f}{figures['imports_mb']:>13.0f}"
                f"{figures['peak_mb']:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(*sys.argv[2:4])))
    else:
        main(sys.argv[1:])
