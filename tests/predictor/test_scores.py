from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from qsdm.predictor.scores import ndcg, noise_ceiling, relevance, srcc


def test_srcc_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        a, b = rng.normal(size=(2, 30))
        if ties:
            a, b = a.round(), b.round()
        assert srcc(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert srcc(np.ones(5), np.arange(5)) == 0


def test_ndcg_is_1_for_the_right_order_and_less_for_any_other() -> None:
    labels = np.random.default_rng(0).permutation(30).astype(float)
    assert ndcg(labels, labels) == pytest.approx(1)
    assert ndcg(-labels, labels) == pytest.approx(0, abs=0.1)
    order = np.argsort(-labels)
    for place in (0, 4, 8):  # all ten places count, not the first alone
        swapped = labels.copy()
        swapped[order[[place, place + 1]]] = labels[order[[place + 1, place]]]
        assert ndcg(swapped, labels) < 1
    below = labels.copy()
    below[order[[12, 13]]] = labels[order[[13, 12]]]
    assert ndcg(below, labels) == pytest.approx(1)


def test_relevance_is_0_for_the_worst_fifth_and_50_for_the_best() -> None:
    labels = np.arange(101.0)
    gains = relevance(labels)
    assert (gains[:21] == 0).all()
    assert gains[-1] == 50
    assert (np.diff(gains[20:]) > 0).all()
    assert relevance(np.array([200.0]), low=0, high=100) == 50  # beyond the training part's best


def test_noise_ceiling_is_what_the_truth_reaches() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    noise = rng.normal(size=(4, 4000))  # of four pictures, halved in three ways
    ways = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    halves = np.array([[truth + noise[list(half)].mean(axis=0) for half in way] for way in ways])
    found = noise_ceiling(halves)
    assert found["ceiling"] == pytest.approx(srcc(truth, halves[0].mean(axis=0)), abs=0.02)
    assert found["halves_low"] <= found["halves"] <= found["halves_high"]
    assert found["halves"] < found["reliability"] < found["ceiling"] < 1
    assert noise_ceiling(np.array([[truth, -truth]]))["ceiling"] == 0
