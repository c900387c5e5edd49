from __future__ import annotations

import numpy as np
import pytest

from qsdm.predictor.hamming import Hamming, fit_hamming


def test_the_kernel_counts_the_weights_that_differ() -> None:
    genes = np.array([[0, 1, 2, 3], [0, 1, 2, 0], [4, 4, 4, 4]])
    kernel = Hamming(length=2.0)
    np.testing.assert_allclose(-2 * np.log(kernel(genes)), [[0, 1, 4], [1, 0, 4], [4, 4, 0]])
    np.testing.assert_allclose(kernel(genes[:1], genes[1:]), [np.exp([-0.5, -2])])
    assert (kernel.diag(genes) == 1).all()


def test_its_derivative_is_that_of_small_steps() -> None:
    genes = np.random.default_rng(0).integers(0, 3, (6, 5))
    value, derivative = Hamming(length=4.0)(genes, eval_gradient=True)
    above, below = (Hamming(length=4.0 * np.exp(s))(genes) for s in (1e-5, -1e-5))
    np.testing.assert_allclose(derivative[..., 0], (above - below) / 2e-5, atol=1e-9)
    np.testing.assert_array_equal(value, Hamming(length=4.0)(genes))


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_neighbors_of_labels_are_predicted(shift: float) -> None:
    """With intervals that hold what they promise, in the labels' units."""
    rng = np.random.default_rng(1)
    harm = rng.exponential(size=(12, 3))
    genes = rng.integers(0, 3, (300, 12))
    labels = shift - 50 * harm[np.arange(12), genes].sum(axis=1)
    predict = fit_hamming(genes[:200], labels[:200])
    mean, deviation = predict(genes[200:])
    assert np.corrcoef(mean, labels[200:])[0, 1] > 0.8
    inside = np.abs(mean - labels[200:]) < 1.96 * deviation
    assert 0.85 < inside.mean() <= 1
    known, _ = predict(genes[:200])
    assert np.abs(known - labels[:200]).mean() < np.abs(mean - labels[200:]).mean()
