"""Which argument of a pipeline's call is the scale of classifier-free guidance."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import diffusers

    from qsdm.denoisers.model import Model

TRUE_CFG = "true_cfg_scale"
NO_PROMPT = " "  # what Qwen-Image's model card gives


def has_true_cfg(cls: type) -> bool:
    """Whether a pipeline guides by ``true_cfg_scale``, as Qwen-Image does.

    There, ``guidance_scale`` is an input of distilled denoisers. FLUX has both arguments, but is
    distilled and has ``true_cfg_scale`` off by default.

    Args:
        cls: of the pipeline.
    """
    parameters = inspect.signature(cls.__call__).parameters
    if TRUE_CFG not in parameters:
        return False
    default = parameters[TRUE_CFG].default
    is_on = isinstance(default, int | float) and default > 1
    return is_on or "guidance_scale" not in parameters


def guidance_of(
    pipeline: diffusers.DiffusionPipeline, model: Model, num_prompts: int
) -> dict[str, Any]:
    """Arguments of a pipeline's call that guide as the model says.

    A pipeline with ``true_cfg_scale`` guides only if it gets a negative prompt, too.

    Args:
        pipeline: of the model.
        model: with guidance.
        num_prompts: of the call.

    Returns:
        Arguments by name; the call may lack some of them.
    """
    parts: dict[str, Any] = pipeline.components  # type: ignore[attr-defined]
    configs = [getattr(part, "config", None) for part in parts.values()]
    is_distilled = any(getattr(config, "guidance_embeds", False) for config in configs)
    if is_distilled or not has_true_cfg(type(pipeline)):
        return {"guidance_scale": model.guidance}
    call: dict[str, Any] = {TRUE_CFG: model.guidance}
    if model.guidance > 1:
        call["negative_prompt"] = [NO_PROMPT] * num_prompts
    return call
