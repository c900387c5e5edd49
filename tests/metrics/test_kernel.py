"""Maximum mean discrepancy: laws, and the estimate of torchmetrics where that one is defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qsdm.metrics import Metric
from qsdm.metrics.kernel import Cmmd, Kernel, KernelLite0, discrepancy, gaussian, polynomial


@pytest.mark.parametrize("kernel", [polynomial, gaussian])
def test_is_about_zero_for_one_distribution_and_grows_with_a_shift(
    kernel: Kernel, rng: np.random.Generator
) -> None:
    x, y = rng.normal(size=(400, 8)), rng.normal(size=(300, 8))
    same = [
        discrepancy(kernel, rng.normal(size=(100, 8)), rng.normal(size=(150, 8))) for _ in range(50)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / 50**0.5, "the estimate is not unbiased"
    distances = [discrepancy(kernel, x + shift, y) for shift in (0.0, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[2] > 5 * abs(distances[0])


def test_equals_torchmetrics_for_as_many_reference_pictures(rng: np.random.Generator) -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = rng.normal(size=(60, 16)), rng.normal(0.3, 1, size=(60, 16))
    theirs = poly_mmd(torch.from_numpy(y), torch.from_numpy(x)).item()
    assert discrepancy(polynomial, x, y) == pytest.approx(theirs, rel=1e-9)


def test_does_not_depend_on_the_number_of_pictures(rng: np.random.Generator) -> None:
    reference = rng.normal(size=(200, 8))
    few = np.mean(
        [discrepancy(polynomial, rng.normal(0.3, 1, (16, 8)), reference) for _ in range(400)]
    )
    many = np.mean(
        [discrepancy(polynomial, rng.normal(0.3, 1, (256, 8)), reference) for _ in range(25)]
    )
    assert few == pytest.approx(many, rel=0.15)


@pytest.mark.parametrize("metric", [KernelLite0(), Cmmd()], ids=lambda metric: metric.name)
def test_real_emoji_are_nearer_than_noise(
    metric: Metric, emoji: np.ndarray, rng: np.random.Generator
) -> None:
    noise = rng.integers(0, 256, emoji.shape, dtype=np.uint8)
    values = [
        metric.reduce(metric.features(images, ["x"] * len(images), None))
        for images in (emoji, noise)
    ]
    assert values[0] < values[1]
    assert "reference" in metric.version
