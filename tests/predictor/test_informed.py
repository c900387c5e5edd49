from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from test_probes import PROTOCOL, QUALITY, outcomes_of
from toy_unet import Toy

from qsdm.outcome import Objective
from qsdm.predictor.encode import Encoding
from qsdm.predictor.informed import Informed, Noise, fit_informed, noise_of
from qsdm.predictor.kernels import Pairs, Sums, neighbors, within
from qsdm.predictor.linear import fit_additive
from qsdm.predictor.prior import Prior, bit_costs, prior_of
from qsdm.predictor.probes import Probes, probes_of
from qsdm.predictor.scores import srcc
from qsdm.qconfig import cost

FULL = -20.0  # label of full precision
QUIET = Noise(1e-4, 0.0, 1e-6)


@pytest.fixture(scope="module")
def probes(toy: Toy) -> Probes:
    return probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)


@pytest.fixture(scope="module")
def prior(toy: Toy, encoding: Encoding, probes: Probes) -> Prior:
    return expectation(toy, encoding, probes)


def expectation(
    toy: Toy,
    encoding: Encoding,
    probes: Probes | None,
    configurations: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    full: float | None = FULL,
    objective: Objective = QUALITY,
) -> Prior:
    if configurations is None or labels is None:
        configurations, labels = none(encoding)
    return prior_of(encoding, toy.table, probes, objective, full, configurations, labels)


def none(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, *encoding.allowed.shape)), np.empty(0)


def drawn(encoding: Encoding, num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = [len(offered) for offered in encoding.space.options]
    return encoding.one_hot(rng.integers(counts, size=(num, len(counts)))).astype(np.float64)


def measured(toy: Toy, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genes, labels and the labels of halves of the toy's law, which is not additive."""
    outcomes, _ = toy.outcomes(num, seed, noise=0.05)
    genes = np.stack([toy.space.encode(outcome.qconfig) for outcome in outcomes])
    halves = -np.array([outcome.halves["fd_lite0"] for outcome in outcomes])  # [B, S, 2]
    return genes, halves.mean(axis=(1, 2)), halves.transpose(1, 2, 0)


def test_without_labels_the_probes_predict(toy: Toy, encoding: Encoding, probes: Probes) -> None:
    prior = expectation(toy, encoding, probes)
    informed = fit_informed(prior, *none(encoding), QUIET)
    hot = drawn(encoding, 20)
    expected = FULL - np.einsum("bwm,wm->b", hot, probes.damage(toy.space, toy.table))
    np.testing.assert_array_equal(informed.predict(hot)[0], prior.expected(hot))
    np.testing.assert_allclose(informed.predict(hot)[0], expected)
    np.testing.assert_allclose(informed.predict(encoding.full_precision())[0], FULL)
    np.testing.assert_array_equal(informed.contributions(), prior.contributions)
    assert (informed.form() == 0).all()


def test_a_probe_that_improves_on_full_precision_counts_as_harmless(
    toy: Toy, encoding: Encoding, probes: Probes
) -> None:
    better = dataclasses.replace(probes, harm=-probes.harm)
    assert (expectation(toy, encoding, better).damage == 0).all()
    one = probes.harm.copy()
    one[3] *= -1
    damage = expectation(toy, encoding, dataclasses.replace(probes, harm=one)).damage
    assert (damage[3] == 0).all()
    assert (damage[4, :-1][encoding.allowed[4, :-1]] > 0).all()


def test_it_is_the_gaussian_process_of_its_kernel(encoding: Encoding, prior: Prior) -> None:
    """Mean, deviation, evidence and left-out predictions, by another library or by leaving out."""
    hot, new = drawn(encoding, 25), drawn(encoding, 12, seed=1)
    labels = prior.expected(hot) + np.random.default_rng(2).normal(0, 2, len(hot))
    noise = Noise(0.5, 0.05, 0.1)
    scales = np.array([*(part.scale for part in prior.parts()), 1.0, 1.0])
    informed = fit_informed(prior, hot, labels, noise, scales=scales)

    def features(x: np.ndarray) -> np.ndarray:
        pairs = zip(scales, prior.parts(), strict=False)
        return np.concatenate([scale * part.features(x) for scale, part in pairs], axis=1)

    variance = sum(noise.variances(prior.total(hot)))
    kernel = DotProduct(sigma_0=1e-9, sigma_0_bounds="fixed")
    process = GaussianProcessRegressor(kernel, alpha=variance, optimizer=None)
    process.fit(features(hot), labels - prior.expected(hot))
    mean, deviation = process.predict(features(new), return_std=True)
    found = informed.predict(new)
    np.testing.assert_allclose(found[0], prior.expected(new) + mean, rtol=1e-5)
    own = sum(noise.variances(prior.total(new)))
    np.testing.assert_allclose(found[1] ** 2, deviation**2 + own, rtol=1e-5)

    rest = np.arange(len(hot)) != 7
    without = fit_informed(prior, hot[rest], labels[rest], noise, scales=scales)
    mean, deviation = without.predict(hot[7:8])
    np.testing.assert_allclose(informed.left_out[7], mean[0], rtol=1e-5)
    np.testing.assert_allclose(informed.left_out_deviation[7], deviation[0], rtol=1e-5)


def test_scales_are_the_most_probable_ones(encoding: Encoding, prior: Prior) -> None:
    """The evidence of the found scales, by another library, falls in every direction."""
    hot = drawn(encoding, 30)
    rng = np.random.default_rng(3)
    labels = prior.expected(hot) - 0.5 * prior.total(hot) + rng.normal(0, 1, 30)
    noise = Noise(0.5, 0.0, 0.02)
    found = fit_informed(prior, hot, labels, noise)
    typical = np.array([*(part.scale for part in prior.parts()), 1.0, 1.0])

    def density(scales: np.ndarray) -> float:
        pairs = zip(scales, prior.parts(), strict=False)
        x = np.concatenate([scale * part.features(hot) for scale, part in pairs], axis=1)
        variances = noise.variances(prior.total(hot))
        alpha = sum(s**2 * v for s, v in zip(scales[-2:], variances, strict=True))
        kernel = DotProduct(sigma_0=1e-9, sigma_0_bounds="fixed")
        process = GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None)
        process.fit(x, labels - prior.expected(hot))
        away = np.log(scales / typical)
        return process.log_marginal_likelihood() - 0.5 * float(away @ away)

    best = density(found.scales)
    constant = 0.5 * len(hot) * np.log(2 * np.pi)
    assert best + constant == pytest.approx(found.evidence, rel=1e-5)
    assert best > density(typical)
    for j in range(len(typical)):
        for factor in (0.8, 1.25):
            moved = found.scales.copy()
            moved[j] *= factor
            assert density(moved) < best + 1e-4, prior.parts()[j].name


def test_more_labels_never_make_it_less_sure(encoding: Encoding, prior: Prior) -> None:
    hot, new = drawn(encoding, 40), drawn(encoding, 30, seed=1)
    labels = prior.expected(hot)
    typical = fit_informed(prior, *none(encoding), QUIET).scales
    noise = Noise(0.02 * prior.typical, 0.0, 0.02)
    first = before = np.full(len(new), np.inf)
    for num in (0, 1, 5, 20, 40):
        given = (hot[:num], labels[:num], noise)
        now = fit_informed(prior, *given, scales=typical).predict(new)[1]
        assert (now <= before * (1 + 1e-9)).all()
        first, before = (now if num == 0 else first), now
    assert (before < 0.7 * first).all()


@pytest.mark.parametrize("informed", [True, False])
def test_an_additive_law_is_learned_exactly(
    informed: bool, toy: Toy, encoding: Encoding, probes: Probes
) -> None:
    """Any law: each decision has a contribution of its own, whatever its probe said."""
    hot, new = drawn(encoding, 250), drawn(encoding, 50, seed=1)
    rng = np.random.default_rng(4)
    law = expectation(toy, encoding, probes).contributions * rng.lognormal(0, 0.7, (27, 7))
    labels, truth = (FULL + np.einsum("bwm,wm->b", x, law) for x in (hot, new))
    prior = expectation(toy, encoding, probes if informed else None, hot, labels)
    found = fit_informed(prior, hot, labels, QUIET).predict(new)[0]
    assert np.abs(found - truth).max() < 0.02 * truth.std()


def test_a_planted_interaction_is_recovered(encoding: Encoding, prior: Prior) -> None:
    hot, new = drawn(encoding, 300), drawn(encoding, 60, seed=1)
    edges = next(part for part in prior.parts() if part.name == "edges")
    assert isinstance(edges, Pairs)
    planted = int(np.argmax(edges.features(hot).std(axis=0)))
    noise = np.random.default_rng(5).normal(0, 0.02 * prior.typical, len(hot))
    labels = prior.expected(hot) - 2 * edges.features(hot)[:, planted] + noise
    truth = prior.expected(new) - 2 * edges.features(new)[:, planted]
    given = (hot, labels, Noise(0.02 * prior.typical, 0.0, 0.001))
    found = fit_informed(prior, *given)
    form, (a, b) = found.form(), edges.pairs[planted]
    spread = prior.amplitude.std(axis=1)
    effect = np.abs(form) * spread[:, None] * spread[None]
    assert set(np.unravel_index(effect.argmax(), effect.shape)) == {a, b}
    assert 2 * form[a, b] == pytest.approx(-2, rel=0.25)
    sums = [part for part in prior.parts() if isinstance(part, Sums)]
    blind = fit_informed(prior, *given, parts=sums)
    assert found.evidence > blind.evidence + 3
    errors = [np.sqrt(np.mean((x.predict(new)[0] - truth) ** 2)) for x in (found, blind)]
    assert errors[0] < 0.5 * errors[1]


def test_the_table_and_the_form_make_up_the_mean(encoding: Encoding, prior: Prior) -> None:
    hot, new = drawn(encoding, 30), drawn(encoding, 10, seed=1)
    labels = prior.expected(hot) + np.random.default_rng(6).normal(0, 3, 30)
    found = fit_informed(prior, hot, labels, Noise(1.0, 0.0, 0.02))
    amplitude = np.einsum("bwm,wm->bw", new, prior.amplitude)
    mean = prior.offset + np.einsum("bwm,wm->b", new, found.contributions())
    mean += np.einsum("bw,wv,bv->b", amplitude, found.form(), amplitude)
    np.testing.assert_allclose(found.predict(new)[0], mean)
    np.testing.assert_allclose(found.form(), found.form().T)
    assert (found.contributions()[:, -1] == 0).all()


def fitted(toy: Toy, encoding: Encoding, probes: Probes | None, num: int) -> Informed:
    genes, labels, halves = measured(toy, num)
    hot = encoding.one_hot(genes)
    prior = expectation(toy, encoding, probes, hot, labels)
    return fit_informed(prior, hot, labels, noise_of(prior, hot, halves))


def test_probes_spare_labels_and_intervals_are_honest(
    toy: Toy, encoding: Encoding, probes: Probes
) -> None:
    """On a law that is not additive; the share of test labels inside intervals of 68 % and 95 %."""
    genes, truth, _ = measured(toy, 200, seed=9)
    hot = encoding.one_hot(genes)
    ranks = {}
    for num in (0, 20, 80):
        for name, given in (("informed", probes), ("no probes", None)):
            if num == 0:
                prior = expectation(toy, encoding, given)
                model = fit_informed(prior, *none(encoding), QUIET)
            else:
                model = fitted(toy, encoding, given, num)
            mean, deviation = model.predict(hot)
            ranks[name, num] = srcc(mean, truth)
            if num == 80:
                away = np.abs(truth - mean) / deviation
                assert 0.5 < np.mean(away < 1) < 0.9, name
                assert np.mean(away < 1.96) > 0.85, name
    assert ranks["informed", 0] > ranks["no probes", 0] + 0.05
    assert ranks["informed", 20] > ranks["no probes", 20] + 0.02
    assert ranks["informed", 80] > 0.99
    train, labels, _ = measured(toy, 80)
    additive = fit_additive(encoding, encoding.one_hot(train), labels)
    assert ranks["no probes", 80] > srcc(additive(hot), truth) - 0.02


def test_probes_that_are_no_quality_get_their_scale_from_labels(
    toy: Toy, encoding: Encoding, probes: Probes
) -> None:
    hot = drawn(encoding, 12)
    labels = expectation(toy, encoding, probes).expected(hot)
    far = dataclasses.replace(probes, harm=1000 * probes.harm, fidelity="drawn")
    prior = expectation(toy, encoding, far, hot, labels)
    np.testing.assert_allclose(prior.expected(hot), labels)
    unknown = expectation(toy, encoding, far)
    assert srcc(unknown.expected(hot), labels) == pytest.approx(1)
    # Of full precision that was not measured, labels tell as well.
    prior = expectation(toy, encoding, far, hot, labels, full=None)
    assert prior.offset == pytest.approx(FULL)
    np.testing.assert_allclose(prior.expected(hot), labels)


def test_an_unknown_label_of_full_precision_is_learned(
    toy: Toy, encoding: Encoding, probes: Probes
) -> None:
    hot, new = drawn(encoding, 60), drawn(encoding, 20, seed=1)
    known = expectation(toy, encoding, probes)
    labels = known.expected(hot) + 0.2 * known.total(hot)
    prior = expectation(toy, encoding, probes, hot, labels, full=None)
    assert not prior.anchored
    found = fit_informed(prior, hot, labels, QUIET).predict(new)[0]
    np.testing.assert_allclose(found, known.expected(new) + 0.2 * known.total(new), rtol=0.02)


def test_costs_are_known_without_labels(toy: Toy, encoding: Encoding, probes: Probes) -> None:
    objective = Objective({"fd_lite0": -1, "avg_bits": -150})
    hot = drawn(encoding, 8)
    costs = bit_costs(toy.space, objective)
    for one in hot:
        genes = np.array(
            [int(np.flatnonzero(encoding.columns[w] == m)[0]) for w, m in enumerate(one.argmax(1))]
        )
        bits = cost.avg_bits(toy.space.graph, toy.space.decode(genes), toy.space.full_bits)
        assert (one * costs).sum() == pytest.approx(-150 * bits, rel=1e-6)
    full = FULL - 150 * 16
    prior = expectation(toy, encoding, probes, full=full, objective=objective)
    quality = expectation(toy, encoding, probes)
    np.testing.assert_allclose(prior.expected(encoding.full_precision()), full)
    np.testing.assert_allclose(
        prior.expected(hot), quality.expected(hot) + np.einsum("bwm,wm->b", hot, costs)
    )


def test_noise_is_what_halves_differ_by_beyond_captions(encoding: Encoding, prior: Prior) -> None:
    rng = np.random.default_rng(7)
    hot = drawn(encoding, 200)
    deviation = 0.3 + 0.05 * prior.total(hot)
    shared = rng.normal(0, 50, (16, 2, 1))  # captions: the same for all configurations
    own = rng.normal(0, 1, (16, 2, 200)) * deviation * 2**0.5
    noise = noise_of(prior, hot, shared + own)
    assert noise.least == pytest.approx(0.3, abs=0.1 * deviation.mean())
    assert noise.rising == pytest.approx(0.05, rel=0.2)
    assert noise_of(prior, hot, None).rising == 0.02
    assert noise_of(prior, hot[:4], (shared + own)[..., :4]).rising == 0.02
    full = np.repeat(encoding.full_precision(), 200, axis=0)  # no damage: nothing to rise with
    noise = noise_of(prior, full, shared + own)
    assert noise.rising == 0
    assert noise.least == pytest.approx(deviation.mean(), rel=0.2)


def test_a_label_that_is_not_finite_is_refused(encoding: Encoding, prior: Prior) -> None:
    hot = drawn(encoding, 3)
    with pytest.raises(ValueError, match="a label is not finite: measure this configuration"):
        fit_informed(prior, hot, np.array([1.0, np.nan, 2.0]), QUIET)


def test_neighbors_are_the_next_weights() -> None:
    """0 -> 1 -> (no weight) -> 2, and 0 -> 2 directly: 0 reaches both."""
    edges = [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)]
    np.testing.assert_array_equal(neighbors(edges, [0, 1, -1, 2, -1]), [[0, 1], [0, 2], [1, 2]])
    assert neighbors([(0, 1)], [0, 0]).shape == (0, 2)  # one weight, called twice
    np.testing.assert_array_equal(within(np.array([0, 1, 0, 0])), [[0, 2], [0, 3], [2, 3]])
