"""Speed of quantization at SDXL's size: layers of its shapes, sampled, and scaled to all of its weights.

    make bench        or        python experiments/bench/quant.py [--rows 256]

Of every shape at most ``--rows`` output channels of heavy-tailed fp16 values are quantized; CPU seconds are scaled to
the values that the denoiser has of that shape. K-Means-A, whose cost hardly depends on the size, sees them repeated to
the full shape. Ratios to a copy of the same values are taken within one run: absolute times vary with the machine.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels, packing
from qsdm.quant.methods import dequantize, fit
from qsdm.quant.rows import rel_error

METHODS = [QuantMethod(name, bits) for name in ("uaq", "kmeans_c", "kmeans_a") for bits in (3, 4)]
SIDES = [QuantMethod.parse(text) for text in ("uaq_refined-4", "uaq_asym-4", "uaq_g64-4", "nf4_g64-4", "fp8_e4m3-8")]


def shapes() -> Counter[tuple[int, int]]:
    """Output channels and values per channel of SDXL's Linear and Conv weights, with how many weights have them."""
    import diffusers
    import yaml

    config = yaml.safe_load((Path(__file__).parents[2] / "conf" / "model" / "sdxl.yaml").read_text())["config"]
    with torch.device("meta"):
        denoiser = diffusers.UNet2DConditionModel.from_config(config)
    layers = [m for m in denoiser.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    return Counter((layer.weight.shape[0], layer.weight[0].numel()) for layer in layers)


def heavy(rows: int, n: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy((0.02 * rng.standard_t(4, (rows, n))).astype(np.float16))


def cpu_seconds(function: Callable[[], object], repeat: int = 3) -> float:
    """The least of ``repeat`` CPU times of this process, all threads."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def fits(max_rows: int) -> None:
    rng = np.random.default_rng(0)
    seconds: Counter[QuantMethod] = Counter()
    errors: Counter[QuantMethod] = Counter()
    counts = shapes()
    total = sum(rows * n * count for (rows, n), count in counts.items())
    for method in METHODS + SIDES:  # compile
        fit(heavy(8, 300, rng), method)
    for (rows, n), count in counts.items():
        weight = heavy(min(rows, max_rows), n, rng)
        values = weight.float().numpy()
        whole = weight.repeat(-(-rows // weight.shape[0]), 1)[:rows]
        for method in METHODS + SIDES:
            timed = whole if method.name == "kmeans_a" else weight
            one = cpu_seconds(lambda m=method, w=timed: fit(w, m), 1)
            seconds[method] += one / timed.numel() * rows * n * count
            errors[method] += rel_error(values, dequantize(fit(weight, method)).numpy()) * rows * n * count / total
    print(f"all of SDXL: {sum(counts.values())} tensors, {len(counts)} shapes, {total} values; CPU seconds of one core")
    print(f"{'method':<16}{'CPU s':>9}{'ns/weight':>11}{'rel_error':>11}")
    for m in METHODS + SIDES:
        print(f"{m!s:<16}{seconds[m]:>9.1f}{1e9 * seconds[m] / total:>11.2f}{errors[m]:>11.5f}")
    print(f"{'3 methods, 3+4':<16}{sum(seconds[m] for m in METHODS):>9.1f}")


def dequantization() -> None:
    rng = np.random.default_rng(1)
    rows, n = 10240, 1280
    weight = heavy(rows, n, rng)
    full, out = weight.float(), torch.empty(rows, n)
    copy = cpu_seconds(lambda: out.copy_(full), 7)
    print(f"\n{f'{rows} x {n}':<34}{'CPU ms':>8}{'x copy':>8}")
    print(f"{'copy of float32':<34}{1e3 * copy:>8.1f}{1.0:>8.2f}")
    for text in ("kmeans_c-4", "kmeans_a-4", "kmeans_c-3", "uaq-4", "uaq-3", "uaq_g64-4", "nf4_g64-4", "fp8_e4m3-8"):
        quantized = fit(weight, QuantMethod.parse(text))
        seconds = cpu_seconds(lambda q=quantized: dequantize(q, out), 7)
        print(f"{'packed ' + text:<34}{1e3 * seconds:>8.1f}{seconds / copy:>8.2f}")
    tensors = fit(weight, QuantMethod("uaq", 4)).tensors
    scale, zero = (tensors[name].float()[:, None] for name in ("scale", "zero_point"))
    seconds = cpu_seconds(lambda: kernels.affine(full, scale, zero, 4, n))
    print(f"{'fake quantization, plain torch':<34}{1e3 * seconds:>8.1f}{seconds / copy:>8.2f}")
    zeros = zero[:, 0].int()
    seconds = cpu_seconds(lambda: torch.fake_quantize_per_channel_affine(full, scale[:, 0], zeros, 0, 0, 15))
    print(f"{'torch.fake_quantize_per_channel':<34}{1e3 * seconds:>8.1f}{seconds / copy:>8.2f}")
    codes = rng.integers(0, 16, rows * n).astype(np.uint8)
    seconds = cpu_seconds(lambda: packing.pack(codes, 4))
    print(f"{'packing 4 bits':<34}{1e3 * seconds:>8.1f}{seconds / copy:>8.2f}")


def activations() -> None:
    x, weight = torch.randn(4096, 1280), torch.randn(1280, 1280)
    product = cpu_seconds(lambda: x @ weight)
    print(f"\n{'4096 x 1280 tokens':<34}{'CPU ms':>8}{'x GEMM':>8}")
    print(f"{'matrix product 4096x1280x1280':<34}{1e3 * product:>8.1f}{1.0:>8.2f}")
    for bits in (8, 6):
        seconds = cpu_seconds(lambda b=bits: kernels.tokens(x, b, False))
        print(f"{f'tokens, {bits} bits, plain torch':<34}{1e3 * seconds:>8.1f}{seconds / product:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of quantization at SDXL's size.")
    parser.add_argument("--rows", type=int, default=256, help="output channels that are sampled of every shape")
    fits(parser.parse_args().rows)
    dequantization()
    activations()


if __name__ == "__main__":
    main()
