"""How a model's pipeline is called: arguments, prompts, and how many pictures a call yields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.denoisers import conditioning, single_file, videos
from qsdm.denoisers.classes import is_denoiser, pipeline_class, pipeline_index
from qsdm.denoisers.faults import ModelError
from qsdm.denoisers.guidance import guidance_of
from qsdm.denoisers.loading import denoiser_of
from qsdm.prompts import Captions, Label, Prompt
from qsdm.prompts.edits import Edit
from qsdm.store.manifest import check_shipped

if TYPE_CHECKING:
    import diffusers

    from qsdm.denoisers.model import Model


def prompts_of(model: Model) -> Sequence[Prompt]:
    """Read what the model draws.

    Args:
        model: with its prompts.

    Returns:
        One prompt per picture, in the order of the pictures.

    Raises:
        ModelError: the model has no prompts.
        PromptsError: they cannot be read.

    Example:
        >>> import qsdm
        >>> from qsdm.denoisers import prompts_of
        >>> prompts_of(qsdm.open("emoji_unet").model)[0]
        'busts in silhouette, twemoji'
    """
    if model.prompts is None:
        raise ModelError(
            f"model {model.name} has no prompts: add prompts=NAME, with a NAME of conf/prompts"
        )
    if isinstance(model.prompts, str):
        path = model.zoo / "prompts.json" if model.prompts == "zoo" else Path(model.prompts)
        check_shipped(path)
        return Captions(str(path)).read()
    return model.prompts.read()


def check_prompts(model: Model, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that the model's pipeline cannot draw, before anything is loaded.

    Args:
        model: that draws.
        prompts: one per picture.

    Raises:
        PromptsError: the pipeline needs other prompts; the message says which.
        ModelError: its steps and strength leave nothing to draw.
    """
    if (cls := pipeline_class(model)) is None:
        return
    conditioning.check(cls, prompts, model.call.keys())
    if (parameter := inspect.signature(cls.__call__).parameters.get("strength")) is not None:
        strength = model.call.get("strength", parameter.default)
        if isinstance(strength, int | float) and 0 <= strength * model.steps < 1:
            raise ModelError(
                f"{cls.__name__} runs strength * steps = {strength} * {model.steps} steps, "
                "which is less than one: give more model.steps, or model.call.strength up to 1"
            )


def frames_of(model: Model) -> int:
    """Count the pictures that metrics take of one drawing.

    Args:
        model: that draws.

    Returns:
        1; for a video, as many as the model says, but no more than the video has.
    """
    class_name = pipeline_index(model).get("_class_name")
    if isinstance(class_name, str) and videos.surely_draws_pictures(class_name):
        return 1
    cls = pipeline_class(model)
    parameters = inspect.signature(cls.__call__).parameters if cls is not None else {}
    for name in videos.LENGTHS:
        if name in parameters:
            length = model.call.get(name, parameters[name].default)
            return min(model.frames, length) if isinstance(length, int) else model.frames
    return 1


def can_be_called(model: Model) -> bool:
    """Whether the model's directory holds a pipeline that can be called with a prompt or a picture.

    Args:
        model: with the pipeline's path.
    """
    if model.directory is None:
        return False
    if model.file is not None:
        without = {model.component: None}
        fault = single_file.rest_fault(model.file, model.directory, without, model.component)
        if fault is not None:
            return False
    index, cls = pipeline_index(model), pipeline_class(model)
    encodes_text = any(
        name.startswith("text_encoder") and isinstance(entry, list) and any(entry)
        for name, entry in index.items()
    )
    if cls is None:
        return encodes_text
    is_available = conditioning.unavailable(cls, model.call.keys()) is None
    return is_available and (encodes_text or bool(conditioning.needed(cls)))


def arguments(
    pipeline: diffusers.DiffusionPipeline,
    model: Model,
    prompts: Sequence[Prompt],
    **others: Any,
) -> dict[str, Any]:
    """Arguments of a pipeline's call that draws prompts as the model says.

    Args:
        pipeline: of the model; arguments that its call does not take are left out.
        model: with steps, guidance, resolution and further arguments.
        prompts: one per picture.
        **others: further arguments; those of ``model.call`` take precedence.

    Returns:
        Arguments by name.

    Raises:
        ModelError: the pipeline draws classes, and there are only captions.
        PromptsError: a picture cannot be read.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    call: dict[str, Any] = {
        "prompt": [str(prompt) for prompt in prompts],
        "num_inference_steps": model.steps,
        **guidance_of(pipeline, model, len(prompts)),
        "height": model.resolution_px,
        "width": model.resolution_px,
        "max_area": model.resolution_px**2,  # to which FLUX Kontext scales height and width
    }
    if "prompt" not in parameters and "class_labels" in parameters:
        labels = [prompt.index for prompt in prompts if isinstance(prompt, Label)]
        if len(labels) < len(prompts):
            raise ModelError(
                f"{type(pipeline).__name__} draws classes: give prompts=imagenet (got captions)"
            )
        call["class_labels"] = labels
    if not {"prompt", "class_labels"} & parameters.keys():
        call["batch_size"] = len(prompts)  # an unconditional pipeline
    if edits := [prompt for prompt in prompts if isinstance(prompt, Edit)]:
        call |= conditioning.pictures(pipeline, edits, model.resolution_px)
    accepted = {name: value for name, value in call.items() if name in parameters}
    return accepted | others | dict(model.call)


def first_call(pipeline: diffusers.DiffusionPipeline, model: Model) -> dict[str, Any]:
    """Arguments of a call for one step of one picture, without classifier-free guidance.

    Pictures that the pipeline needs are made up. A strength below 1 would skip the only step. If
    the model is no denoiser but perhaps what decodes, there are two steps and the latent is
    decoded: PixArt takes one step for a distilled model's, which its own sampler cannot do.

    Args:
        pipeline: of the model.
        model: whose further arguments are kept.

    Returns:
        Arguments by name.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    call = {**model.call, **({"strength": 1.0} if "strength" in parameters else {})}
    decodes = not is_denoiser(type(denoiser_of(pipeline, model)))
    few = dataclasses.replace(model, steps=2 if decodes else 1, guidance=1.0, call=call)
    pictures = conditioning.fabricated(pipeline, model.resolution_px)
    output = "pt" if decodes else "latent"
    return arguments(pipeline, few, [Label(0, "a picture")], output_type=output, **pictures)
