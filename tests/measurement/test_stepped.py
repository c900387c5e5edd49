"""Which configuration applies at which call of a denoiser, by the schedulers of diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from qsdm.measurement.stepped import step_of, stepped
from qsdm.outcome import EvaluationError
from qsdm.qconfig import QuantConfig
from qsdm.qconfig.steps import StepBin, equal_bins, require_steps

NUM = 5
FULL = QuantConfig("toy", {})


class Denoiser(nn.Module):
    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 0.1 * sample


def numbered(number: int) -> QuantConfig:
    """A configuration that is told from others by its input's bits."""
    return QuantConfig("toy", {}, None, {"layer": number + 2})


BINS = tuple(StepBin(*edges, numbered(i)) for i, edges in enumerate(equal_bins(NUM, NUM)))
QCONFIG = QuantConfig("toy", {}, steps=BINS)


def drawn(scheduler: Any, calls: int, skipped: int = 0) -> list[int]:
    """Numbers of the bins at each call of a denoiser that a pipeline's loop makes."""
    denoiser = Denoiser()
    seen: list[QuantConfig] = []
    pipeline = SimpleNamespace(scheduler=scheduler)
    scheduler.set_timesteps(NUM)
    if hasattr(scheduler, "set_begin_index") and skipped:
        scheduler.set_begin_index(skipped * scheduler.order)
    sample = torch.ones(2, 1, 4, 4)
    with stepped(pipeline, denoiser, QCONFIG, seen.append):
        seen.clear()  # every part is applied once beforehand
        for t in scheduler.timesteps[skipped * scheduler.order :]:
            scaled = sample
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(sample, t)
            for _ in range(calls):  # two of them are those of guidance
                noise = denoiser(scaled, timestep=t) if calls == 2 else denoiser(scaled, t)
            sample = scheduler.step(noise, t, sample).prev_sample
    before = len(seen)
    denoiser(sample, 0)
    assert len(seen) == before  # outside of the block nothing is switched
    return [qconfig.inputs["layer"] - 2 for qconfig in seen]


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "DDIM",
        "DDPM",
        "DPMSolverMultistep",
        "EulerDiscrete",
        "FlowMatchEulerDiscrete",
        "UniPCMultistep",
    ],
)
def test_every_step_is_told(name: str, calls: int) -> None:
    cls = getattr(diffusers, f"{name}Scheduler")
    expected = [step for step in range(NUM) for _ in range(calls)]
    assert drawn(cls(), calls) == expected
    assert drawn(cls(), calls, skipped=2) == expected[2 * calls :]


@pytest.mark.parametrize("name", ["HeunDiscrete", "FlowMatchHeunDiscrete"])
def test_two_evaluations_of_a_step_are_in_one_bin(name: str) -> None:
    cls = getattr(diffusers, f"{name}Scheduler")
    assert drawn(cls(), 1) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert drawn(cls(), 2, skipped=3) == [3, 3, 3, 3, 4, 4]


def test_a_step_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"lists its time steps.*got NoneType"):
        step_of(None, 1)
    scheduler: Any = diffusers.DDIMScheduler()
    scheduler.set_timesteps(NUM)
    assert step_of(scheduler, scheduler.timesteps[3].expand(4)) == (3, NUM)
    with pytest.raises(EvaluationError, match="at a time step that is none of its own"):
        step_of(scheduler, 7)


def test_bins_mean_the_same_for_other_numbers_of_steps() -> None:
    for num in (5, 10, 50):
        held = [[one.holds(step, num) for one in BINS] for step in range(num)]
        assert all(sum(row) == 1 for row in held)
        assert [sum(column) for column in zip(*held, strict=True)] == [num // 5] * 5
        require_steps(QCONFIG, num)
    with pytest.raises(ValueError, match=r"bin of steps 0\.4 to 0\.6 holds none .* 4 steps"):
        require_steps(QCONFIG, 4)
    for wrong in (0, 11, -1):
        with pytest.raises(ValueError, match=rf"wanted 1 to 10 bins .*\(got steps={wrong}\)"):
            equal_bins(wrong, 10)
