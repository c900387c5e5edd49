"""Checkpoints of one file: the very same weights and pictures as from the pipeline's folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import single_files
import torch
from pipelines import build_model
from safetensors.torch import save_file

from qsdm import run
from qsdm.calibrate import calibrate
from qsdm.denoisers import (
    Model,
    ModelError,
    denoiser_tensors,
    discover,
    load_pipeline,
    weights_digest,
)
from qsdm.measure import measure
from qsdm.run.help import help_text
from qsdm.trace import trace


@dataclass(frozen=True)
class Case:
    """One pipeline, three ways: a folder, a file of everything, a file of the denoiser; and configs
    alone.
    """

    folder: Path
    configs: Path
    whole: Path
    denoiser: Path


@pytest.fixture(scope="module")
def case(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("single")
    pipeline = load_pipeline(tiny_model)
    case = Case(
        Path(tiny_model.path),
        single_files.configs(Path(tiny_model.path), root / "configs"),
        root / "whole.safetensors",
        root / "denoiser.safetensors",
    )
    save_file(single_files.widened(single_files.original(pipeline)), case.whole)
    save_file(single_files.original(pipeline, unet_only=True), case.denoiser)
    return case


def single(path: Path, config: Path) -> Model:
    return discover(str(path), load={"config": str(config)}, steps=2, guidance=2.0)


def picture(pipeline: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        "a red house", num_inference_steps=2, output_type="np", generator=generator
    ).images


@pytest.mark.parametrize("name", ["whole", "denoiser"])
def test_the_weights_and_pictures_are_those_of_the_folder(
    case: Case, tiny_pipeline: Any, name: str
) -> None:
    config = case.configs if name == "whole" else case.folder
    pipeline = load_pipeline(single(getattr(case, name), config))
    assert type(pipeline) is type(tiny_pipeline)
    for part in ("unet", "vae", "text_encoder"):
        assert single_files.equal(getattr(pipeline, part), getattr(tiny_pipeline, part))
    own = load_pipeline(discover(str(case.folder)))
    assert (picture(pipeline) == picture(own)).all()


def test_calibrate_reads_parameters_by_their_names_in_diffusers(
    case: Case, tiny_pipeline: Any
) -> None:
    for path in (case.whole, case.denoiser):
        read = denoiser_tensors(single(path, case.configs))
        for name, tensor in tiny_pipeline.unet.named_parameters():
            assert torch.equal(read(name), tensor)


def test_half_precision_stays_half_until_it_is_asked_for(
    case: Case, tiny_pipeline: Any, tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    tensors = single_files.original(tiny_pipeline)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
    model = single(path, case.configs)
    read = denoiser_tensors(model)
    assert read("conv_in.weight").dtype == torch.float16
    assert torch.equal(
        load_pipeline(model).unet.conv_in.weight,  # type: ignore[attr-defined]
        tiny_pipeline.unet.conv_in.weight.half().float(),
    )


@pytest.mark.parametrize("name", ["whole", pytest.param("denoiser", marks=pytest.mark.soak)])
def test_trace_calibrate_and_measure_take_a_file(
    case: Case, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = tmp_path / "captions.json"
    captions.write_bytes(b"\xef\xbb\xbf" + json.dumps(["a red house", "rain"]).encode())
    config = case.configs if name == "whole" else case.folder
    options = ["+model=any", f"path={getattr(case, name)}", f"config={config}"]
    options += [f"store={tmp_path}/s", f"hydra.run.dir={tmp_path}/run"]
    space = ["space.name=few", "space.methods=[uaq-3,uaq-4]"]
    drawing = ["prompts=captions", f"prompts.path={captions}", "num_configs=2", "num_images=4"]
    drawing += [
        "engine=serial",
        "model.steps=1",
        "++model.metrics.psnr._target_=qsdm.metrics.fidelity.Psnr",
    ]
    assert run.execute(trace, options) == 0
    assert run.execute(calibrate, options + space) == 0, capsys.readouterr().err
    assert run.execute(measure, options + space + drawing) == 0, capsys.readouterr().err
    (store,) = (tmp_path / "s").iterdir()
    assert store.name.startswith(f"{name}-")
    assert (store / "outcomes.sqlite").is_file()


def test_a_named_model_takes_a_file_without_configs_until_it_draws(
    case: Case, tiny_model: Model, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = {k: v for k, v in tiny_pipeline.unet.config.items() if not k.startswith("_")}
    model = dataclasses.replace(tiny_model, path=str(case.whole), config=config, load={})
    read = denoiser_tensors(model)
    assert torch.equal(read("conv_out.bias"), tiny_pipeline.unet.conv_out.bias)
    with pytest.raises(ModelError, match=r"stable-diffusion-v1-5.* give config=DIRECTORY"):
        load_pipeline(model)


def test_the_digest_covers_the_file_and_what_completes_it(case: Case, tmp_path: Path) -> None:
    whole, denoiser = single(case.whole, case.configs), single(case.denoiser, case.folder)
    bare = single(case.denoiser, case.configs)
    digests = {weights_digest(model) for model in (whole, denoiser, bare)}
    changed = tmp_path / "changed.safetensors"
    data = bytearray(case.whole.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    digests.add(weights_digest(single(changed, case.configs)))
    assert len(digests) == 4


def test_a_denoiser_alone_is_traced_without_the_rest_and_told_when_it_draws(
    case: Case, tmp_path: Path
) -> None:
    model = single(case.denoiser, case.configs)
    from qsdm.workspace import Workspace

    graph = trace(Workspace(model, None, tmp_path))
    assert len(graph.weights) > 40
    with pytest.raises(
        ModelError, match=r"holds the denoiser alone, and .*text_encoder has no weights"
    ):
        load_pipeline(model)


def bad(tmp_path: Path, case: Case, kind: str) -> tuple[Path, Path | None]:
    """A file and a config that make no model."""
    path = tmp_path / "file.safetensors"
    if kind in ("gguf", "ckpt", "txt"):
        path = tmp_path / f"file.{kind}"
        path.write_bytes(b"GGUF" + bytes(100))
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "float8":
        save_file({"model.diffusion_model.x": torch.zeros(4).to(torch.float8_e4m3fn)}, path)
    elif kind == "int8":
        save_file({"model.diffusion_model.x": torch.zeros(2, 2, dtype=torch.int8)}, path)
    elif kind == "sft":
        path = tmp_path / "file.sft"
        save_file({"model.diffusion_model.x": torch.zeros(4)}, path)
    elif kind == "unknown":
        save_file({"some.weight": torch.zeros(4)}, path)
    elif kind == "inside":
        return case.folder / "unet/diffusion_pytorch_model.safetensors", None
    elif kind == "no-config":
        return case.whole, tmp_path / "nowhere"
    elif kind == "empty-config":
        return case.whole, tmp_path
    else:
        assert kind == "offline"
        return case.whole, None
    return path, None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gguf", r"already quantized \(GGUF\): give path=FILE.safetensors"),
        ("ckpt", "is a pickle, which qsdm does not open: convert it"),
        ("txt", "is not a checkpoint: give path=FILE.safetensors"),
        ("pointer", "git-LFS pointer"),
        ("float8", "already quantized .* has 8 bits"),
        ("int8", r"holds quantized weights \(model.diffusion_model.x\)"),
        ("sft", "would not be read under this name: rename it to file.safetensors"),
        ("unknown", "not a kind of checkpoint that diffusers recognizes: give config=DIRECTORY"),
        ("inside", "belongs to the diffusers pipeline .*: give path="),
        ("no-config", "no directory config=.*: give the folder"),
        ("empty-config", "is not a diffusers pipeline .*: give config=DIRECTORY"),
        ("offline", "cannot be downloaded from the hub .* give config=DIRECTORY"),
    ],
)
def test_what_makes_no_model_is_told(
    case: Case, tmp_path: Path, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path, config = bad(tmp_path, case, kind)
    with pytest.raises(ModelError, match=words) as caught:
        discover(str(path), load={} if config is None else {"config": str(config)})
    assert "\n" not in str(caught.value)


def test_a_file_of_another_model_is_told(case: Case, tmp_path: Path) -> None:
    config = single_files.configs(case.folder, tmp_path / "other")
    path = config / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [16, 16]}))
    with pytest.raises(ModelError, match="give config=DIRECTORY"):
        denoiser_tensors(single(case.whole, config))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_per_block": 2}))
    with pytest.raises(ModelError, match="give config=DIRECTORY"):
        load_pipeline(single(case.whole, config))


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("StableDiffusionXLPipeline", "unet"),
        ("StableDiffusion3Pipeline", "transformer"),
        ("FluxPipeline", "transformer"),
    ],
)
def test_a_denoiser_file_in_diffusers_names(tmp_path: Path, name: str, component: str) -> None:
    folder = tmp_path / "pipe"
    model = build_model(name, folder)
    file = tmp_path / "denoiser.safetensors"
    file.write_bytes((folder / component / "diffusion_pytorch_model.safetensors").read_bytes())
    single = discover(str(file), load={"config": str(folder)})
    assert single.resolution_px == discover(str(folder)).resolution_px
    pipeline, own = load_pipeline(single), load_pipeline(model)
    assert single_files.equal(getattr(pipeline, component), getattr(own, component))
    read = denoiser_tensors(single)
    for parameter, tensor in getattr(own, component).named_parameters():
        assert torch.equal(read(parameter), tensor)


def test_a_file_of_sdxl_in_its_authors_names(tmp_path: Path) -> None:
    model = build_model("StableDiffusionXLPipeline", tmp_path / "pipe")
    own = load_pipeline(model)
    file = tmp_path / "sdxl.safetensors"
    save_file(single_files.original(own, unet_only=True), file)
    single = discover(str(file), load={"config": str(tmp_path / "pipe")})
    assert single_files.equal(load_pipeline(single).unet, own.unet)  # type: ignore[attr-defined]


def test_help_tells_of_config() -> None:
    assert "config=VALUE" in help_text(trace)
