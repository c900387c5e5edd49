"""Other quantizers on the same 1280 x 1280 layer: relative error, bits per value, CPU milliseconds.

    make peers-table
    python experiments/bench/peers.py [--write docs/quantizers.md]

Missing libraries are named and left out; ``make bench`` installs them into an environment of their
own. Each runs with its defaults, apart from bits and group size, and returns its values. Errors are
||W - W^||^2 / ||W||^2 of heavy-tailed values (Student's t with four degrees of freedom) and of
normal ones. Bits include codes, scales and zero points; 32-bit scales and zero points count as 16.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.text import table

ROWS = N = 1280
REPEATS = 3
START, END = "<!-- table -->", "<!-- /table -->"
OURS = (
    "uaq-4",
    "uaq_refined-4",
    "uaq_asym-4",
    "kmeans_c-4",
    "kmeans_a-4",
    "uaq_g64-4",
    "uaq_g128-4",
    "nf4_g64-4",
)
Way = tuple[
    Callable[[torch.Tensor], torch.Tensor], float
]  # weight => its values when quantized; bits per weight


def torch_channel() -> dict[str, Way]:
    def quantize(w: torch.Tensor) -> torch.Tensor:
        low, high = w.amin(1), w.amax(1)
        scale = (high - low) / 15
        return torch.fake_quantize_per_channel_affine(
            w, scale, torch.round(-low / scale).int(), 0, 0, 15
        )

    return {"torch.fake_quantize_per_channel_affine": (quantize, 4 + 32 / N)}


def torchao() -> dict[str, Way]:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    def quantize(w: torch.Tensor, granularity: PerAxis | PerGroup) -> torch.Tensor:
        layer = linear(w)
        quantize_(layer, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity))
        return layer.weight.dequantize()

    return {
        "torchao int4 per channel": (lambda w: quantize(w, PerAxis(0)), 4 + 16 / N),
        "torchao int4, groups of 64": (lambda w: quantize(w, PerGroup(64)), 4 + 16 / 64),
    }


def quanto() -> dict[str, Way]:
    from optimum.quanto import MaxOptimizer, qint4, quantize_weight

    def quantize(w: torch.Tensor) -> torch.Tensor:
        scale, shift = MaxOptimizer()(w, qint4, axis=0, group_size=128, zeropoint=False)
        return quantize_weight(
            w, qint4, axis=0, scale=scale, shift=shift, group_size=128
        ).dequantize()

    return {"quanto qint4, groups of 128": (quantize, 4 + 32 / 128)}


def hqq() -> dict[str, Way]:
    from hqq.core.quantize import Quantizer

    def quantize(w: torch.Tensor) -> torch.Tensor:
        codes, about = Quantizer.quantize(
            w, nbits=4, group_size=64, axis=1, device="cpu", compute_dtype=torch.float32
        )
        return Quantizer.dequantize(codes, about)

    return {"HQQ 4 bits, groups of 64": (quantize, 4 + 32 / 64)}


def bitsandbytes() -> dict[str, Way]:
    from bitsandbytes import functional

    def quantize(w: torch.Tensor, nested: bool) -> torch.Tensor:
        codes, state = functional.quantize_4bit(
            w, blocksize=64, quant_type="nf4", compress_statistics=nested
        )
        return functional.dequantize_4bit(codes, state)

    return {
        "bitsandbytes NF4": (lambda w: quantize(w, False), 4 + 32 / 64),
        "bitsandbytes NF4, double-quantized": (
            lambda w: quantize(w, True),
            4 + 8 / 64 + 32 / 64 / 256,
        ),
    }


def sdnq() -> dict[str, Way]:
    from sdnq import SDNQConfig, sdnq_quantize_layer

    def quantize(w: torch.Tensor, group_size: int) -> torch.Tensor:
        layer, _ = sdnq_quantize_layer(
            linear(w), SDNQConfig(weights_dtype="uint4", group_size=group_size)
        )
        return layer.sdnq_dequantizer(
            layer.weight, layer.scale, zero_point=layer.zero_point, skip_compile=True
        )

    return {
        "sdnq uint4 per channel": (lambda w: quantize(w, -1), 4 + 32 / N),
        "sdnq uint4, groups of 64": (lambda w: quantize(w, 64), 4 + 32 / 64),
    }


def ours() -> dict[str, Way]:
    ways: dict[str, Way] = {}
    for text in OURS:
        method = QuantMethod.parse(text)
        bits = 8 * fit(torch.randn(ROWS, N), method).size_bytes / (ROWS * N)
        ways[f"qsdm {text}"] = (lambda w, m=method: dequantize(fit(w, m)), bits)
    return ways


def linear(w: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(N, ROWS, bias=False)
    layer.weight = torch.nn.Parameter(w.clone())
    return layer


def measure() -> tuple[list[tuple[str, float, list[float], float]], list[str]]:
    """Name, bits, errors and milliseconds of each way; who is missing, and why."""
    generator = torch.Generator().manual_seed(0)
    normal = 0.02 * torch.randn(ROWS, N, generator=generator)
    chi = torch.randn(4, ROWS, N, generator=generator).square().mean(0)
    weights = (normal / chi.sqrt(), normal)
    rows, missing = [], []
    for peer in (ours, torch_channel, torchao, quanto, hqq, bitsandbytes, sdnq):
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                ways = peer()
                for way, _ in ways.values():
                    way(normal)  # warm
        except ImportError as error:
            missing.append(f"{peer.__name__}: left out ({error})")
            continue
        for name, (way, bits) in ways.items():
            errors, times = [], []
            for w in weights:
                for _ in range(REPEATS):
                    start = time.process_time()
                    values = way(w)
                    times.append(time.process_time() - start)
                errors.append(((values.float() - w).square().sum() / w.square().sum()).item())
            rows.append((name, bits, errors, 1e3 * min(times)))
    return rows, missing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows, missing = measure()
    cells = [(name, bits, student, gauss, ms) for name, bits, (student, gauss), ms in rows]
    heads = ("", "bits", "student", "normal", "ms")
    print(table(heads, cells, ("", ".3f", ".5f", ".5f", ".1f")))
    print("\n".join(missing))
    if arguments.write and missing:
        raise SystemExit(
            f"{arguments.write} was not changed: a peer is missing (make peers-table installs them)"
        )
    if arguments.write:
        lines = [
            f"| {name} | {bits:.3f} | {student:.5f} | {gauss:.5f} | {ms:.0f} |"
            for name, bits, (student, gauss), ms in rows
        ]
        head = ["| | bits | error, heavy-tailed | error, normal | ms |", "|---|---|---|---|---|"]
        before, rest = arguments.write.read_text(encoding="utf-8").split(START)
        after = rest.split(END)[1]
        arguments.write.write_text(
            "\n".join([before + START, *head, *lines, END + after]), encoding="utf-8"
        )


if __name__ == "__main__":
    with torch.no_grad():
        main()
