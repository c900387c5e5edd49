"""A model's pipeline whose denoiser follows configurations: prompts and seeds => pictures.

Every drawing has a prompt and a generator of its own. So the pictures of any two configurations
begin with the same noise, and batch size and number of processes change a metric by rounding only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor, nn

from qsdm.denoisers import (
    Model,
    ModelError,
    arguments,
    computed_in,
    denoiser_of,
    denoisers_in,
    is_denoiser,
    load_pipeline,
    pipeline_index,
    require_one_part,
)
from qsdm.denoisers.conditioning import is_batched
from qsdm.denoisers.loading import own_types
from qsdm.denoisers.narrow import compute_by_layer, kept_in
from qsdm.denoisers.weights import mapped_tensors, of_parts
from qsdm.graph import Graph
from qsdm.measurement.frames import pictures_of
from qsdm.measurement.stepped import stepped
from qsdm.outcome import EvaluationError
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.calibrated import PackedWeights
from qsdm.quant.packed import PackedLayer
from qsdm.quant.swap import Originals, Switch
from qsdm.tracing.entry import as_forward, entry


class Packed(Interface):
    """The quantized weights that `qsdm.quant.calibration` wrote."""

    def dequantize(self, weight: str, method: QuantMethod, out: Tensor | None = None) -> Tensor:
        """Values of a weight under a method.

        Args:
            weight: its name.
            method: one of those on offer.
            out: takes the values, in its own type; None for a new tensor.

        Returns:
            The values, in the weight's shape.
        """
        ...


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture, or one video.

    Attributes:
        number: its place in the protocol, for errors.
        prompt: what it shows.
        seed: of its starting noise.
    """

    number: int
    prompt: Prompt
    seed: int


class Drawer:
    """Draws with one model, one configuration after the other.

    From one configuration to the next only weights whose method changes are written. Prompt
    embeddings are computed once, unless a configuration may change them.

    Args:
        model: whose pipeline is loaded.
        graph: of the space, whose weights configurations name.
        packed: quantized weights; None if only full precision is drawn.
        batch_size: number of drawings at a time, at most; halved for good where memory does not
            suffice.
        pipeline: of the model, if it is loaded already; its denoiser may be quantized.

    Raises:
        ValueError: the batch size is not positive.
        ModelError: the pipeline cannot be loaded.
        OtherWeights: the packed weights are of another pipeline.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        packed: Packed | None,
        batch_size: int = 16,
        pipeline: Any = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive (got {batch_size})")
        self.model, self.graph, self.batch_size = model, graph, batch_size
        kept = kept_in(model) if pipeline is None else "float32"
        if pipeline is None:
            pipeline = load_pipeline(model, denoiser_dtype=kept)
        self.pipeline = cast(Any, pipeline)
        self.denoiser = as_forward(denoiser_of(self.pipeline, model))
        self.parts = {
            part.component: as_forward(denoiser_of(self.pipeline, part)) for part in model.parts
        }
        if kept != "float32" and computed_in(model.dtype) == torch.float32:
            for name in own_types(model):
                compute_by_layer(self.parts[name], torch.float32)
        if isinstance(packed, PackedWeights):  # now, while the weights are as they were loaded
            packed.require(self.denoiser.get_parameter, graph)
        if torch.cuda.is_available():
            self.pipeline.to("cuda")
        for name in {*model.components, *denoisers_in(pipeline_index(model))}:
            module = getattr(self.pipeline, name, None)
            if module is not None and is_denoiser(type(module)):
                compute_in(module, computed_in(model.dtype))
                if not is_quantized_elsewhere(module):
                    channels_last(module)
        channels_last(getattr(self.pipeline, "vae", None))
        # What is quantized may be a text encoder.
        is_first = any(map(called_first, self.parts.values()))
        if hasattr(self.pipeline, "encode_prompt") and not is_first:
            self.pipeline.encode_prompt = remembered(self.pipeline.encode_prompt)
        self._packed = packed
        self._switch: Switch | None = None
        if packed is not None:
            self._switch = Switch(self.denoiser, graph, packed.dequantize, stored_in(model))

    def switch(self, qconfig: QuantConfig) -> int:
        """Realize a configuration in the denoiser.

        Args:
            qconfig: the configuration.

        Returns:
            The number of weights that were written.

        Raises:
            EvaluationError: there are no quantized weights.
        """
        if self._switch is not None:
            return self._switch.to(qconfig)
        if not qconfig.is_full:
            raise EvaluationError(
                f"no quantized weights of {self.model.name!r} were given: run qsdm.calibrate first"
            )
        return 0

    @torch.inference_mode()
    def draw(
        self, qconfig: QuantConfig, drawings: Sequence[Drawing], frames: int = 1
    ) -> np.ndarray:
        """Draw pictures under a configuration.

        Args:
            qconfig: the configuration.
            drawings: N of them.
            frames: pictures that are taken of each: evenly spaced ones of a video.

        Returns:
            Pictures, uint8 [N * frames, H, W, 3]; the frames of a video lie together.

        Raises:
            EvaluationError: a picture is not finite, or of another size than the model says.
        """
        with self._applied(qconfig):
            return self._draw(qconfig, drawings, frames)

    def _applied(self, qconfig: QuantConfig) -> AbstractContextManager[None]:
        """Realize a configuration within a block, step by step where it has bins of steps."""
        if qconfig.steps or qconfig.activations is not None:
            require_one_part(self.model, "bins of steps, and bits of all activations, are of")
        if qconfig.steps:
            if not is_denoiser(type(self.denoiser)):
                raise EvaluationError(
                    f"the {self.model.component} of {self.model.name!r} is not called at every "
                    "step: wanted a configuration without bins of steps"
                )
            return stepped(self.pipeline, self.denoiser, qconfig, self.switch)
        self.switch(qconfig)
        return nullcontext()

    def _draw(self, qconfig: QuantConfig, drawings: Sequence[Drawing], frames: int) -> np.ndarray:
        batched = is_batched(self.pipeline, [drawing.prompt for drawing in drawings])
        parts: list[np.ndarray] = []
        start = 0
        while start < len(drawings):
            batch = drawings[start : start + (self.batch_size if batched else 1)]
            try:
                parts.append(self._batch(qconfig, batch, frames))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if isinstance(self._packed, PackedWeights) and self._packed.release():
                    torch.cuda.empty_cache()
                    continue
                if self.batch_size == 1:
                    raise
                self.batch_size = -(-min(self.batch_size, len(batch)) // 2)
                torch.cuda.empty_cache()
                continue
            start += len(batch)
        return np.concatenate(parts)

    def _batch(self, qconfig: QuantConfig, batch: Sequence[Drawing], frames: int) -> np.ndarray:
        call = arguments(
            self.pipeline,
            self.model,
            [drawing.prompt for drawing in batch],
            generator=[torch.Generator().manual_seed(drawing.seed) for drawing in batch],
            output_type="pt",
        )
        name = type(self.pipeline).__name__
        try:
            images = pictures_of(self.pipeline(**call), frames)
        except AttributeError as error:
            if not (lacking := _lacking(self.pipeline)):
                raise
            raise EvaluationError(
                f"{name} does not draw without its {lacking[0]} ({error}): complete the pipeline, "
                "whose model_index.json has null in its place"
            ) from error
        if len(images) != len(batch) * frames:
            raise EvaluationError(
                f"{name} drew {len(images)} pictures where {len(batch) * frames} were asked for: "
                "correct model.call, or give batch_size=1"
            )
        images = images.expand(-1, 3, -1, -1)  # gray ones, too
        if images.shape[2:] != (self.model.resolution_px,) * 2:
            height, width = images.shape[2:]
            raise EvaluationError(
                f"{name} draws pictures of {width} x {height} px, not of "
                f"{self.model.resolution_px}: correct model.resolution_px or model.call"
            )
        finite = torch.isfinite(images).flatten(1).all(1)
        if not finite.all():
            bad = batch[int((~finite).nonzero()[0]) // frames].number
            raise EvaluationError(
                f"picture {bad} of configuration {qconfig.digest[:12]} is not finite: "
                "nothing is stored for it"
            )
        levels = images.mul(255).round().clamp(0, 255).byte()
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _lacking(pipeline: Any) -> list[str]:
    """Parts that a pipeline was loaded without, although its class does not call them optional."""
    return [
        name
        for name, part in pipeline.components.items()
        if part is None and name not in pipeline._optional_components
    ]


def called_first(module: nn.Module) -> bool:
    """Whether a part may be called before the denoiser, as text encoders are.

    Args:
        module: a part of a pipeline.
    """
    return not is_denoiser(type(module)) and entry(module) == "forward"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an accelerator or this machine ran out of memory.

    Args:
        error: for this machine's memory torch raises a bare RuntimeError.
    """
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def compute_in(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Make a denoiser compute in another type between float32 inputs and outputs.

    The sampler keeps its precision.

    Args:
        denoiser: changed in place.
        dtype: of its weights and activations.
    """
    if dtype == torch.float32:
        return
    if not is_quantized_elsewhere(denoiser):  # else it was loaded in this type
        nn.Module.to(denoiser, dtype)  # diffusers' own `to` warns

    def cast(value: Any, target: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(target) if value.is_floating_point() else value
        if isinstance(value, Mapping):
            entries = {key: cast(entry, target) for key, entry in value.items()}
            # A ModelOutput of diffusers takes them by name.
            return entries if type(value) is dict else type(value)(**entries)
        if isinstance(value, tuple | list):
            return type(value)(cast(entry, target) for entry in value)
        return value

    denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: (cast(args, dtype), cast(kwargs, dtype)), with_kwargs=True
    )
    denoiser.register_forward_hook(lambda _, __, out: cast(out, torch.float32))


def is_quantized_elsewhere(module: nn.Module) -> bool:
    """Whether another library's quantized weights were loaded, whose type and layout are its own.

    Args:
        module: that diffusers loaded. Packed layers of qsdm can be cast.
    """
    if getattr(module, "hf_quantizer", None) is None:
        return False
    return not any(isinstance(layer, PackedLayer) for layer in module.modules())


def stored_in(model: Model) -> Originals:
    """Find full-precision values in a model's files, where they can be mapped.

    Args:
        model: whose denoiser is meant.

    Returns:
        A function from a parameter's name to its values; to None where they cannot be mapped.
    """
    if len(model.parts) > 1:
        return of_parts({part.component: stored_in(part) for part in model.parts})
    try:
        read = mapped_tensors(model)
    except ModelError:  # the pipeline was loaded, but not from files of its own
        read = None

    def originals(name: str) -> torch.Tensor | None:
        try:
            return None if read is None else read(name)
        except ModelError:  # a tied weight is stored once
            return None

    return originals


def channels_last(*modules: nn.Module | None) -> None:
    """Lay out the kernels of convolutions as libraries read them: on CPUs that saves a fifth.

    Args:
        modules: changed in place.
    """
    for module in modules:
        for parameter in module.parameters() if module is not None else ():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _is_plain(value: Any) -> bool:
    """Whether equal texts of it mean equal values, unlike those of tensors and pictures."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def remembered(encode: Callable[..., Any], limit_bytes: int = 2**31) -> Callable[..., Any]:
    """Make a pipeline's ``encode_prompt`` encode the same captions with the same options once.

    Args:
        encode: the pipeline's method.
        limit_bytes: of the embeddings that are kept (a T5's of a caption takes some MB). The first
            ones are kept, not the last: every configuration needs all captions in the same order.

    Returns:
        A function that returns what the method does.
    """
    signature = inspect.signature(encode)
    embeddings: dict[str, Any] = {}
    free = limit_bytes

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal free
        bound = signature.bind(*args, **kwargs).arguments
        if not all(map(_is_plain, bound.values())):
            return encode(*args, **kwargs)
        key = repr(sorted(bound.items(), key=lambda pair: pair[0]))
        if key in embeddings:
            return embeddings[key]
        embedding = encode(*args, **kwargs)
        parts = embedding if isinstance(embedding, tuple | list) else (embedding,)
        size = sum(part.nbytes for part in parts if isinstance(part, Tensor))
        if size <= free:
            embeddings[key], free = embedding, free - size
        return embedding

    return encode_once
