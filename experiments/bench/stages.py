"""How fast the stages' inner loops are on this machine, on one thread: make bench.

quantize and dequantize     ns per weight of a 1280 x 1280 layer with heavy tails, by method
draw                        pictures per second of the shipped pipeline at full precision
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import yaml


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of several runs, after one that warms up."""
    function()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found)


def quantizers() -> None:
    from qsdm.qconfig import QuantMethod
    from qsdm.quant.fitting import dequantize, fit

    generator = torch.Generator().manual_seed(0)
    weight = (
        torch.randn(1280, 1280, generator=generator)
        * torch.randn(1280, 1280, generator=generator).exp()
    )
    out = torch.empty_like(weight)
    print(f"{'method':<12}{'fit ns':>10}{'dequantize ns':>16}")
    for text in (
        "uaq-3",
        "uaq-4",
        "kmeans_c-3",
        "kmeans_c-4",
        "kmeans_a-3",
        "kmeans_a-4",
        "uaq_g64-4",
        "nf4_g64-4",
    ):
        method = QuantMethod.parse(text)
        packed = fit(weight, method)
        times = [
            seconds(lambda m=method: fit(weight, m)),
            seconds(lambda p=packed: dequantize(p, out)),
        ]
        print(
            f"{text:<12}"
            + f"{times[0] / weight.numel() * 1e9:>10.1f}{times[1] / weight.numel() * 1e9:>16.2f}"
        )


def model_of(name: str) -> Any:
    from qsdm.denoisers import Model
    from qsdm.run.conf import CONF

    entry = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Model(
        **{
            key: value
            for key, value in entry.items()
            if key not in ("_target_", "defaults", "metrics")
        }
    )


def drawing(num_images: int = 64) -> None:
    from qsdm.denoisers import prompts_of
    from qsdm.graph import Graph
    from qsdm.measurement.drawer import Drawer
    from qsdm.measurement.evaluator import Evaluator
    from qsdm.measurement.protocol import protocol_of
    from qsdm.qconfig import QuantConfig

    model = model_of("emoji_unet")
    prompts = prompts_of(model)
    drawer = Drawer(model, Graph(model.name, (), ()), None)
    evaluator = Evaluator(drawer, {}, protocol_of(model, prompts, 0, num_images), prompts)
    duration = seconds(lambda: evaluator.pictures(QuantConfig(model.name, {})), repeats=1)
    print(f"draw        {num_images / duration:.1f} pictures a second")


if __name__ == "__main__":
    torch.set_num_threads(1)
    quantizers()
    drawing()
