"""Fake quantization of tensors, as torch operators: CUDA kernels on a GPU, numba on the CPU, else plain torch.

    affine          a scale and a zero point per channel or group, with a straight-through gradient
    lookup          packed codes of any bit width through codebooks
    tokens          activations, every token in its own range, with a straight-through gradient
    affine_out, lookup_out     the same into an output that is there, without a gradient

The operators are registered as ``torch.ops.qsdm.*`` with shapes for torch.compile and torch.export. What computes them
agrees bit for bit.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch

from qsdm.quant.kernels import build, cpu, reference


@torch.library.custom_op("qsdm::affine", mutates_args=())
def affine(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    """Uniform affine fake quantization of ``x`` [rows, n].

    Args:
        x: float32, float16 or bfloat16 [rows, n].
        scale: float32 [rows, ceil(n / group)].
        zero_point: as ``scale``.
        bits: 2 to 8.
        group: values of a row that share a scale; n for whole rows.

    Returns:
        As ``x``.
    """
    x, scale, zero_point = _check(x, scale, zero_point, group)
    out = torch.empty_like(x)
    _affine(x, scale, zero_point, bits, group, out)
    return out


@torch.library.custom_op("qsdm::affine_out", mutates_args=("out",))
def affine_out(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    group: int,
    out: torch.Tensor,
) -> None:
    """`affine` into ``out``, contiguous, as ``x``; without a gradient. A new output costs more than its values."""
    x, scale, zero_point = _check(x, scale, zero_point, group)
    _check_out(out, x.shape, x.dtype)
    _affine(x, scale, zero_point, bits, group, out)


@torch.library.custom_op("qsdm::affine_backward", mutates_args=())
def affine_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    group: int,
) -> torch.Tensor:
    """The straight-through gradient of `affine` for ``x``."""
    x, scale, zero_point = _check(x, scale, zero_point, group)
    gradient = gradient.to(x.dtype).contiguous()
    out = torch.empty_like(x)
    if _on_gpu(x):
        numbers = (ctypes.c_int64(x.shape[1]), ctypes.c_int64(group), ctypes.c_float(2**bits - 1))
        _launch("affine_backward", out, (gradient, x, scale, zero_point, out), numbers)
    elif x.device.type == "cpu":
        cpu.affine_backward(gradient, x, scale, zero_point, bits, group, out)
    else:
        out.copy_(reference.affine_backward(gradient, x, scale, zero_point, bits, group))
    return out


@torch.library.custom_op("qsdm::lookup", mutates_args=())
def lookup(
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    rows: int,
    n: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Values [rows, n] of packed codes.

    Args:
        codes: uint8 [ceil(rows * n * bits / 8)].
        table: float32 [rows * ceil(n / group), 2**bits], or [1, 2**bits] for all rows.
    """
    out = torch.empty(rows, n, dtype=dtype, device=codes.device)
    _lookup(codes, table, bits, group, out)
    return out


@torch.library.custom_op("qsdm::lookup_out", mutates_args=("out",))
def lookup_out(
    codes: torch.Tensor, table: torch.Tensor, bits: int, group: int, out: torch.Tensor
) -> None:
    """`lookup` into ``out`` [rows, n], contiguous."""
    _check_out(out, out.shape, out.dtype)
    _lookup(codes, table, bits, group, out)


@torch.library.custom_op("qsdm::tokens", mutates_args=())
def tokens(x: torch.Tensor, bits: int, from_zero: bool) -> torch.Tensor:
    """Every row of ``x`` [rows, n] fake-quantized in its own range; ``from_zero``: from 0 to its largest value."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if _on_gpu(x):
        numbers = (ctypes.c_int64(x.shape[1]), ctypes.c_float(2**bits - 1), ctypes.c_int(from_zero))
        _launch("tokens", out, (x, out), numbers)
    elif x.device.type == "cpu":
        cpu.tokens(x, bits, from_zero, out)
    else:
        out.copy_(reference.tokens(x, bits, from_zero))
    return out


def _affine(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    group: int,
    out: torch.Tensor,
) -> None:
    if _on_gpu(x):
        numbers = (ctypes.c_int64(x.shape[1]), ctypes.c_int64(group), ctypes.c_float(2**bits - 1))
        _launch("affine", out, (x, scale, zero_point, out), numbers)
    elif x.device.type == "cpu":
        cpu.affine(x, scale, zero_point, bits, group, out)
    else:
        out.copy_(reference.affine(x, scale, zero_point, bits, group))


def _lookup(
    codes: torch.Tensor, table: torch.Tensor, bits: int, group: int, out: torch.Tensor
) -> None:
    rows, n = out.shape
    wanted, lines = math.ceil(rows * n * bits / 8), rows * math.ceil(n / group)
    if codes.dtype != torch.uint8 or codes.numel() != wanted:
        raise ValueError(f"wanted {wanted} bytes of codes (got {codes.numel()} of {codes.dtype})")
    if (
        table.dtype != torch.float32
        or table.shape[0] not in (1, lines)
        or table.shape[1] != 2**bits
    ):
        raise ValueError(
            f"wanted a float32 table of shape ({lines} or 1, {2**bits}) (got {table.dtype}, {tuple(table.shape)})"
        )
    codes, table = codes.contiguous(), table.contiguous()
    if _on_gpu(codes):
        numbers = (
            ctypes.c_int64(n),
            ctypes.c_int64(group),
            ctypes.c_int(bits),
            ctypes.c_int64(table.shape[0]),
        )
        _launch("lookup", out, (codes, ctypes.c_int64(wanted), table, out), numbers)
    elif codes.device.type == "cpu":
        cpu.lookup(codes, table, bits, group, out)
    else:
        out.copy_(reference.lookup(codes, table, bits, rows, n, group, out.dtype))


@affine_out.register_fake
@lookup_out.register_fake
def _(*args):
    return None


@affine.register_fake
def _(x, scale, zero_point, bits, group):
    return x.new_empty(x.shape)


@affine_backward.register_fake
def _(gradient, x, scale, zero_point, bits, group):
    return x.new_empty(x.shape)


@lookup.register_fake
def _(codes, table, bits, rows, n, group, dtype):
    return codes.new_empty((rows, n), dtype=dtype)


@tokens.register_fake
def _(x, bits, from_zero):
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, scale, zero_point, ctx.bits, ctx.group = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (
        affine_backward(gradient, *ctx.saved_tensors, ctx.bits, ctx.group),
        None,
        None,
        None,
        None,
    )


affine.register_autograd(_backward, setup_context=_save)
# A token's range holds all of its values, so the straight-through gradient passes everywhere.
tokens.register_autograd(lambda ctx, gradient: (gradient, None, None))


def _check(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wanted = (x.shape[0], math.ceil(x.shape[1] / group))
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tuple(tensor.shape) != wanted or tensor.dtype != torch.float32:
            raise ValueError(
                f"wanted {name} float32 of shape {wanted} (got {tensor.dtype} of shape {tuple(tensor.shape)})"
            )
    return x.contiguous(), scale.contiguous(), zero_point.contiguous()


def _check_out(out: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(
            f"wanted a contiguous output, {dtype} of shape {tuple(shape)} (got {out.dtype} of shape {tuple(out.shape)})"
        )


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda and build.cuda_available()


def _launch(name: str, out: torch.Tensor, data: tuple[Any, ...], numbers: tuple[Any, ...]) -> None:
    """One block per row of ``out``, on torch's current stream."""
    from cuda.core import Device, LaunchConfig, launch

    suffix = build.SUFFIX[str(out.dtype)]
    index = out.device.index if out.device.index is not None else torch.cuda.current_device()
    device = Device(index)
    device.set_current()
    kernel = build.cuda_kernel(f"{name}_{suffix}", index)
    rows, n = out.shape
    threads = min(build.MAX_THREADS, max(32, 1 << (n - 1).bit_length()))
    pointers = [item.data_ptr() if isinstance(item, torch.Tensor) else item for item in data]
    stream = device.create_stream(_TorchStream(torch.cuda.current_stream(index)))
    launch(stream, LaunchConfig(grid=rows, block=threads), kernel, *pointers, *numbers)


class _TorchStream:
    """Torch's stream in the form that cuda-core takes."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream
