"""What rounded inputs do is learned from pairs of outcomes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_probes import PROTOCOL, QUALITY, outcomes_of
from toy_unet import Toy

from qsdm.measure import sample
from qsdm.measurement.rounded import random_widths
from qsdm.outcome import Outcome
from qsdm.predictor.probes import Probes, probes_of
from qsdm.predictor.rounding import learn_rounding, one_hot, rounding_labels
from qsdm.predictor.scores import srcc

BITS = (16, 8, 6, 4)
PROTOCOLS = {PROTOCOL.digest: PROTOCOL}


@pytest.fixture(scope="module")
def probes(toy: Toy) -> Probes:
    return probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)


def errors(toy: Toy) -> np.ndarray:
    level = np.random.default_rng(5).lognormal(0, 0.5, len(toy.space.options))
    return np.outer(level, 4.0 ** -np.array([8, 6, 4]))


def measured(toy: Toy, law: np.ndarray, num: int = 24) -> list[Outcome]:
    """Outcomes of random configurations with and without rounding, whose harm adds up."""
    rng = np.random.default_rng(3)
    plain = sample(toy.space, num, 0)
    rounded = random_widths(toy.space.graph, plain, BITS, 0)
    harm = np.einsum("bwk,wk->b", one_hot(toy.space.graph, rounded, BITS[1:]), law)
    base = rng.normal(200, 40, num)
    noise = rng.normal(0, 0.02 * harm.std(), (num, 2))
    added = harm[:, None] + noise - noise.mean(axis=1, keepdims=True)
    found = []
    for qconfigs, values in ((plain, base[:, None] + 0 * noise), (rounded, base[:, None] + added)):
        for qconfig, halves in zip(qconfigs, values, strict=True):
            value = {"fd_lite0": float(halves.mean())}
            pairs = {"fd_lite0": ((float(halves[0]), float(halves[1])),)}
            found.append(Outcome(qconfig, PROTOCOL.digest, value, 64, pairs))
    return found


def test_what_weights_do_cancels_out_and_labels_correct_the_probes(
    toy: Toy, probes: Probes
) -> None:
    graph, error = toy.space.graph, errors(toy)
    expected = probes.harm[:, 0] / probes.error[:, 0]
    factor = np.random.default_rng(1).lognormal(0, 1, len(expected))
    law = np.concatenate([(expected * factor)[:, None] * error, np.zeros((len(error), 1))], axis=1)
    outcomes = measured(toy, law)
    labels = rounding_labels(outcomes, PROTOCOLS, QUALITY)
    assert len(labels) == 24
    assert labels.bits == (8, 6, 4)
    hot = one_hot(graph, [o.qconfig for o in labels.outcomes], labels.bits)
    np.testing.assert_allclose(labels.values, -np.einsum("bwk,wk->b", hot, law), atol=1e-9)
    model = learn_rounding(graph, probes, error, labels)
    untaught = srcc(labels.values, model.model.prior.expected(hot))
    assert srcc(labels.values, model.model.left_out) > untaught > 0.3
    assert (np.diff(model.harm[:, :-1], axis=1) >= 0).all()  # of 8, 6 and 4 bits
    assert (model.harm[:, -1] == 0).all()
    assert (model.harm >= model.model.prior.damage / 2).all()  # nothing is free
    np.testing.assert_allclose(
        model.predict([o.qconfig for o in labels.outcomes]), model.model.predict(hot)[0]
    )
    with pytest.raises(ValueError, match=r"wanted inputs of 8, 6, 4, 16 bits.*got 5 for"):
        model.predict([outcomes[0].qconfig.with_activations(5)])


def test_a_pair_needs_both(toy: Toy) -> None:
    outcomes = measured(toy, np.zeros((len(toy.space.options), 4)), 4)
    assert len(rounding_labels(outcomes[1:], PROTOCOLS, QUALITY)) == 3  # a plain one is missing
    lacking = dataclasses.replace(outcomes[-1], metrics={"fd_lite0": None})
    assert len(rounding_labels([*outcomes[:-1], lacking], PROTOCOLS, QUALITY)) == 3


def test_weights_that_were_measured_with_more_pictures_count_by_their_first(toy: Toy) -> None:
    outcomes = measured(toy, np.ones((len(toy.space.options), 4)), 4)
    more = dataclasses.replace(PROTOCOL, num_images=4 * PROTOCOL.num_images)
    first = {PROTOCOL.num_images: {"fd_lite0": 100.0}}
    plain = [
        dataclasses.replace(o, protocol=more.digest, num_images=more.num_images, prefixes=first)
        for o in outcomes[:4]
    ]
    both = PROTOCOLS | {more.digest: more}
    labels = rounding_labels([*plain, *outcomes[4:]], both, QUALITY)
    np.testing.assert_allclose(
        labels.values, [100 - float(o.metrics["fd_lite0"] or 0) for o in outcomes[4:]]
    )
    assert labels.halves is None
    other = dataclasses.replace(more, seed_set=1)
    elsewhere = [dataclasses.replace(o, protocol=other.digest) for o in plain]
    both = PROTOCOLS | {other.digest: other}
    assert len(rounding_labels([*elsewhere, *outcomes[4:]], both, QUALITY)) == 0


def test_random_widths_are_those_of_a_shorter_list_and_leave_methods(toy: Toy) -> None:
    graph, plain = toy.space.graph, sample(toy.space, 6, 0)
    rounded = random_widths(graph, plain, BITS, 0)
    assert random_widths(graph, plain[:2], BITS, 0) == rounded[:2]
    assert [q.methods for q in rounded] == [q.methods for q in plain]
    assert {bits for q in rounded for bits in q.inputs.values()} == set(BITS)
    by_parameter: dict[str, set[int]] = {}
    for weight in graph.weights:
        by_parameter.setdefault(weight.parameter, set()).add(rounded[0].inputs[weight.name])
    assert all(len(own) == 1 for own in by_parameter.values())
