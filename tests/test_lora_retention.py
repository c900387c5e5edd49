"""Retention of an adapter's effect: 1 for full precision itself, 0 where nothing is left."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "lora_retention"))

import retention  # noqa: E402

NUM = 40


def effect(share: float, noise: float = 0.0, seed: int = 0) -> retention.Effect:
    """A share of one effect, with noise of its own in each picture."""
    rng = np.random.default_rng(1)
    style, pixels = rng.normal(1, 1, (NUM, 8)), rng.normal(0, 1, (NUM, 12))
    color = rng.uniform(5, 9, NUM)
    own = np.random.default_rng(seed).normal(0, 1, (NUM, 8))
    fields = {
        "style": share * style + noise * own,
        "pixels": share * pixels,
        "color_without": np.full(NUM, 10.0),
        "color_with": 10 - share * color,
    }
    return cast(retention.Effect, SimpleNamespace(**fields))


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0, -0.5])
def test_retention_is_the_share_of_the_effect(share: float) -> None:
    everything = np.arange(NUM)
    kept = retention.shares(effect(share), effect(1.0), everything)
    assert kept == pytest.approx({"style": share, "picture": share, "color": share}, abs=1e-9)


def test_noise_that_two_effects_share_picture_by_picture_is_no_style() -> None:
    """One has the style and the noise, the other the noise alone: products of means would see
    1 / NUM of the noise's variance. The standard error is the spread over draws of the noise."""
    means, kept, errors = [], [], []
    for seed in range(100):
        noise, full = effect(0.0, 2.0, seed), effect(1.0, 2.0, seed)
        mean = full.style.mean(0)
        means.append(noise.style.mean(0) @ mean / (mean @ mean))
        difference = retention.with_errors(noise, full)["style"]
        kept.append(difference.value)
        errors.append(difference.standard_error)
    assert np.mean(means) > 0.06
    assert abs(np.mean(kept)) < 3 * np.std(kept) / 10
    assert np.mean(errors) == pytest.approx(np.std(kept), rel=0.35)


def test_gray_pictures_have_no_chroma() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    assert (retention.chroma(images) > 50).all()
    assert (retention.chroma(images[..., :1].repeat(3, -1)) == 0).all()
