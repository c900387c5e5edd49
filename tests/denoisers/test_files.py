"""Which files a denoiser is loaded from, against what diffusers and transformers load."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qsdm.denoisers import Model, ModelError, denoiser_tensors, load_pipeline, weights_digest
from qsdm.denoisers.files import component_files, pipeline_files, pipeline_folder
from qsdm.measurement.memory import tensors_of, total

STEM = "diffusion_pytorch_model"


def save(folder: Path, value: float, variant: str | None = None, shards: bool = False) -> None:
    """Save the denoiser in ``folder`` again, with all parameters ``value``."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.fill_(value)
    beside = folder.with_name("beside")
    unet.save_pretrained(beside, variant=variant, max_shard_size="100KB" if shards else "10GB")
    for file in beside.iterdir():
        if file.name != "config.json":
            shutil.copy(file, folder / file.name)
    shutil.rmtree(beside)


def shards_beside_a_stale_file(folder: Path) -> dict[str, Any]:
    save(folder, 1.0, shards=True)  # the single file is still there
    return {}


def stray_shards(folder: Path) -> dict[str, Any]:
    save(folder, 1.0, shards=True)
    shutil.copy(folder / f"{STEM}.safetensors", folder / f"{STEM}-00009-of-00009.safetensors")
    return {}


def stray_shards_without_an_index(folder: Path) -> dict[str, Any]:
    save(folder, 1.0, shards=True)
    (folder / f"{STEM}.safetensors.index.json").unlink()
    return {}


def a_variant(folder: Path) -> dict[str, Any]:
    save(folder, 2.0, variant="non_ema")
    return {"variant": "non_ema"}


def a_variant_that_is_not_asked_for(folder: Path) -> dict[str, Any]:
    save(folder, 2.0, variant="fp16")
    return {}


def a_variant_in_shards(folder: Path) -> dict[str, Any]:
    save(folder, 2.0, variant="fp16", shards=True)
    save(folder, 1.0, shards=True)
    return {"variant": "fp16"}


def a_variant_that_other_components_have(folder: Path) -> dict[str, Any]:
    vae = folder.with_name("vae")
    shutil.copy(vae / f"{STEM}.safetensors", vae / f"{STEM}.fp16.safetensors")
    return {"variant": "fp16"}


def an_older_name_of_an_index(folder: Path) -> dict[str, Any]:
    save(folder, 2.0, variant="fp16", shards=True)
    index = folder / f"{STEM}.safetensors.index.fp16.json"
    index.rename(folder / f"{STEM}.safetensors.fp16.index.json")
    return {"variant": "fp16"}


def another_file_by_another_name(folder: Path) -> dict[str, Any]:
    save(folder, 3.0, variant="backup")
    (folder / f"{STEM}.backup.safetensors").rename(folder / "old.safetensors")
    return {}


def a_pickle(folder: Path) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder)
    (folder / f"{STEM}.safetensors").unlink()
    unet.save_pretrained(folder, safe_serialization=False)
    others = ("vae", "text_encoder", "tokenizer")
    return {"use_safetensors": False} | dict.fromkeys(others)


def either(folder: Path) -> dict[str, Any]:
    a_pickle(folder)
    return {"use_safetensors": None}


def left_out_encoders(_folder: Path) -> dict[str, Any]:
    return {"text_encoder": None, "tokenizer": None}


SITUATIONS = [
    shards_beside_a_stale_file,
    stray_shards,
    stray_shards_without_an_index,
    a_variant,
    a_variant_that_is_not_asked_for,
    a_variant_in_shards,
    a_variant_that_other_components_have,
    an_older_name_of_an_index,
    another_file_by_another_name,
    a_pickle,
    either,
    left_out_encoders,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arrange", SITUATIONS, ids=lambda arrange: arrange.__name__)
def test_what_is_read_is_what_diffusers_loads(
    arrange: Callable[[Path], dict[str, Any]], tiny_model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(Path(tiny_model.path), folder)
    model = dataclasses.replace(tiny_model, path=str(folder), load=arrange(folder / "unet"))
    read = denoiser_tensors(model)
    loaded = load_pipeline(model).unet
    for name, parameter in loaded.named_parameters():
        assert torch.equal(read(name).float(), parameter), name
    if arrange not in (a_pickle, either):
        num_values = sum(parameter.numel() for parameter in loaded.parameters())
        assert total(tensors_of(model)["unet"]) == 4 * num_values


def test_transformers_prefers_the_single_file(tiny_model: Model, tmp_path: Path) -> None:
    """Unlike diffusers, which prefers the index."""
    from transformers import CLIPTextModel

    folder = tmp_path / "pipeline"
    shutil.copytree(Path(tiny_model.path), folder)
    home = folder / "text_encoder"
    encoder = CLIPTextModel.from_pretrained(home)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(7.0)
    encoder.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copy(file, home / file.name)
    assert component_files(folder, "text_encoder", "transformers") == [home / "model.safetensors"]
    loaded = load_pipeline(dataclasses.replace(tiny_model, path=str(folder))).text_encoder
    assert not any((parameter == 7.0).all() for parameter in loaded.parameters())
    (home / "model.safetensors").unlink()
    assert len(component_files(folder, "text_encoder", "transformers")) > 1
    loaded = load_pipeline(dataclasses.replace(tiny_model, path=str(folder))).text_encoder
    assert all((parameter == 7.0).all() for parameter in loaded.parameters())


def test_names_that_diffusers_renames_are_read(tmp_path: Path) -> None:
    """DDPM checkpoints of 2022 call the attention's weights query, key, value and proj_attn."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from safetensors.torch import load_file, save_file

    from qsdm.denoisers import discover

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        attention_head_dim=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    file = tmp_path / "unet" / f"{STEM}.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, file, {"format": "pt"})
    read = denoiser_tensors(discover(str(tmp_path), resolution_px=8))
    for name, parameter in unet.named_parameters():
        assert torch.equal(read(name), parameter), name


def test_the_weights_digest_follows_the_files_that_are_loaded(
    tiny_model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(Path(tiny_model.path), folder)
    model = dataclasses.replace(tiny_model, path=str(folder))
    before = weights_digest(model)
    assert before == weights_digest(tiny_model)  # whatever folder they lie in
    save(folder / "unet", 2.0, variant="fp16")
    shutil.copy(folder / "vae" / f"{STEM}.safetensors", folder / "stray.safetensors")
    assert weights_digest(model) == before  # nothing of it is loaded
    variant = dataclasses.replace(model, load={"variant": "fp16"})
    without = dataclasses.replace(model, load={"text_encoder": None, "tokenizer": None})
    assert len({before, weights_digest(variant), weights_digest(without)}) == 3
    save(folder / "unet", 3.0)
    assert weights_digest(model) != before


def test_files_of_the_hub_are_digested_where_they_are(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(tiny_model, path="nobody/nothing")
    with pytest.raises(
        ModelError, match="'nobody/nothing' is not on this machine: download it once"
    ):
        pipeline_folder(model)
    pinned = dataclasses.replace(model, revision="0" * 40)
    assert weights_digest(model) != weights_digest(pinned)
    index = str(Path(tiny_model.path) / "model_index.json")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: index)
    assert weights_digest(model) == weights_digest(tiny_model)


def test_what_is_missing_is_said_in_a_sentence(tiny_model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(Path(tiny_model.path), folder)
    save(folder / "unet", 1.0, shards=True)
    first = min(folder.glob(f"unet/{STEM}-0*"))
    first.rename(first.with_suffix(".part"))
    with pytest.raises(ModelError, match=f"{first.name} is missing, which"):
        pipeline_files(folder)
    index = folder / "unet" / f"{STEM}.safetensors.index.json"
    for content in ("", "[]", '{"weight_map": []}', '{"weight_map": {"a": "../a.safetensors"}}'):
        index.write_text(content)
        with pytest.raises(ModelError, match="is not an index of shards"):
            pipeline_files(folder)
    (folder / "model_index.json").write_text(json.dumps([]))
    with pytest.raises(ModelError, match="is not a diffusers pipeline"):
        pipeline_files(folder)
