"""A denoiser that follows a configuration's bins of steps while its pipeline draws.

Before each call of the denoiser, the pipeline's scheduler is asked for its step. So two calls of
one step, as of classifier-free guidance, count once, and all pictures of a batch are in one step.
Counting the denoiser's calls would need to know how many there will be; diffusers'
``callback_on_step_end`` is not taken by all its pipelines, and whoever calls a pipeline has to pass
it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qsdm.outcome import EvaluationError
from qsdm.qconfig import QuantConfig

Switch = Callable[[QuantConfig], Any]
"""Realizes a configuration without bins in the denoiser."""


@contextmanager
def stepped(
    pipeline: Any, denoiser: nn.Module, qconfig: QuantConfig, switch: Switch
) -> Iterator[None]:
    """Within a block, realize before each call of a denoiser what applies at the sampler's step.

    Args:
        pipeline: whose scheduler says the step; it may be replaced while the block runs.
        denoiser: of the pipeline.
        qconfig: with bins of steps.
        switch: realizes what applies.

    Raises:
        EvaluationError: the denoiser was called at a step that the scheduler cannot say.
    """
    for _, part in qconfig.parts:
        switch(part)  # now, as a call's hooks are listed before it begins
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]

    def follow(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: Mapping[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        scheduler = getattr(pipeline, "scheduler", None)
        switch(qconfig.at(*step_of(scheduler, given.get("timestep"))))

    hook = denoiser.register_forward_pre_hook(follow, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def step_of(scheduler: Any, timestep: Any) -> tuple[int, int]:
    """Ask a scheduler of diffusers which step comes next.

    A solver of second order, such as Heun's, has two places in its list of time steps for each step
    but the last, which has one.

    Args:
        scheduler: of the pipeline, whose time steps are set.
        timestep: the denoiser's argument of this name, by which schedulers that count no steps
            (DDIM, DDPM) tell them: a number, or a tensor of equal numbers.

    Returns:
        The number of the step from 0, and the number of steps.

    Raises:
        EvaluationError: it has no time steps, or none like this one.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or len(timesteps) == 0:
        raise EvaluationError(
            "wanted a pipeline whose scheduler lists its time steps, to tell which bin of steps a "
            f"call of the denoiser belongs to (got {type(scheduler).__name__})"
        )
    if hasattr(scheduler, "step_index"):
        place = scheduler.step_index
        if (
            place is None
        ):  # before the first step; one that starts later, as from a picture, says so
            place = getattr(scheduler, "begin_index", None) or 0
    else:
        place = _place(torch.as_tensor(timesteps), timestep)
        if place is None:
            raise EvaluationError(
                f"{type(scheduler).__name__} does not count its steps, and the denoiser was called "
                f"at a time step that is none of its own (got {timestep}): use another scheduler "
                "for bins of steps"
            )
    order = getattr(scheduler, "order", 1)
    return int(place) // order, -(-len(timesteps) // order)


def _place(timesteps: torch.Tensor, timestep: Any) -> int | None:
    if timestep is None:
        return None
    value = torch.as_tensor(timestep).flatten()[0].to(timesteps)
    places = (timesteps == value).nonzero()
    return int(places[0]) if len(places) else None
