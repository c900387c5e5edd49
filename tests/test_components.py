"""Text encoders and VAEs in the denoiser's place, or beside it: traced, drawn with, packed."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pipelines import t5
from tiny import CAPTIONS

import qsdm
from qsdm import run, tracing
from qsdm.__main__ import main
from qsdm.checkpoint import CheckpointError, contents, dequantized, load_quantized, save_quantized
from qsdm.checkpoint.opening import open_pipeline
from qsdm.denoisers import Model, ModelError, denoiser_of, discover, load_pipeline, with_component
from qsdm.engine.serial import Serial
from qsdm.graph import Graph, parts_of, subgraph
from qsdm.measurement.contender import Contender
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.memory import memory_of
from qsdm.measurement.protocol import protocol_of
from qsdm.outcome import EvaluationError, Objective
from qsdm.predictor import FitOptions
from qsdm.probe import probe
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec, cost
from qsdm.qconfig.steps import StepBin
from qsdm.quant.calibrated import PackedWeights
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.packed import PackedLayer
from qsdm.quant.swap import sliced
from qsdm.recipe import Format, recipe
from qsdm.search import search
from qsdm.sensitivity import AttributionOptions
from qsdm.store.files import read_json
from qsdm.strategies.constraints import Constraints, Infeasible
from qsdm.strategies.greedy import Greedy
from qsdm.trace import trace
from qsdm.tracing import TraceError
from qsdm.tracing.entry import as_forward
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

ALL = "text_encoder+unet+vae"
PARTS = ("text_encoder", "vae", ALL)
THREE = QuantMethod.parse("uaq-3")


class Fitted:
    """Quantized weights that are fitted when they are asked for.

    Args:
        module: in full precision; its values are kept.
        graph: of the module.
    """

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        self.values = {
            w.name: sliced(module.get_parameter(w.parameter), w).clone() for w in graph.weights
        }

    def dequantize(
        self, weight: str, method: QuantMethod, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        values = dequantize(fit(self.values[weight], method))
        return values if out is None else out.copy_(values)


@pytest.fixture(scope="module")
def parts(
    tiny_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Model, Graph, str]]:
    """Model, graph and printed lines of each part."""
    root = tmp_path_factory.mktemp("parts")
    result = {}
    for part in PARTS:
        model = with_component(tiny_model, part)
        with redirect_stdout(StringIO()) as printed:
            graph = trace(Workspace(model, root=root))
        result[part] = (model, graph, printed.getvalue())
    return result


def quantized(model: Model, graph: Graph) -> QuantConfig:
    return QuantConfig(model.name, {weight.name: THREE for weight in graph.weights})


def test_a_text_encoder_is_traced_without_its_embeddings(parts: dict) -> None:
    model, graph, printed = parts["text_encoder"]
    assert (model.name, model.denoiser) == ("tiny-text_encoder", "CLIPTextModel")
    layer = "encoder.layers.0"
    assert {weight.name for weight in graph.weights} == {
        *(f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        f"{layer}.mlp.fc1",
        f"{layer}.mlp.fc2",
    }
    roles = {node.weight.name: str(node.role) for node in graph.nodes if node.weight is not None}
    assert roles[f"{layer}.self_attn.q_proj"] == "attn_q"
    assert roles[f"{layer}.mlp.fc2"] == "ff_out"
    inputs = [node.name for node in graph.nodes if node.op == "input"]
    assert inputs == ["input.input_ids"]
    assert "embeddings.token_embedding, embeddings.position_embedding: " in printed
    assert "not quantized" in printed
    assert "unet is another denoiser of this pipeline" in printed
    assert "not traced: vae of this pipeline; +model.component=vae does" in printed


def test_of_a_vae_only_what_decodes_is_traced(parts: dict, tiny_pipeline: object) -> None:
    _, graph, printed = parts["vae"]
    vae = tiny_pipeline.vae  # type: ignore[attr-defined]
    layers = {
        name
        for name, child in vae.named_modules()
        if isinstance(child, tracing.QUANTIZABLE) and not name.startswith(("encoder.", "quant_"))
    }
    assert {weight.name for weight in graph.weights} == layers
    assert {"post_quant_conv", "decoder.conv_in", "decoder.conv_out"} <= layers
    assert graph.nodes[-1].activation == (1, 3, 16, 16)
    assert "not called   encoder.conv_in, " in printed
    assert "decoding never uses them" in printed


def test_a_t5_is_traced() -> None:
    module = t5()[1]
    ids = {"input_ids": torch.zeros(1, 24, dtype=torch.long)}
    graph = tracing.trace(module, ids | {"attention_mask": torch.ones(1, 24)}, "t5")
    layers = [n for n, m in module.named_modules() if isinstance(m, tracing.QUANTIZABLE)]
    assert sorted(weight.name for weight in graph.weights) == sorted(layers)
    assert {"attn_v", "attn_out", "ff_out"} <= {str(n.role) for n in graph.nodes if n.weight}


def test_a_call_of_a_vae_decodes(tiny_pipeline: object) -> None:
    vae = copy.deepcopy(tiny_pipeline.vae)  # type: ignore[attr-defined]
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoded = vae.decode(z, return_dict=False)[0]
    seen = []
    as_forward(as_forward(vae)).register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(vae(z, return_dict=False)[0], decoded)
    assert torch.equal(vae.decode(z, return_dict=False)[0], decoded)
    assert len(seen) == 2


@pytest.mark.parametrize("part", ["text_encoder", ALL])
def test_pictures_follow_the_configuration_and_a_checkpoint_draws_the_same(
    parts: dict, tiny_pipeline: object, part: str, tmp_path: Path
) -> None:
    model, graph, _ = parts[part]
    qconfig, full = quantized(model, graph), QuantConfig(model.name, {})
    pipeline = load_pipeline(model)
    packed = Fitted(denoiser_of(pipeline, model), graph)
    drawings = [Drawing(i, CAPTIONS[i], i) for i in range(2)]
    drawer = Drawer(model, graph, packed, 2, pipeline)
    plain, low = (drawer.draw(one, drawings) for one in (full, qconfig))
    assert (plain != low).any()
    assert (drawer.draw(full, drawings) == plain).all()
    for name in model.components:  # a weight of each part changes the picture
        one = next(weight.name for weight in graph.weights if part == name or name in weight.name)
        assert (drawer.draw(QuantConfig(model.name, {one: THREE}), drawings) != plain).any()
    refused = "is not called at every step|bins of steps, .* are of one part .*component=unet$"
    with pytest.raises((EvaluationError, ModelError), match=refused):
        drawer.draw(QuantConfig(model.name, {}, steps=(StepBin(0, 1, qconfig),)), drawings)

    written = save_quantized(load_pipeline(model), part, graph, qconfig, tmp_path)
    assert written.packed_bytes == cost.size_bytes(graph, qconfig, 16)
    assert contents(tmp_path) == written
    loaded = load_quantized(tmp_path)
    again = Drawer(model, graph, None, 2, loaded).draw(full, drawings)
    assert np.abs(again.astype(int) - low).max() <= 1
    for one in model.parts:
        alone = load_quantized(tmp_path / one.component)
        assert type(alone).__name__ == one.denoiser
        prefix = f"{one.component}." * (len(model.parts) > 1)
        weight = next(weight for weight in graph.weights if weight.name.startswith(prefix))
        values = dequantized(alone).get_parameter(weight.parameter.removeprefix(prefix))
        assert torch.equal(values, packed.dequantize(weight.name, THREE))
    before = memory_of(model, graph, [qconfig])
    own = sum(p.numel() for p in denoiser_of(tiny_pipeline, model).parameters())
    assert before.packed_bytes == (written.packed_bytes + 2 * (own - graph.num_values),) * 2


def test_a_joint_graph_holds_those_of_its_parts(parts: dict) -> None:
    model, graph, printed = parts[ALL]
    assert model.name == "tiny-text_encoder-unet-vae"
    assert model.denoiser == "CLIPTextModel+UNet2DConditionModel+AutoencoderKL"
    for part in ("text_encoder", "vae"):
        assert subgraph(graph, part, f"tiny-{part}") == parts[part][1]
    denoiser = subgraph(graph, "unet", "tiny")
    own = [parts["text_encoder"][1], denoiser, parts["vae"][1]]
    assert len(graph.nodes) == sum(len(one.nodes) for one in own)
    assert len(graph.weights) == sum(len(one.weights) for one in own)
    assert parts_of(graph) == ("text_encoder", "unet", "vae")
    assert parts_of(denoiser) == ()
    names = [node.name for node in graph.nodes]
    between = {
        (names[a], names[b])
        for a, b in graph.edges
        if names[a].partition(".")[0] != names[b].partition(".")[0]
    }
    assert {(a.partition(".")[0], b) for a, b in between} == {
        ("text_encoder", "unet.input.encoder_hidden_states"),
        ("unet", "vae.input.z"),
    }
    blocks = {node.block.partition(".")[0] for node in graph.nodes}
    assert blocks == {"text_encoder", "unet", "vae"}
    uniform = dict.fromkeys((w.name for w in graph.weights), THREE)
    qconfig = QuantConfig(model.name, uniform)
    sizes = [cost.size_bytes(one, quantized(model, one)) for one in own]
    assert cost.size_bytes(graph, qconfig) == sum(sizes)
    assert "not traced" not in printed
    space = SpaceSpec("small", ["uaq-3"], max_overhead=99).of(graph)
    with pytest.raises(Infeasible, match=f"at least text_encoder {sizes[0]:,}, unet {sizes[1]:,}"):
        Constraints.of({"size_bytes": 99}).restrict(space)


def test_full_precision_is_the_same_whichever_part_is_quantized(
    parts: dict, tiny_model: Model
) -> None:
    drawings = [Drawing(i, CAPTIONS[i], i) for i in range(2)]
    models = [dataclasses.replace(tiny_model, dtype="bfloat16")]
    models += [dataclasses.replace(parts[part][0], dtype="bfloat16") for part in ("vae", ALL)]
    first, *others = (
        Drawer(model, parts["vae"][1], None, 2).draw(QuantConfig(model.name, {}), drawings)
        for model in models
    )
    assert all((other == first).all() for other in others)


def test_a_damaged_text_encoder_is_told(parts: dict, tmp_path: Path) -> None:
    model, graph, _ = parts["text_encoder"]
    save_quantized(
        load_pipeline(model), "text_encoder", graph, quantized(model, graph), tmp_path / "whole"
    )
    folder = tmp_path / "whole" / "text_encoder"
    with pytest.raises(RuntimeError, match=r"call qsdm\.checkpoint\.save_quantized"):
        load_quantized(folder).save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    file = folder / "model.safetensors"
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    file.write_bytes(bytes(flipped))
    with pytest.raises(CheckpointError, match="was changed after it was saved"):
        load_quantized(tmp_path / "whole")
    file.write_bytes(content)
    about = {key: value for key, value in config.items() if key != "quantization_config"}
    quantization = {
        k: v
        for k, v in config["quantization_config"].items()
        if k not in ("config_checksum", "checksum")
    }
    for change, words in [
        ({"architectures": ["CLIPConfig"]}, "no class of diffusers or transformers"),
        ({"num_hidden_layers": 2}, "lacks 'encoder.layers.1"),
        ({"num_hidden_layers": 0}, "is not the traced denoiser"),
    ]:
        (folder / "config.json").write_text(
            json.dumps({**about, **change, "quantization_config": quantization})
        )
        with pytest.raises(CheckpointError, match=words):
            load_quantized(folder)


def test_configurations_of_two_parts_are_never_confused(parts: dict, tiny_model: Model) -> None:
    text, graph, _ = parts["text_encoder"]
    vae = parts["vae"][0]
    names = [tiny_model.name, text.name, vae.name]
    assert names == ["tiny", "tiny-text_encoder", "tiny-vae"]
    models = (tiny_model, text, vae, parts[ALL][0])
    assert len({protocol_of(m, CAPTIONS, 0, 4).digest for m in models}) == 4
    assert len({QuantConfig(name, {"conv_in": THREE}).digest for name in names}) == 3
    # Even under one name, as after model.name=tiny:
    renamed = dataclasses.replace(tiny_model, name="x_vae"), dataclasses.replace(vae, name="x_vae")
    assert len({protocol_of(m, CAPTIONS, 0, 4).digest for m in renamed}) == 2
    space = SpaceSpec("small", ["uaq-3"], max_overhead=99).of(graph)
    with pytest.raises(ValueError, match=r"wanted a configuration of 'tiny-text_encoder'"):
        space.encode(QuantConfig("tiny", {weight.name: THREE for weight in graph.weights}))


def test_a_part_can_be_taken_of_any_description(tiny_model: Model) -> None:
    text = with_component(tiny_model, "text_encoder")
    assert text.num_params is None
    assert text.config == {}
    assert with_component(text, "text_encoder") == text
    assert with_component(text, "vae").name == "tiny-vae"
    found = discover(tiny_model.path, component="vae", name="mine")
    assert (found.name, found.denoiser) == ("mine-vae", "AutoencoderKL")
    assert found.resolution_px == discover(tiny_model.path).resolution_px
    two = discover(tiny_model.path, component=["vae", "unet"], name="mine")
    assert (two.name, two.component) == ("mine-unet-vae", "unet+vae")
    both = with_component(tiny_model, ["vae", "unet"])
    assert with_component(both, "vae+unet") == both
    assert with_component(both, "vae") == with_component(tiny_model, "vae")
    assert with_component(both, "unet") == tiny_model
    assert with_component(text, both.component).parts[0].denoiser == tiny_model.denoiser
    assert both.parts[0].num_params == tiny_model.num_params
    with pytest.raises(ModelError, match=r"model\.load\.vae=null leaves the vae out"):
        with_component(dataclasses.replace(tiny_model, load={"vae": None}), "unet+vae")
    with pytest.raises(ValueError, match=r"wanted a class for each of unet, vae \(got UNet2DCondi"):
        _ = dataclasses.replace(tiny_model, component="vae+unet").parts


@pytest.mark.parametrize(
    ("component", "words"),
    [
        ("scheduler", "is a DPMSolverMultistepScheduler, which has no weights to quantize (wanted"),
        ("tokenizer", "is a CLIPTokenizer, which has no weights to quantize (wanted one of text_e"),
        ("text_encodr", "has no text_encodr: did you mean text_encoder? (wanted one of text_enco"),
        ("safety_checker", "has no safety_checker (wanted one of text_encoder, unet, vae)"),
    ],
)
def test_what_has_no_weights_is_told(component: str, words: str, tiny_model: Model) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        with_component(tiny_model, component)


def test_a_command_takes_parts_with_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["+model=emoji_unet", f"store={tmp_path}", "model.component="]
    for component, words in [
        ("scheduler", "error: the scheduler of 'emoji_unet' is a DPMSolverMultistepScheduler, "),
        ("[unet,vae,unet]", "component lists unet twice: give each part of the pipeline once"),
        ("[unet,vea]", "the pipeline 'emoji_unet' has no vea: did you mean vae? (wanted one of"),
        (
            "vae model.inputs.sample=[1]",
            "model.inputs are of a denoiser, while vae is traced ",
        ),
    ]:
        assert run.execute(trace, [*arguments[:2], *f"{arguments[2]}{component}".split()]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_vae_is_traced_where_one_step_is_another_algorithm(tmp_path: Path) -> None:
    """PixArt's pipeline takes one step as a distilled model does, which most samplers cannot."""
    workspace = qsdm.open("emoji_pixart", store=tmp_path, component="vae")
    assert len(trace(workspace, page=False).weights) == 27


def test_a_part_of_a_pipeline_that_is_not_here_is_told(tiny_model: Model) -> None:
    absent = dataclasses.replace(tiny_model, path="nobody/nothing")
    with pytest.raises(ModelError, match="only the pipeline's own files say: give path=DIRECTORY"):
        with_component(absent, "text_encoder")
    assert with_component(absent, "transformer_2").component == "transformer_2"


def test_a_part_that_is_never_called_is_told(tiny_model: Model, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path / "pipe"
    shutil.copytree(tiny_model.path, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))
    small = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    CLIPVisionModelWithProjection(small).save_pretrained(folder / "image_encoder")
    model = discover(str(folder), component="image_encoder", resolution_px=16)
    with pytest.raises(TraceError, match="drew a picture without calling its image_encoder"):
        trace(Workspace(model, root=tmp_path))


@pytest.mark.slow
@pytest.mark.soak  # faster tests do each stage for one part
@pytest.mark.timeout(1200)
def test_all_stages_take_several_parts(
    parts: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One budget of bytes over a text encoder, a denoiser and a VAE, from trace to checkpoint."""
    model = parts[ALL][0]
    space = SpaceSpec("small", ["uaq-3", "uaq-8"], max_overhead=99)
    workspace = Workspace(model, space, tmp_path)
    low, high = (
        cost.size_bytes(parts[ALL][1], space.of(parts[ALL][1]).uniform(method))
        for method in space.methods
    )
    objective = Objective({"fd_lite0": -1})
    main(
        workspace,
        objective,
        FitOptions(folds=3, width=8, hops=2, epochs=2),
        AttributionOptions(num_configs=4),
        Greedy(),
        Serial(),
        probe_images=2,
        num_labels=12,
        num_images=4,
        budget={"size_bytes": (low + high) // 2},
        evaluations=60,
        rounds=0,
        num_random=0,
    )
    capsys.readouterr()
    store, graph = workspace.store, workspace.space.graph
    chosen = QuantConfig.from_json(read_json(store.path("chosen.json")))
    assert cost.size_bytes(graph, chosen) <= (low + high) // 2
    folder = store.path("checkpoint")
    assert contents(folder).packed_bytes == cost.size_bytes(graph, chosen)
    text = (folder / "README.md").read_text()
    assert "its text_encoder, denoiser and vae at" in text
    for part in model.components:
        own = cost.size_bytes(subgraph(graph, part, ""), chosen.part(part))
        assert contents(folder / part).packed_bytes == own
        assert f"(`{part}`)" in text
        assert f"{own:,} bytes" in text
    drawings = [Drawing(i, CAPTIONS[i], i) for i in range(2)]
    measured = Drawer(model, graph, PackedWeights(workspace.packed), 2).draw(chosen, drawings)
    full = QuantConfig(model.name, {})
    loaded = Drawer(model, graph, None, 2, load_quantized(folder)).draw(full, drawings)
    assert np.abs(loaded.astype(int) - measured).max() <= 3  # biases went through 16 bits
    opened = open_pipeline(Contender("ours", discover(str(folder), resolution_px=16)))
    for part in model.components:
        assert any(isinstance(layer, PackedLayer) for layer in getattr(opened, part).modules())
    recipe(workspace, to=Format.torchao)
    assert "text_encoder and vae left out, as torchao holds denoisers" in capsys.readouterr().out
    file = store.path("recipes/chosen-unet.torchao.json")
    assert "conv_in" in file.read_text()
    assert "unet." not in file.read_text()
    assert recipe(workspace).text == json.dumps(chosen.to_json(), indent=1) + "\n"
    with pytest.raises(ModelError, match=r"recipes of other engines are of one part .*=unet$"):
        recipe(workspace, file=file)
    for given, words in [
        ({"fidelity": "forward"}, "fidelity=forward compares outputs of one part of a pipeline"),
        ({"activations": 6}, "activations are probed in one part of a pipeline"),
        ({"steps": 2}, "bins of steps are of one part of a pipeline"),
    ]:
        with pytest.raises(ModelError, match=words):
            probe(workspace, objective, **given)
    with pytest.raises(ModelError, match="target=torchao holds the denoiser, one part of a pip"):
        search(workspace, objective, Greedy(), target="torchao")
