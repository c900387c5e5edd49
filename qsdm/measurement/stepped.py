"""A denoiser that follows a configuration's bins of steps while its pipeline draws.

Before each call of the denoiser, the pipeline's scheduler is asked for its step. So two calls of
one step, as of classifier-free guidance, count once, and all pictures of a batch are in one step.
Counting the denoiser's calls would need to know how many there will be; diffusers'
``callback_on_step_end`` is not taken by all its pipelines, and whoever calls a pipeline has to pass
it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qsdm.outcome import EvaluationError
from qsdm.qconfig import QuantConfig
from qsdm.qconfig.steps import require_steps

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
        ValueError: a bin holds none of the sampler's steps.
    """
    for _, part in qconfig.parts:
        switch(part)  # now, as a call's hooks are listed before it begins
    course = Course(pipeline, type(denoiser), qconfig)

    def follow(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        switch(course.part(args, kwargs))

    hook = denoiser.register_forward_pre_hook(follow, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class Course:
    """A pipeline's way through its steps: which part of a configuration applies at a call.

    Args:
        pipeline: whose scheduler says the step; the scheduler may be replaced at any time.
        denoiser: class of the pipeline's denoiser.
        qconfig: with bins of steps.
    """

    def __init__(self, pipeline: Any, denoiser: type[nn.Module], qconfig: QuantConfig) -> None:
        self.pipeline, self.qconfig = pipeline, qconfig
        self._names = list(inspect.signature(denoiser.forward).parameters)[1:]
        self._timesteps: Any = None  # those of the last call, and what that call was told
        self._last: tuple[int, float | None] = (0, None)

    def part(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> QuantConfig:
        """Find what applies at a call.

        Args:
            args: of the denoiser.
            kwargs: of the denoiser.

        Returns:
            A configuration without bins.

        Raises:
            EvaluationError: the scheduler cannot say the step, or is not the one that is used.
            ValueError: a bin holds none of the sampler's steps.
        """
        given: Mapping[str, Any] = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        scheduler: Any = getattr(self.pipeline, "scheduler", None)
        place = place_of(scheduler, given.get("timestep"))
        step, num_steps = _step(scheduler, place)
        now = (place, _first(given.get("timestep")))
        if scheduler.timesteps is not self._timesteps:  # another drawing begins
            require_steps(self.qconfig, num_steps)
        elif place == self._last[0] and now != self._last:
            raise EvaluationError(
                "the denoiser is called at another time step, but the scheduler of its "
                f"{type(self.pipeline).__name__} stays at step {step + 1} of {num_steps}: another "
                "scheduler is in use, or another pipeline; call "
                "qsdm.checkpoint.follow_steps(pipeline) with the pipeline that draws"
            )
        self._timesteps, self._last = scheduler.timesteps, now
        return self.qconfig.at(step, num_steps)


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
        EvaluationError: it has no time steps, none like this one, or none left.
    """
    return _step(scheduler, place_of(scheduler, timestep))


def place_of(scheduler: Any, timestep: Any) -> int:
    """Ask a scheduler of diffusers which of its time steps comes next.

    Args:
        scheduler: see `step_of`.
        timestep: see `step_of`.

    Returns:
        The place in the scheduler's list of time steps.

    Raises:
        EvaluationError: see `step_of`.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or len(timesteps) == 0:
        raise EvaluationError(
            "wanted a pipeline whose scheduler lists its time steps, to tell which bin of steps a "
            f"call of the denoiser belongs to (got {type(scheduler).__name__})"
        )
    if hasattr(scheduler, "step_index"):
        place = scheduler.step_index
        if place is None:  # before the first step; one that starts from a picture says so
            place = getattr(scheduler, "begin_index", None) or 0
        if place >= len(timesteps):
            raise EvaluationError(
                f"the denoiser is called, but {type(scheduler).__name__} has made all of its "
                f"{len(timesteps)} steps, so that no bin of steps is in force: draw by the "
                "pipeline whose denoiser it is"
            )
    else:
        place = _place(torch.as_tensor(timesteps), timestep)
        if place is None:
            raise EvaluationError(
                f"{type(scheduler).__name__} does not count its steps, and the denoiser was called "
                f"at a time step that is none of its own (got {timestep}): use another scheduler "
                "for bins of steps"
            )
    return int(place)


def _step(scheduler: Any, place: int) -> tuple[int, int]:
    order = getattr(scheduler, "order", 1)
    return place // order, -(-len(scheduler.timesteps) // order)


def _place(timesteps: torch.Tensor, timestep: Any) -> int | None:
    if (value := _first(timestep)) is None:
        return None
    places = (timesteps == torch.tensor(value).to(timesteps)).nonzero()
    return int(places[0]) if len(places) else None


def _first(timestep: Any) -> float | None:
    return None if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
