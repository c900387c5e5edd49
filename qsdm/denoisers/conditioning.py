"""Which pictures a pipeline is conditioned on, by the arguments of its call, and how they are given to it.

Known from the class alone, so that a mismatch is told before anything is loaded.
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
# diffusers checks a picture's presence during the call, and gives it a default of None. In classes of
# other names (Flux2Pipeline, FluxKontextPipeline) a picture is an option.
NEEDS_PICTURE = re.compile(
    r"Inpaint|Img2Img|Pix2Pix|Control|Adapter|Upscale|SuperResolution|Refiner|Fill|Edit"
    r"|ImageToVideo|Image2Video|I2I|I2V|Depth2Img|Variation|StableVideoDiffusion|Layered"
)
NEEDS_VIDEO = re.compile(r"VideoToVideo|LucyEdit|VACE|WanAnimate|FunControl|Kandinsky6SR")
VIDEOS = ("video", "control_video", "conditioning_frames", "pose_video")
# Of these a list of pictures is a batch, which tests/test_edits.py checks. To others (Flux2Pipeline,
# QwenImageEditPlusPipeline) it is several references of one drawing: they draw one at a time.
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
    """Arguments of a pipeline's call that are pictures, and the fields of an `Edit` that may be given there.

    ``image`` of StableDiffusionControlNetPipeline is the control picture.
    """
    takes = inspect.signature(cls.__call__).parameters
    has_control = "control_image" in takes
    found: dict[str, tuple[str, ...]] = {}
    if "image" in takes:
        built_of = inspect.signature(cls).parameters
        is_control = not has_control and "mask_image" not in takes
        controlled = is_control and bool({"controlnet", "adapter"} & built_of.keys())
        found["image"] = ("control_image", "image") if controlled else ("image",)
    if has_control:
        found["control_image"] = (
            ("control_image",) if "image" in takes else ("control_image", "image")
        )
    for name in ("mask_image", "control_mask"):
        if name in takes:
            found[name] = ("mask_image",)
    return found


def needed(cls: type) -> dict[str, tuple[str, ...]]:
    """Of `sources` those without which the pipeline draws nothing."""
    return {
        name: fields
        for name, fields in sources(cls).items()
        if name != "image" or NEEDS_PICTURE.search(cls.__name__)
    }


def unavailable(cls: type, call: Collection[str] = ()) -> str | None:
    """Why qsdm cannot call the pipeline; None if it can.

    Args:
        call: names of further arguments that the user gives.
    """
    takes = inspect.signature(cls.__call__).parameters
    given = {"self", "prompt", "class_labels", *sources(cls), *call}
    lacking = [
        name
        for name, parameter in takes.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in given
    ]
    if "conditioning_frames" in takes or NEEDS_VIDEO.search(cls.__name__):
        lacking += [name for name in VIDEOS if name in takes and name not in given]
    if not lacking:
        return None
    return f"{cls.__name__} wants {lacking[0]}, which no prompts of qsdm hold"


def check(cls: type, prompts: Sequence[Prompt], call: Collection[str] = ()) -> None:
    """Refuse prompts without the pictures that the pipeline wants, before anything is drawn.

    Args:
        call: names of further arguments that the user gives.

    Raises:
        PromptsError: it wants other prompts; the message says which.
    """
    kind = cls.__name__
    if (reason := unavailable(cls, call)) is not None:
        raise PromptsError(f"{reason}: it can be traced and calibrated, not measured")
    wanted = {name: fields for name, fields in needed(cls).items() if name not in call}
    edits = [prompt for prompt in prompts if isinstance(prompt, Edit)]
    if edits and not sources(cls):
        raise PromptsError(
            f"{kind} takes no picture: give prompts=captions, or another set of texts (got edit)"
        )
    if wanted and len(edits) < len(prompts):
        words = " and ".join(dict.fromkeys(WORDS[fields[0]] for fields in wanted.values()))
        raise PromptsError(
            f"{kind} wants {words} for every caption: give prompts=edit prompts.path=FOLDER "
            "(got texts)"
        )
    takes_text = "prompt" in inspect.signature(cls.__call__).parameters
    for edit in dict.fromkeys(edits):
        for fields in wanted.values():
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
    """Arguments of the pipeline's call that are pictures: one, or a list of as many as ``edits``.

    Args:
        resolution_px: edge of what is drawn; the pictures get the size that leads to it.

    Raises:
        PromptsError: a picture cannot be read.
    """
    size_px = resolution_px // enlargement(pipeline)
    found: dict[str, Any] = {}
    for name, fields in sources(type(pipeline)).items():
        files = [_file(edit, fields) for edit in edits]
        mode = "L" if fields == ("mask_image",) else "RGB"
        images = [read_picture(Path(file), size_px, mode) for file in files if file]
        if len(images) == len(edits):
            found[name] = images[0] if len(images) == 1 else images
    return found


def fabricated(pipeline: Any, resolution_px: int) -> dict[str, Image]:
    """As `pictures`, of one made-up picture for each argument without which the pipeline cannot be called."""
    import PIL.Image

    size_px = resolution_px // enlargement(pipeline)
    ramp = PIL.Image.linear_gradient("L").resize((size_px, size_px))
    return {
        name: ramp if fields == ("mask_image",) else ramp.convert("RGB")
        for name, fields in needed(type(pipeline)).items()
    }


def enlargement(pipeline: Any) -> int:
    """How many times larger than the given picture is what the pipeline draws."""
    kind = type(pipeline).__name__
    if kind == "StableDiffusionLatentUpscalePipeline":
        return 2
    if kind == "StableDiffusionUpscalePipeline":  # its latents have the picture's size
        return int(pipeline.vae_scale_factor)
    return 1


def is_batched(cls: type, prompts: Sequence[Prompt]) -> bool:
    """Whether several of the prompts may be drawn by one call."""
    return cls.__name__ in BATCHED or not any(isinstance(prompt, Edit) for prompt in prompts)


def _file(edit: Edit, fields: Sequence[str]) -> str | None:
    return next((file for name in fields if (file := getattr(edit, name))), None)
