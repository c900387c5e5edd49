"""Closed models of single metrics: the mean of the informed model, in the metric's units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from outcomes import PROTOCOL
from toy_unet import Toy

from qsdm.measurement.decibels import in_decibels, squared
from qsdm.measurement.labels import Bank
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.by_metric import metric_model
from qsdm.predictor.encode import Encoding, errors
from qsdm.predictor.informed import Lessons
from qsdm.qconfig import QuantConfig, QuantMethod

METHOD = QuantMethod("uaq", 3)


@pytest.fixture(scope="module")
def bank(toy: Toy) -> Bank:
    """Labels with a loss, a distance that grows with the error, and a similarity that falls."""
    rng = np.random.default_rng(0)
    error = np.nan_to_num(errors(toy.space, toy.table))
    columns = {method: i for i, method in enumerate(toy.table.methods)}
    sensitivity = rng.lognormal(0, 1, len(error))
    outcomes = []
    for _ in range(40):
        qconfig = toy.space.sample(rng)
        rows = [columns[method] for method in qconfig.methods.values()]
        total = float((sensitivity * error[np.arange(len(rows)), rows]).sum())
        metrics = {
            "fd": 200 + 9 * total,
            "distance": 30 * total,
            "similarity": 40 - 5 * total,
            "psnr": -10 * float(np.log10(1e-3 * total)),
        }
        outcomes.append(Outcome(qconfig, PROTOCOL.digest, metrics, 8))
    return Bank(toy.space, outcomes, {PROTOCOL.digest: PROTOCOL})


@pytest.mark.parametrize(("name", "larger"), [("distance", False), ("similarity", True)])
def test_it_is_the_mean_of_the_closed_model_in_units_of_the_metric(
    toy: Toy, encoding: Encoding, bank: Bank, name: str, larger: bool
) -> None:
    labels = bank.labels(Objective({"fd": -1}), 0, 8)
    model = metric_model(bank, encoding, toy.table, labels, name, larger)
    genes = np.stack([toy.space.encode(toy.space.sample(np.random.default_rng(7)))] * 2)
    genes = np.concatenate([genes, labels.genes[:5]])

    objective = Objective({name: 1 if larger else -1})
    own = bank.labels(objective, 0, 8)
    lessons = Lessons.of(encoding, toy.table, objective, own, None, None)
    closed = lessons.model(np.arange(len(own)))
    mean, _ = closed.predict(encoding.one_hot(genes).astype(np.float64))
    assert model.sign * model(genes) == pytest.approx(mean, rel=1e-6)
    assert model.srcc > 0.9
    measured = [outcome.metrics[name] for outcome in labels.outcomes[:5]]
    assert model(labels.genes[:5]) == pytest.approx(measured, rel=0.1)


def test_psnr_is_learned_as_the_squared_error_which_adds_up(
    toy: Toy, encoding: Encoding, bank: Bank
) -> None:
    labels = bank.labels(Objective({"fd": -1}), 0, 8)
    model = metric_model(bank, encoding, toy.table, labels, "psnr", True)
    measured = np.array([outcome.metrics["psnr"] for outcome in labels.outcomes])
    assert np.abs(model(labels.genes) - measured).max() < 0.02  # dB
    assert in_decibels(squared(measured)) == pytest.approx(measured)


def test_the_mean_counts_of_all_priors(toy: Toy, encoding: Encoding, bank: Bank) -> None:
    labels = bank.labels(Objective({"fd": -1}), 0, 8)
    full = Outcome(QuantConfig(toy.space.graph.denoiser, {}), PROTOCOL.digest, {"distance": 0.0}, 8)
    alone = [
        Outcome(
            QuantConfig(toy.space.graph.denoiser, {weight.name: METHOD}),
            PROTOCOL.digest,
            {"distance": 1.0 + i},
            8,
        )
        for i, weight in enumerate(toy.space.graph.weights)
    ]
    probed = Bank(toy.space, [*bank.outcomes, full, *alone], bank.protocols)
    model = metric_model(probed, encoding, toy.table, labels, "distance", False)
    hot = encoding.one_hot(labels.genes).astype(np.float64)
    means = [one.predict(hot)[0] for one in model.mean.models]
    assert len(means) == 2
    assert not np.allclose(*means, rtol=1e-3)
    assert -model(labels.genes) == pytest.approx(np.mean(means, axis=0), rel=1e-6)


def test_a_metric_that_labels_lack_is_refused_with_those_they_hold(
    toy: Toy, encoding: Encoding, bank: Bank
) -> None:
    labels = bank.labels(Objective({"fd": -1}), 0, 8)
    with pytest.raises(
        ValueError, match=r"hold no 'lpips' \(they hold distance, fd, psnr, similarity\)"
    ):
        metric_model(bank, encoding, toy.table, labels, "lpips", False)


def test_what_a_search_has_proposed_counts_as_well(
    toy: Toy, encoding: Encoding, bank: Bank
) -> None:
    asked = [replace(outcome, provenance={"stage": "rounds"}) for outcome in bank.outcomes[::2]]
    mixed = replace(bank, outcomes=[*asked, *bank.outcomes[1::2]])
    whole = replace(bank, outcomes=[*bank.outcomes[::2], *bank.outcomes[1::2]])
    labels = mixed.labels(Objective({"fd": -1}), 0, 8)
    assert len(labels) == len(bank.outcomes) // 2
    some, every = (
        metric_model(one, encoding, toy.table, labels, "distance", False) for one in (mixed, whole)
    )
    assert some(labels.genes) == pytest.approx(every(labels.genes))
