"""A model's guidance reaches the argument that guides."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from qsdm.denoisers import Model, arguments, sampler_of


def stub(name: str, *, distilled: bool) -> Any:
    """An object of a pipeline's signature, with a denoiser that has nothing but a config."""
    denoiser = SimpleNamespace(config=SimpleNamespace(guidance_embeds=distilled))
    cls = getattr(diffusers, name)
    return type(name, (), {"__call__": cls.__call__, "components": {"transformer": denoiser}})()


@pytest.mark.parametrize(
    ("name", "distilled", "guides"),
    [
        ("QwenImagePipeline", False, {"true_cfg_scale": 4.0, "negative_prompt": [" ", " "]}),
        ("QwenImagePipeline", True, {"guidance_scale": 4.0}),
        ("FluxPipeline", True, {"guidance_scale": 4.0}),
        ("FluxPipeline", False, {"guidance_scale": 4.0}),
        ("PixArtAlphaPipeline", False, {"guidance_scale": 4.0}),
    ],
)
def test_guidance_is_given_to_what_guides(
    name: str, distilled: bool, guides: dict[str, Any], tiny_model: Model
) -> None:
    model = dataclasses.replace(tiny_model, guidance=4.0)
    call = arguments(stub(name, distilled=distilled), model, ["a", "b"])
    given = {"true_cfg_scale", "guidance_scale", "negative_prompt"} & call.keys()
    assert {key: call[key] for key in given} == guides


def test_without_guidance_there_is_no_negative_prompt(tiny_model: Model) -> None:
    model = dataclasses.replace(tiny_model, guidance=1.0)
    call = arguments(stub("QwenImagePipeline", distilled=False), model, ["a"])
    assert call["true_cfg_scale"] == 1.0
    assert "negative_prompt" not in call


def test_what_the_user_gives_wins(tiny_model: Model) -> None:
    own = {"true_cfg_scale": 2.0, "negative_prompt": "blurry"}
    model = dataclasses.replace(tiny_model, guidance=4.0, call=own)
    call = arguments(stub("QwenImagePipeline", distilled=False), model, ["a"])
    assert {key: call[key] for key in own} == own


def test_pictures_that_were_drawn_without_guidance_are_others(
    tiny_model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(Path(tiny_model.path), folder)
    model = dataclasses.replace(tiny_model, path=str(folder))
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "QwenImagePipeline"
    before = sampler_of(model)
    (folder / "model_index.json").write_text(json.dumps(index))
    assert sampler_of(model) != before
