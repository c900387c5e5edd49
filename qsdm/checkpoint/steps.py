"""A loaded denoiser whose packed weights change with the sampler's steps.

A hook of the denoiser asks the pipeline's scheduler for the step, as measurement does, and chooses
the version of each weight. A denoiser that was loaded without its pipeline knows no scheduler: it
refuses to be called until `follow_steps` is given the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from qsdm.checkpoint.format import CheckpointError
from qsdm.measurement.stepped import Course
from qsdm.qconfig import QuantConfig
from qsdm.quant.activations import switch_rounding
from qsdm.quant.packed import PackedLayer

P = TypeVar("P")


class Steps:
    """A hook that sets the versions of a denoiser's packed weights before each call.

    Args:
        qconfig: with bins of steps.
        rounded: for each of ``qconfig.parts``, bits of the inputs of layers by the name of their
            parameters.
        num_layers: number of packed layers that change.
        pipeline: that draws; None until it is known.
    """

    def __init__(
        self,
        qconfig: QuantConfig,
        rounded: Sequence[Mapping[str, int]],
        num_layers: int,
        pipeline: Any = None,
    ) -> None:
        self.qconfig, self.rounded, self.num_layers = qconfig, rounded, num_layers
        self.numbers = {part: number for number, (_, part) in enumerate(qconfig.parts)}
        self.pipeline = pipeline
        self._course: Course | None = None
        self._current: QuantConfig | None = None

    def __call__(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.pipeline is None:
            raise CheckpointError(
                "the weights of this denoiser change with the sampler's steps "
                f"({', '.join(map(str, self.qconfig.steps))}), and it knows no sampler: load the "
                "pipeline by qsdm.checkpoint.load_quantized, or call "
                "qsdm.checkpoint.follow_steps(pipeline)"
            )
        if self._course is None or self._course.pipeline is not self.pipeline:
            self._course = Course(self.pipeline, type(denoiser), self.qconfig)
        part = self._course.part(args, kwargs)
        if part != self._current:
            self.switch(denoiser, part)

    def switch(self, denoiser: nn.Module, part: QuantConfig) -> None:
        """Put a part of the configuration into force.

        Args:
            denoiser: that was loaded, or a copy of it.
            part: one of the parts of the configuration.

        Raises:
            CheckpointError: layers that have to change were replaced.
            ValueError: inputs of layers cannot be rounded.
        """
        layers = [m for m in denoiser.modules() if isinstance(m, PackedLayer) and m.is_stepped]
        fused = any(getattr(module, "fused_projections", False) for module in denoiser.modules())
        if fused or len(layers) != self.num_layers:
            raise CheckpointError(
                f"{self.num_layers} layers of this denoiser change with the sampler's steps, and "
                "some were replaced by plain ones, as by fuse_qkv_projections or a Control LoRA: "
                "load the checkpoint again, and use it without that"
            )
        number = self.numbers[part]
        for layer in layers:
            layer.version = number
        switch_rounding(denoiser, self.rounded[number], part.activations is not None)
        self._current = part

    def __deepcopy__(self, memo: dict[int, Any]) -> Steps:
        """A copy for a copied denoiser; it follows the copied pipeline, if that is copied, too."""
        copied = Steps(self.qconfig, self.rounded, self.num_layers, memo.get(id(self.pipeline)))
        copied._current = self._current
        return copied


def attach(denoiser: nn.Module, steps: Steps) -> None:
    """Let a denoiser's weights change with the steps.

    Args:
        denoiser: with packed layers that have a version for each part of the configuration.
        steps: its hook.

    Raises:
        CheckpointError: see `Steps.switch`.
        ValueError: see `Steps.switch`.
    """
    denoiser.register_forward_pre_hook(steps, prepend=True, with_kwargs=True)
    for part in steps.numbers:
        steps.switch(denoiser, part)  # now, as a call's hooks are listed before it begins


def follow_steps(pipeline: P) -> P:
    """Let denoisers of a pipeline whose weights change with the steps follow its scheduler.

    Args:
        pipeline: of diffusers, which draws. Denoisers of other kinds are left as they are.

    Returns:
        ``pipeline``.
    """
    parts: Mapping[str, Any] = getattr(pipeline, "components", {})
    for part in parts.values():
        for hook in part._forward_pre_hooks.values() if isinstance(part, nn.Module) else ():
            if isinstance(hook, Steps):
                hook.pipeline = pipeline
    return pipeline
