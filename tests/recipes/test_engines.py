"""Recipes as the engines read them: each rule compared with the engine, and bad input."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType

import engines
import pytest

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.qconfig.activations import WIDTHS
from qsdm.quant.methods import METHODS
from qsdm.recipe import read
from qsdm.recipes import Loader, RecipeError, gguf, native, sdnq, skip_list, torchao
from qsdm.recipes.skip_list import Engine

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
MODULES = {"torchao": "torchao", "quanto": "optimum.quanto", "bitsandbytes": "bitsandbytes"}
UAQ4 = QuantMethod("uaq", 4)


def graph_of(*paths: str, shape: tuple[int, ...] = (128, 128)) -> Graph:
    nodes = [Node(p, Op.LINEAR, weight=Weight(p, f"{p}.weight", shape)) for p in paths]
    return Graph("toy", tuple(nodes), ())


TOY = graph_of(*engines.PATHS)
KEEPING = Loader("Toy", engines.KEEP)


def kept_by_qsdm(engine: str, entries: list[str], loader: Loader | None = None) -> list[str]:
    found = skip_list.read(TOY, entries, UAQ4, loader, Engine(engine))
    return [path for path in engines.PATHS if path not in found.qconfig.methods]


# ---- the rules of skip lists


@pytest.mark.parametrize("engine", list(MODULES))
def test_each_engine_has_its_own_rule(engine: str) -> None:
    for entry, kept in RECORDED["kept"][engine].items():
        given = ([], KEEPING) if entry == "_keep" else ([entry], None)
        assert kept_by_qsdm(engine, *given) == kept, entry


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("engine", list(MODULES))
def test_the_installed_engine_does_what_was_recorded(engine: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(MODULES[engine])
    for entry, kept in RECORDED["kept"][engine].items():
        given = ([], True) if entry == "_keep" else ([entry], False)
        assert engines.kept(engine, *given) == kept, entry


def test_a_list_alone_follows_the_rule_that_is_asked_for() -> None:
    text = json.dumps(["blocks.0", "proj_out"])
    kept = {
        rules: len(engines.PATHS) - len(read(TOY, text, UAQ4, rules).qconfig.methods)
        for rules in (None, Engine.torchao, Engine.quanto, Engine.bitsandbytes, Engine.gguf)
    }
    assert list(kept.values()) == [5, 5, 2, 5, 2]
    assert any("no engine is named" in note for note in read(TOY, text, UAQ4).notes)
    config = json.dumps({"quant_method": "quanto", "modules_to_not_convert": ["blocks.0"]})
    assert len(read(TOY, config, UAQ4, Engine.torchao).qconfig.methods) == 6


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"quant_method": "torchao", "modules_to_not_convert": []}, ["time_embedder.linear_1"]),
        ({"quant_method": "quanto"}, []),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ["time_embedder.linear_1"]),
        ({"quant_method": "gguf"}, ["time_embedder.linear_1"]),
        ({"quant_method": "sdnq", "minimum_allowed_numel": 0}, ["time_embedder.linear_1"]),
        ({"quant_method": "sdnq", "minimum_allowed_numel": 0, "add_skip_keys": False}, []),
    ],
)
def test_modules_kept_in_fp32_are_followed_and_told(config: dict, kept: list[str]) -> None:
    found = read(TOY, json.dumps(config), UAQ4, loader=KEEPING)
    assert [p for p in engines.PATHS if p not in found.qconfig.methods] == kept
    assert any("_keep_in_fp32_modules of Toy" in note for note in found.notes) == bool(kept)


def test_modules_kept_in_fp32_are_told_when_writing() -> None:
    graph = graph_of(*(p.replace("embedder", "block") for p in engines.PATHS))
    qconfig = QuantConfig("toy", {w.name: QuantMethod("uaq_g32", 4) for w in graph.weights})
    loader = Loader("Toy", ("time_block",))
    for form in (torchao, gguf):
        (note,) = [n for n in form.write(graph, qconfig, loader).notes if "1 weight: " in n]
        assert "_keep_in_fp32_modules of Toy" in note
        assert not [n for n in form.write(graph, qconfig).notes if "_keep_in" in n]


# ---- torchao


EVERY = [QuantMethod(m.name, bits) for m in METHODS.values() for bits in m.bits if m.name != "fp"]
EXACT = [m for m in EVERY if m.name in ("uaq", "uaq_g32", "uaq_g64", "uaq_g128")]
EXACT.append(QuantMethod("fp8_e4m3", 8))


def mixed_graph() -> Graph:
    return graph_of(*(f"b.{i}.lin" for i in range(len(EXACT))), "full", "last")


def test_what_is_written_for_torchao_is_read_back_exactly() -> None:
    graph = mixed_graph()
    qconfig = QuantConfig("toy", {f"b.{i}.lin": m for i, m in enumerate(EXACT)})
    found = read(graph, torchao.write(graph, qconfig).text, QuantMethod("uaq", 2))
    assert found.qconfig == qconfig
    conv = Graph("toy", (Node("c", Op.CONV, weight=Weight("c", "c.weight", (64, 64, 3, 3))),), ())
    qconfig = QuantConfig("toy", {"c": QuantMethod("uaq_g32", 3)})
    assert read(conv, torchao.write(conv, qconfig).text, UAQ4).qconfig == qconfig


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_what_does_not_come_back_from_torchao_was_told(method: QuantMethod) -> None:
    graph = graph_of("a")
    written = torchao.write(graph, QuantConfig("toy", {"a": method}))
    back = read(graph, written.text, UAQ4).qconfig.methods["a"]
    assert back.bits == method.bits
    if method in EXACT:
        assert back == method
    else:
        assert f"1 weight: {torchao.holds(method).limit}" in written.notes


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_installed_torchao_quantizes_what_is_written() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao")
    import torch
    from torch import nn
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    graph = mixed_graph()
    qconfig = QuantConfig("toy", {f"b.{i}.lin": m for i, m in enumerate(EXACT)})
    model = nn.Module()
    model.b = nn.ModuleList(nn.Module() for _ in EXACT)
    for part in model.b:
        part.lin = nn.Linear(128, 128)
    model.full, model.last = nn.Linear(128, 128), nn.Linear(128, 128)
    config = config_from_dict(json.loads(torchao.write(graph, qconfig).text))
    quantize_(model, config, filter_fn=None)
    types = {p: type(m.weight.data) for p, m in model.named_modules() if type(m) is nn.Linear}
    plain = {path for path, kind in types.items() if kind is torch.Tensor}
    assert plain == {"full", "last"}


def fqn(**configs: object) -> dict:
    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": configs}}


INT4 = {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 32}}
INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": None}}


def test_a_saved_fqn_config_names_what_is_quantized() -> None:
    graph = graph_of("a.q", "a.k", "b.q", "b.k", "c")
    data = fqn(**{"a.q": INT8, "a.q.weight": INT4, "re:b\\..": INT8, "re:.*k": INT4, "a.k": None})
    found = read(graph, json.dumps(data), QuantMethod("uaq", 3)).qconfig.methods
    assert {k: str(m) for k, m in found.items()} == {
        "a.q": "uaq_g32-4",
        "b.q": "uaq-8",
        "b.k": "uaq-8",
    }
    data = fqn(**{"a.q": None, "_default": INT4})
    assert len(read(graph, json.dumps(data), UAQ4).qconfig.methods) == 4
    old = {"_type": "ModuleFqnToConfig", "_data": {"module_fqn_to_config": {"c": INT8}}}
    assert list(read(graph, json.dumps(old), UAQ4).qconfig.methods) == ["c"]
    saved = {"quant_method": "torchao", "quant_type": {"default": old}}
    assert list(read(graph, json.dumps(saved), UAQ4).qconfig.methods) == ["c"]


@pytest.mark.parametrize(
    ("kind", "grain", "is_told"),
    [
        ("Int8WeightOnlyConfig", {"_type": "PerTensor", "_data": {}}, True),
        ("Int8WeightOnlyConfig", {"_type": "PerRow", "_data": {"dim": -1}}, False),
        (
            "Int8DynamicActivationInt8WeightConfig",
            [{"_type": "PerRow", "_data": {}}, {"_type": "PerTensor", "_data": {}}],
            True,
        ),
        ("IntxWeightOnlyConfig", {"_type": "PerTensor", "_data": {}}, True),
        ("IntxWeightOnlyConfig", {"_type": "PerAxis", "_data": {"axis": 0}}, False),
    ],
)
def test_one_scale_for_a_whole_weight_is_told(kind: str, grain: object, is_told: bool) -> None:
    data = {"_type": kind, "_data": {"granularity": grain}}
    notes = read(graph_of("a"), json.dumps(data), UAQ4).notes
    assert any("one scale for the whole weight there" in note for note in notes) == is_told


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"_type": "UIntXWeightOnlyConfig", "_data": {}}, r"wanted one of torchao's .*UIntX"),
        ({"_type": "FqnToConfig", "_data": []}, r"wanted a mapping under _data of 'FqnToConfig'"),
        ({"_type": "FqnToConfig", "_data": {"fqn_to_config": {"a": 3}}}, r"a config or null"),
        ({"quant_type": "int4wo"}, r"wanted a torchao config with _type .*'int4wo'"),
        (fqn(**{"re:(": INT4}), r"the pattern 're:\(' is not a regular expression"),
        (fqn(transformer=INT4), r"none of the 1 names .* weights of 'toy' \(closest to"),
    ],
)
def test_a_damaged_torchao_config_gets_one_sentence(data: dict, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read(graph_of("a"), json.dumps(data), UAQ4)


# ---- quanto, SDNQ, GGUF


def test_groups_of_quanto() -> None:
    for inputs, group in RECORDED["quanto_groups"].items():
        assert skip_list.quanto_group(int(inputs)) == group, inputs
    text = json.dumps({"quant_method": "quanto", "weights_dtype": "int4"})
    methods = [
        str(read(graph_of("a", shape=(8, inputs)), text, UAQ4).qconfig.methods["a"])
        for inputs in (128, 160, 192, 320)
    ]
    assert methods == ["uaq-4", "uaq_g32-4", "uaq_g64-4", "uaq_g64-4"]
    notes = read(graph_of("a", shape=(8, 192)), text, UAQ4).notes
    assert any("groups of 96 there" in note for note in notes)


def test_groups_of_the_installed_quanto() -> None:
    quanto = pytest.importorskip("optimum.quanto")
    for inputs, group in RECORDED["quanto_groups"].items():
        layer = quanto.QLinear(int(inputs), 8, weights=quanto.qint4)
        assert layer.weight_group_size == group


def test_patterns_of_sdnq_are_regular_expressions() -> None:
    for entry, name, holds in RECORDED["sdnq_matches"]:
        assert sdnq.matches(entry, name) == holds, entry
    with pytest.raises(RecipeError, match=r"'q\*\(' is not a regular expression, as SDNQ"):
        read(
            graph_of("q"),
            json.dumps({"quant_method": "sdnq", "modules_to_not_convert": ["q*("]}),
            UAQ4,
        )


def sdnq_method(data: dict, name: str = "a.b") -> str:
    wide = graph_of(name, shape=(128, 512))
    return str(
        read(
            wide, json.dumps({"quant_method": "sdnq", "group_size": -1} | data), UAQ4
        ).qconfig.methods[name]
    )


def test_dictionaries_of_sdnq() -> None:
    for dtype, lists, expected in RECORDED["sdnq_dtypes"]:
        bits = expected.removeprefix("u").removeprefix("int")
        assert sdnq_method({"weights_dtype": dtype, "modules_dtype_dict": lists}) == f"uaq-{bits}"
    both = {
        "weights_dtype": "uint4",
        "modules_quant_config": {"a": {"weights_dtype": "uint8"}},
        "modules_dtype_dict": {"uint2": ["a"]},
    }
    assert sdnq_method(both) == "uaq-2"


def test_levels_of_sdnq_are_told() -> None:
    wide = graph_of("a", shape=(128, 512))
    for dtype, levels in RECORDED["sdnq_levels"].items():
        data = {"quant_method": "sdnq", "weights_dtype": dtype}
        notes = read(wide, json.dumps(data), UAQ4).notes
        told = any(f"symmetric there with {levels} levels" in note for note in notes)
        assert told == (not dtype.startswith("u"))


@pytest.mark.filterwarnings("default")
def test_the_installed_sdnq_does_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "SDNQ_USE_TORCH_COMPILE", "0"
    )  # a compiler that these few values do not need
    utils = pytest.importorskip("sdnq.utils")
    import torch
    from sdnq.quantizer import sdnq_quantize_layer_weight

    for entry, name, holds in RECORDED["sdnq_matches"]:
        assert (utils.check_param_name_in(name, [entry]) is not None) == holds
    for dtype, lists, expected in RECORDED["sdnq_dtypes"]:
        assert utils.get_minimum_dtype(dtype, "a.b.weight", lists) == expected
    weight = torch.linspace(-1, 1, 8192)[None]
    for dtype, levels in RECORDED["sdnq_levels"].items():
        dequantizer, parts = sdnq_quantize_layer_weight(
            weight, layer_class_name="Linear", weights_dtype=dtype, group_size=-1
        )
        assert len(dequantizer(**parts).unique()) == levels, dtype


def test_types_that_diffusers_reads_from_gguf() -> None:
    types = {kind.upper() for kind in gguf.DIFFUSERS_READS} - {"F32", "F16"}
    assert types == set(RECORDED["gguf_types"])
    try:
        utils = pytest.importorskip("diffusers.quantizers.gguf.utils")
    except (ImportError, NameError):
        return
    if not hasattr(utils, "SUPPORTED_GGUF_QUANT_TYPES"):
        pytest.skip("gguf is not installed")
    assert types == {kind.name for kind in utils.SUPPORTED_GGUF_QUANT_TYPES}


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4", "tq2_0", "iq3_s"])
def test_types_that_diffusers_does_not_read_are_told(kind: str) -> None:
    graph = graph_of("a", shape=(64, 256))
    assert any(
        f"1 weight: {kind}: diffusers loads no such tensors" in note
        for note in gguf.read(graph, f"a={kind}", UAQ4).notes
    )


def test_gguf_files_that_diffusers_cannot_load_are_told() -> None:
    graph = graph_of("a", shape=(64, 256))
    qconfig = QuantConfig("toy", {"a": QuantMethod("uaq_g32", 4)})
    pixart, flux = Loader("PixArtTransformer2DModel", (), False), Loader("FluxTransformer2DModel")
    for loader, told in ((pixart, "has no from_single_file"), (flux, "model.diffusion_model.*")):
        for notes in (
            gguf.write(graph, qconfig, loader).notes,
            gguf.read(graph, "a=q4_0", UAQ4, loader).notes,
        ):
            assert len([note for note in notes if told in note]) == 1
    assert not [n for n in gguf.write(graph, QuantConfig("toy", {}), pixart).notes if "load" in n]


def test_a_base_that_gguf_cannot_hold() -> None:
    nodes = (
        Node("to_q", Op.LINEAR, weight=Weight("to_q", "to_q.weight", (64, 64))),
        Node("to_k", Op.LINEAR, weight=Weight("to_k", "to_k.weight", (64, 64))),
        Node("odd", Op.LINEAR, weight=Weight("odd", "odd.weight", (64, 100))),
        Node("conv", Op.CONV, weight=Weight("conv", "conv.weight", (64, 64, 3, 3))),
    )
    found = read(Graph("toy", nodes, ()), "to_q=q8_0", UAQ4)
    assert {k: str(m) for k, m in found.qconfig.methods.items()} == {
        "to_q": "uaq_g32-8",
        "to_k": "uaq-4",
    }
    for told in (
        "keep full precision (a Conv)",
        "(a row of 100 values",
        "they get uaq-4, which GGUF does not have (nearest: q4_0)",
    ):
        (note,) = [note for note in found.notes if told in note]
        assert note.startswith("1 weight: matched by no rule: ")
    exact = read(graph_of("to_q", "to_k"), "to_q=q8_0", QuantMethod("uaq_g32", 4))
    assert "1 weight: matched by no rule: they get uaq_g32-4" in exact.notes


# ---- recognition, methods, damage


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"_load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "load_in_4bit": True}, "nf4_g64-4"),
        ({"_load_in_8bit": True, "load_in_8bit": True}, "uaq-8"),
        ({"bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["x"]}, "nf4_g64-4"),
        ({"quant_type": {"default": INT8}}, "uaq-8"),
        (INT4, "uaq_g32-4"),
        ({"weights_dtype": "int8", "modules_to_not_convert": ["x"]}, "uaq-8"),
        ({"weights": "float8", "activations": None}, "fp8_e4m3-8"),
        ({"weights_dtype": "uint5", "group_size": -1, "use_svd": False}, "uaq-5"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_configs_without_quant_method_are_recognized(config: dict, method: str, mark: str) -> None:
    graph = graph_of("a", "x", shape=(128, 256))
    found = read(graph, mark + json.dumps(config), QuantMethod("uaq", 3))
    assert str(found.qconfig.methods["a"]) == method
    skipped = any("x" in value for value in config.values() if isinstance(value, list))
    assert ("x" in found.qconfig.methods) != skipped


def test_a_config_whose_type_is_not_read_says_so() -> None:
    data = {"quant_method": "hqq", "modules_to_not_convert": ["x"]}
    found = read(graph_of("a", "x"), json.dumps(data), UAQ4)
    assert list(found.qconfig.methods) == ["a"]
    assert any("the type of 'hqq' is not read" in note for note in found.notes)
    found = read(graph_of("a"), json.dumps({"quant_method": "torchao"}), UAQ4)
    assert found.notes == ("1 weight: the config names no type of torchao: they get uaq-4",)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "are both true: keep one"),
        ({"load_in_4bit": False, "load_in_8bit": False}, "quantizes nothing by this config"),
        ({"load_in_4bit": "true"}, r"wanted true or false .* \(got 'true'\)"),
    ],
)
def test_bitsandbytes_without_one_width_is_refused(flags: dict, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read(TOY, json.dumps({"quant_method": "bitsandbytes", **flags}), UAQ4)


@pytest.mark.parametrize(
    ("config", "method", "told"),
    [
        ({"quant_type": "FP8"}, "fp8_e4m3-8", "a scale per tensor there"),
        ({"quant_type": "INT8", "channel_quantize": 0}, "uaq-8", "a scale per channel there"),
        (
            {"quant_type": "INT4", "channel_quantize": -1, "block_quantize": 64},
            "uaq_g64-4",
            "blocks of 64 there",
        ),
        ({"quant_type": "NF4"}, "nf4_g64-4", "modelopt's NF4 is taken as nf4_g64-4"),
        ({"quant_type": "FP8_INT8"}, "fp8_e4m3-8", "activations are quantized too there"),
    ],
)
def test_types_of_modelopt(config: dict, method: str, told: str) -> None:
    got = read(graph_of("a", "b"), json.dumps({"quant_method": "modelopt", **config}), UAQ4)
    assert {str(one) for one in got.qconfig.methods.values()} == {method}
    assert any(told in note for note in got.notes)
    assert not any("not read" in note for note in got.notes)
    with pytest.raises(RecipeError, match="wanted a quant_type of FP8, INT8"):
        read(TOY, '{"quant_method": "modelopt", "quant_type": "fp4"}', UAQ4)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"quant_method": "quanto", "weights_dtype": "int8", "activations": "int8"}, "activations"),
        (
            {
                "quant_method": "sdnq",
                "weights_dtype": "int8",
                "minimum_allowed_numel": 0,
                "use_dynamic_quantization": True,
            },
            "dynamic_loss_threshold",
        ),
    ],
)
def test_what_an_engine_does_besides_is_told(config: dict, told: str) -> None:
    assert any(told in note for note in read(TOY, json.dumps(config), UAQ4).notes)


def test_what_bitsandbytes_config_writes_is_read() -> None:
    from diffusers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["x"])
    text = config.to_json_string()
    assert "quant_method" not in json.loads(text)
    found = read(graph_of("a", "x"), text, UAQ4)
    assert {k: str(m) for k, m in found.qconfig.methods.items()} == {"a": "uaq-8"}


def test_every_format_says_what_it_holds_of_every_method() -> None:
    for form in (torchao, sdnq, gguf):
        assert set(form.HOLDS) == set(METHODS)
        assert all(form.holds(method).kind for method in EVERY)


@pytest.mark.parametrize(("form", "engine"), [(torchao, "torchao"), (sdnq, "SDNQ"), (gguf, "GGUF")])
def test_an_unknown_method_makes_a_writer_raise(
    form: ModuleType, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "lattice", METHODS["uaq"])
    qconfig = QuantConfig("toy", {"a": QuantMethod("lattice", 4)})
    with pytest.raises(RecipeError, match=rf"^lattice-4 cannot be written for {engine}"):
        form.write(graph_of("a"), qconfig)


def test_the_schema_lists_the_registry() -> None:
    schema = native.schema()
    forms = [f"{m.name}-({'|'.join(map(str, m.bits))})" for m in METHODS.values()]
    rounded = f"a({'|'.join(map(str, WIDTHS))})"
    assert schema["properties"]["methods"]["additionalProperties"]["pattern"] == (
        f"^(({'|'.join(forms)})([+]{rounded})?|{rounded})$"
    )


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(["context_embedder", "single_transformer_blocks.0"]),
        json.dumps({"quant_method": "quanto", "modules_to_not_convert": ["context_embedder"]}),
        json.dumps({"quant_method": "torchao", "modules_to_not_convert": ["context_embedder"]}),
        json.dumps({"quant_method": "sdnq", "modules_to_not_convert": ["context_embedder"]}),
        "context_embedder=q4_0",
        json.dumps(fqn(context_embedder=INT4)),
    ],
)
def test_a_recipe_of_another_denoiser_is_refused(text: str) -> None:
    told = (
        r"none of the \d names or patterns of the recipe .* the 6 weights of 'toy' "
        r"\(closest to 'context_embedder.*' is '"
    )
    with pytest.raises(RecipeError, match=told):
        read(TOY, text, UAQ4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "{",
        '["a"',
        "[" * 100_000,
        "null",
        "3",
        "[1]",
        "[null]",
        "[[]]",
        "{}",
        '{"quantization_config": 3}',
        '{"quantization_config": null}',
        '{"quant_method": 3}',
        '{"quant_method": []}',
        '{"quant_method": "quanto", "weights_dtype": ["int4"]}',
        '{"quant_method": "quanto", "weights_dtype": {}, "weights": 3}',
        '{"quant_method": "bitsandbytes", "bnb_4bit_quant_type": ["nf4"]}',
        '{"quant_method": "bitsandbytes", "llm_int8_skip_modules": {"a": 1}}',
        '{"quant_method": "sdnq", "weights_dtype": ["int4"]}',
        '{"quant_method": "sdnq", "modules_quant_config": {"proj_out": 3}}',
        '{"quant_method": "sdnq", "weights_dtype": "int4", "minimum_allowed_numel": 0, '
        '"group_size": true}',
        '{"quant_method": "sdnq", "weights_dtype": "int4", "minimum_allowed_numel": null}',
        '{"quant_method": "sdnq", "modules_dtype_dict": {"int4": 3}}',
        '{"_type": 3}',
        '{"_type": ["FqnToConfig"], "_data": {}}',
        '{"_type": "IntxWeightOnlyConfig", "_data": {"weight_dtype": 3}}',
        '{"_type": "Int4WeightOnlyConfig", "_data": {"group_size": NaN}}',
        '{"quant_type": 3}',
        '{"quant_type": {"default": []}}',
        '{"schema": 3}',
        '{"schema": "qsdm/qconfig/1", "denoiser": "toy", "methods": {"a": 3}}',
        '{"schema": "qsdm/qconfig/1", "methods": {}}',
        '{"schema": "qsdm/qconfig/1", "denoiser": ["toy"], "methods": {}}',
    ],
)
def test_a_damaged_recipe_gets_one_sentence(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(TOY, text, UAQ4)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
