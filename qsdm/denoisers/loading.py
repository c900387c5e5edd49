"""From a model to its diffusers pipeline, or to the denoiser of a single file."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.denoisers import single_file
from qsdm.denoisers.classes import (
    class_of,
    denoiser_class,
    denoiser_config,
    is_hub_id,
    pipeline_index,
    quiet,
    saved_without,
)
from qsdm.denoisers.faults import ModelError, pipeline_fault
from qsdm.denoisers.files import pipeline_folder, require_values
from qsdm.store.manifest import check_shipped, require_zoo

if TYPE_CHECKING:
    import diffusers
    import torch
    from torch import nn

    from qsdm.denoisers.model import Model


def load_pipeline(
    model: Model, dtype: str = "float32", denoiser_dtype: str | None = None, **components: Any
) -> diffusers.DiffusionPipeline:
    """Load a model's pipeline onto the CPU, without a progress bar of its own.

    Args:
        model: what to load.
        dtype: of the weights in memory, in torch's spelling.
        denoiser_dtype: of the weights of the denoiser, or of the part in its place, if it is
            another one and the path is no single file.
        **components: used instead of the pipeline's own, which are then not loaded.

    Returns:
        The pipeline, with the model's sampler.

    Raises:
        ModelError: the weights are missing or damaged, or diffusers lacks the sampler.

    Example:
        >>> import qsdm
        >>> from qsdm.denoisers import denoiser_of, load_pipeline
        >>> model = qsdm.open("emoji_unet").model
        >>> type(denoiser_of(load_pipeline(model), model)).__name__
        'UNet2DConditionModel'
    """
    import diffusers
    import torch

    quiet()
    source = existing(model)
    if isinstance(source, Path):
        check_shipped(source)
    if model.file is not None:
        with no_weights_made_up(model.name, model.path):
            pipeline = _of_file(model, getattr(torch, dtype), components)
        return _finished(pipeline, model)
    folder = None
    with suppress(ModelError):  # not on this machine
        folder = pipeline_folder(model)
    if folder is not None:
        require_values(folder, {**model.load, **components})
    try:
        with no_weights_made_up(model.name, model.path):
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                source,
                revision=model.revision,
                dtype={
                    "default": getattr(torch, dtype),
                    **dict.fromkeys(own_types(model), getattr(torch, denoiser_dtype or dtype)),
                },
                **{
                    "use_safetensors": True,
                    **saved_without(pipeline_index(model)),
                    **model.load,
                    **components,
                },
            )
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # whatever the libraries make of files that are not what they seem
        raise ModelError(_not_loaded(model, components, error)) from error
    return _finished(pipeline, model)


_ROW = r"(?P<name>[\w.{},\[\] -]+?)\s*\|\W*(?:\d+m)?"
_MADE_UP = re.compile(rf"Some weights of \w+ .* newly initialized: (?P<names>.*)|{_ROW}MISSING")
"""What diffusers says of all weights that a file lacks, and transformers of each."""
_MISSHAPEN = re.compile(rf"{_ROW}MISMATCH")
_LOADING = threading.RLock()  # loggers are shared by all threads


@contextmanager
def no_weights_made_up(name: str, path: Path | str) -> Iterator[None]:
    """Raise if a library gives random values to weights that files lack; it only logs that.

    Args:
        name: of what is loaded within the block.
        path: of its files.

    Raises:
        ModelError: weights are missing, or have another shape than the config says.
    """
    loggers = [
        logging.getLogger(f"{library}.modeling_utils")
        for library in ("diffusers.models", "transformers")
    ]
    lacking: list[str] = []
    misshapen: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            lacking.extend(match["names"] or match["name"] for match in _MADE_UP.finditer(said))
            misshapen.extend(match["name"] for match in _MISSHAPEN.finditer(said))

    collector = Collector(logging.WARNING)
    _LOADING.acquire()
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(collector)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield
    except RuntimeError as error:
        if not misshapen:
            raise
        raise ModelError(
            f"{misshapen[0]} of {name!r} at {path} has another shape than its config "
            "says: download both again"
        ) from error
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(collector)
            logger.setLevel(level)
            logger.propagate = propagate
        _LOADING.release()
    if lacking:
        raise ModelError(
            f"the weights of {name!r} at {path} lack {lacking[0]}"[:300]
            + ", which would be random: download them again"
        )


def _of_file(model: Model, dtype: torch.dtype, components: Mapping[str, Any]) -> Any:
    """The pipeline of a single file."""
    assert model.file is not None
    folder = describing_folder(model)
    without = {name: None for name, part in model.load.items() if part is None}
    replacements = {**without, **components}
    fault = single_file.rest_fault(model.file, folder, replacements, model.component)
    if fault is not None:
        raise ModelError(fault)
    return single_file.load(model.file, folder, model.component, dtype, replacements)


def describing_folder(model: Model) -> Path:
    """Find the directory of a local pipeline, or the one that describes a single file.

    Args:
        model: with the path of either. The description of a single file is downloaded if need be.

    Returns:
        The directory.

    Raises:
        ModelError: it is not on this machine and cannot be downloaded.
    """
    folder = model.directory
    if folder is None and model.file is not None:
        folder = single_file.config_folder(model.file, model.load.get("config"))
    if folder is None:
        raise ModelError(
            f"{model.path!r} is not on this machine: give path=DIRECTORY of a diffusers pipeline"
        )
    return folder


def denoiser_of_file(model: Model) -> nn.Module:
    """Load the denoiser of a single file, in the file's precision.

    Args:
        model: whose path is a single file.

    Returns:
        The denoiser.

    Raises:
        ModelError: the file holds no such denoiser.
    """
    assert model.file is not None
    quiet()
    return single_file.load_denoiser(model.file, denoiser_class(model), denoiser_config(model))


def _finished(pipeline: Any, model: Model) -> Any:
    """The pipeline with the model's sampler, without a progress bar."""
    if model.sampler is not None:
        cls = sampler_class(model.sampler, model)
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampler_class(name: str, model: Model) -> Any:
    """Look up the class of a sampler.

    Args:
        name: of the class in diffusers.
        model: for the message.

    Raises:
        ModelError: diffusers has no such class, or it is no sampler: making one of another kind
            from a sampler's options would build a network of gigabytes.
    """
    import diffusers

    cls = class_of(name, model)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ModelError(
            f"{name} is no sampler: give model.sampler=CLASS of diffusers' schedulers, such as "
            f"EulerDiscreteScheduler (model {model.name})"
        )
    return cls


def _not_loaded(model: Model, components: Mapping[str, Any], error: Exception) -> str:
    """Why a pipeline was not loaded, and what to do."""
    if model.directory is None:
        return (
            f"no weights of {model.name!r} at {model.path!r} ({type(error).__name__}): "
            "give path=DIRECTORY of a diffusers pipeline, or download it once with "
            f"`hf download {model.path}`"
        )
    fault = pipeline_fault(model.directory, {**model.load, **components})
    if fault is not None:
        return f"no weights of {model.name!r}: {fault}"
    reason = (str(error) or repr(error)).splitlines()[0]
    return f"the pipeline {model.directory} cannot be loaded ({type(error).__name__}: {reason})"


def existing(model: Model) -> Path | str:
    """Check that a model's path names something that can be loaded.

    Args:
        model: with the path.

    Returns:
        The single file, the pipeline's directory, or its hub id.

    Raises:
        ModelError: the path is none of these.
        StoreError: it is a pipeline of the zoo, which this installation lacks.
    """
    if model.file is not None:
        return model.file
    if model.directory is not None:
        require_zoo(model.directory)
        return model.directory
    if not is_hub_id(model.path):
        raise ModelError(no_such_path(model.path))
    return model.path


def no_such_path(path: str) -> str:
    """Say that a path is neither on this machine nor a hub id.

    Args:
        path: as the user gave it.
    """
    return (
        f"no file or directory {path!r}, and it is not a hub id either (OWNER/NAME): "
        "give path=DIRECTORY of a diffusers pipeline"
    )


def computed_in(dtype: str) -> torch.dtype:
    """The type to compute in: ``dtype``, or float32 where this machine has no arithmetic for it.

    float32 rounds more finely. On a processor whose vector units lack bfloat16 (x86 with AVX2),
    convolutions in bfloat16 take 24 times as long and matrix products 8 times as long; float16 is
    even slower on all but the newest processors.

    Args:
        dtype: in torch's spelling.
    """
    import torch

    preferred: torch.dtype = getattr(torch, dtype)
    if preferred == torch.float32 or torch.cuda.is_available():
        return preferred
    if preferred == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return preferred
    return torch.float32


def denoiser_of(pipeline: diffusers.DiffusionPipeline, model: Model) -> nn.Module:
    """The denoiser of a loaded pipeline.

    Args:
        pipeline: of the model.
        model: whose ``component`` names the denoiser.

    Returns:
        It, or the part in its place; several parts as a ``ModuleDict`` by their names, so that
        those of their parameters begin with them. What calls them is the pipeline.
    """
    from torch import nn

    parts = {name: getattr(pipeline, name) for name in model.components}
    return nn.ModuleDict(parts) if len(parts) > 1 else parts[model.component]


def own_types(model: Model) -> tuple[str, ...]:
    """Name the components that may be kept in a type of their own.

    Args:
        model: of one part of a pipeline, or of several: then its denoisers.
    """
    return model.components if len(model.components) == 1 else model.denoisers
