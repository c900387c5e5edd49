"""Closed models that start from different priors, and their mean in the networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_informed import drawn
from test_probes import PROTOCOL, QUALITY, outcomes_of
from toy_unet import Toy

from qsdm.predictor import FitOptions, Predictor
from qsdm.predictor.encode import Encoding
from qsdm.predictor.fit import fit_folds
from qsdm.predictor.informed import Informed, Lessons
from qsdm.predictor.mean import Priors
from qsdm.predictor.posterior import learned_parts
from qsdm.predictor.probes import Probes, probes_of


@pytest.fixture(scope="module")
def probes(toy: Toy) -> Probes:
    return probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)


@pytest.fixture(scope="module")
def lessons(toy: Toy, encoding: Encoding, probes: Probes) -> Lessons:
    outcomes, _ = toy.outcomes(24)
    genes = np.stack([toy.space.encode(outcome.qconfig) for outcome in outcomes])
    values = np.array([QUALITY(outcome.metrics) for outcome in outcomes])
    return Lessons(encoding, toy.table, QUALITY, genes, values, None, probes, -20.0)


@pytest.fixture(scope="module")
def priors(lessons: Lessons, probes: Probes) -> Priors:
    """The drawn distances are the harm, as far as its square root tells, in another unit."""
    harm = 7 * np.abs(probes.harm) ** 0.5
    distances = dataclasses.replace(
        probes, harm=harm, standard_error=np.zeros_like(harm), fidelity="drawn"
    )
    return Priors.of(lessons, {"drawn": distances})


def test_the_mean_is_that_of_all_priors_and_the_deviation_of_the_best_probes(
    priors: Priors, encoding: Encoding
) -> None:
    assert priors.averaged == ("informed", "drawn", "no_probes")
    hot = drawn(encoding, 9, seed=3)
    rows = np.arange(20)
    own = [lessons.model(rows).predict(hot) for lessons in priors.lessons.values()]
    mean, deviation = priors.model(rows).predict(hot)
    np.testing.assert_allclose(mean, np.mean([m for m, _ in own], axis=0))
    np.testing.assert_array_equal(deviation, own[0][1])
    assert np.std([m for m, _ in own], axis=0).min() > 0


def test_a_single_kind_of_probes_is_not_averaged(lessons: Lessons) -> None:
    alone = Priors.of(lessons, {})
    assert not alone.is_mean
    assert list(alone.lessons) == ["informed", "no_probes"]
    rows = np.arange(12)
    assert alone.model(rows).models == (lessons.model(rows),)
    assert list(Priors.of(dataclasses.replace(lessons, probes=None), {}).lessons) == ["informed"]


def test_networks_start_from_the_mean(priors: Priors, encoding: Encoding) -> None:
    """Their first state adds nothing: predictions are those of the closed models, in any way that
    a predictor is asked."""
    import torch

    lessons = priors.best
    quick = FitOptions(folds=2, width=8, hops=1, epochs=1, patience=1, lr=1e-12)
    folds = fit_folds(encoding, lessons.genes, lessons.values, quick, informed=priors.model)
    assert [fold.gnn.forms for fold in folds] == [3, 3]
    predictor = Predictor(encoding, folds, {"fd_lite0": -1.0})
    genes = lessons.genes[:7]
    hot = encoding.one_hot(genes)
    everything = np.arange(len(lessons.values))
    expected = [priors.model(np.setdiff1d(everything, fold.test)).predict(hot)[0] for fold in folds]
    np.testing.assert_allclose(predictor.at(encoding.columns_of(genes)), expected, rtol=1e-5)
    relaxed = predictor.by_fold(torch.from_numpy(hot).float()).detach().numpy()
    np.testing.assert_allclose(relaxed, expected, rtol=1e-5)
    columns = encoding.columns_of(genes)
    learned = learned_parts(folds, columns, predictor.at(columns))
    np.testing.assert_allclose(learned / np.abs(expected), 0, atol=1e-5)


def test_draws_have_the_posteriors_mean_and_covariance(priors: Priors, encoding: Encoding) -> None:
    model: Informed = priors.best.model(np.arange(12))
    hot = drawn(encoding, 4, seed=8)
    features = [part.features(hot) for part in model.parts]
    rng = np.random.default_rng(0)
    draws = np.stack([
        sum(f @ b for f, b in zip(features, model.sampled(rng), strict=True))
        for _ in range(500)
    ])  # fmt: skip
    mean = model.predict(hot)[0] - model.prior.expected(hot)
    covariance = model.covariance(hot, hot)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / spread, 0, atol=0.16)
    units = np.outer(spread, spread)
    np.testing.assert_allclose(np.cov(draws.T) / units, covariance / units, atol=0.2)
    still = model.sampled(rng, spread=0.0)
    for values, expected in zip(still, model.coefficients(), strict=True):
        np.testing.assert_allclose(values, expected)
