from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from qsdm.checkpoint import (
    CheckpointError,
    Contents,
    contents,
    dequantized,
    load_quantized,
    save_denoiser,
    save_quantized,
)
from qsdm.denoisers import Model, load_pipeline
from qsdm.graph import Graph, Node, Op, Weight
from qsdm.measurement.drawer import compute_in
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec, cost
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.packed import PackedLayer
from qsdm.quant.packed_model import pack
from qsdm.quant.swap import quantized, sliced
from qsdm.store.header import read_header
from qsdm.trace import trace
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

METHODS = [
    "uaq-3",
    "uaq-4",
    "kmeans_a-3",
    "kmeans_c-4",
    "uaq_g32-4",
    "nf4_g64-4",
    "fp8_e4m3-8",
    "kmeans_a-5",
]
UAQ4 = QuantMethod("uaq", 4)
Saved = tuple[Graph, QuantConfig, Path, Contents]


@pytest.fixture(scope="module")
def saved(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A tiny pipeline in 16 bit, a mixed configuration of it, and both as a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    space = SpaceSpec("mixed", METHODS).of(trace(Workspace(tiny_model, root=folder), page=False))
    qconfig = space.sample(np.random.default_rng(0))
    left_out = {name: method for i, (name, method) in enumerate(qconfig.methods.items()) if i % 7}
    qconfig = QuantConfig(qconfig.denoiser, left_out)
    pipeline = load_pipeline(tiny_model, dtype="float16")
    actual = save_quantized(pipeline, "unet", space.graph, qconfig, folder / "saved")
    return space.graph, qconfig, folder / "saved", actual


def latents(pipeline: DiffusionPipeline, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.inference_mode():
        return pipeline.unet(
            torch.ones(1, 4, 8, 8, dtype=dtype),
            500,
            encoder_hidden_states=torch.ones(1, 3, 16, dtype=dtype),
        ).sample


def test_bytes_on_disk_are_those_of_the_cost_model(saved: Saved) -> None:
    graph, qconfig, path, actual = saved
    weights = {weight.name: weight for weight in graph.weights}
    split = {w.parameter for w in graph.weights if w.name in qconfig.methods}
    beside = [w for w in graph.weights if w.parameter in split and w.name not in qconfig.methods]
    expected = sum(
        method.size_bits(weights[name], 16) // 8 for name, method in qconfig.methods.items()
    )
    assert actual.packed_bytes == expected + sum(2 * w.numel for w in beside)
    plain = sum(2 * w.numel for w in graph.weights if w.parameter not in split)
    assert actual.packed_bytes + plain == cost.size_bytes(graph, qconfig, 16)
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    assert actual.total_bytes == file.stat().st_size
    assert sum(actual.plain.values()) >= plain
    assert contents(path) == actual
    assert "unquantized tensors" in str(actual)


def test_scales_are_stored_in_16_bit_also_of_a_32_bit_denoiser(
    saved: Saved, tiny_model: Model, tmp_path: Path
) -> None:
    graph, qconfig, _, in_16 = saved
    whole = QuantConfig(
        qconfig.denoiser, {w.name: qconfig.methods.get(w.name, UAQ4) for w in graph.weights}
    )
    actual = save_denoiser(load_pipeline(tiny_model).unet, graph, whole, tmp_path, full_bits=32)
    assert actual.packed_bytes == cost.size_bytes(graph, whole, 16)
    assert actual.packed_bytes < cost.size_bytes(graph, whole, 32)
    assert all(actual.plain[name] == 2 * in_16.plain[name] for name in actual.plain)


def test_a_loaded_denoiser_rounds_its_activations(
    saved: Saved, tiny_model: Model, tmp_path: Path
) -> None:
    import diffusers

    graph, qconfig, _, _ = saved
    first = next(iter(qconfig.methods))
    rounded = QuantConfig(qconfig.denoiser, qconfig.methods, 4, {first: 16})
    pipeline = load_pipeline(tiny_model, dtype="float16")
    save_denoiser(pipeline.unet, graph, rounded, tmp_path / "unet")
    pipeline.unet = pack(pipeline.unet.float(), graph, rounded)
    expected = latents(pipeline)
    pipeline.unet = pack(load_pipeline(tiny_model, dtype="float16").unet.float(), graph, qconfig)
    assert not torch.allclose(latents(pipeline), expected, atol=1e-3)
    pipeline.unet = load_quantized(tmp_path / "unet")
    assert torch.equal(latents(pipeline), expected)
    pipeline.unet.save_pretrained(tmp_path / "again")
    cls = diffusers.UNet2DConditionModel
    pipeline.unet = cls.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(latents(pipeline), expected)
    header = read_header(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    stored = json.loads(header.metadata["qsdm"])
    assert QuantConfig.from_json(stored["qconfig"]) == rounded
    assert stored["schema"] != "qsdm/checkpoint/1"  # a version that would not round refuses it

    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    about = config["quantization_config"]
    about["rounded"] = {"lost.weight": 8}
    about = {k: v for k, v in about.items() if k not in ("checksum", "config_checksum")}
    (tmp_path / "unet" / "config.json").write_text(
        json.dumps({**config, "quantization_config": about})
    )
    with pytest.raises(CheckpointError, match="rounds what the denoiser lacks"):
        load_quantized(tmp_path / "unet")


@pytest.mark.parametrize("loader", ["ours", "diffusers"])
def test_a_loaded_pipeline_computes_what_fake_quantization_does(
    saved: Saved, tiny_model: Model, loader: str
) -> None:
    import diffusers

    graph, qconfig, path, _ = saved
    full = load_pipeline(tiny_model, dtype="float16").to(torch.float32)
    originals = {name: p.detach().clone() for name, p in full.unet.named_parameters()}
    weights = {weight.name: weight for weight in graph.weights}

    def values(name: str, method: QuantMethod, out: torch.Tensor | None = None) -> torch.Tensor:
        return dequantize(
            fit(sliced(originals[weights[name].parameter], weights[name]).half(), method), out
        )

    with quantized(full.unet, graph, qconfig, values):
        expected = latents(full)
    if loader == "ours":
        pipeline = load_quantized(path)
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(latents(pipeline), expected)
    assert not torch.equal(latents(full), expected)
    layers = [layer for layer in pipeline.unet.modules() if isinstance(layer, PackedLayer)]
    assert len(layers) > 20
    picture = pipeline(
        "a red house", num_inference_steps=2, height=16, width=16, output_type="np"
    ).images[0]
    assert np.isfinite(picture).all()


def test_it_computes_in_other_types_from_the_same_stored_values(saved: Saved) -> None:
    path = saved[2]
    wide, narrow = load_quantized(path), load_quantized(path, torch.bfloat16)
    stored = narrow.unet.state_dict()
    for name, tensor in wide.unet.state_dict().items():
        if ".packed." in name:
            assert torch.equal(stored[name], tensor)
            assert stored[name].dtype == tensor.dtype
    got = latents(narrow, torch.bfloat16)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), latents(wide), atol=0.1, rtol=0.1)


def test_a_loaded_pipeline_saves_again_as_it_is(saved: Saved, tmp_path: Path) -> None:
    pipeline = load_quantized(saved[2])
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(latents(load_quantized(tmp_path)), latents(pipeline))


def check_same(pipeline: DiffusionPipeline, other: DiffusionPipeline) -> None:
    """The same values; the last bit of an output depends on where in its file a tensor begins."""
    state, expected = pipeline.unet.state_dict(), other.unet.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    torch.testing.assert_close(latents(pipeline), latents(other))


RESAVED = {"in shards": {"max_shard_size": "20KB"}, "as a variant": {"variant": "fp16"}}
RESAVED["a variant in shards"] = RESAVED["in shards"] | RESAVED["as a variant"]


@pytest.mark.parametrize("how", RESAVED)
def test_what_diffusers_saves_again_loads(saved: Saved, tmp_path: Path, how: str) -> None:
    pipeline = load_quantized(saved[2])
    pipeline.save_pretrained(tmp_path, **RESAVED[how])
    variant = RESAVED[how].get("variant")
    files = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert (len(files) > 1) == ("shards" in how)
    check_same(load_quantized(tmp_path, variant=variant), pipeline)
    here, before = contents(tmp_path, variant), saved[3]
    assert here.packed_bytes == before.packed_bytes
    assert set(here.plain) == set(before.plain)
    assert here.total_bytes == sum(file.stat().st_size for file in files)
    if variant:
        with pytest.raises(CheckpointError, match="pass variant='fp16'"):
            load_quantized(tmp_path)
        with pytest.raises(CheckpointError, match="pass variant='fp16'"):
            contents(tmp_path)


def test_the_index_decides_over_a_file_beside_it(saved: Saved, tmp_path: Path) -> None:
    """As in diffusers."""
    pipeline = load_quantized(saved[2])
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    single = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    single.write_bytes(b"left over from an earlier save")
    check_same(load_quantized(tmp_path), pipeline)
    assert contents(tmp_path).packed_bytes == saved[3].packed_bytes


def test_a_missing_shard_is_named(saved: Saved, tmp_path: Path) -> None:
    load_quantized(saved[2]).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted((tmp_path / "unet").glob("*.safetensors"))[1]
    shard.unlink()
    for read in (load_quantized, contents):
        with pytest.raises(CheckpointError, match=shard.name):
            read(tmp_path)


def test_a_save_into_a_folder_of_shards_is_what_loads(
    saved: Saved, tiny_model: Model, tmp_path: Path
) -> None:
    graph, qconfig, path, _ = saved
    load_quantized(path).unet.save_pretrained(tmp_path, max_shard_size="20KB")
    other = QuantConfig(qconfig.denoiser, dict.fromkeys(qconfig.methods, UAQ4))
    save_denoiser(load_pipeline(tiny_model, dtype="float16").unet, graph, other, tmp_path)
    layer = next(m for m in load_quantized(tmp_path).modules() if isinstance(m, PackedLayer))
    assert layer.packed[0].method == UAQ4


def test_a_denoiser_alone(saved: Saved, tiny_model: Model, tmp_path: Path) -> None:
    graph, qconfig, path, _ = saved
    actual = save_denoiser(
        load_pipeline(tiny_model, dtype="float16").unet, graph, qconfig, tmp_path
    )
    assert actual.packed_bytes == contents(path).packed_bytes
    denoiser = load_quantized(tmp_path)
    other = load_quantized(path).unet.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in denoiser.state_dict().items())


def test_what_was_packed_in_memory_is_not_saved_without_its_configuration(
    saved: Saved, tiny_model: Model, tmp_path: Path
) -> None:
    graph, qconfig, path, _ = saved
    pipeline = load_pipeline(tiny_model)
    pack(pipeline.unet, graph, qconfig)
    with pytest.raises(RuntimeError, match=r"call qsdm\.checkpoint\.save_quantized"):
        pipeline.save_pretrained(tmp_path)
    for packed in (pipeline.unet, load_quantized(path).unet):
        with pytest.raises(ValueError, match="packed already"):
            save_denoiser(packed, graph, qconfig, tmp_path / "unet")
    assert not list((tmp_path / "unet").glob("*"))


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_an_adapter_on_a_loaded_pipeline(saved: Saved, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline = load_quantized(saved[2])
    plain = latents(pipeline)
    config = peft.LoraConfig(target_modules=["to_q", "to_v", "conv1"], r=2, init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    assert not torch.equal(latents(pipeline), plain)
    with pytest.raises(RuntimeError, match="cannot be merged"):
        pipeline.fuse_lora()
    with pytest.raises(CheckpointError, match="carries adapters"):
        pipeline.save_pretrained(tmp_path)
    pipeline.unload_lora_weights()
    assert torch.equal(latents(pipeline), plain)
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(latents(load_quantized(tmp_path)), plain)


def test_modules_that_diffusers_keeps_in_float32_stay_so(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    size = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
    }
    full = WanTransformer3DModel(
        num_layers=1, in_channels=4, out_channels=4, rope_max_seq_len=32, **size
    )
    layers = {
        n: m for n, m in full.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv3d)
    }
    weights = [
        Weight(name, f"{name}.weight", tuple(layer.weight.shape)) for name, layer in layers.items()
    ]
    graph = Graph(
        "wan", tuple(Node(weight.name, Op.LINEAR, weight=weight) for weight in weights), ()
    )
    save_denoiser(full, graph, QuantConfig("wan", dict.fromkeys(layers, UAQ4)), tmp_path / "packed")
    full.save_pretrained(tmp_path / "full")
    plain = WanTransformer3DModel.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    packed = load_quantized(tmp_path / "packed", torch.bfloat16)
    for name in layers:
        assert packed.get_submodule(name).weight.dtype == plain.get_submodule(name).weight.dtype
    assert {p.dtype for p in packed.parameters()} == {torch.bfloat16, torch.float32}
    out = packed(
        torch.ones(1, 4, 1, 4, 4).bfloat16(), torch.tensor([5]), torch.ones(1, 3, 16).bfloat16()
    ).sample
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_shipped_pipeline_draws_the_same_pictures_bit_for_bit(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Its parameters are stored in 16 bit, so nothing is rounded on the way."""
    model = Model(
        "emoji_unet", "zoo", "UNet2DConditionModel", "unet", resolution_px=32, steps=2, guidance=2.0
    )
    space = SpaceSpec("some", ["uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"]).of(
        trace(Workspace(model, root=tmp_path), page=False)
    )
    qconfig = space.sample(np.random.default_rng(0))
    pipeline = load_pipeline(model)
    originals = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
    weights = {weight.name: weight for weight in space.graph.weights}
    fits = {
        name: fit(sliced(originals[weights[name].parameter], weights[name]).half(), method)
        for name, method in qconfig.methods.items()
    }
    actual = save_quantized(
        load_pipeline(model, dtype="float16"),
        "unet",
        space.graph,
        qconfig,
        tmp_path / "saved",
        lambda n, _: fits[n],
    )
    assert actual.packed_bytes == cost.size_bytes(space.graph, qconfig)
    loaded = load_quantized(tmp_path / "saved")

    def draw(pipe: DiffusionPipeline) -> np.ndarray:
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            ["grinning face, twemoji", "rocket, noto"],
            num_inference_steps=model.steps,
            guidance_scale=model.guidance,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images

    full = draw(pipeline)
    for unet in (pipeline.unet, loaded.unet):
        compute_in(unet, dtype)
    with quantized(
        pipeline.unet, space.graph, qconfig, lambda name, _, out=None: dequantize(fits[name], out)
    ):
        expected = draw(pipeline)
    assert np.array_equal(draw(loaded), expected)
    assert not np.array_equal(full, expected)


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize("how", ["ours", "diffusers"])
def test_dequantized_is_a_plain_denoiser_with_the_same_values(
    saved: Saved, tmp_path: Path, dtype: torch.dtype | None, how: str
) -> None:
    import diffusers

    packed = load_quantized(saved[2], torch.bfloat16 if dtype is None else dtype)
    before = latents(packed, packed.unet.dtype)
    if how == "ours":
        plain = dequantized(packed.unet, dtype)
        assert any(isinstance(layer, PackedLayer) for layer in packed.unet.modules())
    else:
        plain = packed.unet.dequantize()
    assert not any(isinstance(layer, PackedLayer) for layer in plain.modules())
    assert {parameter.dtype for parameter in plain.parameters()} == {dtype or torch.bfloat16}
    packed.unet = plain
    assert torch.equal(latents(packed, plain.dtype), before)
    plain.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, dtype=plain.dtype)
    state = again.state_dict()
    assert set(state) == set(plain.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def test_dequantized_decodes_to_the_type_that_it_is_asked_for(saved: Saved) -> None:
    """Not to 16 bit first."""
    path = saved[2]
    narrow = dequantized(load_quantized(path, torch.bfloat16).unet, torch.float32)
    wide = dequantized(load_quantized(path).unet)
    name = next(
        n for n, m in load_quantized(path).unet.named_modules() if isinstance(m, PackedLayer)
    )
    assert torch.equal(narrow.get_submodule(name).weight, wide.get_submodule(name).weight)


def test_what_is_plain_already_is_not_dequantized(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match="plain already"):
        dequantized(load_pipeline(tiny_model).unet)


def test_what_was_packed_in_memory_saves_once_dequantized(
    saved: Saved, tiny_model: Model, tmp_path: Path
) -> None:
    graph, qconfig, _, _ = saved
    denoiser = pack(load_pipeline(tiny_model).unet, graph, qconfig)
    dequantized(denoiser).save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    with pytest.raises(RuntimeError):
        denoiser.save_pretrained(tmp_path)


def test_a_cast_pipeline_is_one_loaded_in_that_type(saved: Saved) -> None:
    cast, loaded = (
        load_quantized(saved[2]).to(torch.bfloat16),
        load_quantized(saved[2], torch.bfloat16),
    )
    assert torch.equal(latents(cast, torch.bfloat16), latents(loaded, torch.bfloat16))
    for name, tensor in load_quantized(saved[2]).unet.state_dict().items():
        if ".packed." in name:
            assert torch.equal(cast.unet.state_dict()[name], tensor)


def damage(path: Path, kind: str) -> None:
    file, config = (
        path / "unet" / "diffusion_pytorch_model.safetensors",
        path / "unet" / "config.json",
    )
    whole = file.read_bytes()
    match kind:
        case "truncated":
            file.write_bytes(whole[: len(whole) * 2 // 3])
        case "a flipped byte":
            file.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
        case "foreign weights":
            from safetensors.torch import save_file

            save_file({"x": torch.zeros(2)}, file)
        case "no weights":
            file.unlink()
        case "not quantized":
            about = json.loads(config.read_text())
            del about["quantization_config"]
            config.write_text(json.dumps(about))
        case "weights of a wrong kind" | "weights with odd fields" | "a name that is no text":
            about = json.loads(config.read_text())
            entries = about["quantization_config"]["weights"]
            odd = {"weights with odd fields": {"zz": 1}, "a name that is no text": {"parameter": 3}}
            about["quantization_config"]["weights"] = (
                [{**entries[0], **odd[kind]}] if kind in odd else "x"
            )
            config.write_text(json.dumps(about))
        case "no JSON":
            config.write_text("{")
        case "of another schema":
            config.write_text(config.read_text().replace("qsdm/checkpoint/1", "qsdm/checkpoint/9"))
        case "nothing":
            shutil.rmtree(path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "is incomplete, damaged or not of qsdm"),
        ("a flipped byte", "was changed after it was saved"),
        ("foreign weights", "is incomplete, damaged or not of qsdm"),
        ("no weights", "no complete checkpoint"),
        ("not quantized", "no quantized checkpoint"),
        ("weights of a wrong kind", "packed weights in config.json is malformed"),
        ("weights with odd fields", "packed weights in config.json is malformed"),
        ("a name that is no text", "packed weights in config.json is malformed"),
        ("no JSON", "cannot be read as JSON"),
        ("of another schema", "schema"),
        ("nothing", "no quantized checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_a_sentence(
    saved: Saved, tmp_path: Path, kind: str, says: str
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved[2], path)
    damage(path, kind)
    with pytest.raises(CheckpointError, match=says):
        load_quantized(path)


def test_a_denoiser_of_no_known_class_is_refused(saved: Saved, tmp_path: Path) -> None:
    shutil.copytree(saved[2] / "unet", tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace("UNet2DConditionModel", "utils"))
    with pytest.raises(CheckpointError, match="names no denoiser of diffusers"):
        load_quantized(tmp_path / "copy")


def test_a_checkpoint_of_two_halves_is_refused(saved: Saved, tmp_path: Path) -> None:
    """Not filled with random values, as diffusers would."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(saved[2], tmp_path / "copy")
    file = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    about.pop("xxh3_128", None)  # as diffusers saves it
    tensors.pop("conv_in.packed.0.codes")
    save_file(tensors, file, about)
    with pytest.raises(CheckpointError, match=r"lacks 'conv_in\.packed\.0\.codes'"):
        load_quantized(tmp_path / "copy", check=False)


def test_what_does_not_fit_is_not_written(saved: Saved, tmp_path: Path) -> None:
    graph, qconfig, _, _ = saved
    with pytest.raises(ValueError, match="no parameter"):
        save_denoiser(torch.nn.Linear(2, 2), graph, qconfig, tmp_path)
    assert not list(tmp_path.iterdir())
