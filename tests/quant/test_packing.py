from __future__ import annotations

import numpy as np
import pytest

from qsdm.quant.packing import decode, num_bytes, pack, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000, 1 << 18])
def test_unpack_inverts_pack(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.size == num_bytes(count, bits)
    assert np.array_equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_k_of_the_stream_is_bit_k_of_the_bytes(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, 53).astype(np.uint8)
    stream = np.unpackbits(pack(codes, bits), bitorder="little")[: 53 * bits]
    expected = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits].reshape(-1)
    assert np.array_equal(stream, expected)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("n", "group"), [(64, 64), (64, 16), (33, 33), (33, 8), (7, 3)])
def test_decode_looks_every_code_up_in_its_group(bits: int, n: int, group: int) -> None:
    rng = np.random.default_rng(n)
    rows, groups = 5, -(-n // group)
    codes = rng.integers(0, 2**bits, (rows, n)).astype(np.uint8)
    table = rng.normal(size=(rows * groups, 2**bits)).astype(np.float32)
    of_group = table.reshape(rows, groups, -1)[:, np.arange(n) // group]
    expected = np.take_along_axis(of_group, codes[..., None].astype(np.int64), 2)[..., 0]
    assert np.array_equal(decode(pack(codes, bits), bits, table, (rows, n), group), expected)
    assert np.array_equal(decode(pack(codes, bits), bits, table[:1], (rows, n), n), table[0][codes])
