"""Damaged checkpoints: one sentence, whether `load_quantized` or diffusers reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from qsdm.checkpoint import CheckpointError, load_quantized, save_quantized
from qsdm.checkpoint.format import FILE
from qsdm.denoisers import Model, load_pipeline
from qsdm.qconfig import SpaceSpec
from qsdm.store.header import read_header
from qsdm.store.manifest import NAME as FILES_NAME
from qsdm.trace import trace
from qsdm.workspace import Workspace

METHODS = ["uaq-4", "kmeans_c-3"]


@pytest.fixture(scope="module")
def saved(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    space = SpaceSpec("two", METHODS).of(trace(Workspace(tiny_model, root=folder), page=False))
    qconfig = space.sample(np.random.default_rng(0))
    pipeline = load_pipeline(tiny_model, dtype="float16")
    save_quantized(pipeline, "unet", space.graph, qconfig, folder / "saved")
    return folder / "saved"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def edit(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def by_diffusers(path: Path) -> object:
    return diffusers.DiffusionPipeline.from_pretrained(path)


@pytest.mark.parametrize("load", [load_quantized, by_diffusers])
@pytest.mark.parametrize("kind", [".packed.", ".bias"])
def test_a_flipped_bit_of_the_denoiser_is_told(copy: Path, load: Callable, kind: str) -> None:
    header = read_header(copy / "unet" / FILE)
    name = next(name for name in header.parts if kind in name)
    flip(copy / "unet" / FILE, header.start + header.parts[name].data_offsets[0])
    with pytest.raises(CheckpointError, match=f"{name}' was changed after it was saved"):
        load(copy)


def test_a_flipped_bit_of_any_shard_is_told(copy: Path, tmp_path: Path) -> None:
    denoiser = load_quantized(copy / "unet")
    denoiser.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    for shard in (shards[0], shards[-1]):
        header = read_header(shard)
        name = next(name for name in header.parts if ".packed." in name)
        flip(shard, header.start + header.parts[name].data_offsets[0])
        with pytest.raises(CheckpointError, match=f"{name}' was changed after it was saved"):
            load_quantized(tmp_path / "shards")
        flip(shard, header.start + header.parts[name].data_offsets[0])
    load_quantized(tmp_path / "shards")


@pytest.mark.parametrize("load", [load_quantized, by_diffusers])
def test_another_list_of_packed_weights_is_told(copy: Path, load: Callable) -> None:
    def change(config: dict) -> None:
        config["quantization_config"]["weights"][0]["start"] += 1

    edit(copy / "unet" / "config.json", change)
    with pytest.raises(CheckpointError, match=r"quantization_config in .*config\.json is damaged"):
        load(copy)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        FILES_NAME,
    ],
)
def test_every_file_of_the_pipeline_is_checked(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    damage = (
        b"",
        whole[: len(whole) // 2],
        b"[]",
        whole.replace(b"a", b"b"),
        whole[:-9] + b" " * 9,
    )
    assert whole not in damage
    for data in damage:
        (copy / name).write_bytes(data)
        with pytest.raises(
            CheckpointError, match=r"copy it again|run python -m qsdm\.realize"
        ) as caught:
            load_quantized(copy)
        assert str(copy / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    (copy / name).unlink()
    if name != FILES_NAME:
        with pytest.raises(CheckpointError):
            load_quantized(copy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model_index.json", lambda d: d.update(unet=None)),
        ("model_index.json", lambda d: d.update(vae=[])),
        ("model_index.json", lambda d: d.update(scheduler=["diffusers", 3])),
        ("model_index.json", lambda d: d.update(_class_name=["a"])),
        ("vae/config.json", lambda d: d.update(block_out_channels={})),
        ("text_encoder/config.json", lambda d: d.update(hidden_size="wide")),
        (
            "scheduler/scheduler_config.json",
            lambda d: d.update(beta_start=None, num_train_timesteps="x"),
        ),
    ],
)  # fmt: skip
def test_without_checksums_what_cannot_be_loaded_is_one_sentence(
    copy: Path, name: str, change: Callable[[dict], object]
) -> None:
    """As of checkpoints of version 0.1.0, and of those that diffusers saved again."""
    (copy / FILES_NAME).unlink()
    edit(copy / name, change)
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_quantized(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "fc1.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_told(copy: Path, name: str, lacking: str) -> None:
    """diffusers leaves it without values, transformers makes it up."""
    from safetensors.torch import load_file, save_file

    (copy / FILES_NAME).unlink()
    tensors = load_file(copy / name)
    del tensors[next(key for key in tensors if key.endswith(lacking))]
    save_file(tensors, copy / name, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lack .*{lacking}.*, which would be random"):
        load_quantized(copy)


def test_what_was_changed_on_purpose_can_be_loaded(copy: Path) -> None:
    def change(config: dict) -> None:
        config["final_sigmas_type"] = "sigma_min"

    edit(copy / "scheduler" / "scheduler_config.json", change)
    with pytest.raises(
        CheckpointError, match=f"remove .*{FILES_NAME} if you changed it on purpose"
    ):
        load_quantized(copy)
    assert load_quantized(copy, check=False).scheduler.config.final_sigmas_type == "sigma_min"
    (copy / FILES_NAME).unlink()
    assert load_quantized(copy).scheduler.config.final_sigmas_type == "sigma_min"


def test_saved_again_by_diffusers_packed_weights_keep_their_checksums(
    saved: Path, tmp_path: Path
) -> None:
    pipeline = load_quantized(saved, torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "again", max_shard_size="20KB", variant="bf16")
    load_quantized(tmp_path / "again", variant="bf16")
    shard = sorted((tmp_path / "again" / "unet").glob("*.safetensors"))[1]
    header = read_header(shard)
    name = next(name for name in header.parts if ".packed." in name)
    flip(shard, header.start + header.parts[name].data_offsets[0])
    with pytest.raises(CheckpointError, match=f"{name}' was changed after it was saved"):
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "again/unet", variant="bf16")


def test_packed_values_that_were_changed_in_memory_are_not_saved_as_if_whole(
    saved: Path, tmp_path: Path
) -> None:
    unet = load_quantized(saved / "unet")
    name = next(name for name in unet.state_dict() if name.endswith(".codes"))
    unet.state_dict()[name].view(-1)[0] ^= 1
    with pytest.raises(CheckpointError, match="were changed after they were loaded"):
        unet.save_pretrained(tmp_path)


def test_checkpoints_of_the_first_version_are_read(copy: Path) -> None:
    def change(config: dict) -> None:
        for key in ("checksums", "checksum", "config_checksum"):
            del config["quantization_config"][key]

    edit(copy / "unet" / "config.json", change)
    (copy / FILES_NAME).unlink()
    assert load_quantized(copy).unet
