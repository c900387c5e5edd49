"""How sure predictions are: on data that is drawn from a law that we know."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_informed import drawn, expectation, none
from test_probes import PROTOCOL, QUALITY, outcomes_of
from toy_unet import Toy

from qsdm.predictor import FitOptions, Predictor
from qsdm.predictor.encode import Encoding
from qsdm.predictor.fit import fit_folds
from qsdm.predictor.informed import Informed, Noise, fit_informed
from qsdm.predictor.posterior import Posterior, calibrated
from qsdm.predictor.prior import Prior
from qsdm.predictor.probes import probes_of
from qsdm.predictor.update import Remembered, Updated
from qsdm.store import StoreError

NOISE = Noise(1.0, 0.05, 0.05)


@pytest.fixture(scope="module")
def prior(toy: Toy, encoding: Encoding) -> Prior:
    probes = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)
    return expectation(toy, encoding, probes)


def law(prior: Prior, rng: np.random.Generator, *sets: np.ndarray) -> list[np.ndarray]:
    """Labels of a world drawn from the model itself: coefficients, then noise."""
    labels = [prior.expected(hot) for hot in sets]
    for part in prior.parts():
        coefficients = rng.normal(0, part.scale, part.features(sets[0]).shape[1])
        labels = [
            y + part.features(hot) @ coefficients for y, hot in zip(labels, sets, strict=True)
        ]
    variances = [sum(NOISE.variances(prior.total(hot))) for hot in sets]
    return [y + rng.normal(0, 1, len(y)) * v**0.5 for y, v in zip(labels, variances, strict=True)]


def by_folds(
    prior: Prior, hot: np.ndarray, labels: np.ndarray, noise: Noise, scales: np.ndarray | None
) -> Posterior:
    """Calibrated as `train` does it, without networks."""
    held_out, deviations = np.empty(len(labels)), np.empty(len(labels))
    for part in np.array_split(np.random.default_rng(0).permutation(len(labels)), 4):
        rest = np.setdiff1d(np.arange(len(labels)), part)
        fold = fit_informed(prior, hot[rest], labels[rest], noise, scales=scales)
        held_out[part], deviations[part] = fold.predict(hot[part])
    model = fit_informed(prior, hot, labels, noise, scales=scales)
    return calibrated(model, labels, held_out, deviations)


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.5])
def test_calibrated_intervals_hold_what_they_promise(
    factor: float, encoding: Encoding, prior: Prior
) -> None:
    """Also of a model whose deviations are all wrong by a factor."""
    scales = factor * np.array([*(part.scale for part in prior.parts()), 1.0, 1.0])
    away: list[np.ndarray] = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        hot, new = drawn(encoding, 80, seed), drawn(encoding, 150, seed + 100)
        labels, truth = law(prior, rng, hot, new)
        posterior = by_folds(prior, hot, labels, NOISE, scales)
        mean = posterior.model.predict(new)[0]
        away.append((truth - mean) / posterior.variance(new) ** 0.5)
        plain = np.sqrt(np.mean(((truth - mean) / posterior.model.predict(new)[1]) ** 2))
        assert posterior.calibration == pytest.approx(plain, rel=0.3)
    z = np.abs(np.concatenate(away))
    assert np.mean(z < 1) == pytest.approx(0.683, abs=0.06)
    assert np.mean(z < 1.96) == pytest.approx(0.95, abs=0.03)


def test_scales_that_are_found_are_calibrated_too(encoding: Encoding, prior: Prior) -> None:
    away = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        hot, new = drawn(encoding, 60, seed), drawn(encoding, 150, seed + 100)
        labels, truth = law(prior, rng, hot, new)
        posterior = by_folds(prior, hot, labels, NOISE, None)
        away.append((truth - posterior.model.predict(new)[0]) / posterior.variance(new) ** 0.5)
    z = np.abs(np.concatenate(away))
    assert np.mean(z < 1) == pytest.approx(0.683, abs=0.07)
    assert np.mean(z < 1.96) == pytest.approx(0.95, abs=0.035)


def fitted(encoding: Encoding, prior: Prior) -> tuple[Informed, np.ndarray]:
    hot = drawn(encoding, 24)
    (labels,) = law(prior, np.random.default_rng(1), hot)
    return fit_informed(prior, hot, labels, NOISE), labels


def genes_of(encoding: Encoding, hot: np.ndarray) -> np.ndarray:
    return (encoding.columns[None] == hot.argmax(axis=2)[..., None]).argmax(axis=2)


@pytest.fixture(scope="module")
def predictor(encoding: Encoding, prior: Prior) -> Predictor:
    model, labels = fitted(encoding, prior)
    quick = FitOptions(folds=2, width=8, hops=1, epochs=3, patience=3)
    genes = genes_of(encoding, model.configurations)
    folds = fit_folds(encoding, genes, labels, quick)
    return Predictor(encoding, folds, {"fd_lite0": -1.0}, Posterior(model, 1.5))


def test_a_deviation_is_the_posteriors_and_what_the_networks_disagree_in(
    encoding: Encoding, prior: Prior, predictor: Predictor
) -> None:
    import torch

    hot = drawn(encoding, 30, seed=5)
    mean, deviation = predictor.predict(genes_of(encoding, hot))
    values = predictor.by_fold(torch.from_numpy(hot).float()).detach().numpy()
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-4)
    learned = []
    for fold, value in zip(predictor.folds, values, strict=True):
        closed = np.einsum("bwm,wm->b", hot, fold.gnn.additive.numpy()) + float(fold.gnn.offset)
        learned.append(value - fold.mean - fold.deviation * closed)
    assert predictor.posterior is not None
    expected = (1.5 * predictor.posterior.model.predict(hot)[1]) ** 2 + np.var(learned, axis=0)
    np.testing.assert_allclose(deviation**2, expected, rtol=1e-3)
    blind = dataclasses.replace(predictor, posterior=None)
    np.testing.assert_allclose(
        blind.predict(genes_of(encoding, hot))[1], values.std(axis=0), rtol=1e-2, atol=1e-3
    )


def test_a_saved_predictor_is_as_sure_as_before(
    toy: Toy, encoding: Encoding, predictor: Predictor, tmp_path: Path
) -> None:
    predictor.save(tmp_path)
    again = Predictor.load(tmp_path, toy.space, toy.table)
    genes = genes_of(encoding, drawn(encoding, 10, seed=6))
    for one, other in zip(predictor.predict(genes), again.predict(genes), strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "posterior.safetensors").unlink()
    with pytest.raises(StoreError, match=r"tells how sure.*run python -m qsdm\.train again"):
        Predictor.load(tmp_path, toy.space, toy.table)


def test_an_update_is_the_gaussian_process_of_all_outcomes(
    encoding: Encoding, prior: Prior
) -> None:
    """Conditioning a posterior gives what learning from everything at once gives."""
    hot, new = drawn(encoding, 30), drawn(encoding, 12, seed=1)
    labels = prior.expected(hot) + np.random.default_rng(2).normal(0, 2, len(hot))
    scales = np.array([*(part.scale for part in prior.parts()), 1.0, 1.0])
    first = fit_informed(prior, hot[:20], labels[:20], NOISE, scales=scales)
    everything = fit_informed(prior, hot, labels, NOISE, scales=scales)

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return first.predict(encoding.one_hot(genes).astype(np.float64))

    more = genes_of(encoding, hot[20:])
    updated = Updated.of(predict, encoding, Posterior(first), more, labels[20:])
    found = updated(genes_of(encoding, new))
    for own, expected in zip(found, everything.predict(new), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6)

    # Pretending changes no mean, and makes surer of what resembles the pretended.
    believed = updated.believing(genes_of(encoding, new[:3]))
    mean, deviation = believed(genes_of(encoding, new))
    np.testing.assert_allclose(mean, found[0], rtol=1e-6)
    assert (deviation <= found[1] * (1 + 1e-9)).all()
    assert (deviation[:3] < 0.95 * found[1][:3]).all()

    nothing = Updated.of(predict, encoding, Posterior(first), more[:0], labels[:0])
    np.testing.assert_array_equal(nothing(more)[0], predict(more)[0])


def test_a_remembered_configuration_is_predicted_once(encoding: Encoding) -> None:
    asked: list[int] = []

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(genes))
        return genes.sum(axis=1).astype(float), genes[:, 0].astype(float)

    remembered = Remembered(predict)
    genes = genes_of(encoding, drawn(encoding, 9))
    for rows in ([0, 1, 1, 2], [2, 0], list(range(9))):
        mean, deviation = remembered(genes[rows])
        np.testing.assert_array_equal(mean, genes[rows].sum(axis=1))
        np.testing.assert_array_equal(deviation, genes[rows, 0])
    assert asked == [3, 6]


def test_an_untrained_prior_needs_no_labels(encoding: Encoding, prior: Prior) -> None:
    model = fit_informed(prior, *none(encoding), NOISE)
    hot = drawn(encoding, 5)
    covariance = model.covariance(hot, hot)
    np.testing.assert_allclose(
        np.diag(covariance) + model.noise_variance(hot), model.predict(hot)[1] ** 2
    )
