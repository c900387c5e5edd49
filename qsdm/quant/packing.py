"""Codes of 1 to 8 bits packed into bytes without gaps, and decoded through tables.

Code i of a tensor, in row-major order, takes bits i*b ... i*b + b - 1 of the stream; bit k of the
stream is bit k % 8 of byte k // 8.
"""

from __future__ import annotations

import math

import numpy as np

from qsdm.quant.rows import exact, over_rows


def num_bytes(count: int, bits: int) -> int:
    """Bytes that packed codes take.

    Args:
        count: number of codes.
        bits: of a code, 1 to 8; 16 or 32 for values of full precision.
    """
    return math.ceil(count * bits / 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes.

    Args:
        codes: uint8 of any shape, below 2**bits.
        bits: of a code, 1 to 8.

    Returns:
        uint8 [num_bytes].
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    packed = np.empty(num_bytes(flat.size, bits), np.uint8)
    whole = flat.size // 8
    if bits == 4:
        over_rows(
            _pack_pairs, 4 * whole, flat[: 8 * whole].view(np.uint16), packed, min_rows=1 << 18
        )
    else:
        over_rows(_pack, whole, flat[: 8 * whole].view(np.uint64), bits, packed, min_rows=1 << 16)
    if flat.size % 8:
        last, end = np.zeros(8, np.uint8), np.empty(bits, np.uint8)
        last[: flat.size % 8] = flat[8 * whole :]
        _pack(0, 1, last.view(np.uint64), bits, end)
        packed[whole * bits :] = end[: packed.size - whole * bits]
    return packed


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`.

    Args:
        packed: uint8 [num_bytes].
        bits: of a code, 1 to 8.
        count: number of codes.

    Returns:
        uint8 [count].
    """
    identity = np.arange(2**bits, dtype=np.float32)[None]
    return decode(packed, bits, identity, (1, count), count).astype(np.uint8).reshape(-1)


def decode(
    packed: np.ndarray,
    bits: int,
    table: np.ndarray,
    shape: tuple[int, int],
    group: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The values of packed codes.

    Args:
        packed: uint8 [num_bytes].
        bits: of a code, 1 to 8.
        table: float32 [groups, 2**bits], the value of each code, for each group of a row in turn;
            [1, 2**bits] for all groups.
        shape: rows, n.
        group: values of a row that share a row of the table.
        out: float32 [rows, n], contiguous, to be filled and returned; None: a new array.

    Returns:
        float32 [rows, n].
    """
    out = np.empty(shape, np.float32) if out is None else out
    rows, n = shape
    min_rows = max(1, (1 << 18) // max(1, n))
    whole_rows = table.shape[0] == 1 or group >= n
    if bits <= 4 and n % 8 == 0 and n >= 4**bits and whole_rows and out.ctypes.data % 8 == 0:
        over_rows(
            _decode_pairs,
            rows,
            packed.reshape(-1),
            bits,
            table,
            out.view(np.uint64),
            min_rows=min_rows,
        )
    else:
        over_rows(_decode, rows, packed, bits, table, group, out, min_rows=min_rows)
    return out


@exact
def _pack_pairs(first: int, last: int, pairs: np.ndarray, packed: np.ndarray) -> None:
    """As `_pack` for 4 bits, in a form that LLVM vectorizes."""
    part, out = pairs[first:last], packed[first:last]
    for i in range(part.shape[0]):
        out[i] = np.uint8(part[i] | (part[i] >> np.uint16(4)))


@exact
def _pack(first: int, last: int, words: np.ndarray, bits: int, packed: np.ndarray) -> None:
    """Pack eight codes, the bytes of a word, into ``bits`` bytes.

    Neighbors are moved together, then pairs of them, then fours.
    """
    one, two, four = np.uint64(bits), np.uint64(2 * bits), np.uint64(4 * bits)
    for g in range(first, last):
        w = words[g]
        w = (w & np.uint64(0x00FF00FF00FF00FF)) | (
            (w >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
        ) << one
        w = (w & np.uint64(0x0000FFFF0000FFFF)) | (
            (w >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
        ) << two
        w = (w & np.uint64(0x00000000FFFFFFFF)) | (w >> np.uint64(32)) << four
        for k in range(bits):
            packed[bits * g + k] = np.uint8(w >> np.uint64(8 * k))


@exact
def _decode_pairs(
    first: int, last: int, packed: np.ndarray, bits: int, table: np.ndarray, out: np.ndarray
) -> None:
    """As `_decode`, two values at a time.

    ``out`` and the table of all pairs of codes have two float32 values in a word of 64 bits.
    """
    K, half = table.shape[1], out.shape[1]
    num_bytes = half * bits // 4
    pairs, low = np.empty(K * K, np.uint64), np.empty(K, np.uint64)
    mask, places = np.uint64(K * K - 1), np.uint64(2 * bits)
    for r in range(first, last):
        if r == first or table.shape[0] > 1:
            line = table[r if table.shape[0] > 1 else 0].view(np.uint32)
            for a in range(K):
                low[a] = np.uint64(line[a])
            for b in range(K):
                high, part = np.uint64(line[b]) << np.uint64(32), pairs[b * K : (b + 1) * K]
                for a in range(part.shape[0]):
                    part[a] = high | low[a]
        codes, values = packed[r * num_bytes : (r + 1) * num_bytes], out[r]
        if bits == 4:
            for i in range(half):
                values[i] = pairs[codes[i]]
        else:
            for g in range(half // 4):
                word = np.uint64(0)
                for k in range(bits):
                    word |= np.uint64(codes[g * bits + k]) << np.uint64(8 * k)
                for j in range(4):
                    values[4 * g + j] = pairs[word & mask]
                    word >>= places


@exact
def _decode(
    first: int,
    last: int,
    packed: np.ndarray,
    bits: int,
    table: np.ndarray,
    group: int,
    out: np.ndarray,
) -> None:
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
                pair = np.uint32(packed[byte]) | (
                    np.uint32(packed[min(byte + 1, end)]) << np.uint32(8)
                )
                out[r, i] = line[(pair >> np.uint32(bit % 8)) & mask]
                i += 1
