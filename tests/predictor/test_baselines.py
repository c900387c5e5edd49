from __future__ import annotations

import numpy as np
from toy_unet import Toy

from qsdm.predictor import baselines
from qsdm.predictor.encode import Encoding
from qsdm.predictor.linear import Additive, fit_additive
from qsdm.predictor.scores import srcc


def drawn(toy: Toy, num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([toy.space.encode(toy.space.sample(rng)) for _ in range(num)])


def test_ridge_finds_a_linear_law_and_does_not_chase_noise() -> None:
    rng = np.random.default_rng(0)
    weights, x, new = rng.normal(size=20), rng.normal(size=(60, 20)), rng.normal(size=(200, 20))
    np.testing.assert_allclose(baselines.ridge(x, x @ weights + 5, new), new @ weights + 5, atol=0.2)
    noise = baselines.ridge(x, rng.normal(size=60), new)
    assert noise.std() < 0.5


def test_baselines_know_bits_and_errors(toy: Toy) -> None:
    uniform = np.stack([toy.space.encode(toy.space.uniform(f"kmeans_a-{bits}")) for bits in (3, 4)])
    assert np.diff(baselines.avg_bits(toy.space, uniform)) > 0.9
    assert np.diff(baselines.error_sum(toy.space, toy.table, uniform)) > 0
    genes = drawn(toy, 5)
    expected = [toy.table.of(toy.space.decode(row))[0] for row in genes]
    np.testing.assert_allclose(baselines.decision_errors(toy.space, toy.table, genes), expected)
    assert (baselines.one_hot(toy.space, genes).sum(axis=1) == len(toy.space.options)).all()


def additive_of(toy: Toy, encoding: Encoding, num: int, noise: float) -> tuple[Additive, np.ndarray, np.ndarray]:
    """Fit to labels that are a sum over weights of sensitivity x error."""
    genes = drawn(toy, num)
    errors = baselines.decision_errors(toy.space, toy.table, genes)
    labels = -100 * errors @ toy.sensitivity
    labels = labels + noise * labels.std() * np.random.default_rng(1).normal(size=num)
    return fit_additive(encoding, encoding.one_hot(genes), labels), genes, labels


def test_the_additive_model_finds_an_additive_law(toy: Toy, encoding: Encoding) -> None:
    fitted, _, _ = additive_of(toy, encoding, 80, noise=0.01)
    new = drawn(toy, 100, seed=7)
    truth = -100 * baselines.decision_errors(toy.space, toy.table, new) @ toy.sensitivity
    assert srcc(fitted(encoding.one_hot(new)), truth) > 0.98
    assert (fitted.contributions[:, -1] == 0).all()
    np.testing.assert_allclose(fitted(encoding.full_precision()), fitted.offset)


def test_left_out_predictions_are_those_of_fits_without_the_label(toy: Toy, encoding: Encoding) -> None:
    """As far as the mean and the choice of the penalty, which stay those of all labels, allow."""
    fitted, genes, labels = additive_of(toy, encoding, 40, noise=0.1)
    hot = encoding.one_hot(genes)
    refitted = [
        fit_additive(encoding, np.delete(hot, i, axis=0), np.delete(labels, i))(hot[i : i + 1])[0] for i in range(10)
    ]
    inside = fitted(hot)[:10]
    assert np.abs(fitted.left_out[:10] - refitted).mean() < 0.5 * np.abs(inside - refitted).mean() + 1e-9
