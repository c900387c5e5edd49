"""Another part of a pipeline in the denoiser's place: a text encoder, or the VAE that decodes.

Entries of ``conf/model`` describe denoisers. Of any other part, the pipeline's own files say what
its class and config are, and a call of the pipeline says what its inputs are.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from qsdm.denoisers.classes import denoisers_in, pipeline_index
from qsdm.denoisers.faults import WEIGHTLESS, ModelError
from qsdm.denoisers.model import DEFAULT_COMPONENTS, Model

LIBRARIES = ("diffusers", "transformers")
"""Whose classes a component may have; those of pipelines, as of safety checkers, are left out."""


def with_component(model: Model, component: str) -> Model:
    """Let a model's artifacts be those of another part of its pipeline.

    Args:
        model: of the pipeline.
        component: attribute of the pipeline, such as text_encoder or vae.

    Returns:
        The model with the name, class and component of that part. What an entry of ``conf/model``
        says of its denoiser alone is left out: config, inputs, tied parameters and their number.

    Raises:
        ModelError: the pipeline is not on this machine, or has no such part with weights.

    Example:
        >>> import qsdm
        >>> from qsdm.denoisers import with_component
        >>> model = with_component(qsdm.open("emoji_unet").model, "text_encoder")
        >>> model.name, model.denoiser
        ('emoji_unet-text_encoder', 'CLIPTextModel')
    """
    base, renamed = model.name, model
    if model.component not in DEFAULT_COMPONENTS:
        base = base.removesuffix(f"-{model.component}")
    if component != model.component:
        renamed = dataclasses.replace(model, name=base, component=component)
    if component in DEFAULT_COMPONENTS:  # the model's own, or told by `denoiser_config`
        return renamed
    if not (index := pipeline_index(model)):
        if is_denoisers_name(component):
            return renamed
        raise ModelError(
            f"what the {component} of {base!r} is only the pipeline's own files say: "
            "give path=DIRECTORY of it"
        )
    kind = kind_in(index, component, repr(model.path if model.path != "zoo" else base))
    if kind == model.denoiser or component in denoisers_in(index):
        return renamed
    if model.file is not None:
        raise ModelError(
            f"only the denoiser is read from a single file such as {model.path}: "
            f"give path=DIRECTORY of the diffusers pipeline for its {component}"
        )
    alone: dict[str, Any] = {"config": {}, "inputs": {}, "tied": (), "num_params": None}
    return dataclasses.replace(renamed, denoiser=kind, **alone)


def is_denoisers_name(component: str) -> bool:
    """Whether pipelines call a denoiser so, as unet, transformer_2 or prior.

    Args:
        component: attribute of a pipeline.
    """
    return not component.startswith(("text_encoder", "image_encoder", "vae", "vq", "movq"))


def parts_in(index: Mapping[str, Any]) -> dict[str, str]:
    """List the parts of a pipeline that may have weights.

    Args:
        index: the pipeline's model_index.json.

    Returns:
        Component => class.
    """
    return {
        name: str(entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] in LIBRARIES
        if entry[1] and not WEIGHTLESS.search(str(entry[1]))
    }


def kind_in(index: Mapping[str, Any], component: str, pipeline: str) -> str:
    """Find the class of a part of a pipeline.

    Args:
        index: the pipeline's model_index.json.
        component: its attribute.
        pipeline: how the message calls it.

    Returns:
        Name of the class.

    Raises:
        ModelError: there is no such part, or it has no weights.
    """
    parts = parts_in(index)
    if component in parts:
        return parts[component]
    entry = index.get(component)
    if isinstance(entry, list) and len(entry) == 2 and entry[1]:
        problem = f"the {component} of {pipeline} is a {entry[1]}, which has no weights to quantize"
    else:
        close = difflib.get_close_matches(component, parts, 1)
        guess = f": did you mean {close[0]}?" if close else ""
        problem = f"the pipeline {pipeline} has no {component}{guess}"
    raise ModelError(f"{problem} (wanted one of {', '.join(parts)})")
