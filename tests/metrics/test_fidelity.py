"""Laws of PSNR."""

from __future__ import annotations

import numpy as np
import pytest

from qsdm.metrics.fidelity import CAP_DB, Psnr


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
