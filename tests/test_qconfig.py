"""Methods by name, configurations, spaces."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsdm.graph import Graph, Node, Op, Weight, canonical
from qsdm.qconfig import (
    OutsideSpace,
    QuantConfig,
    QuantMethod,
    Space,
    SpaceSpec,
    input_bits,
    tilted,
)
from qsdm.qconfig.steps import StepBin

PAPER = ("uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4")


def graph_of(*shapes: tuple[int, ...]) -> Graph:
    weights = [Weight(f"layer{i}", f"layer{i}.weight", shape) for i, shape in enumerate(shapes)]
    nodes = tuple(Node(w.name, Op.LINEAR, weight=w) for w in weights)
    return Graph("toy", nodes, tuple((i, i + 1) for i in range(len(nodes) - 1)))


LARGE = graph_of(*[(64, 2048)] * 12)
SPACE = Space.of(LARGE, PAPER)


@pytest.mark.parametrize(
    "text", [*PAPER, "uaq_g64-4", "nf4_g64-4", "fp-16", "uaq_refined-2", "fp8_e4m3-8"]
)
def test_parse_and_print_are_inverse(text: str) -> None:
    assert str(QuantMethod.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "uaq", "uaq-", "uaq-1", "uaq-9", "nf4_g64-3", "fp-4", "uaq_g60-4", "kmeans-4", "uaq-4 "],
)
def test_an_unknown_method_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"wanted a method and its bits|no quantization method|has .* bits"
    ):
        QuantMethod.parse(text)


def test_overhead_is_the_papers() -> None:
    weight = Weight("a", "a.weight", (64, 2048))
    expected = {"uaq-4": 2 * 16 * 64, "kmeans_a-4": 16 * 16, "kmeans_c-3": 8 * 16 * 64, "fp-16": 0}
    assert {
        text: QuantMethod.parse(text).overhead_bits(weight, 16) for text in expected
    } == expected


def test_codes_of_tied_weights_are_stored_once_each() -> None:
    method = QuantMethod("uaq", 4)
    alone, tied = (
        Weight("a", "a.weight", (8, 64)),
        Weight("a", "a.weight", (8, 64), ties=("b.weight",)),
    )
    assert method.size_bits(tied, 16) == 2 * method.size_bits(alone, 16)


def test_three_bit_codes_fill_whole_bytes() -> None:
    uneven = Weight("a", "a.weight", (1, 3))
    assert QuantMethod("fp", 16).size_bits(uneven, 16) == 48
    assert (
        QuantMethod("kmeans_a", 3).size_bits(uneven, 16) == 16 + 8 * 16
    )  # 9 bits of codes => 2 bytes


def test_a_small_layer_is_offered_what_it_affords() -> None:
    space = Space.of(graph_of((32, 64), (64, 2048)), PAPER)
    assert [str(m) for m in space.options[0]] == ["uaq-3", "kmeans_a-3", "uaq-4", "kmeans_a-4"]
    assert len(space.options[1]) == 6


def test_json_round_trip_and_digest() -> None:
    qconfig = SPACE.sample(np.random.default_rng(0))
    again = QuantConfig.from_json(json.loads(json.dumps(qconfig.to_json())))
    assert again == qconfig
    assert again.digest == qconfig.digest
    turned = QuantConfig("toy", dict(reversed(qconfig.methods.items())))
    assert turned.digest == qconfig.digest, "the order of weights is no difference"
    odd = QuantConfig(
        "tö\\y\x7f", {'a"b\n': QuantMethod("uaq", 4), "ü/\u2028": QuantMethod("fp", 16)}
    )
    for one in (qconfig, odd, QuantConfig("toy", {})):
        assert one.digest == hashlib.sha256(canonical(one.to_json())).hexdigest()


@pytest.mark.parametrize(
    "data", [None, [], {}, {"schema": "qsdm/qconfig/1"}, {"schema": "x", "methods": {}}]
)
def test_foreign_json_is_refused(data: object) -> None:
    with pytest.raises(
        ValueError, match=r"wanted a configuration of schema|missing required field `denoiser`"
    ):
        QuantConfig.from_json(data)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_encode_and_decode_are_inverse(seed: int) -> None:
    qconfig = SPACE.sample(np.random.default_rng(seed))
    genes = SPACE.encode(qconfig)
    assert SPACE.decode(genes) == qconfig
    assert (genes >= 0).all()
    assert all(gene < len(offered) for gene, offered in zip(genes, SPACE.options, strict=True))


def test_average_bits_of_samples_spread_evenly() -> None:
    """The paper's rule: p3 ~ U(0, 1); drawing each weight's bits alone would pile up at 3.5."""
    space, rng = Space.of(graph_of(*[(64, 2048)] * 200), PAPER), np.random.default_rng(0)
    bits = [np.mean([m.bits for m in space.sample(rng).methods.values()]) for _ in range(300)]
    counts = np.histogram(bits, bins=5, range=(3, 4))[0]
    assert counts.min() > 30
    assert abs(np.mean(bits) - 3.5) < 0.05


def test_methods_of_equal_bits_are_drawn_equally() -> None:
    rng = np.random.default_rng(0)
    names = [m.name for _ in range(200) for m in SPACE.sample(rng).methods.values()]
    shares = [names.count(name) / len(names) for name in ("uaq", "kmeans_c", "kmeans_a")]
    assert max(shares) - min(shares) < 0.05


@pytest.mark.parametrize(
    ("qconfig", "words"),
    [
        (QuantConfig("other", {}), "of 'toy'"),
        (QuantConfig("toy", {}), "same weights"),
        (QuantConfig("toy", {f"layer{i}": QuantMethod("uaq", 4) for i in range(13)}), "'layer12'"),
        (
            QuantConfig("toy", {f"layer{i}": QuantMethod("uaq", 8) for i in range(12)}),
            "uaq-8 is not on offer",
        ),
    ],
)
def test_a_configuration_outside_the_space_is_named(qconfig: QuantConfig, words: str) -> None:
    with pytest.raises(OutsideSpace, match=words):
        SPACE.encode(qconfig)


def test_uniform_takes_the_substitute_where_it_must() -> None:
    space = Space.of(graph_of((32, 64), (64, 2048)), PAPER)
    assert [str(m) for m in space.uniform("kmeans_c-4").methods.values()] == [
        "kmeans_a-4",
        "kmeans_c-4",
    ]
    with pytest.raises(OutsideSpace, match="no 8-bit method"):
        space.uniform("uaq-8")


def test_a_space_spec_merges_and_offers() -> None:
    nodes = (
        Node("a#0", Op.CONV, weight=Weight("a#0", "a.weight", (64, 1024))),
        Node("a#1", Op.CONV, weight=Weight("a#1", "a.weight", (64, 1024), 1024)),
        Node("a+", Op.ADD),
    )
    graph = Graph("toy", nodes, ((0, 2), (1, 2)))
    assert len(SpaceSpec("split", PAPER, splits=".*").of(graph).graph.weights) == 2
    (whole,) = SpaceSpec("whole", PAPER, splits="^b$").of(graph).graph.weights
    assert whole.shape == (64, 2048)


def test_a_space_file_names_itself() -> None:
    import yaml

    for path in (Path(__file__).parents[1] / "conf" / "space").glob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        assert data.pop("_target_") == "qsdm.qconfig.SpaceSpec"
        assert SpaceSpec(**data).of(LARGE).methods
        assert data["name"] == path.stem


def test_tilted_shares_have_the_expected_total_and_no_row_prefers_equal_bits() -> None:
    bits = np.array([[3.0, 4, 4, 8], [3, 8, 0, 0]])
    share = np.array([[1, 0.5, 0.5, 1], [1, 1, 0, 0]])
    sizes = np.array([[30.0, 44, 40, 80], [300, 800, 0, 0]])
    for target in (400.0, 600.0, 800.0):
        p = tilted(bits, share, sizes, target)
        assert (p * sizes).sum() == pytest.approx(target)
        assert p.sum(axis=1) == pytest.approx(np.ones(2))
        assert p[0, 1] == p[0, 2]
        assert (p[share == 0] == 0).all()
        # One tilt for all: the log odds of two options grow with their difference of bits.
        odds = np.log(p[0, 3] / p[0, 0]), np.log(p[1, 1] / p[1, 0])
        assert odds[0] == pytest.approx(odds[1])
    assert (tilted(bits, share, sizes, 0.0) * sizes).sum() == pytest.approx(330)
    assert (tilted(bits, share, sizes, 1e9) * sizes).sum() == pytest.approx(880)


def test_tilted_is_defined_for_one_width_and_for_wide_ones() -> None:
    one = np.array([4.0])
    assert tilted(one, np.ones(1), one, 4.0) == pytest.approx([1.0])
    wide = np.array([[2.0, 16.0], [16.0, 0.0]])
    p = tilted(wide, np.array([[1.0, 1], [1, 0]]), wide, 20.0)
    assert (p * wide).sum() == pytest.approx(20)


def test_configurations_without_activations_keep_their_digest() -> None:
    """Stored outcomes are found by it."""
    qconfig = QuantConfig("toy", {"a": QuantMethod("uaq", 4), "b": QuantMethod("kmeans_a", 3)})
    assert qconfig.digest == "60e53ba75ef57681676be3585619f3c3524f03d64b26386e1bffb824fc08ee85"
    assert qconfig.with_activations(16) == qconfig
    assert qconfig.with_activations(16).digest == qconfig.digest


def test_bits_of_activations_are_read_as_they_are_written() -> None:
    weights = {"a": QuantMethod("uaq", 4), "b": QuantMethod("kmeans_a", 3)}
    every = [
        QuantConfig("toy", weights, activations, inputs)
        for activations in (None, 8, 6)
        for inputs in ({}, {"a": 8}, {"a": 6, "c": 4}, {"c": 16})
    ]
    for qconfig in every:
        assert QuantConfig.from_json(json.loads(json.dumps(qconfig.to_json()))) == qconfig
    assert len({qconfig.digest for qconfig in every}) == len(every)
    assert every[2].to_json()["methods"] == {"a": "uaq-4+a6", "b": "kmeans_a-3", "c": "a4"}
    assert not QuantConfig("toy", {}, 8).is_full
    assert QuantConfig("toy", {}, 16).is_full


@pytest.mark.parametrize("bits", [0, 1, 9, 32, True])
def test_bits_of_activations_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=r"2 to 8 bits, or 16 if they are not rounded \(got"):
        QuantConfig("toy", {}, bits)
    with pytest.raises(ValueError, match=r"the activations of 'a' have 2 to 8 bits"):
        QuantConfig("toy", {}, None, {"a": bits})


def test_an_older_version_refuses_a_file_with_activations() -> None:
    data = QuantConfig("toy", {}, 8).to_json()
    assert data["schema"] != QuantConfig("toy", {}).to_json()["schema"]
    with pytest.raises(ValueError, match="a configuration with activations has schema"):
        QuantConfig.from_json({**data, "schema": "qsdm/qconfig/1"})
    with pytest.raises(ValueError, match="2 to 8 bits"):
        QuantConfig.from_json({**data, "methods": {"a": "uaq-4+a9"}})


def test_layers_round_what_the_configuration_says() -> None:
    qconfig = QuantConfig("toy", {}, 8, {"layer1": 6, "layer2": 16})
    bits = input_bits(graph_of(*[(4, 8)] * 4), qconfig)
    assert bits == {"layer0.weight": 8, "layer1.weight": 6, "layer3.weight": 8}
    with pytest.raises(OutsideSpace, match="no weight 'lost': it has those of the layers that the"):
        input_bits(LARGE, QuantConfig("toy", {}, None, {"lost": 8}))
    halves = [Weight(f"c#{k}", "c.weight", (4, 8), start=8 * k) for k in (0, 1)]
    graph = Graph("toy", tuple(Node(w.name, Op.LINEAR, weight=w) for w in halves), ())
    assert input_bits(graph, QuantConfig("toy", {}, None, {"c#0": 6, "c#1": 6})) == {"c.weight": 6}
    with pytest.raises(OutsideSpace, match=r"the parts of 'c\.weight' read one input"):
        input_bits(graph, QuantConfig("toy", {}, None, {"c#0": 6}))


def test_bins_of_steps_are_read_as_they_are_written() -> None:
    low, full = SPACE.uniform("uaq-3"), QuantConfig("toy", {})
    rounded = QuantConfig("toy", SPACE.uniform("uaq-4").methods, 8, {"layer0": 6})
    last, first = StepBin(0.8, 1, rounded), StepBin(0, 0.2, full)
    qconfig = QuantConfig("toy", low.methods, steps=(last, first))
    data = qconfig.to_json()
    assert data["schema"] == "qsdm/qconfig/3"
    assert data["steps"][0] == {"from": 0.0, "to": 0.2}
    again = QuantConfig.from_json(json.loads(json.dumps(data)))
    assert (again, again.digest, again.steps) == (qconfig, qconfig.digest, (first, last))
    digests = {q.digest for q in (qconfig, low, QuantConfig("toy", low.methods, steps=(last,)))}
    assert len(digests) == 3
    assert QuantConfig("toy", low.methods, steps=()).digest == low.digest
    assert [qconfig.at(step, 10) for step in (1, 2, 9)] == [full, low, rounded]
    assert [q for _, q in qconfig.parts] == [low, full, rounded]
    assert qconfig.weights == set(low.methods)
    assert QuantConfig("toy", {}, steps=(first,)).is_full
    assert not QuantConfig("toy", {}, steps=(last,)).is_full
    with pytest.raises(ValueError, match="bins of steps has schema 'qsdm/qconfig/3'"):
        QuantConfig.from_json(data | {"schema": "qsdm/qconfig/2"})
    with pytest.raises(OutsideSpace, match="bins of steps"):
        SPACE.encode(qconfig)


def test_bins_of_steps_that_cannot_be_are_refused() -> None:
    full = QuantConfig("toy", {})
    for start, stop in ((-0.1, 0.5), (0.5, 1.5), (0.5, 0.5), (float("nan"), 1)):
        with pytest.raises(ValueError, match=r"from 0 to 1, as from 0\.8 to 1 \(got from"):
            StepBin(start, stop, full)
    one = StepBin(0, 0.5, full)
    with pytest.raises(ValueError, match=r"0 to 0\.5 and 0\.4 to 1 overlap"):
        QuantConfig("toy", {}, steps=(StepBin(0.4, 1, full), one))
    with pytest.raises(ValueError, match="has bins of steps of its own"):
        StepBin(0, 1, QuantConfig("toy", {}, steps=(one,)))
    with pytest.raises(ValueError, match="wanted configurations of 'other'"):
        QuantConfig("other", {}, steps=(one,))


def test_a_space_offers_bits_of_inputs_beside_methods() -> None:
    space = SpaceSpec("rounded", PAPER, activations=[16, 8]).of(LARGE)
    assert len(space.options[0]) == 2 * len(PAPER)
    assert space.of_weights.options == SPACE.options
    qconfig = space.sample(np.random.default_rng(3))
    assert set(qconfig.inputs.values()) == {8}
    assert 0 < len(qconfig.inputs) < len(qconfig.methods)
    assert set(qconfig.methods.values()) <= set(SPACE.methods)  # by which weights are fitted
    again = QuantConfig.from_json(json.loads(json.dumps(qconfig.to_json())))
    assert again == qconfig == space.decode(space.encode(qconfig))
    assert {k: str(m) for k, m in qconfig.decisions.items()} == qconfig.to_json()["methods"]
    assert QuantConfig("toy", qconfig.decisions) == qconfig
    uniform = space.uniform("uaq-4+a8")
    assert uniform.methods == SPACE.uniform("uaq-4").methods
    assert set(uniform.inputs.values()) == {8}
    assert space.uniform("uaq-4") == SPACE.uniform("uaq-4")
    low = SpaceSpec("low", ["uaq-4"], activations=[6, 8]).of(LARGE).uniform("uaq-4")
    assert set(low.inputs.values()) == {8}  # the most that are on offer


def test_bits_of_inputs_that_cannot_be_are_refused() -> None:
    rounded = SPACE.uniform("uaq-4").with_activations(8)
    with pytest.raises(OutsideSpace, match="not those of the whole denoiser or bins"):
        SPACE.encode(rounded)
    with pytest.raises(OutsideSpace, match=r"uaq-4\+a8 is not on offer for 'layer0'"):
        SPACE.encode(QuantConfig("toy", dict.fromkeys(rounded.methods, QuantMethod("uaq", 4, 8))))
    with pytest.raises(ValueError, match="2 to 8 bits"):
        QuantMethod.parse("uaq-4+a9")
    with pytest.raises(ValueError, match="2 to 8 bits"):
        SpaceSpec("wrong", PAPER, activations=[8, 12])
    with pytest.raises(ValueError, match=r"in 8 bits as uaq-4\+a8, and in 6 as one of the inputs"):
        QuantConfig("toy", {"a": QuantMethod("uaq", 4, 8)}, None, {"a": 6})
    halves = [Weight(f"c#{k}", "c.weight", (64, 2048), start=2048 * k) for k in (0, 1)]
    graph = Graph("toy", tuple(Node(w.name, Op.LINEAR, weight=w) for w in halves), ())
    with pytest.raises(ValueError, match=r"c#0 and c#1 read one input.*space\.splits"):
        SpaceSpec("split", PAPER, ".*", activations=[16, 8]).of(graph)
    assert SpaceSpec("one", PAPER, ".*", activations=[8]).of(graph).rounds_inputs
