"""A denoiser's parameters by name, read one by one so that large models need little memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qsdm.denoisers.classes import (
    denoiser_class,
    denoiser_config,
    denoisers_in,
    pipeline_index,
    quiet,
)
from qsdm.denoisers.faults import ModelError, codes_fault, component_fault, file_fault
from qsdm.denoisers.files import component_files, pipeline_folder, read_index
from qsdm.denoisers.identity import SAME_PICTURES, WEIGHTS
from qsdm.denoisers.loading import denoiser_of, denoiser_of_file, load_pipeline

if TYPE_CHECKING:
    import torch

    from qsdm.denoisers.model import Model

T = TypeVar("T")

SAME_WEIGHTS = SAME_PICTURES | WEIGHTS
"""Arguments of from_pretrained with which the denoiser's weights still are those of its files."""

OLD_NAMES = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)$")
"""Attention layers before diffusers 0.12; from_pretrained renames them in files without shards."""


def denoiser_tensors(model: Model) -> Callable[[str], torch.Tensor]:
    """Open a denoiser's parameters, with the values that they have once the pipeline is loaded.

    They are read one by one from safetensors files, unless ``model.load`` changes them; then the
    pipeline is loaded.

    Args:
        model: whose denoiser is read.

    Returns:
        A function from a parameter's name to its tensor, which raises ModelError if the weights
        lack that parameter.

    Raises:
        ModelError: the weights are not on this machine, or a file is damaged.

    Example:
        >>> import qsdm
        >>> from qsdm.denoisers import denoiser_tensors
        >>> read = denoiser_tensors(qsdm.open("emoji_unet").model)
        >>> read("conv_in.weight").shape
        torch.Size([...])
    """
    if len(model.parts) > 1:
        return of_parts({part.component: denoiser_tensors(part) for part in model.parts})
    if model.file is not None:
        return denoiser_of_file(model).get_parameter
    if (mapped := mapped_tensors(model)) is not None:
        return mapped
    # A text encoder is loaded without the denoisers, which are larger.
    others = denoisers_in(pipeline_index(model)).keys() - {model.component}
    without: dict[str, Any] = dict.fromkeys(others)
    return denoiser_of(load_pipeline(model, **without), model).get_parameter


def of_parts(reads: Mapping[str, Callable[[str], T]]) -> Callable[[str], T]:
    """Read parameters of several parts, whose names begin with the part's.

    Args:
        reads: by name of a part, a function of its own parameters' names.

    Returns:
        A function of the longer names.
    """

    def read(name: str) -> T:
        part, _, own = name.partition(".")
        return reads[part](own)

    return read


def mapped_tensors(model: Model) -> Callable[[str], torch.Tensor] | None:
    """Map a denoiser's parameters from its safetensors files, as `denoiser_tensors` does.

    Args:
        model: whose denoiser is read.

    Returns:
        A function from a parameter's name to its tensor, as it is stored; None if there are no such
        files, if ``model.load`` changes their values, or if transformers loads them, which renames
        what it reads.

    Raises:
        ModelError: a file is missing or damaged.
    """
    if model.file is not None or _library(model) == "transformers":
        return None
    files: list[Path] = []
    if not set(model.load) - SAME_WEIGHTS - _other_components(model):
        try:
            files = component_files(
                pipeline_folder(model), model.component, "diffusers", model.load
            )
        except ModelError as error:
            if model.directory is not None:
                folder = model.directory / model.component
                fault = component_fault(folder, model.load.get("variant"))
                raise ModelError(fault or str(error)) from error
    if not files or any(file.suffix != ".safetensors" for file in files):
        return None
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, tuple[Any, str]] = {}  # open file, and the name in it
    for file in files:
        try:
            opened = safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            fault = f"{file} is not a complete safetensors file ({error}): download it again"
            raise ModelError(file_fault(file) or fault) from error
        tensors |= {name: (opened, name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    if (fault := codes_fault(files)) is not None:
        raise ModelError(fault)
    if any(OLD_NAMES.search(name) for name in tensors) and len(files) == 1:
        tensors = _renamed(model, tensors)

    def read(name: str) -> torch.Tensor:
        if name not in tensors:
            raise ModelError(
                f"the weights of {model.name!r} lack {name!r}, which its graph names: run "
                f"python -m qsdm.trace +model={model.name} again, or download the weights again"
            )
        opened, stored = tensors[name]
        tensor: torch.Tensor = opened.get_tensor(stored)
        return tensor

    return read


def _index(model: Model) -> dict[str, Any]:
    """The pipeline's components; none if it is not on this machine."""
    try:
        return read_index(pipeline_folder(model))
    except ModelError:
        return {}


def _library(model: Model) -> str | None:
    """The library of the denoiser's class, or of that of the part in its place."""
    entry = _index(model).get(model.component)
    return str(entry[0]) if isinstance(entry, list) and entry else None


def _other_components(model: Model) -> set[str]:
    """Names of the pipeline's components without the denoiser, on which it does not depend."""
    return {name for name in _index(model) if not name.startswith("_")} - {model.component}


def _renamed(model: Model, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names that diffusers gives them when it loads the denoiser."""
    import torch

    quiet()
    with torch.device("meta"):
        module: Any = denoiser_class(model).from_config(dict(denoiser_config(model)))  # type: ignore[attr-defined]
    renamed = dict(tensors)
    module._fix_state_dict_keys_on_load(renamed)
    return renamed
