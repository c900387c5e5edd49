"""Large denoisers stay in the 16 bits of their files."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from qsdm.denoisers import Model, narrow
from qsdm.denoisers.narrow import compute_by_layer, kept_in, mapped_denoiser
from qsdm.graph import Graph
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.qconfig import QuantConfig


@pytest.fixture(scope="module")
def half(
    tiny_model: Model, tiny_pipeline: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    """The tiny model with a denoiser in bfloat16."""
    folder = tmp_path_factory.mktemp("half") / "pipeline"
    shutil.copytree(tiny_model.path, folder)
    unet = copy.deepcopy(tiny_pipeline.components["unet"])
    torch.nn.Module.to(unet, torch.bfloat16).save_pretrained(folder / "unet")
    return dataclasses.replace(tiny_model, path=str(folder), dtype="bfloat16")


def test_layers_compute_in_float32_and_keep_16_bits(tiny_pipeline: DiffusionPipeline) -> None:
    unet = torch.nn.Module.to(copy.deepcopy(tiny_pipeline.components["unet"]), torch.bfloat16)
    wide = torch.nn.Module.to(copy.deepcopy(unet), torch.float32)
    parameters, before = dict(unet.named_parameters()), copy.deepcopy(unet.state_dict())
    compute_by_layer(unet, torch.float32)
    text = torch.randn(1, 8, wide.config.cross_attention_dim)
    sample = torch.randn(1, wide.config.in_channels, 8, 8)
    with torch.no_grad():
        assert torch.equal(unet(sample, 5, text).sample, wide(sample, 5, text).sample)
        with pytest.raises(RuntimeError):
            unet(sample, 5, text[..., :-1])  # a layer fails midway
    for name, parameter in unet.named_parameters():
        assert parameter is parameters[name]
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, before[name])


def test_only_large_denoisers_of_the_models_type_stay_narrow(
    half: Model, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_in(half) == "float32"
    monkeypatch.setattr(narrow, "LARGE", 1)
    assert kept_in(half) == "bfloat16"
    assert kept_in(dataclasses.replace(half, dtype="float32")) == "float32"
    assert kept_in(tiny_model) == "float32"


def test_a_narrow_denoiser_draws_the_same_pictures(
    half: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, full = Graph(half.name, (), ()), QuantConfig(half.name, {})
    drawings = [Drawing(i, "rain", i) for i in range(2)]
    before = Drawer(half, graph, None).draw(full, drawings)
    monkeypatch.setattr(narrow, "LARGE", 1)
    drawer = Drawer(half, graph, None)
    assert {p.dtype for p in drawer.denoiser.parameters()} == {torch.bfloat16}
    np.testing.assert_array_equal(drawer.draw(full, drawings), before)


def test_a_mapped_denoiser_is_the_files(half: Model, tiny_model: Model) -> None:
    module = mapped_denoiser(half)
    assert module is not None
    folder = Path(half.path) / "unet"
    loaded = UNet2DConditionModel.from_pretrained(folder, dtype=torch.bfloat16)
    for name, values in loaded.state_dict().items():
        assert torch.equal(module.state_dict()[name], values)
    assert mapped_denoiser(tiny_model) is None  # in float32
