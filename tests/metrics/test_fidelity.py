"""Laws of PSNR, SSIM and distances in features."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from qsdm.metrics import MetricError, fidelity
from qsdm.metrics.fidelity import CAP_DB, FeatureDistance, Lpips, Psnr, Ssim


def pictures(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 246, (4, 8, 8, 3), dtype=np.uint8)


def test_falls_by_20_db_for_ten_times_the_error() -> None:
    metric, full = Psnr(), pictures()
    one, ten = (metric.features(full + np.uint8(step), [], full) for step in (1, 10))
    np.testing.assert_allclose(one, 20 * np.log10(255), rtol=1e-6)
    np.testing.assert_allclose(one - ten, 20, rtol=1e-5)


def test_equal_pictures_have_the_cap() -> None:
    assert Psnr().reduce(Psnr().features(pictures(), [], pictures())) == pytest.approx(CAP_DB)


def test_is_not_defined_for_full_precision() -> None:
    features = Psnr().features(pictures(), [], None)
    assert len(features) == 4
    assert Psnr().reduce(features) is None


def test_refuses_pictures_of_another_shape() -> None:
    with pytest.raises(ValueError, match="same shape"):
        Psnr().features(pictures(), [], pictures()[:2])


@pytest.mark.parametrize("metric", [Ssim(), FeatureDistance()], ids=lambda metric: metric.name)
def test_more_noise_is_farther_from_the_picture(
    metric: Ssim | FeatureDistance, emoji: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=emoji.shape)
    noisy = [(emoji + width * noise).clip(0, 255).astype(np.uint8) for width in (0, 10, 40)]
    values = [metric.reduce(metric.features(images, [], emoji)) for images in noisy]
    assert values[0] == pytest.approx(1.0 if metric.larger_is_better else 0.0, abs=1e-5)
    assert values == sorted(values, reverse=metric.larger_is_better)
    assert metric.reduce(metric.features(emoji, [], None)) is None


def test_ssim_equals_the_textbook_for_one_flat_picture_and_another() -> None:
    """Without variance only luminance is left: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2."""
    a, b = (np.full((1, 16, 16, 3), value, np.uint8) for value in (51, 204))
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert Ssim().reduce(Ssim().features(a, [], b)) == pytest.approx(expected, rel=1e-4)


def test_lpips_gets_pairs_from_minus_1_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape == b.shape == (4, 3, 8, 8)
        assert -1 <= min(a.min(), b.min()) < -0.9 < 0.9 < max(a.max(), b.max()) <= 1
        return (a - b).mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr(fidelity, "_lpips", lambda _: network)
    shown, full = pictures(), pictures(1)
    features = Lpips().features(shown, [], full)
    np.testing.assert_allclose(
        features[:, 0], (shown.astype(float) - full).mean(axis=(1, 2, 3)) * 2 / 255, atol=1e-6
    )
    assert Lpips().reduce(Lpips().features(shown, [], None)) is None


def test_lpips_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(
        MetricError, match=r"lpips needs the packages .*pip install 'qsdm\[lpips\]'"
    ):
        Lpips().features(pictures(), [], pictures(1))
