from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toy_unet import Toy

from qsdm.predictor.encode import Encoding, encode
from qsdm.qconfig import QuantMethod, Space
from qsdm.qconfig.cost import MethodTable


def test_full_precision_is_the_origin(encoding: Encoding) -> None:
    assert not encoding.decisions[:, -1].any()
    offered = encoding.allowed.copy()
    offered[:, -1] = False
    assert (encoding.decisions[offered][:, :3] > 0).all()


def test_one_hot_names_the_methods_of_the_configuration(toy: Toy, encoding: Encoding) -> None:
    rng = np.random.default_rng(0)
    qconfigs = [toy.space.sample(rng) for _ in range(8)]
    hot = encoding.one_hot(np.stack([toy.space.encode(qconfig) for qconfig in qconfigs]))
    assert (hot.sum(axis=2) == 1).all()
    for qconfig, row in zip(qconfigs, hot, strict=True):
        named = [encoding.methods[i] for i in row.argmax(axis=1)]
        assert named == [qconfig.methods[weight.name] for weight in toy.space.graph.weights]


def test_errors_of_decisions_are_those_of_the_table(toy: Toy, encoding: Encoding) -> None:
    """The order of rows and columns does not matter; a greater error is a greater feature."""
    turned = MethodTable(
        toy.table.weights[::-1],
        toy.table.methods[::-1],
        toy.table.rel_error[::-1, ::-1],
        toy.table.size_bytes[::-1, ::-1],
    )
    assert encode(toy.space, turned).digest == encoding.digest
    rel_error = toy.table.rel_error.copy()
    rel_error[0] *= 2
    worse = encode(toy.space, dataclasses.replace(toy.table, rel_error=rel_error))
    assert worse.digest != encoding.digest
    offered = encoding.columns[0][encoding.columns[0] >= 0]
    assert (worse.decisions[0, offered, 1] > encoding.decisions[0, offered, 1]).all()


def test_bits_of_inputs_are_a_feature_of_their_own(toy: Toy, encoding: Encoding) -> None:
    whole = [weight.name.count("#") == 0 for weight in toy.space.graph.weights]
    options = tuple(
        tuple(QuantMethod(m.name, m.bits, bits) for m in offered for bits in (16, 8, 6))
        if alone
        else offered
        for offered, alone in zip(toy.space.options, whole, strict=True)
    )
    space = Space(toy.space.graph, options, toy.space.full_bits)
    rounded = encode(space, toy.table)  # which knows nothing of inputs
    assert rounded.digest != encoding.digest
    assert rounded.decisions.shape[2] == encoding.decisions.shape[2] + 1
    weight = whole.index(True)
    for offered in toy.space.options[weight]:
        rows = [
            rounded.decisions[weight, rounded.methods.index(QuantMethod(m.name, m.bits, bits))]
            for m in [offered]
            for bits in (16, 8, 6)
        ]
        plain = encoding.decisions[weight, encoding.methods.index(offered)]
        for row in rows:
            np.testing.assert_array_equal(row[:-1], rows[0][:-1])
        # Split weights have one width here, so that quantiles of errors differ a little.
        np.testing.assert_allclose(rows[0][:-1], plain, rtol=0.02)
        assert [row[-1] for row in rows] == [0, 8 * 2.0**-8, 8 * 2.0**-6]
    genes = np.stack([space.encode(space.sample(np.random.default_rng(i))) for i in range(4)])
    assert (rounded.one_hot(genes).sum(axis=2) == 1).all()


def test_every_node_has_a_loop_and_edges_are_sorted_by_target(toy: Toy, encoding: Encoding) -> None:
    pairs = set(map(tuple, encoding.edges.T.tolist()))
    assert pairs == set(toy.space.graph.edges) | {(i, i) for i in range(len(toy.space.graph.nodes))}
    assert (np.diff(encoding.edges[1]) >= 0).all()


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (np.zeros((2, 3), dtype=np.int64), "wanted genes of shape"),
        (np.full((1, 17), 9), "indices into each weight's options"),
        (np.full((1, 17), -1), "indices into each weight's options"),
    ],
)
def test_genes_of_another_space_are_refused(
    encoding: Encoding, genes: np.ndarray, message: str
) -> None:
    if genes.shape[1] == 17:
        genes = np.resize(genes, (1, encoding.num_weights))
    with pytest.raises(ValueError, match=message):
        encoding.one_hot(genes)


def test_a_table_that_lacks_a_method_is_refused(toy: Toy) -> None:
    table = MethodTable(
        toy.table.weights,
        toy.table.methods[:-1],
        toy.table.rel_error[:, :-1],
        toy.table.size_bytes[:, :-1],
    )
    with pytest.raises(ValueError, match="run calibrate"):
        encode(toy.space, table)
