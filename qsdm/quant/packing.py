"""Codes of 1 to 8 bits in bytes without gaps, and their way back to values through tables.

Code i of a tensor, in row-major order, takes bits i*b ... i*b + b - 1 of the stream; its bit k is bit k % 8 of byte k
// 8.
"""

from __future__ import annotations

import math

import numpy as np

from qsdm.quant.rows import exact, over_rows


def num_bytes(count: int, bits: int) -> int:
    return math.ceil(count * bits / 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes of any shape, below 2**bits => uint8 [num_bytes]."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    packed = np.empty(num_bytes(flat.size, bits), np.uint8)
    over_rows(_pack, math.ceil(flat.size / 8), flat, bits, packed, min_rows=1 << 16)
    return packed


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: uint8 [count]."""
    identity = np.arange(2**bits, dtype=np.float32)[None]
    return decode(packed, bits, identity, (1, count), count).astype(np.uint8).reshape(-1)


def decode(
    packed: np.ndarray, bits: int, table: np.ndarray, shape: tuple[int, int], group: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Values float32 [rows, n] of packed codes.

    Args:
        table: float32 [groups, 2**bits], the value of each code; a row has ceil(n / group) groups. One line: for all.
        shape: rows, n.
        group: values of a row that share a line of the table.
        out: where to write, float32 [rows, n], contiguous.
    """
    out = np.empty(shape, np.float32) if out is None else out
    over_rows(_decode, shape[0], packed, bits, table, group, out, min_rows=max(1, (1 << 18) // max(1, shape[1])))
    return out


@exact
def _pack(first, last, codes, bits, packed):
    for g in range(first, last):  # eight codes fill ``bits`` bytes
        word = np.uint64(0)
        for j in range(min(8, codes.shape[0] - 8 * g)):
            word |= np.uint64(codes[8 * g + j]) << np.uint64(j * bits)
        for k in range(min(bits, packed.shape[0] - bits * g)):
            packed[bits * g + k] = np.uint8((word >> np.uint64(8 * k)) & np.uint64(255))


@exact
def _decode(first, last, packed, bits, table, group, out):
    n = out.shape[1]
    mask = np.uint32((1 << bits) - 1)
    end = packed.shape[0] - 1
    groups = (n + group - 1) // group if table.shape[0] > 1 else 1
    for r in range(first, last):
        for g in range(groups):
            line = table[r * groups + g] if table.shape[0] > 1 else table[0]
            start = g * group if table.shape[0] > 1 else 0
            stop = min(start + group, n) if table.shape[0] > 1 else n
            bit = (r * n + start) * bits
            i = start
            if bit % 8 == 0:
                byte = bit // 8
                while i + 8 <= stop:  # eight codes at a time
                    word = np.uint64(0)
                    for k in range(bits):
                        word |= np.uint64(packed[byte + k]) << np.uint64(8 * k)
                    for j in range(8):
                        out[r, i + j] = line[np.uint32(word >> np.uint64(j * bits)) & mask]
                    byte += bits
                    i += 8
            while i < stop:
                bit = (r * n + i) * bits
                byte = bit // 8
                word = np.uint32(packed[byte]) | (np.uint32(packed[min(byte + 1, end)]) << np.uint32(8))
                out[r, i] = line[(word >> np.uint32(bit % 8)) & mask]
                i += 1
