"""Files that users really have: what is wrong with a pipeline's files is told with the file and the
remedy.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsdm import run
from qsdm.calibrate import calibrate
from qsdm.denoisers import (
    Model,
    ModelError,
    denoiser_tensors,
    discover,
    load_pipeline,
    vae_factor,
)
from qsdm.denoisers import faults as pipeline_files
from qsdm.denoisers.files import pipeline_files as pipeline_files_of
from qsdm.run import errors
from qsdm.store import StoreError
from qsdm.trace import trace

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
PAGE = "<!DOCTYPE html>\n<html><body>Sign in</body></html>"
DENOISER = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return change


def rename(name: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename((folder / name).with_name(to)) and None


def edit(name: str, **fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def marked(name: str) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes()) and None
    )


FAULTS = (
    {
        "pointer-denoiser": (write(DENOISER, LFS), (DENOISER, "git lfs pull")),
        "pointer-vae": (
            write("vae/diffusion_pytorch_model.safetensors", LFS),
            ("vae/diffusion_pytorch_model.safetensors", "git lfs pull"),
        ),
        "pointer-text": (write(TEXT, LFS), (TEXT, "git lfs pull")),
        "pointer-json": (
            write("text_encoder/config.json", LFS),
            ("text_encoder/config.json", "git lfs pull"),
        ),
        "pointer-unet-json": (write("unet/config.json", LFS), ("unet/config.json", "git lfs pull")),
        "page": (write(DENOISER, PAGE), (DENOISER, "web page", "hf auth login")),
        "page-json": (write("vae/config.json", PAGE), ("vae/config.json", "web page")),
        "empty": (write(DENOISER, ""), (DENOISER, "is empty", "download it again")),
        "truncated": (cut(DENOISER), (DENOISER, "is truncated", "download it again")),
        "truncated-text": (cut(TEXT), (TEXT, "is truncated", "download it again")),
        "text-as-weights": (
            write(DENOISER, "Entry not found"),
            (DENOISER, "not a safetensors file"),
        ),
        "only-fp16": (
            rename(DENOISER, "diffusion_pytorch_model.fp16.safetensors"),
            ("unet has no plain weights, only the variant fp16", "model.load.variant=fp16"),
        ),
        "only-bin": (
            rename(DENOISER, "diffusion_pytorch_model.bin"),
            ("pickle only (diffusion_pytorch_model.bin)", "convert"),
        ),
        "only-ckpt": (rename(DENOISER, "last.ckpt"), ("pickle only (last.ckpt)", "convert")),
        "other-name": (rename(DENOISER, "epoch9.safetensors"), ("only epoch9.safetensors",)),
        "no-folder": (
            lambda folder: shutil.rmtree(folder / "vae"),
            ("lacks the folder", "vae", "download all of it"),
        ),
        "missing-shard": (
            write(
                "unet/diffusion_pytorch_model.safetensors.index.json",
                json.dumps(
                    {"weight_map": {"x": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
                ),
            ),
            ("00002-of-00002.safetensors is missing",),
        ),
        "text-for-component": (
            edit("model_index.json", vae="AutoencoderKL"),
            ("model_index.json: vae is 'AutoencoderKL', not [LIBRARY, CLASS]",),
        ),
    }
    | {
        f"byte-order-mark-{name.split('/')[0]}": (
            marked(name),
            (name, "byte order mark", "UTF-8 without one"),
        )
        for name in (
            "text_encoder/config.json",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "tokenizer/tokenizer_config.json",
        )
    }
    | {
        f"quantized-{method}": (
            edit("text_encoder/config.json", quantization_config={"quant_method": method}),
            ("text_encoder is quantized by", method, f"pip install {package}"),
        )
        for method, package in [
            ("bitsandbytes", "bitsandbytes"),
            ("quanto", "optimum-quanto"),
            ("gguf", "gguf"),
            ("gptq", "gptqmodel"),
            ("hqq", "hqq"),
        ]
    }
)


@pytest.fixture
def folder(tiny_model: Model, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model.path, tmp_path / "pipe"))


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_sentence_with_file_and_remedy(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_files, "is_installed", lambda _module: False)
    change, words = FAULTS[name]
    change(folder)
    sentence = pipeline_files.pipeline_fault(folder, {})
    assert sentence is not None
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    "name", ["pointer-denoiser", "truncated", "only-fp16", "only-bin", "missing-shard"]
)
def test_calibrate_tells_faults_of_the_denoiser(folder: Path, name: str) -> None:
    change, words = FAULTS[name]
    change(folder)
    with pytest.raises(ModelError, match=re.escape(words[0])):
        denoiser_tensors(discover(str(folder)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        FAULTS["truncated-text"],
        FAULTS["pointer-json"],
        FAULTS["pointer-vae"],
        FAULTS["pointer-unet-json"],
        (lambda folder: shutil.rmtree(folder / "vae"), ("lacks vae", "download all of it")),
        (
            edit("text_encoder/config.json", quantization_config={"load_in_4bit": True})
            if importlib.util.find_spec("bitsandbytes") is None
            else edit("text_encoder/config.json", quantization_config={"quant_method": "hqq"}),
            ("text_encoder is quantized by", "pip install"),
        ),
    ],
)
def test_trace_tells_faults_of_the_other_components(
    folder: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(folder)
    options = ["+model=any", f"path={folder}", f"store={tmp_path}/s", f"hydra.run.dir={tmp_path}"]
    assert run.execute(trace, options) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: ")
    for word in words:
        assert word in sentence


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        values = load_file(folder / name)
        change(values)
        save_file(values, folder / name, {"format": "pt"})

    return rewrite


CONV = "decoder.conv_in.weight"
VAE = "vae/diffusion_pytorch_model.safetensors"


def as_codes(values: dict[str, torch.Tensor]) -> None:
    name = next(name for name in values if name.endswith("fc1.weight"))
    values[name] = values[name].sign().to(torch.int8)


def scaled(values: dict[str, torch.Tensor]) -> None:
    values[CONV] = values[CONV].to(torch.float8_e4m3fn)
    values[f"{CONV}_scale"] = torch.tensor(0.01)


def without(ending: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(values: dict[str, torch.Tensor]) -> None:
        del values[next(name for name in values if name.endswith(ending))]

    return change


def reshaped(values: dict[str, torch.Tensor]) -> None:
    values[next(name for name in values if name.endswith("fc1.weight"))] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tensors(TEXT, without("fc1.weight")), r"lack .*fc1\.weight, which would be random"),
        (tensors(VAE, without(CONV)), rf"lack .*{CONV}.*, which would be random"),
        (tensors(DENOISER, without("conv_norm_out.weight")), r"lack .*conv_norm_out\.weight"),
        (tensors(TEXT, reshaped), r"fc1\.weight of .* has another shape than its config says"),
        (tensors(TEXT, as_codes), r"model\.safetensors holds quantized weights \(.*fc1\.weight\)"),
        (tensors(VAE, scaled), rf"holds quantized weights \({CONV}_scale\)"),
    ],
)
def test_what_would_be_made_up_or_misread_is_told(
    folder: Path, change: Callable[[Path], None], words: str
) -> None:
    """Libraries load these, and draw other pictures, each process its own."""
    change(folder)
    with pytest.raises(ModelError, match=words) as caught:
        load_pipeline(discover(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_denoiser_of_codes_is_not_calibrated(folder: Path) -> None:
    tensors(DENOISER, lambda values: values.update({"conv_in.weight_scale": torch.ones(1)}))(folder)
    with pytest.raises(ModelError, match=r"holds quantized weights \(conv_in\.weight_scale\)"):
        denoiser_tensors(discover(str(folder)))


def test_a_tokenizer_of_no_class_of_its_own_has_no_weights(folder: Path) -> None:
    """transformers 5 saves it as TokenizersBackend."""
    edit("model_index.json", tokenizer=["transformers", "TokenizersBackend"])(folder)
    assert set(pipeline_files_of(folder)) == {"unet", "vae", "text_encoder"}


def test_a_whole_pipeline_has_no_fault(tiny_model: Model) -> None:
    assert pipeline_files.pipeline_fault(Path(tiny_model.path), {}) is None


def test_a_component_that_is_not_loaded_may_be_damaged(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    assert pipeline_files.pipeline_fault(folder, {"vae": None}) is None


def test_the_variant_that_is_asked_for_counts(folder: Path) -> None:
    rename(DENOISER, "diffusion_pytorch_model.fp16.safetensors")(folder)
    assert pipeline_files.weights_fault(folder / "unet", "fp16") is None
    assert "only the variant fp16" in str(pipeline_files.weights_fault(folder / "unet", "bf16"))


def test_the_advised_conversion_makes_a_pipeline(folder: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import DiffusionPipeline

    for path in folder.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    assert "pickle only" in str(pipeline_files.pipeline_fault(folder, {}))
    assert "use_safetensors=False" in pipeline_files.CONVERT
    DiffusionPipeline.from_pretrained(folder, use_safetensors=False).save_pretrained(
        tmp_path / "new"
    )
    assert pipeline_files.pipeline_fault(tmp_path / "new", {}) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"config.json": "{}"}, "is one component"),
        ({"model.safetensors": "x"}, "give path=.*model.safetensors to load that file"),
        ({"v1-5.ckpt": "x"}, "holds the pickle v1-5.ckpt: convert it"),
        ({}, "it has no model_index.json: give path=DIRECTORY"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_told_what_it_is(
    tmp_path: Path, content: dict[str, str], words: str
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=words):
        discover(str(tmp_path))


@pytest.mark.parametrize(
    "path", ["./no/such", "/no/such/pipe", "~/no/such", "a/b/c", "models/x.safetensors", "nowhere"]
)
def test_a_path_is_never_looked_up_at_the_hub(
    tiny_model: Model, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looked up at the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ModelError, match=r"no file or directory .* give path=DIRECTORY"):
        discover(path)
    with pytest.raises(ModelError, match=r"no file or directory .* give path=DIRECTORY"):
        load_pipeline(dataclasses.replace(tiny_model, path=path))


def test_advice_repeats_model_store_and_space(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["model=any", f"++model.path={folder}", f"store={tmp_path}/s s", "model.name=mine"]
    given += ["prompts=captions", "prompts.path=captions.json", f"hydra.run.dir={tmp_path}"]
    model = f"+model=any path={folder} model.name=mine"
    store = f"'store={tmp_path}/s s'"
    assert run.execute(calibrate, [*given, "space=wide"]) == 1
    assert f"run python -m qsdm.trace {model} {store}\n" in capsys.readouterr().err
    error = StoreError("run python -m qsdm.train +model=mine")
    errors.tell(error, False, [*given, "space=wide"])
    assert (
        f"qsdm.train {model} prompts=captions prompts.path=captions.json space=wide {store}\n"
        in capsys.readouterr().err
    )
    errors.tell(StoreError("run python -m qsdm +model=mine"), False, ["+model=sdxl", "path=a b"])
    assert "run python -m qsdm +model=sdxl 'path=a b'\n" in capsys.readouterr().err


# ---- resolution


def build(name: str, **config: object) -> dict[str, object]:
    """The config of a VAE of diffusers, as its file holds it."""
    import diffusers

    return dict(getattr(diffusers, name)(**config).config)


@pytest.mark.parametrize(
    ("name", "config", "factor"),
    [
        ("AutoencoderKL", {"block_out_channels": (32, 32)}, 2),
        ("AutoencoderKL", {"block_out_channels": (32,)}, 1),
        ("VQModel", {"block_out_channels": (32, 32, 32)}, 4),
    ],
)
def test_a_vae_tells_its_factor(name: str, config: dict[str, object], factor: int) -> None:
    blocks = len(config["block_out_channels"])  # type: ignore[arg-type]
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }
    stored = json.loads(json.dumps(build(name, **config, **kinds)))
    assert vae_factor(stored) == factor


@pytest.mark.parametrize(
    ("name", "skeleton"),
    [
        ("AutoencoderDC", {}),
        ("AutoencoderKLWan", {"base_dim": 4, "z_dim": 2}),
        ("AutoencoderKLQwenImage", {"base_dim": 4, "z_dim": 2}),
        ("AutoencoderKLHunyuanVideo", {}),
        ("AutoencoderKLLTXVideo", {}),
    ],
)
def test_a_video_vae_tells_what_diffusers_computes(name: str, skeleton: dict[str, int]) -> None:
    import diffusers
    import torch

    with torch.device("meta"):
        made = getattr(diffusers, name)(**skeleton)
    stored = json.loads(json.dumps({**made.config}))
    assert vae_factor(stored) == made.spatial_compression_ratio


def test_the_default_resolution_is_the_pipelines(tiny_model: Model, folder: Path) -> None:
    pipeline = load_pipeline(tiny_model)
    assert discover(str(folder)).resolution_px == 8 * pipeline.vae_scale_factor == 16  # type: ignore[attr-defined]
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    assert discover(str(folder)).resolution_px == 8  # in pixels
