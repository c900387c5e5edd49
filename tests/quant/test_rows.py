from __future__ import annotations

import numpy as np
import pytest

from qsdm.quant.rows import fast, half, over_rows, rel_error
from qsdm.quant.uaq import pow24


@fast
def _halves(x, out):
    for i in range(x.shape[0]):
        out[i] = half(x[i])


@fast
def _powers(x, out):
    for i in range(x.shape[0]):
        out[i] = pow24(x[i])


def test_half_is_numpys_float16() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float32)
    x = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), (halves + np.roll(halves, 1)) / 2])
    out = np.empty_like(x)
    _halves(x, out)
    assert np.array_equal(out, x.astype(np.float16).astype(np.float32))


def test_half_saturates() -> None:
    out = np.empty(3, np.float32)
    _halves(np.array([65520, -1e30, 65519], np.float32), out)
    assert out.tolist() == [65504, -65504, 65504]


def test_pow24() -> None:
    x = np.concatenate([np.geomspace(1e-14, 1e14, 10_000), [1, 2, 0.5]]).astype(np.float32)
    out = np.empty_like(x)
    _powers(x, out)
    assert np.abs(out / x.astype(np.float64) ** 2.4 - 1).max() < 2e-5
    _powers(np.zeros(2, np.float32), out)
    assert np.all(out[:2] >= 0)
    assert out[:2].max() < 1e-35


@pytest.mark.parametrize("num_rows", [1, 2, 7, 1000])
def test_every_row_is_visited_once(num_rows: int) -> None:
    visits = np.zeros(num_rows, np.int64)

    def visit(first: int, last: int) -> None:
        visits[first:last] += 1

    over_rows(visit, num_rows)
    assert visits.tolist() == [1] * num_rows


def test_rel_error() -> None:
    x = np.array([[3, 4], [0, 0]], np.float32)
    assert rel_error(x, np.array([[3, 4], [1, 0]], np.float32)) == 1 / 25
    assert rel_error(x, x) == 0
    assert rel_error(np.zeros_like(x), x) == np.inf
    assert rel_error(np.zeros_like(x), np.zeros_like(x)) == 0
