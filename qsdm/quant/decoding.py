"""From the codes of a quantized weight to its values, on any device: one path for all callers.

`Switch` writes into the parameters of a denoiser, and packed layers decode at each use; both call
the operators here. Where the codes lie, there they are decoded: on a GPU by the CUDA kernel, on the
CPU by its twin, which numba compiles. Either writes the values where they belong, in their own type
and layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels, packing
from qsdm.quant.full import dtype_of
from qsdm.quant.methods import METHODS
from qsdm.quant.quantized import Quantized

Part = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a stored part."""

# Entries of a decoding table at a time. On the CPU, larger tensors torch would spread over threads
# of its own, which then spin beside the kernels'. On a GPU they take 64 MiB.
_TABLE, _TABLE_ON_GPU = 1 << 15, 1 << 24


def dequantize(quantized: Quantized, out: torch.Tensor | None = None) -> torch.Tensor:
    """The values of a quantized weight.

    Args:
        quantized: on any device.
        out: of the weight's shape, to be filled and returned; of any floating type and in any
            layout, on the device of the codes. If these are on the CPU, it may be on another
            device. None: a new tensor.

    Returns:
        ``[out, in, *kernel]``, float32 on the device of the codes if ``out`` is None.

    Raises:
        ValueError: ``out`` has another shape, or no floating type.
    """
    shape = quantized.shape
    if out is None:
        out = torch.empty(shape, device=quantized.codes.device)
    elif tuple(out.shape) != shape or not out.is_floating_point():
        raise ValueError(
            f"wanted a floating-point output of shape {shape} "
            f"(got {out.dtype} of shape {tuple(out.shape)})"
        )
    others = [
        quantized.tensors[name] for name in layout(quantized.method, shape) if name != "codes"
    ]
    decode_out(quantized.codes, others, str(quantized.method), out)
    return out


@torch.library.custom_op("qsdm::decode", mutates_args=())
def decode(
    codes: torch.Tensor,
    others: list[torch.Tensor],
    method: str,
    shape: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The values of a quantized weight, as an operator that torch.compile and torch.export know.

    Args:
        codes: see `Quantized`.
        others: the tensors that the method stores beside the codes, in the order of `layout`.
        method: its text form, as in ``uaq-4``.
        shape: of the weight, ``[out, in, *kernel]``.
        dtype: any floating type.

    Returns:
        ``shape`` on the device of the codes.
    """
    out = torch.empty(shape, dtype=dtype, device=codes.device)
    _fill(codes, others, method, out)
    return out


@torch.library.custom_op("qsdm::decode_out", mutates_args=("out",))
def decode_out(
    codes: torch.Tensor, others: list[torch.Tensor], method: str, out: torch.Tensor
) -> None:
    """`decode` into an existing tensor, such as a slice of a parameter.

    Args:
        codes: see `decode`.
        others: see `decode`.
        method: see `decode`.
        out: ``[out, in, *kernel]``, see `dequantize`.
    """
    _fill(codes, others, method, out)


@decode.register_fake
def _(
    codes: torch.Tensor,
    _others: list[torch.Tensor],
    _method: str,
    shape: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty(shape, dtype=dtype)


@decode_out.register_fake
def _(*_arguments: object) -> None:
    return None


def _fill(codes: torch.Tensor, others: list[torch.Tensor], method: str, out: torch.Tensor) -> None:
    parsed, shape = QuantMethod.parse(method), tuple(out.shape)
    if parsed.is_full:
        out.copy_(codes.view(dtype_of(parsed.bits)).view(shape))
        return
    fan_in = math.prod(shape[1:])
    names = METHODS[parsed.name].stored(parsed.bits, shape[0], fan_in)
    quantized = Quantized(parsed, shape, codes, dict(zip(names, others, strict=True)))
    for first, last, values in tables(quantized):
        part = codes[
            first * fan_in * parsed.bits // 8 : packing.num_bytes(last * fan_in, parsed.bits)
        ]
        group = parsed.group_size or fan_in
        kernels.fill_by_lookup(part, values, parsed.bits, group, out[first:last])


def tables(quantized: Quantized) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Blocks of rows whose tables are not too large.

    Eight rows of codes fill whole bytes, so the codes of every block begin with a byte.

    Args:
        quantized: by any method except full precision.

    Yields:
        First row, one after the last, table of these rows.
    """
    num_rows, bits = quantized.shape[0], quantized.method.bits
    method = METHODS[quantized.method.name]
    groups = method.num_groups(math.prod(quantized.shape[1:]))
    most = _TABLE if quantized.codes.device.type == "cpu" else _TABLE_ON_GPU
    step = num_rows if method.per_tensor else max(8, most // (groups * 2**bits) // 8 * 8)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        yield first, last, table(quantized, slice(first * groups, last * groups))


def table(quantized: Quantized, groups: slice = slice(None)) -> torch.Tensor:
    """The value of every code.

    Args:
        quantized: by any method except full precision.
        groups: which groups; all by default.

    Returns:
        float32 [groups, 2**bits] on the device of the codes; [1, 2**bits] for K-Means-A.
    """
    values = METHODS[quantized.method.name].table
    assert values is not None, "full precision has no table"
    return values(quantized.tensors, quantized.method.bits, groups)


def layout(method: QuantMethod, shape: tuple[int, ...]) -> dict[str, Part]:
    """What is stored of a weight.

    Args:
        method: any method.
        shape: of the weight, ``[out, in, *kernel]``.

    Returns:
        Type and shape of ``codes`` and of the method's tensors, by name.
    """
    rows, fan_in = shape[0], math.prod(shape[1:])
    stored = METHODS[method.name].stored(method.bits, rows, fan_in)
    codes = {"codes": (torch.uint8, (packing.num_bytes(rows * fan_in, method.bits),))}
    return codes | {name: (getattr(torch, dtype), size) for name, (dtype, size) in stored.items()}
