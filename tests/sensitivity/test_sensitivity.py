from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from toy_unet import Toy

from qsdm.predictor import Predictor
from qsdm.predictor.scores import srcc
from qsdm.sensitivity import AttributionOptions, Sensitivity, balanced_genes, by_decision
from qsdm.sensitivity.attribution import ablation, answer, integrated_gradients
from qsdm.sensitivity.faithfulness import additive_srcc, deletion, interventions
from qsdm.sensitivity.hops import hop_harms
from qsdm.sensitivity.tables import KINDS, groups_of, most_harmful, table


@pytest.fixture(scope="module")
def genes(toy: Toy) -> np.ndarray:
    return balanced_genes(toy.space, 12, np.random.default_rng(0))


def predicted(predictor: Predictor, configurations: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return answer(predictor)(torch.from_numpy(configurations)).double().numpy()


def drops(predictor: Predictor, genes: np.ndarray) -> np.ndarray:
    """f(full precision) - f(configuration)."""
    encoding = predictor.encoding
    return predicted(predictor, encoding.full_precision()) - predicted(
        predictor, encoding.one_hot(genes)
    )


def test_integrated_gradients_add_up(predictor: Predictor, genes: np.ndarray) -> None:
    harms, gaps = integrated_gradients(predictor, genes[:4], steps=64)
    drop = drops(predictor, genes[:4])
    np.testing.assert_allclose(harms.sum(axis=1) + gaps, drop, rtol=1e-4)
    assert np.abs(gaps / drop).max() < 0.02
    coarse = integrated_gradients(predictor, genes[:4], steps=2)[1]
    assert np.abs(gaps).mean() < np.abs(coarse).mean()


def test_integrated_gradients_of_folds_make_up_those_of_their_mean(
    predictor: Predictor, genes: np.ndarray
) -> None:
    from captum.attr import IntegratedGradients

    harms, _ = integrated_gradients(predictor, genes[:2], steps=8)
    whole = IntegratedGradients(answer(predictor)).attribute(
        torch.from_numpy(predictor.encoding.one_hot(genes[:2])),
        baselines=torch.from_numpy(predictor.encoding.full_precision()),
        n_steps=8,
    )
    np.testing.assert_allclose(harms, -whole.sum(dim=2).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_full_precision_harms_nobody(toy: Toy, predictor: Predictor) -> None:
    """A weight that keeps full precision gets nothing, whatever the others do."""
    from captum.attr import IntegratedGradients

    encoding = predictor.encoding
    x = encoding.one_hot(balanced_genes(toy.space, 2, np.random.default_rng(1)))
    x[:, :5] = encoding.full_precision()[:, :5]
    captums = IntegratedGradients(answer(predictor)).attribute(
        torch.from_numpy(x), baselines=torch.from_numpy(encoding.full_precision()), n_steps=8
    )
    assert not captums[:, :5].any()
    assert captums[:, 5:].any()


def test_an_additive_predictor_is_read_exactly(predictor: Predictor, genes: np.ndarray) -> None:
    """Every attribution of a sum is its terms."""
    shares = [fold.gnn.share.item() for fold in predictor.folds]
    for fold in predictor.folds:
        fold.gnn.share.fill_(0.0)
    try:
        terms = np.mean(
            [-f.deviation * f.gnn.additive.double().numpy() for f in predictor.folds], axis=0
        )
        columns = predictor.encoding.columns_of(genes)
        expected = terms[np.arange(len(terms)), columns]
        tolerance = 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(
            integrated_gradients(predictor, genes, 2)[0], expected, atol=tolerance
        )
        single = ablation(predictor, genes[:3], np.arange(len(terms)))
        np.testing.assert_allclose(single["to_full"], expected[:3], atol=tolerance)
        np.testing.assert_allclose(single["from_full"], expected[:3], atol=tolerance)
    finally:
        for fold, share in zip(predictor.folds, shares, strict=True):
            fold.gnn.share.fill_(share)


def test_ablation_of_a_group_is_the_difference_of_two_predictions(
    toy: Toy, predictor: Predictor, genes: np.ndarray
) -> None:
    names, groups = groups_of(toy.space, "role")
    harms = ablation(predictor, genes[:3], groups)
    encoding = predictor.encoding
    for g in range(len(names)):
        hot, full = encoding.one_hot(genes[:3]), np.repeat(encoding.full_precision(), 3, axis=0)
        restored, alone = hot.copy(), full.copy()
        restored[:, groups == g] = full[:, groups == g]
        alone[:, groups == g] = hot[:, groups == g]
        np.testing.assert_allclose(
            harms["to_full"][:, g],
            predicted(predictor, restored) - predicted(predictor, hot),
            rtol=1e-3,
            atol=1e-3,
        )
        np.testing.assert_allclose(
            harms["from_full"][:, g],
            predicted(predictor, full) - predicted(predictor, alone),
            rtol=1e-3,
            atol=1e-3,
        )
    everything = ablation(predictor, genes[:3], np.zeros(len(groups), dtype=np.int64))
    for direction in everything.values():
        np.testing.assert_allclose(
            direction[:, 0], drops(predictor, genes[:3]), rtol=1e-4, atol=1e-3
        )


def test_hops_count_by_their_quality(predictor: Predictor, genes: np.ndarray) -> None:
    harms = hop_harms(predictor, genes)
    assert harms.shape == (3, len(genes), genes.shape[1])
    for hop, quality in enumerate(np.mean([fold.hop_quality for fold in predictor.folds], axis=0)):
        assert harms[hop].any() == (quality > 0)
    same = genes[:2].copy()
    same[1, 3:] = (same[1, 3:] + 1) % 2
    same[1, :3] = same[0, :3]
    alone = hop_harms(predictor, same)[0]
    np.testing.assert_allclose(
        alone[0, :3], alone[1, :3], atol=1e-5
    )  # hop 0 sees its own decision alone


def test_balanced_genes_hold_every_option_equally_often(toy: Toy) -> None:
    genes = balanced_genes(toy.space, 12, np.random.default_rng(0))
    for column, offered in zip(genes.T, toy.space.options, strict=True):
        counts = Counter(column.tolist())
        assert set(counts) == set(range(len(offered)))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len({row.tobytes() for row in genes}) == 12


def test_by_decision_averages_over_the_configurations_that_took_it(
    toy: Toy, genes: np.ndarray
) -> None:
    scores = np.full((len(toy.space.options), len(toy.space.methods)), np.nan)
    for i, offered in enumerate(toy.space.options):
        scores[i, [toy.space.methods.index(m) for m in offered]] = np.arange(len(offered)) + 10 * i
    harms = genes + 10.0 * np.arange(genes.shape[1])
    np.testing.assert_array_equal(by_decision(toy.space, genes, harms), scores)


def test_sensitivity_survives_json_and_knows_its_bits(toy: Toy, genes: np.ndarray) -> None:
    scores = by_decision(toy.space, genes, genes.astype(float))
    names = tuple(weight.name for weight in toy.space.graph.weights)
    sensitivity = Sensitivity(
        names, toy.space.methods, scores, "integrated_gradients", {"deletion": 0.5}
    )
    again = Sensitivity.from_json(json.loads(json.dumps(sensitivity.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.scores, sensitivity.scores)
    assert (again.weights, again.methods, again.faithfulness) == (
        sensitivity.weights,
        sensitivity.methods,
        sensitivity.faithfulness,
    )
    assert (
        sensitivity.at_bits(4) > sensitivity.at_bits(3)
    ).all()  # options are sorted by bits, and the score is the option here
    assert np.isnan(sensitivity.at_bits(8)).all()
    with pytest.raises(ValueError, match="weights by methods"):
        Sensitivity(names, toy.space.methods[:1], scores, "hops")


def test_scores_are_compared_with_weights_measured_alone(toy: Toy) -> None:
    names = tuple(weight.name for weight in toy.space.graph.weights)
    scores = np.arange(len(names) * len(toy.space.methods), dtype=np.float64).reshape(
        len(names), -1
    )
    scores[0] = np.nan
    sensitivity = Sensitivity(names, toy.space.methods, scores, "hops")
    method = toy.space.methods[0]
    measured = {(name, method): 2.0 * i for i, name in enumerate(names) if i}
    same = {"interventions": pytest.approx(1.0), "interventions_srcc": pytest.approx(1.0)}
    assert interventions(sensitivity, measured) == same
    assert interventions(sensitivity, measured | {("of another graph", method): 0.0}) == same
    other = interventions(sensitivity, {key: -(harm**2) for key, harm in measured.items()})
    assert -1.0 < other["interventions"] < -0.9
    assert other["interventions_srcc"] == pytest.approx(-1.0)
    assert interventions(sensitivity, measured | {(names[0], method): 0.0}) == same, (
        "its score is not known"
    )
    assert interventions(sensitivity, dict(list(measured.items())[:2])) == {}


def test_faithful_scores_tell_themselves_from_others(
    toy: Toy, predictor: Predictor, genes: np.ndarray
) -> None:
    harms, _ = integrated_gradients(predictor, genes, steps=16)
    rng = np.random.default_rng(0)
    right, wrong = (deletion(predictor, genes[0], sign * harms[0], rng) for sign in (1, -1))
    assert right > 0.05 > -0.05 > wrong
    names = tuple(weight.name for weight in toy.space.graph.weights)
    sensitivity = Sensitivity(
        names, toy.space.methods, by_decision(toy.space, genes, harms), "integrated_gradients"
    )
    outcomes, _ = toy.outcomes(40, seed=3)
    rows = np.stack([toy.space.encode(outcome.qconfig) for outcome in outcomes])
    columns = predictor.encoding.columns_of(rows)
    assert additive_srcc(sensitivity, columns, predictor.predict(rows)[0]) > 0.6
    assert srcc(-drops(predictor, rows), predictor.predict(rows)[0]) == pytest.approx(1, abs=1e-3)


def test_tables_share_out_the_whole_harm(toy: Toy, predictor: Predictor, genes: np.ndarray) -> None:
    harms = np.abs(np.random.default_rng(0).normal(size=genes.shape))
    for kind in KINDS:
        names, groups = groups_of(toy.space, kind)
        zeros = np.zeros((len(genes), len(names)))
        rows = table(toy.space, kind, harms, zeros, zeros, harms)
        assert sum(row["integrated_gradients"] for row in rows) == pytest.approx(
            harms.sum(axis=1).mean()
        )
        assert sum(row["num_weights"] for row in rows) == len(groups)
        assert sum(row["share_of_values"] for row in rows) == pytest.approx(1)
        printed = most_harmful(kind, rows, limit=3)
        assert (
            max(rows, key=lambda row: row["integrated_gradients"])["name"]
            in printed.splitlines()[1]
        )


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be positive"):
        AttributionOptions(steps=0)
