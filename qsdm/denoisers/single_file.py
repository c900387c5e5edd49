"""Single-file checkpoints in their authors' layout, read by diffusers' own conversion.

Such a file holds the denoiser alone (FLUX, SD3), or the VAE and the text encoders as well (Stable
Diffusion, SDXL). It never holds configs, tokenizer and sampler: these come from the folder of a
diffusers pipeline (``config=DIR``, whose weights are not needed), or from the hub repository that
diffusers associates with such files.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.denoisers.faults import (
    PICKLES,
    ModelError,
    codes_fault,
    file_fault,
    pipeline_fault,
    read_config,
)
from qsdm.store.header import Entry, read_header

if TYPE_CHECKING:
    import torch
    from torch import nn

OTHERS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
"""Prefixes of tensors that do not belong to the denoiser."""

DENOISER = "model.diffusion_model."
CONFIGS = ("*.json", "*/*.json", "*.txt", "*/*.txt", "*/*.model")


def header(file: Path) -> Mapping[str, Entry]:
    """Read type and shape of every tensor.

    Args:
        file: of the checkpoint.

    Returns:
        Entry by name.

    Raises:
        ModelError: it is not a complete safetensors file, or its weights are already quantized.
    """
    if file.suffix == ".gguf":
        raise ModelError(
            f"{file} is already quantized (GGUF): "
            "give path=FILE.safetensors of the full-precision weights"
        )
    if file.suffix in PICKLES:
        raise ModelError(
            f"{file} is a pickle, which qsdm does not open: convert it to safetensors, "
            "then give path=FILE.safetensors"
        )
    if file.suffix.lower() in (".sft", ".safetensors") and file.suffix != ".safetensors":
        raise ModelError(
            f"{file} would not be read under this name: rename it to {file.stem}.safetensors"
        )
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{file} is not a checkpoint: give path=FILE.safetensors, "
            "or path=DIRECTORY of a diffusers pipeline"
        )
    if (fault := file_fault(file)) is not None:
        raise ModelError(fault)
    tensors = read_header(file).parts
    if small := [name for name, entry in tensors.items() if entry.dtype.startswith("F8")]:
        raise ModelError(
            f"{file} is already quantized ({small[0]} has 8 bits): give the file with 16 or 32 bits"
        )
    if (fault := codes_fault([file])) is not None:
        raise ModelError(fault)
    return tensors


def is_whole(file: Path) -> bool:
    """Whether a file holds more than the denoiser.

    Args:
        file: of the checkpoint.

    Raises:
        ModelError: it cannot be read.
    """
    return any(name.startswith(OTHERS) for name in header(file))


def repository(file: Path) -> str:
    """Find the hub repository whose configs belong to a file.

    Args:
        file: of the checkpoint.

    Returns:
        The hub id; diffusers recognizes the kind of model by its tensors.

    Raises:
        ModelError: diffusers does not recognize the file.
    """
    import torch
    from diffusers.loaders import single_file_utils

    whole = file.parent.parent
    if (file.parent / "config.json").is_file() and (whole / "model_index.json").is_file():
        raise ModelError(f"{file} belongs to the diffusers pipeline {whole}: give path={whole}")
    tensors = {
        name: torch.empty(entry.shape, device="meta") for name, entry in header(file).items()
    }
    unknown = ModelError(
        f"{file} is not a kind of checkpoint that diffusers recognizes: give config=DIRECTORY of "
        "the diffusers pipeline that it belongs to (the configs suffice)"
    )
    try:
        kind = single_file_utils.infer_diffusers_model_type(tensors)
    except (KeyError, IndexError, UnboundLocalError) as error:
        raise unknown from error
    if kind == "v1" and not any(name.startswith(DENOISER) for name in tensors):
        raise unknown  # v1 is what diffusers says of anything
    return str(
        single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    )


def config_folder(file: Path, config: str | None, download: bool = True) -> Path | None:
    """Find the folder of the diffusers pipeline that describes a file.

    Args:
        file: of the checkpoint.
        config: a folder or a hub id; None for the repository that diffusers associates with it.
        download: whether to download the configs if they are not on this machine.

    Returns:
        The folder; None if it is not on this machine and must not be downloaded.

    Raises:
        ModelError: there is no such folder, and it cannot be downloaded.
    """
    if config is not None:
        folder = Path(config).expanduser()
        if (folder / "model_index.json").is_file():
            return folder
        if folder.exists():
            raise ModelError(
                f"config={config} is not a diffusers pipeline (no model_index.json): "
                "give config=DIRECTORY of one"
            )
        if config.count("/") != 1 or config.startswith((".", "/", "~")):
            raise ModelError(
                f"no directory config={config}: give the folder of a diffusers pipeline"
            )
    import huggingface_hub

    name = config or repository(file)
    huggingface_hub.logging.set_verbosity_error()
    for local in (True, False) if download else (True,):
        try:
            snapshot = Path(
                huggingface_hub.snapshot_download(
                    name, allow_patterns=list(CONFIGS), local_files_only=local
                )
            )
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            if local:
                continue
            raise ModelError(
                f"the configs of {file} ({name}) cannot be downloaded from the hub "
                f"({type(error).__name__}): give config=DIRECTORY of that pipeline "
                "(configs and tokenizers suffice), or check the network"
            ) from error
        if (snapshot / "model_index.json").is_file():
            return snapshot
    return None


def load_denoiser(
    file: Path, cls: Any, config: Path | Mapping[str, Any], dtype: torch.dtype | None = None
) -> nn.Module:
    """Load the denoiser of a file through diffusers' conversion.

    Args:
        file: of the checkpoint.
        cls: of the denoiser, in diffusers.
        config: folder of the component's config.json, or its content.
        dtype: of the weights in memory; None for that of the file, so that its tensors are mapped
            and not copied.

    Returns:
        The denoiser.

    Raises:
        ModelError: the file holds no such denoiser.
    """
    if not hasattr(cls, "from_single_file"):
        raise ModelError(
            f"diffusers does not read single files of {cls.__name__}: "
            "give path=DIRECTORY of the diffusers pipeline"
        )
    with tempfile.TemporaryDirectory(prefix="qsdm-config-") as scratch:
        folder = config if isinstance(config, Path) else Path(scratch)
        if not isinstance(config, Path):
            about = {"_class_name": cls.__name__, **config}
            (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
        try:
            module: nn.Module = cls.from_single_file(
                str(file), config=str(folder), dtype=dtype or _widest(file), local_files_only=True
            )
        except MemoryError:
            raise
        except Exception as error:  # conversions of files of other models fail anywhere
            raise ModelError(
                f"{file} holds no {cls.__name__} of this config ({_first_line(error)}): "
                "give config=DIRECTORY of the diffusers pipeline that it belongs to"
            ) from error
    require_weights(module, file)
    return module


def _widest(file: Path) -> torch.dtype:
    """The type that holds all values of a file's denoiser."""
    import torch

    tensors = header(file)
    kinds = {entry.dtype for name, entry in tensors.items() if not name.startswith(OTHERS)} & {
        "F64",
        "F32",
        "F16",
        "BF16",
    }
    if kinds == {"F16"}:
        return torch.float16
    return torch.bfloat16 if kinds == {"BF16"} else torch.float32


def require_weights(module: nn.Module, file: Path) -> None:
    """Check that a file gave every parameter its values.

    Args:
        module: that was loaded.
        file: for the message.

    Raises:
        ModelError: a parameter has none.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ModelError(
                f"{file} lacks {name!r} of the {type(module).__name__}: "
                "give config=DIRECTORY of the diffusers pipeline that it belongs to"
            )


def load(
    file: Path,
    folder: Path,
    component: str,
    dtype: torch.dtype,
    replacements: Mapping[str, Any],
) -> Any:
    """Load the pipeline of a file.

    Args:
        file: of the checkpoint.
        folder: that describes it, with the weights that the file lacks.
        component: attribute of the pipeline that holds the denoiser.
        dtype: of the weights in memory.
        replacements: components, or None, by name; they are not loaded.

    Returns:
        The pipeline.

    Raises:
        ModelError: weights are missing, or the file belongs to another model.
    """
    import diffusers

    index = read_config(folder / "model_index.json")
    cls = getattr(diffusers, str(index.get("_class_name")), None)
    if is_whole(file):
        if cls is None or not hasattr(cls, "from_single_file"):
            raise ModelError(
                f"diffusers does not read single files of {index.get('_class_name')}: "
                "give path=DIRECTORY of the diffusers pipeline"
            )
        try:
            pipeline = cls.from_single_file(
                str(file), config=str(folder), dtype=dtype, **replacements
            )
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"{file} cannot be loaded as {cls.__name__} ({_first_line(error)}): give "
                "config=DIRECTORY of the diffusers pipeline that it belongs to, "
                "with the weights that the file lacks"
            ) from error
    else:
        if component not in replacements:
            denoiser = getattr(diffusers, index[component][1])
            replacements = {
                **replacements,
                component: load_denoiser(file, denoiser, folder / component, dtype),
            }
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, **replacements
        )
    for name, part in pipeline.components.items():
        if name not in replacements and hasattr(part, "named_parameters"):
            require_weights(part, file)
    return pipeline


def rest_fault(
    file: Path, folder: Path, replacements: Mapping[str, Any], component: str
) -> str | None:
    """Say why a file and the folder that describes it do not make a complete pipeline.

    Args:
        file: of the checkpoint.
        folder: that describes it.
        replacements: components, or None, by name; their weights are not needed.
        component: attribute of the pipeline that holds the denoiser.

    Returns:
        One sentence; None if they do.
    """
    if is_whole(file):
        return None
    fault = pipeline_fault(folder, {**replacements, component: None})
    return None if fault is None else f"{file} holds the denoiser alone, and {fault}"


def _first_line(error: Exception) -> str:
    if isinstance(error, NotImplementedError) and "meta tensor" in str(error):
        return "weights are missing in the file"
    return (str(error) or repr(error)).strip().splitlines()[0]
