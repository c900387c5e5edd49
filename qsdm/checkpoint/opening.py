"""From a contender to its pipeline: whatever diffusers loads, quantized by any library or not.

A denoiser that is already quantized is loaded in the type in which it computes, because it cannot
be cast later; everything else in float32, as `qsdm.measurement.drawer` expects.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qsdm.checkpoint import follow_steps, load_quantized
from qsdm.checkpoint.format import (
    ENCODERS_FILE,
    QUANT_METHOD,
    CheckpointError,
    component_folders,
)
from qsdm.denoisers import (
    Model,
    ModelError,
    computed_in,
    denoiser_class,
    describing_folder,
    load_pipeline,
    quiet,
)
from qsdm.denoisers.faults import is_installed, quantization_fault
from qsdm.denoisers.files import pipeline_folder
from qsdm.denoisers.loading import no_weights_made_up
from qsdm.measurement.contender import Contender
from qsdm.store.files import read_json

if TYPE_CHECKING:
    import diffusers
    from torch import nn


def open_pipeline(contender: Contender) -> diffusers.DiffusionPipeline:
    """Load the pipeline of a contender onto the CPU.

    Args:
        contender: what is loaded.

    Returns:
        The pipeline, with the model's sampler.

    Raises:
        ModelError: files are missing or damaged, or the package that reads them is not installed.
        CheckpointError: a checkpoint of qsdm is damaged.
    """
    model, component = contender.model, contender.model.component
    parts: dict[str, Any] = {}
    quiet()
    if contender.denoiser is not None:
        parts[component] = load_denoiser(contender.denoiser, model, contender.load)
    elif model.file is None and quantization(contender):
        folder = _pipeline_folder(model) / component
        parts[component] = load_denoiser(folder, model, model.load)
    if model.file is None:
        parts = packed_encoders(model) | parts
    return follow_steps(load_pipeline(model, **parts))


def packed_encoders(model: Model) -> dict[str, nn.Module]:
    """Load what transformers cannot: text encoders of a checkpoint that are packed.

    Args:
        model: of the pipeline.

    Returns:
        By name of the component; none if the pipeline is not on this machine.

    Raises:
        CheckpointError: one is damaged.
    """
    home = model.directory
    if home is None or not home.is_dir():
        return {}
    try:
        folders = component_folders(home)
    except CheckpointError:  # nothing is packed, or who loads it says what is wrong
        return {}
    return {
        folder.name: load_quantized(folder)
        for folder in folders
        if (folder / ENCODERS_FILE).is_file()
    }


def load_denoiser(path: Path, model: Model, load: Mapping[str, Any] = {}) -> nn.Module:
    """Load a denoiser in the type in which it computes.

    Args:
        path: a GGUF file, or a folder that ``save_pretrained`` wrote.
        model: of the pipeline that the denoiser is for.
        load: arguments of from_pretrained, of which ``variant`` and ``use_safetensors`` matter.

    Returns:
        The denoiser.

    Raises:
        ModelError: it cannot be loaded.
        CheckpointError: a checkpoint of qsdm is damaged.
    """
    dtype = computed_in(model.dtype)
    if path.is_file():
        return _of_gguf(path, model, dtype)
    about = read_json(path / "config.json").get("quantization_config") or {}
    variant = load.get("variant")
    if about.get("quant_method") == QUANT_METHOD:
        ours: nn.Module = load_quantized(path, dtype=dtype, variant=variant)
        return ours
    if about and (fault := quantization_fault(path)) is not None:
        raise ModelError(fault)
    if about.get("quant_method") == "sdnq":
        importlib.import_module("sdnq")  # tells versions of diffusers before 0.39 how to load it
    options = {"use_safetensors": load.get("use_safetensors", True), "variant": variant}
    try:
        with no_weights_made_up(path.name, path):
            denoiser: nn.Module = denoiser_class(model).from_pretrained(  # type: ignore[attr-defined]
                str(path), dtype=dtype, **options
            )
    except (MemoryError, ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever libraries make of files that are not what they seem
        raise ModelError(
            f"the denoiser in {path} cannot be loaded ({type(error).__name__}: {_line(error)})"
        ) from error
    return denoiser


def _of_gguf(path: Path, model: Model, dtype: torch.dtype) -> nn.Module:
    import diffusers

    if not is_installed("gguf"):
        raise ModelError(f"{path} is a GGUF file, and gguf is not installed: `pip install gguf`")
    cls: Any = denoiser_class(model)
    if not hasattr(cls, "from_single_file"):
        raise ModelError(f"diffusers does not read GGUF files of {cls.__name__}, such as {path}")
    folder = describing_folder(model) if model.directory else pipeline_folder(model)
    try:
        denoiser: nn.Module = cls.from_single_file(
            str(path),
            config=str(folder / model.component),
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded as the {cls.__name__} of {model.path!r} "
            f"({type(error).__name__}: {_line(error)})"
        ) from error
    return denoiser


def quantization(contender: Contender) -> Mapping[str, Any]:
    """Read how a contender's denoiser is quantized.

    Args:
        contender: a folder, or a pipeline of the hub.

    Returns:
        The ``quantization_config`` of the denoiser's config; empty if there is none.
    """
    model = contender.model
    folder = contender.denoiser
    if folder is None and model.directory is not None and model.file is None:
        folder = model.directory / model.component
    config: Mapping[str, Any] = model.config
    if folder is not None and folder.is_dir():
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    about = config.get("quantization_config") if isinstance(config, Mapping) else None
    return about if isinstance(about, Mapping) else {}


def check_packages(contender: Contender) -> None:
    """Refuse a contender that needs a package which is not installed, before anything is drawn.

    Args:
        contender: what will be loaded.

    Raises:
        ModelError: the message names the package.
    """
    about, path = quantization(contender), contender.denoiser
    if path is not None and path.is_file() and not is_installed("gguf"):
        raise ModelError(f"{path} is a GGUF file, and gguf is not installed: `pip install gguf`")
    if about and about.get("quant_method") != QUANT_METHOD:
        where = path or Path(contender.model.path) / contender.model.component
        if (fault := quantization_fault(where, about)) is not None:
            raise ModelError(f"{contender.name}: {fault}")


def _pipeline_folder(model: Model) -> Path:
    """The folder of a pipeline, which is downloaded if need be."""
    try:
        return pipeline_folder(model)
    except ModelError:
        import diffusers

        options = {key: model.load[key] for key in ("variant", "cache_dir") if key in model.load}
        try:
            return Path(
                diffusers.DiffusionPipeline.download(
                    model.path, revision=model.revision, use_safetensors=True, **options
                )
            )
        except Exception as error:  # whatever the network does
            raise ModelError(
                f"{model.path!r} cannot be downloaded ({type(error).__name__}): check the name "
                f"and the network, or download it once with `hf download {model.path}`"
            ) from error


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0]
