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
    """A model by name, path or hub id, with what the store holds of it: see `qsdm.workspace.named`."""
    from qsdm.workspace import named

    return named(model, space, store)
