"""The denoiser's output under a configuration, beside that of full precision on the same inputs.

The inputs are those of a few time steps while full precision draws. So each probe costs a few
forwards, and no picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.protocol import of_pictures, seed_of
from qsdm.measurement.scoring import short, splits
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig

METRIC = "output_error"


def version(num_steps: int) -> str:
    """What changes the value of `METRIC`.

    Args:
        num_steps: time steps whose inputs are recorded.
    """
    return f"squared error of the denoiser's output over its squared norm, {num_steps} time steps"


@dataclass(frozen=True, slots=True)
class ForwardTask:
    """Compare outputs under configurations with full precision; the result is a `ForwardErrors`.

    Attributes:
        qconfigs: the configurations.
        protocol: how pictures are drawn, whose inputs are recorded.
        num_steps: time steps.
    """

    qconfigs: tuple[QuantConfig, ...]
    protocol: Protocol
    num_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One forward of the denoiser.

    Attributes:
        drawings: numbers of the drawings in its batch.
        arguments: positional and by name.
        output: float32 [N, ...].
    """

    drawings: tuple[int, ...]
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    output: Tensor


def record(
    drawer: Drawer, protocol: Protocol, prompts: Sequence[Prompt], num_steps: int
) -> list[Call]:
    """Draw a protocol's pictures in full precision and keep inputs and outputs of the denoiser.

    Args:
        drawer: the pipeline.
        protocol: of the pictures.
        prompts: of the model.
        num_steps: time steps to keep, spread over all of them.

    Returns:
        The calls.

    Raises:
        EvaluationError: the denoiser was not called, or its output is no tensor.
    """
    prompts = of_pictures(prompts, protocol.num_images)
    drawings = [
        Drawing(i, prompt, seed_of(protocol.seed_set, i)) for i, prompt in enumerate(prompts)
    ]
    calls: list[Call] = []
    start, size = 0, drawer.batch_size
    while start < len(drawings):
        batch = drawings[start : start + size]
        seen = _seen(drawer, batch, protocol.frames)
        if any(len(output) % len(batch) for _, _, output in seen) or drawer.batch_size < size:
            size = 1  # the pipeline draws one after the other, or memory is short
            continue
        places = np.unique(np.linspace(0, len(seen) - 1, num_steps).round().astype(int))
        numbers = tuple(drawing.number for drawing in batch)
        calls += [Call(numbers, (seen[i][0], seen[i][1]), seen[i][2]) for i in places]
        start += len(batch)
    return calls


def _seen(
    drawer: Drawer, batch: Sequence[Drawing], frames: int
) -> list[tuple[tuple[Any, ...], Mapping[str, Any], Tensor]]:
    """Inputs and outputs of the denoiser while full precision draws."""
    seen: list[tuple[tuple[Any, ...], Mapping[str, Any], Tensor]] = []

    def keep(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append((args, kwargs, output_of(output)))

    # It comes after the hook that casts the output, which the drawer registered.
    hook = drawer.denoiser.register_forward_hook(keep, with_kwargs=True)
    try:
        drawer.draw(QuantConfig(drawer.model.name, {}), batch, frames)
    finally:
        hook.remove()
    if not seen:
        raise EvaluationError(
            f"the pipeline of {drawer.model.name!r} does not call its denoiser: "
            "probe with fidelity=drawn"
        )
    return seen


@torch.inference_mode()
def errors(drawer: Drawer, calls: Sequence[Call], qconfig: QuantConfig, num: int) -> np.ndarray:
    """Compute how far outputs under a configuration are from those of full precision.

    Args:
        drawer: the pipeline.
        calls: of full precision.
        qconfig: the configuration.
        num: number of drawings.

    Returns:
        Squared error over squared norm for each drawing, mean over time steps, float64 [num].

    Raises:
        EvaluationError: an output is not finite.
    """
    drawer.switch(qconfig)
    total, count = np.zeros(num), np.zeros(num)
    for call in calls:
        args, kwargs = call.arguments
        output = output_of(drawer.denoiser(*args, **kwargs))
        size = len(call.drawings)
        squares = [squares_of(x, size) for x in (output - call.output, call.output)]
        numbers = list(call.drawings)
        total[numbers] += squares[0] / np.maximum(squares[1], 1e-30)
        count[numbers] += 1
    relative = total / count
    if not np.isfinite(relative).all():
        raise EvaluationError(
            f"the denoiser's output under configuration {qconfig.digest[:12]} is not finite"
        )
    return relative


def squares_of(values: Tensor, num: int) -> np.ndarray:
    """Sum the squares of each drawing's values.

    Args:
        values: [k N, ...]; guidance repeats all drawings of a batch.
        num: N drawings.

    Returns:
        Float64 [N].
    """
    squares = values.double().flatten(1).square().sum(1)
    return squares.reshape(-1, num).sum(0).cpu().numpy()


def require_repeatable(drawer: Drawer, calls: Sequence[Call], num: int) -> None:
    """Require that full precision gives the recorded outputs again.

    Args:
        drawer: the pipeline.
        calls: of full precision.
        num: number of drawings.

    Raises:
        EvaluationError: it does not.
    """
    own = errors(drawer, calls, QuantConfig(drawer.model.name, {}), num)
    if own.max() > 1e-6:
        raise EvaluationError(
            f"the denoiser of {drawer.model.name!r} gives other outputs for the same inputs "
            f"(relative error {own.max():.2g}): probe with fidelity=drawn"
        )


def forward_errors(drawer: Drawer, task: ForwardTask, recorded: Sequence[Call]) -> np.ndarray:
    """Do a task.

    Args:
        drawer: the pipeline.
        task: the configurations.
        recorded: inputs and outputs of full precision.

    Returns:
        Float64 [configurations, drawings].

    Raises:
        EvaluationError: an output is not finite, or full precision does not repeat its own.
    """
    num = task.protocol.num_images
    require_repeatable(drawer, recorded, num)
    return np.stack([errors(drawer, recorded, qconfig, num) for qconfig in task.qconfigs])


def outcome_of(
    qconfig: QuantConfig, protocol: Protocol, errors: np.ndarray, num_steps: int, stage: str
) -> Outcome:
    """Put errors into an outcome, beside which metrics of pictures may be measured later.

    Args:
        qconfig: the configuration.
        protocol: of the drawings.
        errors: float64 [N], of each drawing.
        num_steps: time steps.
        stage: what it was measured for.

    Returns:
        The outcome.

    Raises:
        EvaluationError: an error is not finite.
    """
    from qsdm.store.provenance import provenance

    halves = tuple(
        (short(float(errors[a].mean())), short(float(errors[b].mean())))
        for a, b in splits(len(errors))
    )
    return Outcome(
        qconfig,
        protocol.digest,
        {METRIC: float(errors.mean())},
        len(errors),
        {METRIC: halves} if halves else {},
        {},
        {**provenance(), "stage": stage},
        {METRIC: version(num_steps)},
    )


def output_of(output: Any) -> Tensor:
    """The first tensor of what a denoiser returns.

    Args:
        output: a tensor, a tuple or one of diffusers' outputs.

    Raises:
        EvaluationError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, Mapping) else output
    first = values[0] if isinstance(values, list | tuple) and values else None
    if not isinstance(first, Tensor):
        raise EvaluationError(f"the denoiser returns no tensor (got {type(output).__name__})")
    return first
