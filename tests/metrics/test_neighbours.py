"""Precision, recall, density and coverage: laws, and the authors' own package."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from qsdm.metrics.neighbours import NEAREST, QUANTITIES, Neighbours, neighbours, radii


def test_equals_the_authors_package(rng: np.random.Generator) -> None:
    from prdc import compute_prdc

    for shift, width in ((0.0, 1.0), (0.8, 1.0), (0.0, 0.4)):
        real, fake = rng.normal(size=(120, 6)), rng.normal(shift, width, size=(90, 6))
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = compute_prdc(real, fake, NEAREST)
        assert neighbours(fake, real, radii(real)) == pytest.approx(theirs)


def test_narrow_pictures_are_precise_and_recall_little(rng: np.random.Generator) -> None:
    real = rng.normal(size=(300, 4))
    narrow = neighbours(rng.normal(0, 0.2, (300, 4)), real, radii(real))
    wide = neighbours(rng.normal(0, 4.0, (300, 4)), real, radii(real))
    assert narrow["precision"] > 0.95 > 0.5 > narrow["recall"]
    assert wide["recall"] > wide["precision"]


@pytest.mark.parametrize("name", QUANTITIES)
def test_real_emoji_are_among_the_real_ones(
    name: str, emoji: np.ndarray, rng: np.random.Generator
) -> None:
    metric = Neighbours(name)
    noise = rng.integers(0, 256, emoji.shape, dtype=np.uint8)
    real, other = (metric.reduce(metric.features(images, [], None)) for images in (emoji, noise))
    assert real > other
    assert metric.reduce(metric.features(emoji[:NEAREST], [], None)) is None


def test_an_unknown_quantity_is_told() -> None:
    with pytest.raises(ValueError, match="wanted one of precision, recall, density, coverage"):
        Neighbours("accuracy")
