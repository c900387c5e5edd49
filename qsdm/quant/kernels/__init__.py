"""Fake quantization as torch operators: CUDA kernels on a GPU, numba on the CPU, else plain torch.

    affine          a scale and a zero point per channel or group, with a straight-through gradient
    lookup          packed codes of any bit width through codebooks
    tokens          activations, every token in its own range, with a straight-through gradient
    affine_out, lookup_out     the same into an existing output, without a gradient
    round_tokens, round_softmax    for eager code: on the CPU without the dispatcher, which takes as
                                   long as rounding ten thousand values, and in fewer passes

The operators are registered as ``torch.ops.qsdm.*`` with shapes for torch.compile and torch.export.
All implementations agree bit for bit.
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
    """Uniform affine fake quantization.

    Args:
        x: float32, float16 or bfloat16 [rows, n].
        scale: float32 [rows, ceil(n / group)].
        zero_point: float32, of the shape of ``scale``.
        bits: of a code, 2 to 8.
        group: values of a row that share a scale; n for whole rows.

    Returns:
        The shape and type of ``x``.

    Raises:
        ValueError: a shape or type is wrong.
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
    """`affine` into an existing output, which costs less than a new one; without a gradient.

    Args:
        x: see `affine`.
        scale: see `affine`.
        zero_point: see `affine`.
        bits: see `affine`.
        group: see `affine`.
        out: contiguous, of the shape and type of ``x``.

    Raises:
        ValueError: a shape or type is wrong.
    """
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
    """The straight-through gradient of `affine` with respect to ``x``.

    Args:
        gradient: of the output, [rows, n].
        x: see `affine`.
        scale: see `affine`.
        zero_point: see `affine`.
        bits: see `affine`.
        group: see `affine`.

    Returns:
        ``gradient`` where x lies in the range, else 0.
    """
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
    """The values of packed codes.

    Args:
        codes: uint8 [ceil(rows * n * bits / 8)] (see `qsdm.quant.packing`).
        table: float32 [rows * ceil(n / group), 2**bits], the value of each code; or [1, 2**bits]
            for all groups.
        bits: of a code, 1 to 8.
        rows: output channels.
        n: values of a row.
        group: values of a row that share a row of the table.
        dtype: of the values.

    Returns:
        [rows, n] on the device of the codes.

    Raises:
        ValueError: a shape or type is wrong.
    """
    out = torch.empty(rows, n, dtype=dtype, device=codes.device)
    fill_by_lookup(codes, table, bits, group, out)
    return out


@torch.library.custom_op("qsdm::lookup_out", mutates_args=("out",))
def lookup_out(
    codes: torch.Tensor, table: torch.Tensor, bits: int, group: int, out: torch.Tensor
) -> None:
    """`lookup` into an existing output.

    Args:
        codes: see `lookup`.
        table: see `lookup`.
        bits: see `lookup`.
        group: see `lookup`.
        out: [rows, n] or [rows, channels, *kernel], of any floating type and in any layout, such as
            a slice of a parameter's channels.

    Raises:
        ValueError: a shape or type is wrong.
    """
    fill_by_lookup(codes, table, bits, group, out)


@torch.library.custom_op("qsdm::tokens", mutates_args=())
def tokens(x: torch.Tensor, bits: int, from_zero: bool) -> torch.Tensor:
    """Fake quantization of activations, every row in its own range.

    Args:
        x: float32, float16 or bfloat16 [rows, n].
        bits: of a code, 2 to 8.
        from_zero: whether ranges begin at 0 instead of the row's smallest value.

    Returns:
        The shape and type of ``x``.
    """
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


def round_tokens(x: torch.Tensor, bits: int, from_zero: bool) -> torch.Tensor:
    """What `tokens` does, bit for bit.

    Args:
        x: see `tokens`.
        bits: see `tokens`.
        from_zero: see `tokens`.

    Returns:
        The shape and type of ``x``.
    """
    if not _is_eager_on_cpu(x):
        return tokens(x, bits, from_zero)
    x = x.contiguous()
    out = torch.empty_like(x)
    cpu.tokens(x, bits, from_zero, out)
    return out


def round_softmax(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The softmax of each row, whose probabilities are rounded in a range from zero.

    On the CPU, it is one operation without a gradient, in float32. Its exponentials differ from
    torch's by less than 1e-6 of their value; so do its probabilities, but for one in ten thousand
    or fewer that this rounds to the next code.

    Args:
        x: float32, float16 or bfloat16 [rows, n].
        bits: of a code, 2 to 8.

    Returns:
        The shape and type of ``x``.
    """
    if not _is_eager_on_cpu(x):
        return tokens(x.softmax(-1), bits, from_zero=True)
    x = x.contiguous()
    out = torch.empty_like(x)
    cpu.softmax(x, bits, out)
    return out


def _is_eager_on_cpu(x: torch.Tensor) -> bool:
    """Whether nothing records what is done with a tensor, and numba can do it."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


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


def fill_by_lookup(
    codes: torch.Tensor, table: torch.Tensor, bits: int, group: int, out: torch.Tensor
) -> None:
    """What `lookup_out` does, for callers that are operators themselves.

    Args:
        codes: see `lookup`.
        table: see `lookup`.
        bits: see `lookup`.
        group: see `lookup`.
        out: see `lookup_out`; it may be on another device than codes on the CPU.

    Raises:
        ValueError: a shape or type is wrong.
    """
    rows, n = out.shape[0], math.prod(out.shape[1:])
    num_bytes, num_groups = math.ceil(rows * n * bits / 8), rows * math.ceil(n / group)
    if codes.dtype != torch.uint8 or codes.numel() != num_bytes:
        raise ValueError(
            f"wanted {num_bytes} bytes of codes (got {codes.numel()} of {codes.dtype})"
        )
    if (
        table.dtype != torch.float32
        or table.shape[0] not in (1, num_groups)
        or table.shape[1] != 2**bits
    ):
        raise ValueError(
            f"wanted a float32 table of shape ({num_groups} or 1, {2**bits}) "
            f"(got {table.dtype}, {tuple(table.shape)})"
        )
    codes, table = codes.contiguous(), table.contiguous()
    if codes.device.type == "cpu":
        cpu.lookup(codes, table, bits, group, out)
    elif _on_gpu(codes) and str(out.dtype) in build.SUFFIX:
        target, strides = out, strides_of(out)
        if strides is None:
            target = torch.empty_like(out, memory_format=torch.contiguous_format)
            strides = (n, n // out.shape[1], n // out.shape[1], 1)
        size, lines = ctypes.c_int64(num_bytes), ctypes.c_int64(table.shape[0])
        numbers = (ctypes.c_int64(n), ctypes.c_int64(group), ctypes.c_int(bits), lines)
        places = map(ctypes.c_int64, strides)
        _launch("lookup", target, (codes, size, table, target), (*numbers, *places))
        if target is not out:
            out.copy_(target)
    else:
        values = reference.lookup(codes, table, bits, rows, n, group, torch.float32)
        out.copy_(values.view(out.shape))


def strides_of(out: torch.Tensor) -> tuple[int, int, int, int] | None:
    """How the values of a weight lie in memory.

    Args:
        out: [rows, channels, *kernel] in any layout.

    Returns:
        Distance of rows, kernel positions of a channel, distance of channels, distance of
        positions, all in values; None if positions do not lie at one distance.
    """
    along, count = 1, 1
    for size, stride in zip(reversed(out.shape[2:]), reversed(out.stride()[2:]), strict=True):
        if size == 1:
            continue
        along = stride if count == 1 else along
        if stride != along * count:
            return None
        count *= size
    return out.stride(0), count, out.stride(1), along


@affine_out.register_fake
@lookup_out.register_fake
def _(*_arguments: object) -> None:
    return None


@affine.register_fake
def _(
    x: torch.Tensor, _scale: torch.Tensor, _zero_point: torch.Tensor, _bits: int, _group: int
) -> torch.Tensor:
    return x.new_empty(x.shape)


@affine_backward.register_fake
def _(
    _gradient: torch.Tensor,
    x: torch.Tensor,
    _scale: torch.Tensor,
    _zero_point: torch.Tensor,
    _bits: int,
    _group: int,
) -> torch.Tensor:
    return x.new_empty(x.shape)


@lookup.register_fake
def _(
    codes: torch.Tensor,
    _table: torch.Tensor,
    _bits: int,
    rows: int,
    n: int,
    _group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty((rows, n), dtype=dtype)


@tokens.register_fake
def _(x: torch.Tensor, _bits: int, _from_zero: bool) -> torch.Tensor:
    return x.new_empty(x.shape)


def _save(
    ctx: Any,
    inputs: tuple[Any, ...],
    output: torch.Tensor,  # noqa: ARG001, a keyword of torch
) -> None:
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
# A token's range contains all of its values, so the straight-through gradient passes everywhere.
tokens.register_autograd(lambda _, gradient: (gradient, None, None))


def _check(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (x.shape[0], math.ceil(x.shape[1] / group))
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"wanted {name} float32 of shape {shape} "
                f"(got {tensor.dtype} of shape {tuple(tensor.shape)})"
            )
    return x.contiguous(), scale.contiguous(), zero_point.contiguous()


def _check_out(out: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(
            f"wanted a contiguous output, {dtype} of shape {tuple(shape)} "
            f"(got {out.dtype} of shape {tuple(out.shape)})"
        )


def _on_gpu(x: torch.Tensor) -> bool:
    return run_on(x.device)


def run_on(device: torch.device) -> bool:
    """Whether the CUDA kernels run on a device; where they should but cannot, a line says why.

    Args:
        device: any device.
    """
    return device.type == "cuda" and build.usable(_index(device))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _launch(name: str, out: torch.Tensor, data: tuple[Any, ...], numbers: tuple[Any, ...]) -> None:
    """One block per row of ``out``, on torch's current stream."""
    from cuda.core import Device, LaunchConfig, launch

    suffix = build.SUFFIX[str(out.dtype)]
    index = _index(out.device)
    device = Device(index)
    device.set_current()
    kernel = build.cuda_kernel(f"{name}_{suffix}", index)
    rows, n = out.shape[0], math.prod(out.shape[1:])
    threads = min(build.MAX_THREADS, max(32, 1 << (n - 1).bit_length()))
    pointers = [item.data_ptr() if isinstance(item, torch.Tensor) else item for item in data]
    stream = device.create_stream(_TorchStream(torch.cuda.current_stream(index)))
    launch(stream, LaunchConfig(grid=rows, block=threads), kernel, *pointers, *numbers)


class _TorchStream:
    """A stream of torch in the form that cuda-core takes."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream
