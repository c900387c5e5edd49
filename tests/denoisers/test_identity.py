"""Whatever changes what is loaded changes a digest; what does not, does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qsdm.denoisers import Model, ModelError, pipeline_digest, sampler_of, weights_digest


@pytest.fixture
def model(tiny_model: Model, tmp_path: Path) -> Model:
    shutil.copytree(Path(tiny_model.path), tmp_path / "pipeline")
    return dataclasses.replace(tiny_model, path=str(tmp_path / "pipeline"))


def identity(model: Model) -> tuple[str, str, str]:
    return weights_digest(model), pipeline_digest(model), sampler_of(model)


def edit(model: Model, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(model.path) / file
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_copy_is_the_same(model: Model, tiny_model: Model) -> None:
    assert identity(model) == identity(tiny_model)


@pytest.mark.parametrize(
    "load",
    [
        {"text_encoder": None, "tokenizer": None},
        {"tokenizer": None},
        {"custom_pipeline": "lpw_stable_diffusion"},
        {"torch_dtype": torch.float16},
        {"requires_safety_checker": True},
    ],
)
def test_what_load_chooses_counts(model: Model, load: dict[str, Any]) -> None:
    assert identity(dataclasses.replace(model, load=load)) != identity(model)


@pytest.mark.parametrize(
    "load",
    [
        {"variant": "fp16"},  # of which there is no file: diffusers refuses to load it
        {"use_safetensors": True},
        {"low_cpu_mem_usage": True},
        {"local_files_only": True},
        {"safety_checker": None},  # the pipeline has none
    ],
)
def test_what_changes_nothing_does_not_count(model: Model, load: dict[str, Any]) -> None:
    assert identity(dataclasses.replace(model, load=load)) == identity(model)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("vae/config.json", "scaling_factor", 0.5),
        ("unet/config.json", "flip_sin_to_cos", False),
        ("scheduler/scheduler_config.json", "steps_offset", 0),
        ("tokenizer/tokenizer_config.json", "model_max_length", 8),
        ("model_index.json", "_class_name", "StableDiffusionImg2ImgPipeline"),
    ],
)
def test_configs_count(model: Model, file: str, key: str, value: object) -> None:
    before = identity(model)
    edit(model, file, lambda data: data.update({key: value}))
    assert identity(model) != before


def test_who_wrote_a_config_does_not_count(model: Model) -> None:
    before = identity(model)
    for file in ("unet/config.json", "model_index.json", "scheduler/scheduler_config.json"):
        edit(model, file, lambda data: data.update({"_diffusers_version": "0.1"}))
    (Path(model.path) / "README.md").write_text("a note")
    (Path(model.path) / "unet" / "notes.md").write_text("a note")
    assert identity(model) == before


def test_the_denoiser_that_is_quantized_and_what_is_tied_count(model: Model) -> None:
    digests = {
        pipeline_digest(other)
        for other in (
            model,
            dataclasses.replace(model, component="transformer_2"),
            dataclasses.replace(model, tied=[r"(.*)\.to_q"]),
        )
    }
    assert len(digests) == 3


def times(factor: float) -> Callable[[float], float]:
    return lambda x: x * factor


def times_default(factor: float) -> Callable[..., float]:
    def multiply(x: float, by: float = factor) -> float:
        return x * by

    return multiply


def test_values_that_json_cannot_hold_are_told_apart(model: Model) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    torch.manual_seed(0)
    linear = torch.nn.Linear(2, 2)
    other = torch.nn.Linear(2, 2)
    values: list[Any] = [
        torch.float16,
        torch.bfloat16,
        torch.device("cpu"),
        torch.zeros(2),
        torch.ones(2),
        torch.zeros(2, dtype=torch.bfloat16),
        linear,
        other,
        {"a": torch.float16},
        [1, 2],
        {1, 2},
        DDIMScheduler(),
        DDIMScheduler(steps_offset=1),
        EulerDiscreteScheduler(),
        torch.nn.Linear,
        lambda x: x + 1,
        lambda x: x + 1.5,
        *map(times, (2, 3)),
        *map(times_default, (2, 3)),
        lambda x: [y + 2 for y in x] or (lambda z: z + 2),
        lambda x: [y + 2 for y in x] or (lambda z: z + 3),
    ]
    digests = [pipeline_digest(dataclasses.replace(model, load={"x": value})) for value in values]
    assert len(set(digests)) == len(values)
    again = torch.nn.Linear(2, 2)
    again.load_state_dict(linear.state_dict())
    assert pipeline_digest(dataclasses.replace(model, load={"x": again})) == digests[6]
    called = {sampler_of(dataclasses.replace(model, call={"x": value})) for value in values}
    assert len(called) == len(values)


def cyclic() -> object:
    class Node:
        pass

    node: Any = Node()
    node.itself = node
    return node


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), r"a builtins\.object"),
        (cyclic(), r"a .*Node"),
        (torch.eye(2).to_sparse(), r"a torch\.Tensor"),
        (torch.empty(2, device="meta"), r"a torch\.Tensor"),
    ],
)
def test_a_value_without_content_is_refused(model: Model, value: object, kind: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.load\.x is {kind}, whose content"):
        pipeline_digest(dataclasses.replace(model, load={"x": value}))


def own_class(model: Model) -> tuple[Model, Path]:
    edit(model, "model_index.json", lambda data: data.update(_class_name=["pipeline", "Mine"]))
    return model, Path(model.path) / "pipeline.py"


def own_scheduler(model: Model) -> tuple[Model, Path]:
    edit(model, "model_index.json", lambda data: data.update(scheduler=["mine", "Mine"]))
    return model, Path(model.path) / "scheduler" / "mine.py"


def own_folder(model: Model) -> tuple[Model, Path]:
    folder = Path(model.path).with_name("mine")
    folder.mkdir()
    load = {"custom_pipeline": str(folder)}
    return dataclasses.replace(model, load=load), folder / "pipeline.py"


@pytest.mark.parametrize("arrange", [own_class, own_scheduler, own_folder])
def test_code_that_a_pipeline_brings_counts(
    model: Model, arrange: Callable[[Model], tuple[Model, Path]]
) -> None:
    custom, code = arrange(model)
    code.write_text("SCALE = 1.0\n")
    before = identity(custom)
    code.write_text("SCALE = 9.0\n")
    assert identity(custom) != before


def test_code_that_is_not_run_does_not_count(model: Model) -> None:
    before = identity(model)
    (Path(model.path) / "convert.py").write_text("print()\n")
    assert identity(model) == before


def test_an_adapter_beside_a_text_encoder_counts(model: Model) -> None:
    """transformers puts it on the encoder when it loads it."""
    folder, before = Path(model.path) / "text_encoder", weights_digest(model)
    (folder / "adapter_model.safetensors").write_bytes(b"0")
    assert weights_digest(model) == before  # it is not loaded without its config
    (folder / "adapter_config.json").write_text("{}")
    one = weights_digest(model)
    (folder / "adapter_model.safetensors").write_bytes(b"1")
    assert len({before, one, weights_digest(model)}) == 3


@pytest.mark.parametrize("kind", ["MultiControlNetModel", "MultiAdapter"])
def test_every_net_of_several_counts(model: Model, kind: str) -> None:
    folder = Path(model.path)
    edit(model, "model_index.json", lambda data: data.update(controlnet=["diffusers", kind]))
    for name in ("controlnet", "controlnet_1", "controlnet_2", "controlnet_4"):
        shutil.copytree(folder / "unet", folder / name)
    digests = [identity(model)]
    for name in ("controlnet", "controlnet_1", "controlnet_2"):
        edit(model, f"{name}/config.json", lambda data: data.update(flip_sin_to_cos=False))
        digests.append(identity(model))
        (folder / name / "diffusion_pytorch_model.safetensors").write_bytes(b"0")
        digests.append(identity(model))
    assert len(set(digests)) == 7
    (folder / "controlnet_4" / "diffusion_pytorch_model.safetensors").unlink()  # nor is it loaded
    assert identity(model) == digests[-1]


def test_a_pipeline_without_a_sampler_is_told(model: Model) -> None:
    edit(model, "model_index.json", lambda data: data.update(scheduler=[None, None]))
    with pytest.raises(ModelError, match=r"has no scheduler .*null in its place"):
        sampler_of(model)
