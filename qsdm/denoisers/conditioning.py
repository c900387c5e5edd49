"""Pictures that a pipeline starts from: which ones its call takes, and in what form.

The class alone tells, so a mismatch is reported before anything is loaded.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.prompts import PromptsError
from qsdm.prompts.edits import Edit, read_picture, size_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from qsdm.prompts import Prompt

WORDS = {"image": "a picture", "mask_image": "a mask", "control_image": "a control picture"}
HOW = {
    "image": "NAME.png beside NAME.txt, or `image` in the JSON",
    "mask_image": "NAME.mask.png beside NAME.png, or `mask_image` in the JSON",
    "control_image": "NAME.control.png beside NAME.txt, or `control_image` in the JSON",
}
# diffusers gives a picture the default None and checks during the call whether it is there. In
# classes with other names (Flux2Pipeline, FluxKontextPipeline) a picture is optional.
NEEDS_PICTURE = re.compile(
    r"Inpaint|Img2Img|Pix2Pix|Control|Adapter|Upscale|SuperResolution|Refiner|Fill|Edit"
    r"|ImageToVideo|Image2Video|I2I|I2V|Depth2Img|Variation|StableVideoDiffusion|Layered"
)
NEEDS_VIDEO = re.compile(r"VideoToVideo|LucyEdit|VACE|WanAnimate|FunControl|Kandinsky6SR")
_RETURNS_ELSE = re.compile(r"return (\w*(?:Audio|Prior|Inversion|Marigold)\w*Output)\(")
VIDEOS = ("video", "control_video", "conditioning_frames", "pose_video")
# These take a list of pictures as a batch, which tests/prompts/test_edits.py checks. Others
# (Flux2Pipeline, QwenImageEditPlusPipeline) take it as several references for one drawing, so they
# draw one at a time.
BATCHED = frozenset({
    "StableDiffusionInpaintPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "FluxFillPipeline",
    "FluxControlPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
})  # fmt: skip


def sources(cls: type) -> dict[str, tuple[str, ...]]:
    """Find the arguments of a pipeline's call that are pictures.

    Args:
        cls: of the pipeline. For StableDiffusionControlNetPipeline, ``image`` is the control
            picture.

    Returns:
        Argument => fields of an `Edit` that it may come from, in order of preference.
    """
    takes = inspect.signature(cls.__call__).parameters
    has_control = "control_image" in takes
    fields_of: dict[str, tuple[str, ...]] = {}
    if "image" in takes:
        built_of = inspect.signature(cls).parameters
        is_control = not has_control and "mask_image" not in takes
        controlled = is_control and bool({"controlnet", "adapter"} & built_of.keys())
        fields_of["image"] = ("control_image", "image") if controlled else ("image",)
    if has_control:
        fields_of["control_image"] = (
            ("control_image",) if "image" in takes else ("control_image", "image")
        )
    for name in ("mask_image", "control_mask"):
        if name in takes:
            fields_of[name] = ("mask_image",)
    return fields_of


def needed(cls: type) -> dict[str, tuple[str, ...]]:
    """Find those of `sources` without which the pipeline cannot draw.

    Args:
        cls: of the pipeline.

    Returns:
        As `sources`.
    """
    return {
        name: fields
        for name, fields in sources(cls).items()
        if name != "image" or NEEDS_PICTURE.search(cls.__name__)
    }


def unavailable(cls: type, call: Collection[str] = ()) -> str | None:
    """Say why qsdm cannot call a pipeline.

    Args:
        cls: of the pipeline.
        call: names of further arguments that the user gives.

    Returns:
        Half a sentence; None if it can.
    """
    takes = inspect.signature(cls.__call__).parameters
    available = {"self", "prompt", "class_labels", *sources(cls), *call}
    lacking = [
        name
        for name, parameter in takes.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in available
    ]
    if "conditioning_frames" in takes or NEEDS_VIDEO.search(cls.__name__):
        lacking += [name for name in VIDEOS if name in takes and name not in available]
    if not lacking:
        return None
    return f"{cls.__name__} wants {lacking[0]}, which no prompts of qsdm contain"


def not_pictures(cls: type) -> str | None:
    """Say why what a pipeline returns cannot be measured, from the source of its call.

    Args:
        cls: of the pipeline.

    Returns:
        Half a sentence; None if it returns pictures or videos, or the source does not tell.
    """
    try:
        source = inspect.getsource(inspect.unwrap(cls.__call__))
    except (OSError, TypeError):
        return None
    if (match := _RETURNS_ELSE.search(source)) is None:
        return None
    return f"{cls.__name__} returns {match[1]}, neither pictures nor videos"


def check(cls: type, prompts: Sequence[Prompt], call: Collection[str] = ()) -> None:
    """Refuse prompts without the pictures that the pipeline wants, before anything is drawn.

    Args:
        cls: of the pipeline.
        prompts: one per picture.
        call: names of further arguments that the user gives.

    Raises:
        PromptsError: it wants other prompts; the message says which.
    """
    kind = cls.__name__
    if (reason := unavailable(cls, call) or not_pictures(cls)) is not None:
        raise PromptsError(f"{reason}: it can be traced and calibrated, not measured")
    required = {name: fields for name, fields in needed(cls).items() if name not in call}
    edits = [prompt for prompt in prompts if isinstance(prompt, Edit)]
    if edits and not sources(cls):
        raise PromptsError(
            f"{kind} takes no picture: give prompts=captions, or another set of texts (got edit)"
        )
    if required and len(edits) < len(prompts):
        words = " and ".join(dict.fromkeys(WORDS[fields[0]] for fields in required.values()))
        raise PromptsError(
            f"{kind} wants {words} for every caption: give prompts=edit prompts.path=FOLDER "
            "(got texts)"
        )
    takes_text = "prompt" in inspect.signature(cls.__call__).parameters
    for edit in dict.fromkeys(edits):
        for fields in required.values():
            if _file(edit, fields) is None:
                raise PromptsError(
                    f"{kind} wants {WORDS[fields[0]]}, and {edit.origin} has none: "
                    f"add {HOW[fields[0]]}"
                )
        if takes_text and edit.prompt is None:
            raise PromptsError(
                f"{kind} wants a caption, and {edit.origin} has none: add NAME.txt, or `prompt` in "
                "the JSON (an empty one will do)"
            )
        if edit.image and edit.mask_image:
            whole, masked = size_of(Path(edit.image)), size_of(Path(edit.mask_image))
            if whole != masked:
                raise PromptsError(
                    f"the mask of {edit.origin} has {masked[0]} x {masked[1]} px, its picture "
                    f"{whole[0]} x {whole[1]}: make them equal"
                )


def pictures(pipeline: Any, edits: Sequence[Edit], resolution_px: int) -> dict[str, Any]:
    """Read the pictures that a pipeline's call starts from.

    Args:
        pipeline: that draws.
        edits: one per drawing.
        resolution_px: edge of what is drawn, in px; the pictures get the size that leads to it.

    Returns:
        Argument => a picture, or a list of as many as ``edits``.

    Raises:
        PromptsError: a picture cannot be read.
    """
    size_px = resolution_px // enlargement(pipeline)
    arguments: dict[str, Any] = {}
    for name, fields in sources(type(pipeline)).items():
        files = [_file(edit, fields) for edit in edits]
        mode = "L" if fields == ("mask_image",) else "RGB"
        images = [read_picture(Path(file), size_px, mode) for file in files if file]
        if len(images) == len(edits):
            arguments[name] = _for_nets(pipeline, fields, images)
    return arguments


def _for_nets(pipeline: Any, fields: Sequence[str], images: Sequence[Image]) -> Any:
    """Pictures as a call takes them: all of several ControlNets get the same control picture."""
    if "control_image" in fields and (nets := num_nets(pipeline)) > 1:
        return list(images) * nets
    return images[0] if len(images) == 1 else list(images)


def num_nets(pipeline: Any) -> int:
    """How many ControlNets or adapters a pipeline has, each of which takes a control picture.

    Args:
        pipeline: that draws.
    """
    several = {"controlnet": "nets", "adapter": "adapters"}  # of MultiControlNetModel and its like
    return max(
        len(getattr(getattr(pipeline, name, None), parts, ())) for name, parts in several.items()
    )


def fabricated(pipeline: Any, resolution_px: int) -> dict[str, Any]:
    """Make up a picture for each argument without which the pipeline cannot be called.

    Args:
        pipeline: that draws.
        resolution_px: edge of what is drawn, in px.

    Returns:
        Argument => a gray ramp.
    """
    import PIL.Image

    size_px = resolution_px // enlargement(pipeline)
    ramp = PIL.Image.linear_gradient("L").resize((size_px, size_px))
    return {
        name: ramp
        if fields == ("mask_image",)
        else _for_nets(pipeline, fields, [ramp.convert("RGB")])
        for name, fields in needed(type(pipeline)).items()
    }


def enlargement(pipeline: Any) -> int:
    """How many times larger than its input a pipeline draws.

    Args:
        pipeline: that draws.
    """
    kind = type(pipeline).__name__
    if kind == "StableDiffusionLatentUpscalePipeline":
        return 2
    if kind == "StableDiffusionUpscalePipeline":  # its latents have the picture's size
        return int(pipeline.vae_scale_factor)
    return 1


def is_batched(pipeline: Any, prompts: Sequence[Prompt]) -> bool:
    """Whether several of the prompts may be drawn by one call.

    Args:
        pipeline: that draws. One with several ControlNets takes a list as a picture for each.
        prompts: one per picture.
    """
    batched = type(pipeline).__name__ in BATCHED and num_nets(pipeline) < 2
    return batched or not any(isinstance(prompt, Edit) for prompt in prompts)


def _file(edit: Edit, fields: Sequence[str]) -> str | None:
    return next((file for name in fields if (file := getattr(edit, name))), None)
