"""What to measure next: the expected gain against simulation, and the batch rule."""

from __future__ import annotations

import numpy as np
import pytest

from qsdm.strategies.acquisition import (
    Region,
    choose_batch,
    expected_gain,
    expected_improvement,
)

SIZE = np.array([100.0, 140.0, 120.0, 200.0])
QUALITY = np.array([-9.0, -5.0, -4.0, -2.0])


def test_volume_is_the_mean_height_of_the_front() -> None:
    region = Region.of(SIZE, QUALITY)
    assert region == Region(100, 201, -9)
    # From 100 on -9, from 120 on -4 (140 bytes are dominated), from 200 on -2.
    assert region.volume(SIZE, QUALITY) == pytest.approx((20 * 0 + 80 * 5 + 1 * 7) / 101)
    one = Region.of(SIZE, QUALITY, max_bytes=150)
    assert one.volume(SIZE, QUALITY) == pytest.approx(-4 - -9)
    assert one.volume(SIZE[3:], QUALITY[3:]) == 0  # larger than the size that matters
    edges, best = region.steps(SIZE, QUALITY)
    np.testing.assert_array_equal(edges, [100, 120, 140, 200, 201])
    np.testing.assert_array_equal(best, [-9, -4, -4, -2])


def test_an_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="from low to high"):
        Region(5, 5, 0)


def test_improvement_is_that_of_a_simulation() -> None:
    rng = np.random.default_rng(0)
    mean, deviation, best = np.array([1.0, -1.0, 0.3]), np.array([0.5, 2.0, 0.1]), 0.4
    drawn = mean + deviation * rng.normal(size=(400_000, 3))
    expected = np.maximum(drawn - best, 0).mean(axis=0)
    found = expected_improvement(mean, deviation, np.full(3, best))
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-3)
    np.testing.assert_array_equal(
        expected_improvement(mean, np.zeros(3), np.full(3, best)), [0.6, 0, 0]
    )


@pytest.mark.parametrize("max_bytes", [None, 150.0])
def test_gain_is_that_of_a_simulation(max_bytes: float | None) -> None:
    """The mean of what `Region.volume`, by pymoo's hypervolume, gains if a draw is measured."""
    rng = np.random.default_rng(1)
    region = Region.of(SIZE, QUALITY, max_bytes)
    before = region.volume(SIZE, QUALITY)
    size, mean, deviation = (
        np.array(v) for v in ([90.0, 130.0, 190.0, 300.0], [-6.0, -3, -1, 5], [2.0, 1, 3, 1])
    )
    gain = expected_gain(region, region.steps(SIZE, QUALITY), size, mean, deviation)
    for i in range(4):
        draws = mean[i] + deviation[i] * rng.normal(size=1500)
        after = [region.volume(np.append(SIZE, size[i]), np.append(QUALITY, q)) for q in draws]
        error = np.std(after) / 1500**0.5
        assert gain[i] == pytest.approx(np.mean(after) - before, abs=4 * error + 1e-9)
    assert gain[3] == 0  # too large to count
    exact = expected_gain(region, region.steps(SIZE, QUALITY), size, mean, np.zeros(4))
    for i in range(4):
        after_one = region.volume(np.append(SIZE, size[i]), np.append(QUALITY, mean[i]))
        assert exact[i] == pytest.approx(after_one - before)


class Known:
    """Means by the number of ones; deviations that vanish where something alike is believed."""

    def __init__(self, believed: list[np.ndarray] | None = None) -> None:
        self.believed = believed or []

    def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        deviation = np.ones(len(genes))
        for other in self.believed:
            deviation[(genes != other).mean(axis=1) < 0.3] = 0.01
        return genes.sum(axis=1) / 10, deviation

    def believing(self, genes: np.ndarray) -> Known:
        return Known([*self.believed, *genes])


def test_a_batch_spreads_over_what_is_unlike() -> None:
    base = np.zeros((1, 40), dtype=np.int64)
    base[0, :20] = 1
    copies = np.repeat(base, 6, axis=0)
    copies[np.arange(6), np.arange(6) + 20] = 1  # one gene more each: the best means
    other = 1 - base  # as good as the base, and unlike it
    genes = np.concatenate([copies, other])
    size, region = np.full(7, 50.0), Region(50, 51, -5)
    measured = (np.array([50.0]), np.array([1.0]))
    chosen = choose_batch(Known(), genes, size, region, measured, 3)
    assert chosen[0] < 6
    assert chosen[1] == 6
    assert len(set(chosen)) == 3  # then a copy, for nothing else is left
    assert choose_batch(Known(), genes[:0], size[:0], region, measured, 3) == []
    assert len(choose_batch(Known(), genes, size, region, measured, 99)) == 7


def test_the_uncertain_is_chosen_before_the_slightly_better() -> None:
    class Two(Known):
        def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.where(genes[:, 0] == 1, 1.2, 1.0), np.where(genes[:, 0] == 1, 0.1, 3.0)

    genes = np.array([[1, 0], [0, 1]])
    measured = (np.array([50.0]), np.array([1.1]))
    assert choose_batch(Two(), genes, np.full(2, 50.0), Region(50, 51, 0), measured, 1) == [1]
