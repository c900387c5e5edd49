"""What the inputs of each layer are like: how much the errors of its weights count.

A weight's error reaches the layer's output multiplied by an input. If the inputs of a layer are
uncorrelated, the expected squared error of its output is::

    sum_i  E[x_i^2]  |w_i - w_i^|^2

so the mean square of each input channel is the importance of the weights that it meets. Only sums
are kept: a few kilobytes per layer, however many tokens it reads.

References:
    Optimal Brain Surgeon and general network pruning (Hassibi et al., 1993), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from qsdm.denoisers import frames_of
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.protocol import seed_of
from qsdm.outcome import EvaluationError
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig

NUM_CALLS = 64
"""Calls of the denoiser that are recorded, at least."""

NUM_DRAWN = 16
"""Pictures that suffice for text encoders and VAEs, which a picture calls once."""

_SEED_SET = 64  # noise that nothing is measured on by default
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SecondMoment:
    """A hook that sums the squares of each input channel of a layer.

    Args:
        num_channels: of the weight; in a grouped convolution, the groups share them.
    """

    def __init__(self, num_channels: int) -> None:
        self.total = torch.zeros(num_channels, dtype=torch.float64)
        self.count = 0

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not isinstance(inputs[0], torch.Tensor):
            return
        axis = 1 if isinstance(layer, _CONVOLUTIONS) else -1
        x = inputs[0].detach().movedim(axis, -1)
        num_channels = len(self.total)
        if x.shape[-1] % num_channels:
            return  # it reads something else than what the weight multiplies
        rows = x.reshape(-1, num_channels)
        self.total += rows.float().square().sum(0, dtype=torch.float64).cpu()
        self.count += len(rows)


def importances(drawer: Drawer, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Draw a few pictures in full precision, and take the mean square of every input channel.

    Args:
        drawer: the pipeline.
        prompts: of the model, at least one.

    Returns:
        Float32 [in] by the name of a weight of the drawer's graph; weights of layers that were not
        called, or that read something else than one tensor, and embedding tables are missing.

    Raises:
        EvaluationError: the denoiser was not called, or an input is not finite.
    """
    full = QuantConfig(drawer.model.name, {})
    weights = drawer.graph.weights
    shapes = {
        name: drawer.denoiser.get_parameter(name).shape
        for weight in weights
        for name in (weight.parameter, *weight.ties)
    }
    moments = {name: SecondMoment(shape[1]) for name, shape in shapes.items()}
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    names = drawer.model.denoisers or drawer.model.components
    hooks = [drawer.parts[name].register_forward_pre_hook(count) for name in names]
    for name, moment in moments.items():
        layer = drawer.denoiser.get_submodule(name.rpartition(".")[0])
        if not isinstance(layer, nn.Embedding):  # it reads numbers of rows
            hooks.append(layer.register_forward_pre_hook(moment))
    enough = math.inf if drawer.model.denoisers else NUM_DRAWN
    num_drawn = 0
    try:
        while calls < NUM_CALLS and num_drawn < enough:
            numbers = range(num_drawn, num_drawn + min(4, drawer.batch_size))
            num_drawn, before = numbers.stop, calls
            drawer.draw(
                full,
                [Drawing(i, prompts[i % len(prompts)], seed_of(_SEED_SET, i)) for i in numbers],
                frames_of(drawer.model),
            )
            if calls == before:
                raise EvaluationError(
                    f"the pipeline of {drawer.model.name!r} does not call its denoiser, so its "
                    "inputs cannot be recorded: use methods that are not weighted"
                )
    finally:
        for hook in hooks:
            hook.remove()
    result = {}
    for weight in weights:
        parts = [moments[name] for name in (weight.parameter, *weight.ties)]
        if not (rows := sum(part.count for part in parts)):
            continue
        mean = (sum(part.total for part in parts) / rows).numpy()  # type: ignore[union-attr]
        if not np.isfinite(mean).all():
            raise EvaluationError(f"the inputs of {weight.parameter!r} are not finite")
        own = mean[weight.start : weight.start + weight.shape[1]]
        result[weight.name] = own.astype(np.float32)
    return result
