from __future__ import annotations

import numpy as np
from toy_unet import Toy

from qsdm.predictor import baselines
from qsdm.predictor.encode import Encoding
from qsdm.predictor.linear import Additive, fit_additive, ridge_dual
from qsdm.predictor.scores import srcc


def drawn(toy: Toy, num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([toy.space.encode(toy.space.sample(rng)) for _ in range(num)])


def test_ridge_finds_a_linear_law_and_does_not_chase_noise() -> None:
    rng = np.random.default_rng(0)
    weights, x, new = rng.normal(size=20), rng.normal(size=(60, 20)), rng.normal(size=(200, 20))
    np.testing.assert_allclose(
        baselines.ridge(x, x @ weights + 5, new), new @ weights + 5, atol=0.2
    )
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


def additive_of(
    toy: Toy, encoding: Encoding, num: int, noise: float
) -> tuple[Additive, np.ndarray, np.ndarray]:
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


def test_left_out_predictions_are_those_of_fits_without_the_label() -> None:
    """Leave-one-out from one fit equals refitting, features and mean included, to rounding."""
    rng = np.random.default_rng(0)
    x, labels, penalty = rng.normal(size=(12, 30)), rng.normal(size=12), np.array([0.7])

    def centred(rows: np.ndarray) -> np.ndarray:
        return x[rows] - x[rows].mean(axis=0)

    everything = np.arange(12)
    _, residual = ridge_dual(
        centred(everything) @ centred(everything).T, labels - labels.mean(), penalty
    )
    for i in range(12):
        rest = np.delete(everything, i)
        dual, _ = ridge_dual(
            centred(rest) @ centred(rest).T, labels[rest] - labels[rest].mean(), penalty
        )
        without = (x[i] - x[rest].mean(axis=0)) @ centred(rest).T @ dual + labels[rest].mean()
        np.testing.assert_allclose(labels[i] - without, residual[i])


def test_the_left_out_predictions_are_worse_than_the_fit(toy: Toy, encoding: Encoding) -> None:
    fitted, genes, labels = additive_of(toy, encoding, 40, noise=0.3)
    inside = np.abs(fitted(encoding.one_hot(genes)) - labels).mean()
    outside = np.abs(fitted.left_out - labels).mean()
    assert inside < outside < np.abs(labels - labels.mean()).mean()
