"""Bytes of a pipeline: from headers against files, of activations against an allocator."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from qsdm import text
from qsdm.checkpoint import contents, save_quantized
from qsdm.denoisers import Model, ModelError, denoiser_class, denoiser_config, load_pipeline
from qsdm.denoisers.files import pipeline_folder
from qsdm.graph import Graph
from qsdm.measurement.memory import (
    Memory,
    activation_bytes,
    memory_of,
    packed_bytes,
    tensors_in,
    tensors_of,
    total,
)
from qsdm.qconfig import QuantConfig, SpaceSpec, cost
from qsdm.store import ZOO
from qsdm.trace import trace
from qsdm.workspace import Workspace

EMOJI = Model(
    "emoji_unet", "zoo", "UNet2DConditionModel", "unet", resolution_px=32, steps=10, guidance=2.0
)
SPEC = SpaceSpec("some", ["uaq-3", "uaq-4", "kmeans_a-3", "nf4_g64-4"])


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return trace(Workspace(EMOJI, root=tmp_path_factory.mktemp("emoji")), page=False)


@pytest.fixture(scope="module")
def tiny(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return trace(Workspace(tiny_model, root=tmp_path_factory.mktemp("tiny")), page=False)


def test_headers_tell_what_the_files_of_the_shipped_pipeline_weigh() -> None:
    folder = ZOO / "emoji_unet" / "pipeline"
    found = tensors_of(EMOJI)
    files = {path.parent.name: path for path in folder.rglob("*.safetensors")}
    assert set(found) == set(files) == {"unet", "vae", "text_encoder"}
    for name, path in files.items():
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        assert total(found[name]) == path.stat().st_size - header
    pipeline = load_pipeline(EMOJI)
    num_values = sum(tensor.num_values for tensor in found["unet"].values())
    assert num_values == sum(parameter.numel() for parameter in pipeline.unet.parameters())


def test_packed_bytes_are_those_of_a_checkpoint(
    tiny_model: Model, tiny: Graph, tmp_path: Path
) -> None:
    qconfig = SPEC.of(tiny).sample(np.random.default_rng(0))
    saved = save_quantized(
        load_pipeline(tiny_model, dtype="float16"), "unet", tiny, qconfig, tmp_path
    )
    before, after = tensors_of(tiny_model), tensors_in(tmp_path)
    assert (
        packed_bytes(before["unet"], tiny, qconfig)
        == saved.total_bytes - saved.header_bytes
        == total(after["unet"])
    )
    assert (
        total(after["vae"]) == total(before["vae"]) // 2
    )  # the tiny pipeline's files have 32 bits
    assert contents(tmp_path) == saved


def test_activations_are_what_an_allocator_sees(emoji: Graph) -> None:
    """The profiler's count of the CPU allocator, in a real forward of the real pipeline."""
    from torch.profiler import ProfilerActivity, profile

    from qsdm.tracing import inputs

    unet = load_pipeline(EMOJI).unet
    given = inputs.build(unet)
    text = next(node for node in emoji.nodes if node.name == "input.encoder_hidden_states")
    given["sample"] = torch.zeros(4, *given["sample"].shape[1:])
    given["encoder_hidden_states"] = torch.zeros(4, *text.activation[1:])
    with (
        torch.no_grad(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        unet(**given)
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    told = activation_bytes(EMOJI, emoji)
    assert 4 * told <= peak <= 1.3 * 4 * told  # equal with oneDNN; other kernels take scratch
    assert told >= max(4 * math.prod(n.activation) for n in emoji.nodes)


def test_activations_follow_the_type(emoji: Graph) -> None:
    import dataclasses

    half = dataclasses.replace(EMOJI, dtype="bfloat16")
    assert 2 * activation_bytes(half, emoji) == activation_bytes(EMOJI, emoji)


def test_a_fake_forward_is_linear_in_the_batch(tiny_model: Model) -> None:
    from qsdm.tracing import activations, skeleton

    module = skeleton.build(denoiser_class(tiny_model), denoiser_config(tiny_model))

    def peak(batch: int) -> int:
        given = {
            "sample": torch.zeros(batch, 4, 8, 8),
            "encoder_hidden_states": torch.zeros(batch, 3, 16),
        }
        return activations.peak_bytes(module, given | {"timestep": torch.zeros(batch)})

    assert peak(8) == pytest.approx(8 * peak(1), rel=0.01)


def test_a_line_tells_all_of_it(emoji: Graph) -> None:
    few, many = (SPEC.of(emoji).uniform(method) for method in ("uaq-3", "uaq-4"))
    found = memory_of(EMOJI, emoji, [many, few])
    line = found.line(64)
    low, high = (packed_bytes(tensors_of(EMOJI)["unet"], emoji, qconfig) for qconfig in (few, many))
    assert found.packed_bytes == (low, high)
    assert low > cost.size_bytes(emoji, few)
    assert line.startswith(
        f"memory: denoiser 7.82 MB (packed {text.size(low)} to {text.size(high)}), "
        "text encoders 2.17 MB, vae 3.39 MB, activations of one forward at batch 64 about "
    )
    assert line.endswith(
        f"({text.size(128 * activation_bytes(EMOJI, emoji))} where guidance doubles the batch)"
    )
    foreign = QuantConfig("emoji_unet", {"nothing": next(iter(few.methods.values()))})
    assert memory_of(EMOJI, emoji, [foreign, few]).packed_bytes == (low, low)


def test_text_encoders_count_together() -> None:
    sizes = {"vae": 1, "text_encoder": 2, "transformer": 8, "image_encoder": 3, "text_encoder_2": 4}
    found = Memory(("transformer",), sizes)
    assert list(found.groups.items()) == [
        ("denoiser", 8),
        ("text encoders", 6),
        ("vae", 1),
        ("image_encoder", 3),
    ]
    assert found.line().endswith("image_encoder 3 Bytes, activations of a forward are not known")


def test_what_is_not_here_is_said_in_a_sentence(emoji: Graph, tmp_path: Path, monkeypatch) -> None:
    import dataclasses

    absent = dataclasses.replace(EMOJI, path="nobody/nothing", config=denoiser_config(EMOJI))
    line = memory_of(absent, emoji).line()
    assert line.startswith(
        "memory: bytes of the components are not known, "
        "'nobody/nothing' is not on this machine: download it once"
    )
    assert "; activations of one forward at batch 1 about " in line
    with pytest.raises(ModelError, match="is not a diffusers pipeline"):
        tensors_in(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ModelError, match="has no safetensors that diffusers loads"):
        tensors_in(tmp_path)
    assert tensors_in(tmp_path, {"vae": None}) == {}
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="no whole safetensors file"):
        tensors_in(tmp_path)
    snapshot = tmp_path / "model_index.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(snapshot))
    assert pipeline_folder(absent) == tmp_path
