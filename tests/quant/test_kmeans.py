"""Codebooks against the exact optimum and against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest
import torch

import qsdm
from qsdm.quant import kmeans
from qsdm.quant.lanes import LANES, best_of_lanes

RNG = np.random.default_rng(0)
N = 640
ROWS = {
    "normal": RNG.normal(0, 0.02, (6, N)),
    "laplace": RNG.laplace(0, 0.02, (6, N)),
    "student 4": 0.02 * RNG.standard_t(4, (6, N)),
    "student 2": 0.02 * RNG.standard_t(2, (6, N)),
    "uniform": RNG.uniform(-0.05, 0.05, (6, N)),
    "two humps": RNG.normal(0, 0.01, (6, N)) + RNG.choice([-0.3, 0.3], (6, N)),
    "far from zero": 1 + RNG.normal(0, 0.02, (6, N)),
    "outlier": np.concatenate([RNG.normal(0, 0.02, (6, N - 1)), np.full((6, 1), 100.0)], 1),
    "two outliers": np.concatenate(
        [RNG.normal(0, 0.02, (6, N - 2)), np.full((6, 1), 40.0), np.full((6, 1), -90.0)], 1
    ),
    "few values": RNG.choice(RNG.normal(0, 1, 40), (6, N)),
}
by_rows = pytest.mark.parametrize("name", ROWS)


def optimum(values: np.ndarray, K: int) -> float:
    """Least sum of squares of K clusters on a line: the textbook program over pairs, O(K n^2)."""
    x = np.sort(values.astype(np.float64))
    n = x.size
    s1, s2 = np.concatenate([[0], np.cumsum(x)]), np.concatenate([[0], np.cumsum(x * x)])
    count = np.arange(n + 1)[:, None] - np.arange(n + 1)[None]  # [i, j]: the points j ... i - 1
    within = s2[:, None] - s2[None] - np.square(s1[:, None] - s1[None]) / np.maximum(count, 1)
    within = np.where(count > 0, np.maximum(within, 0), np.where(count == 0, 0.0, np.inf))
    best = within[:, 0]
    for _ in range(1, K):
        best = (best[None] + within).min(1)
    return float(best[n])


def loss(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Sum of squares of every row to its nearest entries."""
    lines = np.broadcast_to(
        codebook.astype(np.float64).reshape(-1, 1, codebook.shape[-1]),
        (len(x), 1, codebook.shape[-1]),
    )
    return np.square(x[..., None] - lines).min(-1).sum(-1)


def halves(rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    weight = torch.from_numpy(rows).half()
    return weight.float().numpy(), weight


@by_rows
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kmeans_c_is_within_half_a_percent_of_the_optimum(name: str, bits: int) -> None:
    x, _ = halves(ROWS[name])
    codes, tensors = next(kmeans.fit_channels(x, (bits,)))
    actual = loss(x, tensors["codebook"])
    for row, value in zip(x, actual, strict=True):
        # fp16 rounds an entry by up to 2^-11 of itself, which is not an error of the fit.
        assert (
            value
            <= 1.005 * optimum(row, 2**bits) + N * (2.0**-12 * np.abs(np.median(row))) ** 2 + 1e-12
        )
    chosen = np.take_along_axis(tensors["codebook"].astype(np.float64), codes.astype(np.int64), 1)
    assert np.allclose(
        np.square(x - chosen).sum(1), actual, rtol=1e-6
    )  # every value has its nearest entry


@by_rows
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kmeans_a_is_optimal(name: str, bits: int) -> None:
    x, weight = halves(ROWS[name][:3])
    _, tensors = next(kmeans.fit_tensor(x, (bits,), weight))
    actual = loss(x.reshape(1, -1), tensors["codebook"])[0]
    rounding = x.size * (2.0**-12 * np.abs(np.median(x))) ** 2  # of the codebook, to fp16
    assert actual <= (1 + 1e-3) * optimum(x.reshape(-1), 2**bits) + rounding + 1e-12


def test_lanes_choose_the_first_of_the_best_below_the_end() -> None:
    @numba.njit
    def best(
        p0: np.ndarray, p1: np.ndarray, gain: np.ndarray, j: int, i: int, end: int
    ) -> tuple[float, int]:
        return best_of_lanes(p0, p1, gain, np.uint64(j), np.uint64(i), np.uint64(end))

    m, rng = 20, np.random.default_rng(0)
    p0, p1 = np.arange(m + LANES, dtype=float), np.zeros(m + LANES)
    p1[3:m] = 2.0
    gain = rng.integers(0, 3, m + LANES).astype(float)  # with ties
    gain[m:] = np.nan  # what lies behind is anything
    for j in range(m - 1):
        for end in range(j + 1, m):
            starts = np.arange(j, min(end, j + LANES))
            values = gain[starts] + (p1[m - 1] - p1[starts]) ** 2 / (p0[m - 1] - p0[starts])
            assert best(p0, p1, gain, j, m - 1, end) == (values.max(), j + values.argmax())


def test_rows_of_up_to_256_values_are_optimal() -> None:
    for n in (3, 16, 17, 100, 256):
        x, _ = halves(np.random.default_rng(n).standard_t(3, (4, n)))
        _, tensors = next(kmeans.fit_channels(x, (3,)))
        for row, value in zip(x, loss(x, tensors["codebook"]), strict=True):
            assert value <= (1 + 1e-3) * optimum(row, 8) + 1e-5 * n * 2.0**-10


@by_rows
@pytest.mark.parametrize("bits", [3, 4])
def test_never_worse_than_scikit_learn(name: str, bits: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = halves(ROWS[name])
    _, tensors = next(kmeans.fit_channels(x, (bits,)))
    theirs = 0.0
    for row in x:
        clusters = min(2**bits, np.unique(row).size)
        theirs += (
            cluster.KMeans(clusters, n_init=1, random_state=0)
            .fit(row[:, None].astype(np.float64))
            .inertia_
        )
    rounding = x.size * (2.0**-12 * np.abs(np.median(x))) ** 2
    assert loss(x, tensors["codebook"]).sum() <= 1.0001 * theirs + rounding + 1e-12


@pytest.fixture(scope="module")
def real_rows() -> list[np.ndarray]:
    """Rows of the shipped U-Net's weights, of 320 to 1,008 values."""
    from safetensors import safe_open

    (path,) = (Path(qsdm.__file__).parent / "zoo/emoji_unet/pipeline/unet").glob("*.safetensors")
    rng, rows = np.random.default_rng(0), []
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            weight = file.get_tensor(key)
            if weight.ndim > 1 and 256 < weight[0].numel() < 1024:
                x = weight.float().reshape(weight.shape[0], -1).numpy()
                rows.extend(x[rng.choice(len(x), 2)])
    return rows


def test_kmeans_c_of_real_rows_is_within_half_a_percent_of_the_optimum(
    real_rows: list[np.ndarray],
) -> None:
    assert len(real_rows) > 20
    for row in real_rows:
        for bits, (_, tensors) in zip((3, 4), kmeans.fit_channels(row[None], (3, 4)), strict=True):
            assert loss(row[None], tensors["codebook"])[0] <= 1.005 * optimum(row, 2**bits)


def test_kmeans_c_of_real_rows_is_never_worse_than_scikit_learn(
    real_rows: list[np.ndarray],
) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    for row in real_rows[::4]:
        for bits, (_, tensors) in zip((3, 4), kmeans.fit_channels(row[None], (3, 4)), strict=True):
            theirs = (
                cluster.KMeans(2**bits, n_init=1, random_state=0)
                .fit(row[:, None].astype(np.float64))
                .inertia_
            )
            assert loss(row[None], tensors["codebook"])[0] <= theirs


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [1.5, 3])
def test_kmeans_c_of_long_heavy_tails_is_within_half_a_percent_of_the_optimum(
    degrees: float,
) -> None:
    x, _ = halves(0.02 * np.random.default_rng(5).standard_t(degrees, (3, 2880)))
    for bits, (_, tensors) in zip((3, 4), kmeans.fit_channels(x, (3, 4)), strict=True):
        for row, value in zip(x, loss(x, tensors["codebook"]), strict=True):
            assert value <= 1.005 * optimum(row, 2**bits)


def test_distinct_counts_what_is_there() -> None:
    x = torch.tensor([[0.5, -1.0, 0.5, 0.0, -0.0, 3.0]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values, counts = kmeans.distinct(x.numpy(), x.to(dtype))
        merged = {v: counts[values == v].sum() for v in values}  # both zeros
        assert merged == {-1.0: 1, 0.0: 2, 0.5: 2, 3.0: 1}
        assert np.all(np.diff(values) >= 0)


def test_more_entries_than_values_leave_no_gap() -> None:
    x = np.array([[1.0, 2.0, 4.0]], np.float32)
    _, tensors = next(kmeans.fit_channels(x, (4,)))
    assert set(tensors["codebook"][0].tolist()) == {1.0, 2.0, 4.0}
    assert loss(x, tensors["codebook"])[0] == 0
