"""LoRAs on a denoiser: which files are read, in which spellings, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lora_files import RANK, factors, write
from safetensors.torch import save_file

from qsdm.denoisers import Model
from qsdm.measurement.adapters import AdapterError, attach, keys_of, layers_in, switched
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.retention import Adapter, retained
from qsdm.outcome import EvaluationError

pytest.importorskip("peft")


@pytest.fixture
def drawer(tiny_model: Model, tiny_pipeline: Any) -> Drawer:
    """With a denoiser of its own."""
    unet = copy.deepcopy(tiny_pipeline.unet)
    pipeline = type(tiny_pipeline)(**{**tiny_pipeline.components, "unet": unet})
    drawer = SimpleNamespace(denoiser=unet, model=tiny_model, pipeline=pipeline)
    return cast(Drawer, drawer)


@torch.inference_mode()
def output(drawer: Drawer) -> torch.Tensor:
    config: Any = drawer.denoiser.config
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, config.in_channels, 8, 8, generator=generator)
    states = torch.randn(1, 4, config.cross_attention_dim, generator=generator)
    return cast(torch.Tensor, drawer.denoiser(sample, 5, states, return_dict=False)[0])


@pytest.mark.parametrize("spelling", ["diffusers", "peft", "kohya"])
@pytest.mark.filterwarnings("ignore")  # peft's and diffusers' own
def test_three_spellings_do_what_the_merged_weights_do(
    drawer: Drawer, spelling: str, tmp_path: Path
) -> None:
    alpha = RANK if spelling == "diffusers" else 2.0 * RANK  # diffusers' format holds none
    pairs = factors(drawer.denoiser)
    path = write(tmp_path / "lora" / "a.safetensors", spelling, pairs, "unet", alpha)
    assert layers_in(keys_of(path), "unet") == {
        name.replace(".", "_") if spelling == "kohya" else name for name in pairs
    }
    merged = copy.copy(drawer)
    merged.denoiser = copy.deepcopy(drawer.denoiser)
    for name, (a, b) in pairs.items():
        merged.denoiser.get_parameter(f"{name}.weight").data += alpha / RANK * b @ a
    before = output(drawer)
    attach(drawer, path)
    assert torch.equal(output(drawer), before)  # it is off
    switched(drawer.denoiser, True)
    torch.testing.assert_close(output(drawer), output(merged), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(drawer), before, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_lora_of_another_denoiser_is_told_with_how_many_layers_match(
    drawer: Drawer, tmp_path: Path
) -> None:
    pairs = factors(drawer.denoiser)
    some = next(iter(pairs))
    elsewhere = {f"blocks.{i}.to_q": tuple(t.clone() for t in pairs[some]) for i in range(3)}
    tall = {some: (pairs[some][0][:, :3].contiguous(), pairs[some][1])}
    cases = [
        (elsewhere, r"has 0 of the 3 layers that the file names"),
        ({**pairs, **elsewhere}, rf"has {len(pairs)} of the {len(pairs) + 3} layers"),
        (tall, r"has 1 of the 1 layers that the file names \(.*(size|shape)"),
    ]
    for i, (layers, message) in enumerate(cases):
        path = write(tmp_path / f"{i}.safetensors", "diffusers", layers, "unet")
        with pytest.raises(
            AdapterError, match=f"of another denoiser than 'tiny'.*{message}"
        ) as told:
            attach(drawer, path)
        assert "\n" not in str(told.value)
        assert "give a LoRA that was trained on this UNet2DConditionModel" in str(told.value)
    bare = cast(Drawer, SimpleNamespace(denoiser=torch.nn.Linear(1, 1), model=drawer.model))
    with pytest.raises(EvaluationError, match="a Linear takes no LoRA in diffusers"):
        attach(bare, path)


def test_files_that_hold_no_lora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no file .*none\.safetensors: give lora=FILE"):
        Adapter(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("{}")
    with pytest.raises(AdapterError, match="is no safetensors file"):
        Adapter(tmp_path / "text.safetensors")
    save_file({"conv_in.weight": torch.ones(1)}, tmp_path / "whole.safetensors")
    with pytest.raises(AdapterError, match=r"holds no LoRA: none of its 1 tensors .*conv_in"):
        Adapter(tmp_path / "whole.safetensors")


def test_layers_of_text_encoders_do_not_count() -> None:
    keys = ["text_encoder.a.lora_A.weight", "lora_te1_a.lora_down.weight", "te.b.lora_A.weight"]
    assert layers_in([*keys, "transformer.b.to_q.lora.up.weight"], "transformer") == {
        "te.b",
        "b.to_q",
    }


def test_retention_is_one_minus_the_changed_share() -> None:
    effects = np.array([4.0, 2.0, 2.0])
    assert retained(np.zeros(3), effects) == (1.0, 0.0)
    assert retained(effects, effects) == (0.0, 0.0)  # nothing is left
    value, error = retained(np.array([1.0, 0.0, 0.0]), effects)
    assert value == pytest.approx(1 - 1 / 8)
    left_out = 1 - np.array([0 / 4, 1 / 6, 1 / 6])
    assert error == pytest.approx(np.sqrt(2 * left_out.var()))
