"""How close the CUDA kernels come to a device copy, in GB/s read and written.

    make bench-cuda
    python experiments/bench/gpu.py

Needs an NVIDIA GPU and ``pip install 'qsdm[cuda]'``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch

from qsdm.quant import kernels
from qsdm.quant.kernels import build

ROWS, N = 20480, 5120


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


def main() -> None:
    if not build.cuda_available():
        sys.exit(
            "wanted an NVIDIA GPU that torch sees, and cuda-core (pip install 'qsdm[cuda]'): "
            "one of them is missing"
        )
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


if __name__ == "__main__":
    main()
