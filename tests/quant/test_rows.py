from __future__ import annotations

import numpy as np
import pytest

from qsdm.quant.rows import coded_power_sums, extent, fast, half, over_rows, pow24, power_sums


@fast
def _halves(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.shape[0]):
        out[i] = half(x[i])


@fast
def _powers(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.shape[0]):
        out[i] = pow24(x[i])


def test_half_is_numpys_float16() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float32)
    x = np.concatenate(
        [halves, np.nextafter(halves, np.float32(np.inf)), (halves + np.roll(halves, 1)) / 2]
    )
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


@pytest.mark.parametrize("shape", [(1, 1), (3, 127), (20, 300)])
def test_extent(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x[0, 0] = -0.0
    for values in (*x, -np.abs(x[0]), np.abs(x[-1])):
        assert extent(values) == (values.min(), values.max())


@pytest.mark.parametrize("n", [1, 127, 128, 1000])
@pytest.mark.parametrize("group", [32, 2000])
def test_power_sums(n: int, group: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_t(3, (5, n)).astype(np.float32)
    codes = rng.integers(0, 8, (5, n)).astype(np.uint8)
    groups = -(-n // group)
    table = rng.normal(size=(5 * groups, 8)).astype(np.float32)
    y = np.take_along_axis(
        table.reshape(5, groups, 8)[:, np.arange(n) // group], codes[..., None].astype(int), 2
    )[..., 0]
    x[0, 0] = y[0, 0]
    off = np.abs(x.astype(np.float64) - y)
    expected = [np.sum(off**2), np.sum(off**2.4)]
    np.testing.assert_allclose(power_sums(x, y), expected, rtol=2e-5)
    np.testing.assert_allclose(coded_power_sums(x, codes, table, group), expected, rtol=2e-5)
    assert power_sums(x, x).tolist() == [0, 0]
    np.testing.assert_array_equal(power_sums(x, y[:1]), power_sums(x, np.repeat(y[:1], 5, 0)))
