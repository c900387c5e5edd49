"""Other parts of a pipeline in the denoiser's place: a text encoder, the VAE that decodes, or both.

Several parts share one budget: their weights and blocks are named after them, as
``unet.conv_in`` and ``vae.decoder.conv_in``, in one graph, one table and one configuration. Each is
still traced, loaded and packed as it would be alone.

Entries of ``conf/model`` describe denoisers. Of any other part, the pipeline's own files say what
its class and config are, and a call of the pipeline says what its inputs are.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from qsdm.denoisers.classes import denoisers_in, pipeline_index
from qsdm.denoisers.faults import WEIGHTLESS, ModelError
from qsdm.denoisers.model import (
    DEFAULT_COMPONENTS,
    JOINED,
    OF_DENOISER,
    Model,
    is_denoisers_name,
    join,
)

LIBRARIES = ("diffusers", "transformers")
"""Whose classes a component may have; those of pipelines, as of safety checkers, are left out."""


def with_component(model: Model, component: str | Sequence[str]) -> Model:
    """Let a model's artifacts be those of another part of its pipeline, or of several parts.

    Args:
        model: of the pipeline.
        component: attribute of the pipeline, such as text_encoder or vae; or several.

    Returns:
        The model with the name, class and component of that part. What an entry of ``conf/model``
        says of its denoiser alone is left out: config, inputs, tied parameters and their number.
        Of several parts, classes and components are joined (see `Model`).

    Raises:
        ModelError: the pipeline is not on this machine, or has no such part with weights.
        ValueError: a part is named twice.

    Example:
        >>> import qsdm
        >>> from qsdm.denoisers import with_component
        >>> model = with_component(qsdm.open("emoji_unet").model, "text_encoder")
        >>> model.name, model.denoiser
        ('emoji_unet-text_encoder', 'CLIPTextModel')
        >>> with_component(model, ["unet", "vae"]).denoiser
        'UNet2DConditionModel+AutoencoderKL'
    """
    component = join(component)
    for name in component.split(JOINED):
        if name in model.load and model.load[name] is None:
            raise ModelError(
                f"model.load.{name}=null leaves the {name} out, which model.component={component} "
                "quantizes: give one of both"
            )
    if JOINED in component:
        return _of_parts(model, component)
    if JOINED in model.denoiser:
        parts = dict(zip(model.components, model.parts, strict=True))
        if component in parts:
            return parts[component]
        model = parts[next(iter([*model.denoisers, *parts]))]
    base, renamed = model.name, model
    if model.component not in DEFAULT_COMPONENTS:
        base = model.base_name
    if component != model.component:
        renamed = dataclasses.replace(model, name=base, component=component)
    if component in DEFAULT_COMPONENTS:  # the model's own, or told by `denoiser_config`
        own = None if component == model.component else denoisers_in(pipeline_index(model))
        kind = (own or {}).get(component, model.denoiser)
        return dataclasses.replace(renamed, denoiser=kind)
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
    return dataclasses.replace(renamed, denoiser=kind, **OF_DENOISER)


def _of_parts(model: Model, component: str) -> Model:
    """The model of several parts."""
    if JOINED in model.denoiser and model.component == component:
        return model
    names = component.split(JOINED)
    listed = ", ".join(names)
    if model.file is not None:
        raise ModelError(
            f"only the denoiser is read from a single file such as {model.path}: "
            f"give path=DIRECTORY of the diffusers pipeline for {listed}"
        )
    if not (index := pipeline_index(model)):
        raise ModelError(
            f"what {listed} of {model.base_name!r} are only the pipeline's own files say: "
            "give path=DIRECTORY of it"
        )
    pipeline = repr(model.path if model.path != "zoo" else model.base_name)
    kinds = [kind_in(index, name, pipeline) for name in names]
    return dataclasses.replace(
        model, name=model.base_name, component=component, denoiser=JOINED.join(kinds)
    )


def require_one_part(model: Model, what: str) -> None:
    """Refuse what only one part of a pipeline can do.

    Args:
        model: of one part or of several.
        what: it does, as the beginning of a sentence.

    Raises:
        ModelError: several parts share a budget.
    """
    if len(model.components) > 1:
        one = next(iter([*model.denoisers, *model.components]))
        raise ModelError(
            f"{what} one part of a pipeline (got {', '.join(model.components)}): "
            f"give model.component={one}"
        )


def require_denoiser(model: Model, what: str) -> None:
    """Refuse text encoders and VAEs where an engine holds denoisers.

    Args:
        model: of one part of a pipeline or of several.
        what: holds denoisers, as the beginning of a sentence.

    Raises:
        ModelError: it is not of one denoiser.
    """
    require_one_part(model, f"{what} holds the denoiser,")
    if not model.denoisers:
        raise ModelError(
            f"{what} holds denoisers alone (got the {model.component}): leave it out; "
            "qsdm.checkpoint.load_quantized loads what realize writes"
        )


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
