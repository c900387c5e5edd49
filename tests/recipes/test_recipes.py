"""Foreign recipes: what they mean for a graph, and that nothing is dropped in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from types import ModuleType

import jsonschema
import numpy as np
import pytest
from toy_unet import unet_graph

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import QuantConfig, QuantMethod, Space
from qsdm.qconfig.steps import StepBin
from qsdm.quant.methods import METHODS
from qsdm.recipe import read
from qsdm.recipes import (
    Layer,
    NoteCounts,
    RecipeError,
    decisions,
    gguf,
    layers,
    native,
    sdnq,
    skip_list,
    torchao,
)
from tests.tracing.published import traced

UAQ4 = QuantMethod("uaq", 4)
EVERY = (
    "uaq-2", "uaq-3", "uaq-4", "uaq-8", "uaq_refined-4", "uaq_asym-5", "uaq_g32-4", "uaq_g32-5",
    "uaq_g64-3", "uaq_g128-6", "kmeans_c-3", "kmeans_a-4", "nf4_g64-4", "fp8_e4m3-8", "fp-16",
)  # fmt: skip


def graph_of(*weights: Weight) -> Graph:
    return Graph(
        "toy",
        tuple(Node(w.name, Op.CONV if len(w.shape) > 2 else Op.LINEAR, weight=w) for w in weights),
        (),
    )


def weight(name: str, *shape: int, start: int = 0, ties: tuple[str, ...] = ()) -> Weight:
    return Weight(name, f"{name.partition('#')[0]}.weight", shape or (64, 256), start, ties)


def mixed(graph: Graph, methods: Sequence[str], seed: int = 0) -> QuantConfig:
    return Space.of(graph, methods, max_overhead=1e9).sample(np.random.default_rng(seed))


def low(qconfig: QuantConfig) -> QuantConfig:
    """Without the weights that are named and keep full precision."""
    return QuantConfig(
        qconfig.denoiser, {name: m for name, m in qconfig.methods.items() if m.name != "fp"}
    )


def said(notes: Sequence[str], part: str) -> int:
    """The number of weights in the one note that holds ``part``."""
    (note,) = [note for note in notes if part in note]
    return int(note.split()[0])


# ---- our own form


def test_the_schema_allows_just_the_methods_that_there_are() -> None:
    schema = native.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    accepted = 0
    for name in (*METHODS, "uaq_g16", "gptq"):
        for bits in (1, 2, 3, 4, 8, 9, 16, 32):
            try:
                QuantMethod.parse(f"{name}-{bits}")
                known = True
            except ValueError:
                known = False
            written = {
                "schema": "qsdm/qconfig/1",
                "denoiser": "toy",
                "methods": {"a": f"{name}-{bits}"},
            }
            assert valid(written) == known, f"{name}-{bits}"
            accepted += known
    assert accepted > 30
    assert not valid({"schema": "qsdm/qconfig/4", "denoiser": "toy", "methods": {}})
    rounded = {"schema": "qsdm/qconfig/2", "denoiser": "toy", "activations": 8}
    for text, is_right in (("uaq-4+a6", 1), ("a16", 1), ("uaq-4+a9", 0), ("+a8", 0), ("a8+a8", 0)):
        assert valid({**rounded, "methods": {"a": text}}) == bool(is_right), text
    assert not valid({"schema": "qsdm/qconfig/1", "methods": {}})


def test_our_own_form_round_trips_and_keeps_its_schema() -> None:
    graph = unet_graph()
    schema = native.schema()
    for seed in range(3):
        qconfig = mixed(graph, EVERY, seed)
        text = native.write(graph, qconfig).text
        jsonschema.validate(json.loads(text), schema)
        assert read(graph, text, UAQ4).qconfig == qconfig


def test_only_our_own_form_holds_activations() -> None:
    graph = graph_of(weight("a"))
    for qconfig in (QuantConfig("toy", {"a": UAQ4}, 8), QuantConfig("toy", {}, None, {"a": 6})):
        text = native.write(graph, qconfig).text
        jsonschema.validate(json.loads(text), native.schema())
        assert read(graph, text, UAQ4).qconfig == qconfig
        for name, engine in (("torchao", torchao), ("gguf", gguf), ("sdnq", sdnq)):
            with pytest.raises(
                RecipeError, match=rf"{name} has no way to round activations .*a[68]"
            ):
                engine.write(graph, qconfig)
    with pytest.raises(RecipeError, match="has no weight 'lost'"):
        native.write(graph, QuantConfig("toy", {}, None, {"lost": 8}))


def test_only_our_own_form_holds_bins_of_steps() -> None:
    graph = graph_of(weight("a"))
    bins = (
        StepBin(0, 0.25, QuantConfig("toy", {})),
        StepBin(0.75, 1, QuantConfig("toy", {"a": UAQ4}, 8)),
    )
    qconfig = QuantConfig("toy", {"a": QuantMethod("uaq", 3)}, steps=bins)
    text = native.write(graph, qconfig).text
    jsonschema.validate(json.loads(text), native.schema())
    assert read(graph, text, UAQ4).qconfig == qconfig
    for name, engine in (("torchao", torchao), ("gguf", gguf), ("sdnq", sdnq)):
        with pytest.raises(RecipeError, match=rf"{name} quantizes a weight once.*0\.75 to 1"):
            engine.write(graph, qconfig)
    lost = StepBin(0, 0.5, QuantConfig("toy", {"lost": UAQ4}))
    with pytest.raises(RecipeError, match="has no weight 'lost'"):
        native.write(graph, QuantConfig("toy", {}, steps=(lost,)))


def test_a_configuration_of_another_graph_is_refused() -> None:
    graph = graph_of(weight("a"))
    for write in (native.write, torchao.write, gguf.write, sdnq.write):
        with pytest.raises(RecipeError, match=r"has no weight 'b': choose the space"):
            write(graph, QuantConfig("toy", {"b": UAQ4}))
        with pytest.raises(
            RecipeError, match=r"wanted a configuration of 'toy' \(got one of 'other'\)"
        ):
            write(graph, QuantConfig("other", {}))


# ---- skip lists


def test_a_skip_list_of_sdxl() -> None:
    graph, _ = traced("sdxl")
    skipped = ["time_embedding", "add_embedding", "conv_in", "conv_out", "proj_out", "lm_head"]
    found = skip_list.read(graph, skipped, UAQ4)
    full = {w.name.partition("#")[0] for w in graph.weights} - {
        n.partition("#")[0] for n in found.qconfig.methods
    }
    last = {
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "add_embedding.linear_1",
        "add_embedding.linear_2",
    }
    assert last | {"conv_in", "conv_out"} < full
    assert full - last - {"conv_in", "conv_out"} == {
        w.name for w in graph.weights if w.name.endswith("proj_out") and "attentions" in w.name
    }
    assert set(found.qconfig.methods.values()) == {UAQ4}
    assert any(note.endswith("decide about no weight: 'lm_head'") for note in found.notes)


def test_an_entry_ends_at_a_dot_and_may_begin_anywhere() -> None:
    """As in diffusers' quantizers."""
    graph = graph_of(
        *(
            weight(name)
            for name in ("a.proj_out", "a.x_proj_out", "a.proj_out_2", "b.proj", "proj.c")
        )
    )
    found = skip_list.read(graph, ["proj_out", "b.proj.weight", "proj.c.x"], UAQ4)
    assert set(found.qconfig.methods) == {"a.proj_out_2", "proj.c"}


@pytest.mark.parametrize(
    ("config", "method", "told"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "uaq-8", "int8 is taken as uaq-8"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "nf4_g64-4",
            "nf4 is",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "nf4_g64-4",
            "fp4 is taken as nf4_g64-4",
        ),
        (
            {"quant_method": "quanto", "weights_dtype": "int4"},
            "uaq_g128-4",
            "quanto's int4 is taken as uaq_g128-4",
        ),
    ],
)
def test_a_quantization_config_has_a_type_and_leaves_convs_alone(
    config: dict, method: str, told: str
) -> None:
    graph = graph_of(weight("linear"), weight("skipped"), weight("conv", 32, 64, 3, 3))
    found = read(
        graph,
        json.dumps({"quantization_config": config | {"llm_int8_skip_modules": ["skipped"]}}),
        UAQ4,
    )
    assert found.qconfig.methods == {"linear": QuantMethod.parse(method)}
    assert said(found.notes, told) == 1
    assert said(found.notes, "a Conv, which diffusers'") == 1


def test_double_quantized_nf4_is_the_same_here() -> None:
    config = {
        "quant_method": "bitsandbytes",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }
    found = read(graph_of(weight("a")), json.dumps(config), UAQ4)
    assert found.notes == ()
    assert str(found.qconfig.methods["a"]) == "nf4_g64-4"


# ---- tensor rules of stable-diffusion.cpp


def test_the_first_rule_that_is_found_in_a_name_decides() -> None:
    graph = graph_of(
        weight("a.to_q"), weight("a.to_k"), weight("a.ff"), weight("b.to_q"), weight("c")
    )
    found = gguf.read(
        graph, r"^unet\.b=f16,to_q=q4_0" + "\nto_=q8_0,a\\.=bf16,^to_q=q4_0", QuantMethod("uaq", 3)
    )
    assert {name: str(method) for name, method in found.qconfig.methods.items()} == {
        "a.to_q": "uaq_g32-4",
        "a.to_k": "uaq_g32-8",
        "c": "uaq-3",
    }
    assert said(found.notes, "q4_0 is taken as uaq_g32-4, without a zero point there") == 1
    assert said(found.notes, "matched by no rule: they get uaq-3") == 1
    assert any(note.endswith("decide about no weight: '^to_q'") for note in found.notes)


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        ("ff", False),
        ("^a", True),
        ("^unet\\.", True),
        ("model\\.", True),
        ("diffusion_model", True),
        ("^model$", False),
    ],
)
def test_a_pattern_may_name_a_prefix_but_not_a_piece_of_it(pattern: str, holds: bool) -> None:
    assert gguf.occurs(pattern, "a.to_q.weight") == holds


def test_tensors_that_are_never_quantized_there_keep_full_precision() -> None:
    kept = (
        weight("conv", 32, 64, 3, 3),
        weight("time_embedding.linear_1"),
        weight("narrow", 64, 100),
    )
    graph = graph_of(*kept, weight("short", 64, 320), weight("a"))
    found = gguf.read(graph, ".=q4_1", UAQ4)
    assert set(found.qconfig.methods) == {"short", "a"}
    assert set(gguf.read(graph, ".=q4_K", UAQ4).qconfig.methods) == {"a"}
    for why in ("a Conv", "'embedding' in its name", "a row of 100 values, not a multiple of 32"):
        assert said(found.notes, f"leaves them at full precision: {why}") == 1


@pytest.mark.parametrize(
    "rules", ["to_q=q4_1,to_k=q8_0,ff=q5_1,.=f16", "to_out=q6_K,ff_in=q2_K,to_=iq4_nl,.=q4_K"]
)
def test_rules_become_a_configuration_that_becomes_the_same_rules(rules: str) -> None:
    graph = unet_graph()
    first = gguf.read(graph, rules, UAQ4)
    text = gguf.write(graph, first.qconfig).text
    assert gguf.read(graph, text, QuantMethod("uaq", 2)).qconfig == first.qconfig
    if "_K" not in rules:
        wanted = {layer.parameters[0]: first_type(rules, layer) for layer in layers(graph)}
        assert {name: first_type(text, layer_of(graph, name)) for name in wanted} == wanted


def first_type(rules: str, layer: Layer) -> str:
    """The type that stable-diffusion.cpp stores a tensor in."""
    name = layer.parameters[0]
    kind = next(kind for pattern, kind in gguf.parse(rules) if re.search(pattern, name))
    return kind if kind in gguf.FULL or gguf.kept(name, layer, kind) is None else "f16"


def layer_of(graph: Graph, name: str) -> Layer:
    return next(layer for layer in layers(graph) if name in layer.parameters)


def test_few_rules_give_every_tensor_its_type() -> None:
    graph, _ = traced("sdxl")
    qconfig = mixed(graph, EVERY)
    types = {
        name: gguf.type_of(name, layer, m)[0]
        for name, layer, m in decisions(graph, qconfig, NoteCounts())
    }
    rules = gguf.rules_of(types)
    assert len(types) == 794
    assert len(rules) < 794 / 3
    assert not [pattern for pattern, _ in rules if "," in pattern or "=" in pattern]
    for prefix in gguf.PREFIXES:
        for name, kind in types.items():
            assert next(k for pattern, k in rules if re.search(pattern, prefix + name)) == kind
    assert not [
        p
        for p, _ in rules
        if re.search(p, "vae.decoder.conv_in.weight") or re.search(p, "conv_in.bias")
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("to_q", r"PATTERN=TYPE, without commas in the pattern \(got 'to_q'\)"),
        ("=q4_0", r"PATTERN=TYPE"),
        ("to_(q=q4_0", r"the pattern 'to_\(q' is not a regular expression: "),
        (
            "to_q=q4_k",
            r"qsdm has no method for a type called 'q4_k'; did you mean 'q4_K'\?",
        ),
        ("to_q=tq1_0", r"called 'tq1_0'; did you mean"),
        (" \n", r"got an empty text"),
    ],
)
def test_a_wrong_rule_gets_one_sentence(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read(graph_of(weight("a")), text, UAQ4)


# ---- SDNQ


@pytest.mark.parametrize(
    ("entry", "name", "holds"),
    [
        ("a.to_q.weight", "a.to_q.weight", True),
        ("to_q", "a.to_q.weight", True),
        ("to", "a.to_q.weight", False),
        ("a.to_q", "a.to_q.weight", False),  # neither the name nor a component of it
        (".a.to", "a.to_q.weight", True),
        (".to_q", "a.to_q.weight", False),
        ("a.*.weight", "a.b.c.weight", True),
        ("*to_q", "a.b.to_q.weight", True),
        ("b.*", "a.b.weight", False),
    ],
)
def test_entries_match_as_in_sdnq(entry: str, name: str, holds: bool) -> None:
    assert sdnq.matches(entry, name) == holds


def test_an_sdnq_config_with_settings_per_module() -> None:
    names = ("skipped", "first", "second", "third", "codebook", "float", "rest")
    conv, small = weight("conv", 64, 64, 3, 3), weight("small", 8, 256)
    graph = graph_of(*(weight(name, 64, 512) for name in names), conv, small)
    config = {
        "quant_method": "sdnq",
        "weights_dtype": "int3",
        "group_size": 64,
        "modules_to_not_convert": ["skipped", "nowhere"],
        "modules_dtype_dict": {
            "minimum_6bit": ["first"],
            "uint2": ["second"],
            "int5": ["second"],
            "4bit": ["third"],
        },
        "modules_quant_config": {
            "codebook": {"weights_dtype": "uint4", "use_codebook": True, "group_size": -2},
            "float": {"weights_dtype": "float8_e4m3fn", "group_size": -1, "use_svd": True},
            "conv": {"weights_dtype": "uint8"},
        },
    }
    found = read(graph, json.dumps(config), UAQ4)
    assert {name: str(method) for name, method in found.qconfig.methods.items()} == {
        "first": "uaq_g64-6",
        "second": "uaq_g64-2",
        "third": "uaq_g64-4",
        "codebook": "kmeans_a-4",
        "float": "fp8_e4m3-8",
        "rest": "uaq_g64-3",
    }
    assert said(found.notes, "int3 is taken as uaq_g64-3, symmetric there") == 1
    assert said(found.notes, "a Conv, which SDNQ leaves at full precision without quant_conv") == 1
    assert said(found.notes, "of fewer than 16384 values") == 1
    assert said(found.notes, "without its svd") == 1
    assert any("decide about no weight: 'nowhere'" in note for note in found.notes)
    assert any("unless add_skip_keys is false" in note for note in found.notes)


def test_sdnq_chooses_groups_by_width() -> None:
    linear, conv, odd = (
        layers(graph_of(weight("a", *shape)))[0]
        for shape in ((64, 640), (64, 640, 3, 3), (64, 100))
    )
    assert [sdnq.group_of(linear, 0, bits, {}) for bits in (2, 3, 4, 5, 8)] == [16, 32, 64, 128, -1]
    assert sdnq.group_of(conv, 0, 4, {}) == 32
    assert sdnq.group_of(odd, 64, 4, {}) == -1
    assert sdnq.group_of(odd, 32, 4, {}) == 50


def test_the_default_is_for_a_config_without_a_dtype() -> None:
    graph = graph_of(weight("a"), weight("b"), weight("c"))
    found = sdnq.read(
        graph, {"modules_dtype_dict": {"minimum_3bit": ["a"], "minimum_8bit": ["b"]}}, UAQ4
    )
    assert [str(found.qconfig.methods[name]) for name in "abc"] == ["uaq-4", "uaq-8", "uaq-4"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"weights_dtype": "int4x"}, r"wanted a dtype of SDNQ such as uint4, .* \(got 'int4x'\)"),
        ({"weights_dtype": "uint1"}, r"wanted 2 to 8 bits"),
        (
            {"modules_to_not_convert": 3},
            r"wanted a list of names under 'modules_to_not_convert' \(got 3\)",
        ),
        ({"modules_dtype_dict": ["a"]}, r"wanted a mapping under 'modules_dtype_dict'"),
        (
            {"modules_dtype_dict": {"minimum": ["a"]}},
            r"a minimum width such as minimum_6bit in modules_dtype_dict \(got 'minimum'\)",
        ),
        (
            {"weights_dtype": "int4", "group_size": "64"},
            r"wanted a whole number under 'group_size' \(got '64'\)",
        ),
    ],
)
def test_a_wrong_sdnq_config_gets_one_sentence(config: dict, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read(graph_of(weight("a")), json.dumps({"quant_method": "sdnq"} | config), UAQ4)


def test_what_sdnq_can_hold_comes_back() -> None:
    graph = graph_of(
        *(weight(f"blocks.{i}.linear", 64, 512) for i in range(40)), weight("conv", 64, 128, 3, 3)
    )
    methods = (
        "uaq-2",
        "uaq-4",
        "uaq-8",
        "uaq_g32-3",
        "uaq_g64-4",
        "kmeans_c-3",
        "kmeans_a-4",
        "fp8_e4m3-8",
        "fp-16",
    )
    qconfig = mixed(graph, methods)
    written = sdnq.write(graph, qconfig)
    assert read(graph, written.text, QuantMethod("uaq", 5)).qconfig == low(qconfig)


# ---- what is written


def parameters_of_torchao(text: str) -> dict[str, object]:
    return {
        f"{name}.weight": config
        for name, config in json.loads(text)["_data"]["fqn_to_config"].items()
    }


def parameters_of_sdnq(text: str) -> dict[str, object]:
    data = json.loads(text)
    return dict.fromkeys(data["modules_to_not_convert"]) | data["modules_quant_config"]


def test_torchao_holds_uniform_methods() -> None:
    conv, odd = weight("conv", 64, 64, 3, 3), weight("odd", 64, 96)
    video, depthwise = weight("video", 64, 64, 1, 1, 1), weight("depthwise", 64, 1, 3, 3)
    graph = graph_of(
        weight("row"), weight("group"), weight("float"), weight("full"), conv, odd, video, depthwise
    )
    methods = {
        "row": "uaq-3",
        "group": "uaq_g64-4",
        "float": "fp8_e4m3-8",
        "conv": "kmeans_c-4",
        "odd": "uaq_g64-4",
    }
    methods |= {"video": "uaq-4", "depthwise": "uaq-4"}
    written = torchao.write(
        graph, QuantConfig("toy", {name: QuantMethod.parse(m) for name, m in methods.items()})
    )
    found = parameters_of_torchao(written.text)
    assert found["row.weight"] == {
        "_type": "IntxWeightOnlyConfig",
        "_version": 2,
        "_data": {
            "weight_dtype": {"_type": "torch.dtype", "_data": "int3"},
            "granularity": {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}},
            "mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"},
        },
    }
    grain = {name: config and config["_data"].get("granularity") for name, config in found.items()}
    assert grain["group.weight"] == {
        "_type": "PerGroup",
        "_version": 1,
        "_data": {"group_size": 64},
    }
    assert grain["odd.weight"] == grain["conv.weight"] == grain["row.weight"]
    assert found["float.weight"]["_type"] == "Float8WeightOnlyConfig"
    assert found["full.weight"] is found["video.weight"] is found["depthwise.weight"] is None
    assert said(written.notes, "codebooks") == 1
    assert said(written.notes, "groups of 64 become one scale per channel") == 1
    assert said(written.notes, "minimum and maximum") == 3
    assert (
        said(written.notes, "over one or three axes")
        == said(written.notes, "one input per channel")
        == 1
    )


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (torchao.write, parameters_of_torchao),
        (sdnq.write, parameters_of_sdnq),
        (
            gguf.write,
            lambda text: {
                name: 0 for name in NAMES if any(re.search(p, name) for p, _ in gguf.parse(text))
            },
        ),
    ],
    ids=["torchao", "sdnq", "gguf"],
)
def test_parts_and_ties_are_all_written_and_told(write: Callable, names: Callable) -> None:
    parts = (weight("split#0", 64, 256), weight("split#1", 64, 128, start=256))
    graph = graph_of(*parts, weight("tied", ties=("blocks.1.tied.weight",)), weight("full"))
    qconfig = QuantConfig("toy", {"split#0": UAQ4, "split#1": QuantMethod("uaq", 3), "tied": UAQ4})
    written = write(graph, qconfig)
    assert sorted(names(written.text)) == NAMES
    assert said(written.notes, "the widest of the parts' methods") == 2
    same = write(graph, QuantConfig("toy", qconfig.methods | {"split#1": UAQ4}))
    assert said(same.notes, "the parts share their scales or codebooks") == 2


NAMES = ["blocks.1.tied.weight", "full.weight", "split.weight", "tied.weight"]


@pytest.mark.parametrize("form", [gguf, sdnq])
def test_whatever_does_not_come_back_was_told(form: ModuleType) -> None:
    graph, _ = traced("sdxl")
    for seed in range(2):
        qconfig = low(mixed(graph, EVERY, seed))
        written = form.write(graph, qconfig)
        back = read(graph, written.text, UAQ4).qconfig
        changed = sum(
            back.methods.get(w.name) != qconfig.methods.get(w.name) for w in graph.weights
        )
        assert 0 < changed <= sum(int(note.split()[0]) for note in written.notes)


def test_ties_that_are_treated_differently_get_the_widest() -> None:
    graph = graph_of(weight("tied", ties=("other.tied.weight",)))
    found = gguf.read(graph, "^tied=q4_1,other=q8_0", UAQ4)
    assert str(found.qconfig.methods["tied"]) == "uaq_g32-8"
    assert said(found.notes, "the widest is taken for all") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{'a': 1}", r"looks like JSON and cannot be read"),
        ("[1, 2]", r"a list of modules to skip \(got a list of something else\)"),
        ('{"group_size": 3}', r"wanted a configuration, or .* \(got the keys 'group_size'\)"),
        ("{}", r"got the keys of an empty object"),
        (
            '{"schema": "qsdm/front/1", "points": []}',
            r"this is not a configuration: .*'qsdm/front/1'",
        ),
    ],
)
def test_what_is_no_recipe_gets_one_sentence(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read(graph_of(weight("a")), text, UAQ4)
