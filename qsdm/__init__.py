"""qsdm: which layer of a diffusion model can bear which low-bit quantization, by how much does the picture suffer, and
why?

trace       a denoiser becomes a graph whose nodes carry op, role and block          qsdm.tracing
calibrate   every weight gets several quantizations, with their errors and bytes     qsdm.quant
measure     random configurations generate real pictures and are scored              qsdm.metrics, qsdm.measurement
train       a graph neural network learns the outcomes                               qsdm.predictor
attribute   its attributions are the sensitivity per op type and per block           qsdm.sensitivity
search      an evolutionary algorithm over it selects configurations                 qsdm.strategies
realize     the chosen one is realized by fake quantization and measured again       qsdm.report
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from qsdm.workspace import Workspace

__version__ = "0.1.0"


def open(model: str, space: str = "traced", store: Path | str = "store") -> Workspace:
    """Open a model with everything that the store holds of it.

    Args:
        model: name in ``conf/model``; or the path of a diffusers pipeline, or its hub id.
        space: name in ``conf/space``.
        store: folder of the artifacts.

    Returns:
        The workspace.

    Raises:
        ModelError: there is no such model.
        ValueError: there is no such space.

    Example:
        >>> import qsdm
        >>> emoji = qsdm.open("emoji_unet", space="traced")
        >>> emoji.model.denoiser, emoji.space_name
        ('UNet2DConditionModel', 'traced')
    """
    from qsdm.workspace import named

    return named(model, space, store)
