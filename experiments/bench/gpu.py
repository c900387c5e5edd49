"""How close the CUDA kernels come to a device copy, and how long SDXL takes to switch.

    make bench-cuda
    python experiments/bench/gpu.py [--model sdxl]
    python experiments/bench/gpu.py --device cpu --model emoji_unet

1. Every kernel, in GB/s read and written, beside a copy on the device.
2. Decoding as `Switch` does it, from codes on the GPU into a parameter: 1280 x 1280 x 3 x 3 in the
   layouts that denoisers have, in GB/s of codes read and values written.
3. A denoiser of full size with random codes: seconds to switch from full precision (codes come from
   the host), between random configurations with codes that stay on the GPU, the same with codes
   that are streamed each time, and back to full precision.

Needs an NVIDIA GPU and ``pip install 'qsdm[cuda]'``; ``--device cpu`` does only the third.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels
from qsdm.quant.decoding import dequantize, layout
from qsdm.quant.kernels import build
from qsdm.quant.placement import Lane, Placement
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import Switch

ROWS, N = 20480, 5120
METHODS = ["uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4"]


def milliseconds(function: Callable[[], object], repeat: int = 20) -> float:
    """The least of ``repeat`` runs, after one that compiles."""
    function()
    found = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return min(found)


def kernel_rates() -> None:
    """Each operator beside a copy."""
    print(f"{torch.cuda.get_device_name()}, {ROWS} x {N}")
    print(f"{'':<32}{'ms':>9}{'GB/s':>9}{'x copy':>9}")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(ROWS, N, device="cuda").to(dtype)
        out, gradient = torch.empty_like(x), torch.ones_like(x)
        ways: dict[str, tuple[Callable[[], object], int]] = {
            "copy": (lambda o=out, x=x: o.copy_(x), 2 * x.nbytes)
        }
        for group in (N, 64):
            scale = torch.full((ROWS, N // group), 0.1, device="cuda")
            arguments = (scale, torch.full_like(scale, 7.0), 4, group)
            ways[f"affine, groups of {group}"] = (
                lambda x=x, a=arguments, o=out: kernels.affine_out(x, *a, o),
                2 * x.nbytes + 2 * scale.nbytes,
            )
            ways[f"its backward, groups of {group}"] = (
                lambda x=x, a=arguments, g=gradient: kernels.affine_backward(g, x, *a),
                3 * x.nbytes + 2 * scale.nbytes,
            )
        for bits in (3, 4):
            codes = torch.randint(
                0, 256, (math.ceil(ROWS * N * bits / 8),), dtype=torch.uint8, device="cuda"
            )
            table = torch.randn(ROWS, 2**bits, device="cuda")
            ways[f"lookup, {bits} bits"] = (
                lambda c=codes, t=table, b=bits, o=out: kernels.lookup_out(c, t, b, N, o),
                codes.nbytes + table.nbytes + x.nbytes,
            )
        for bits in (6, 8):
            ways[f"tokens, {bits} bits"] = (
                lambda x=x, b=bits: kernels.tokens(x, b, False),
                2 * x.nbytes,
            )
        copy = 0.0
        for name, (function, num_bytes) in ways.items():
            ms = milliseconds(function)
            rate = num_bytes / ms / 1e6
            copy = copy or rate
            print(
                f"{f'{name}, {dtype}'.replace('torch.', ''):<32}{ms:>9.3f}{rate:>9.0f}"
                f"{rate / copy:>9.2f}"
            )


def decode_rates() -> None:
    """Decoding into parameters of the types and layouts that occur."""
    shape = (1280, 1280, 3, 3)
    print(f"{'decode into ' + 'x'.join(map(str, shape)):<46}{'ms':>9}{'GB/s':>9}")
    for text in ("uaq-4", "kmeans_c-3", "kmeans_a-4", "uaq_g64-4"):
        quantized = random_codes(QuantMethod.parse(text), shape)
        codes = Lane(torch.device("cuda")).carry(quantized)
        for dtype in (torch.float32, torch.bfloat16):
            plain = torch.empty(shape, dtype=dtype, device="cuda")
            wide = torch.empty((1280, 2560, 3, 3), dtype=dtype, device="cuda")
            layouts = {
                "contiguous": plain,
                "channels last": plain.to(memory_format=torch.channels_last),
                "half of its channels": wide[:, 1280:],
            }
            for order, out in layouts.items():
                ms = milliseconds(lambda c=codes, o=out: dequantize(c, o))
                rate = (quantized.size_bytes + plain.nbytes) / ms / 1e6
                label = f"{text}, {order}, {dtype}".replace("torch.", "")
                print(f"{label:<46}{ms:>9.3f}{rate:>9.0f}")


def random_codes(method: QuantMethod, shape: tuple[int, ...]) -> Quantized:
    """Codes that nothing was fitted to; decoding takes as long."""
    generator = torch.Generator().manual_seed(0)
    parts = {
        name: torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        if dtype == torch.uint8
        else torch.rand(size, generator=generator).to(dtype)
        for name, (dtype, size) in layout(method, shape).items()
    }
    return Quantized(method, shape, parts.pop("codes"), parts)


def switching(name: str, device: torch.device) -> None:
    """Switch a denoiser of full size, whose weights are random."""
    from stages import model_of

    from qsdm import tracing
    from qsdm.denoisers import denoiser_class, denoiser_config
    from qsdm.qconfig import SpaceSpec
    from qsdm.trace import prepare

    model = model_of(name)
    module, inputs, _ = prepare(model)
    space = SpaceSpec("bench", METHODS).of(tracing.trace(module, inputs, name), model.full_bits)
    with torch.device("meta"):
        denoiser = denoiser_class(model).from_config(dict(denoiser_config(model)))
    denoiser = denoiser.to(torch.bfloat16).to_empty(device=device)
    for parameter in denoiser.parameters():
        parameter.data.zero_()
        if parameter.dim() == 4:  # as for drawing
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    shapes = {weight.name: weight.shape for weight in space.graph.weights}
    codes: dict[tuple[str, QuantMethod], Quantized] = {}

    def read(weight: str, method: QuantMethod) -> Quantized:
        if (weight, method) not in codes:
            codes[weight, method] = random_codes(method, shapes[weight])
        return codes[weight, method]

    placement = Placement()
    switch = Switch(
        denoiser,
        space.graph,
        lambda weight, method, out: dequantize(
            placement.on(out.device, weight, method, lambda: read(weight, method)), out
        ),
    )
    rng = np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(2)]
    for qconfig in configs:  # makes the codes of both
        for weight, method in qconfig.methods.items():
            read(weight, method)
    for what, qconfig in (
        ("to the first configuration", configs[0]),
        ("to the second, codes from the host", configs[1]),
        ("back to the first", configs[0]),
        ("to the second again", configs[1]),
        ("streamed: back to the first", configs[0]),
        ("to full precision", None),
    ):
        if what.startswith("streamed"):
            placement.release()
        before = time.perf_counter()
        num = switch.restore() if qconfig is None else switch.to(qconfig)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"{name}, {num:>5} weights {what:<42}{time.perf_counter() - before:>9.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sdxl", help="of conf/model")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args = parser.parse_args()
    if args.device == "cuda":
        if not build.cuda_available():
            sys.exit(
                "wanted an NVIDIA GPU that torch sees, and cuda-core (pip install 'qsdm[cuda]'): "
                "one of them is missing"
            )
        kernel_rates()
        decode_rates()
    switching(args.model, torch.device(args.device))


if __name__ == "__main__":
    main()
