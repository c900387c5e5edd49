"""What a model's YAML becomes, and what is said when its weights are not here."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from qsdm import denoisers
from qsdm.denoisers import Model, ModelError
from qsdm.denoisers.loading import sampler_class
from qsdm.store import ZOO

TOY = Model(
    name="toy",
    path="nobody/nothing",
    denoiser="UNet2DConditionModel",
    component="unet",
    resolution_px=32,
    steps=4,
    guidance=1.0,
)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("component", "no component", "as unet or transformer_2"),
        ("frames", 0, "must be positive"),
        ("full_bits", 8, "16 or 32"),
        ("steps", 0, "must be positive"),
        ("resolution_px", -1, "must be positive"),
        ("guidance", -0.5, "not negative"),
        ("guidance", "high", "guidance must be a number"),
        ("frames", "many", "frames must be a whole number"),
        ("load", [], "load must be names with values"),
        ("call", "x=1", "call must be names with values"),
        ("tied", "abc", "tied must be a list"),
        ("revision", 1234567, "revision must be a text, in quotes"),
    ],
)
def test_a_bad_value_is_named(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TOY, **{field: value})


def test_fields_of_a_pipeline_are_checked_before_its_files(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match="load must be names with values"):
        denoisers.discover(tiny_model.path, load=[])


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    assert TOY.directory is None
    assert dataclasses.replace(TOY, path=str(tmp_path)).directory == tmp_path
    assert dataclasses.replace(TOY, path="zoo").directory == ZOO / "toy" / "pipeline"


@pytest.mark.parametrize("name", ["NoSuchModel", "__version__", "os.system", ""])
def test_a_class_that_diffusers_lacks_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="has no class"):
        denoisers.denoiser_class(dataclasses.replace(TOY, denoiser=name))


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "StableDiffusionPipeline"])
def test_a_sampler_of_another_kind_is_not_made(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} is no sampler: give model.sampler=CLASS"):
        sampler_class(name, TOY)
    assert sampler_class("DDIMScheduler", TOY).__name__ == "DDIMScheduler"


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights of 'toy': .* give path=DIRECTORY"):
        denoisers.load_pipeline(dataclasses.replace(TOY, path=str(tmp_path)))


def test_a_pipeline_is_loaded_from_its_directory(tiny_model: Model) -> None:
    pipeline = denoisers.load_pipeline(tiny_model)
    module = denoisers.denoiser_of(pipeline, tiny_model)
    assert isinstance(module, denoisers.denoiser_class(tiny_model))
    assert sum(p.numel() for p in module.parameters()) == tiny_model.num_params


def test_looking_up_a_pipelines_class_says_nothing() -> None:
    """Without torchvision, transformers would recommend to install it, in every worker."""
    code = (
        "import qsdm; from qsdm.denoisers import pipeline_class;"
        "print(pipeline_class(qsdm.open('emoji_unet').model).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "StableDiffusionPipeline\n"
    assert run.stderr == ""


def test_what_a_pipeline_was_saved_without_need_not_be_named_again() -> None:
    """diffusers loads Stable Diffusion 3 without its T5 only if that is said."""
    folder = ZOO / "emoji_mmdit" / "pipeline"
    model = Model("mine", str(folder), "SD3Transformer2DModel", "transformer", 32, 10, 2.0)
    pipeline = denoisers.load_pipeline(model)
    assert pipeline.text_encoder_3 is None
    assert pipeline.tokenizer_3 is None
    index = {"_class_name": "StableDiffusion3Pipeline", "image_encoder": [None, None]}
    assert denoisers.classes.saved_without(index) == {}, "its class can do without"
    assert denoisers.classes.saved_without({"vae": [None, None]}) == {}, "of no class"
