"""Which layer of a diffusion model can bear which low-bit quantization, and why?

trace       turn a denoiser into a graph whose nodes have an op, a role and a block
calibrate   quantize every weight in several ways, and note errors and bytes
measure     draw pictures with random configurations, and score them
train       fit a graph neural network to the scores
attribute   explain it: the sensitivity of every weight, type of layer and block
search      find the best configurations for every size
realize     measure the chosen ones, and write a checkpoint
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qsdm.workspace import Workspace

__version__ = "0.2.0"


def open(
    model: str,
    space: str = "traced",
    store: Path | str = "store",
    component: str | Sequence[str] | None = None,
) -> Workspace:
    """Open a model with everything that the store holds of it.

    Args:
        model: a name of ``conf/model``, a directory, a single file or a hub id.
        space: a name of ``conf/space``: which methods every weight may get.
        store: folder of the artifacts; it is created when something is first written.
        component: another part of the pipeline in the denoiser's place, as text_encoder or vae; or
            several, as ``["unet", "vae"]``, which share one budget.

    Returns:
        The workspace. Nothing large is loaded until it is asked for.

    Raises:
        ModelError: there is no such model, or no such part.
        ValueError: there is no such space.

    Example:
        >>> import qsdm
        >>> workspace = qsdm.open("emoji_unet")
        >>> workspace.model.denoiser, workspace.model.resolution_px
        ('UNet2DConditionModel', 32)
    """
    from qsdm.workspace import named

    return named(model, space, store, component)
