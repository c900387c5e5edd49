from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_informed import QUALITY, none
from toy_unet import Toy, make_toy, method_table

from qsdm.graph import Op
from qsdm.predictor.encode import Encoding, encode
from qsdm.predictor.informed import Noise, fit_informed
from qsdm.predictor.prior import prior_of
from qsdm.predictor.transfer import NoTransfer, Teacher, features, transferred, worst
from qsdm.qconfig import Space


def law(encoding: Encoding) -> np.ndarray:
    """A damage per error that is a product of factors of shared features."""
    x = features(encoding)
    return np.exp(0.5 * x[:, 6] - 0.3 * x[:, 5])  # depth, share of the size


def teacher(toy: Toy, encoding: Encoding, scale: float = 1.0) -> Teacher:
    _, error = worst(encoding.space, toy.table)
    return Teacher(encoding, scale * law(encoding) * error, error)


def test_a_law_that_denoisers_share_is_transferred(toy: Toy, encoding: Encoding) -> None:
    """Up to its scale, which labels tell."""
    others = [make_toy(seed, levels=levels) for seed, levels in ((5, 2), (6, 4))]
    encodings = [encode(other.space, other.table) for other in others]
    teachers = [
        teacher(*one, scale) for *one, scale in zip(others, encodings, (1.0, 400.0), strict=True)
    ]
    probes = transferred(teachers, encoding, toy.table)
    assert probes.fidelity == "transferred"
    assert probes.num_images == 0
    rate = probes.harm[:, 0] / probes.error[:, 0]
    assert np.corrcoef(np.log(rate), np.log(law(encoding)))[0, 1] > 0.9
    probes.require(toy.space)
    again = transferred(teachers[::-1], encoding, toy.table)
    np.testing.assert_allclose(again.harm, probes.harm, rtol=0.02)


def test_features_that_say_nothing_leave_the_errors_alone(toy: Toy, encoding: Encoding) -> None:
    _, error = worst(toy.space, toy.table)
    probes = transferred([Teacher(encoding, 7 * error, error)], encoding, toy.table)
    np.testing.assert_allclose(
        probes.harm[:, 0] / error, np.mean(probes.harm[:, 0] / error), rtol=1e-3
    )


def test_a_teacher_knows_the_damage_of_its_closed_model(toy: Toy, encoding: Encoding) -> None:
    prior = prior_of(encoding, toy.table, None, QUALITY, -20.0, *none(encoding))
    informed = fit_informed(prior, *none(encoding), Noise(1.0, 0.0, 0.1))
    teacher = Teacher.of(encoding, toy.table, informed)
    columns, error = worst(toy.space, toy.table)
    rows = np.arange(encoding.num_weights)
    np.testing.assert_allclose(teacher.damage, prior.damage[rows, columns])
    assert (prior.error[rows, columns] >= prior.error[:, :-1].max(axis=1)).all()
    assert (error > 0).all()


def test_denoisers_without_anything_in_common_are_refused(toy: Toy, encoding: Encoding) -> None:
    space = Space.of(toy.space.graph, ["uaq-3", "uaq-4"])
    table = method_table(space)
    fewer = encode(space, table)
    taught = Teacher(fewer, *worst(space, table)[::-1])
    with pytest.raises(NoTransfer, match=r"different methods .kmeans_a-3.* the same space"):
        transferred([taught], encoding, toy.table)
    graph = encoding.space.graph
    nodes = [
        dataclasses.replace(node, op=Op.EMBEDDING) if node.weight is not None else node
        for node in graph.nodes
    ]
    alien = dataclasses.replace(
        encoding, space=dataclasses.replace(
            toy.space, graph=dataclasses.replace(graph, nodes=tuple(nodes)))
    )  # fmt: skip
    with pytest.raises(NoTransfer, match="no weight of the one is used by an operation"):
        transferred(
            [dataclasses.replace(teacher(toy, encoding), encoding=alien)], encoding, toy.table
        )
