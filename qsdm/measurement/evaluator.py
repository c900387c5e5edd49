"""Pipeline, configuration, prompts and seeds => pictures; pictures and metrics => `Outcome`.

Picture i of a seed set has a caption and a generator of its own, so the pictures of any two configurations begin with
the same noise, and batch size and number of processes change a metric by rounding only.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import nn

from qsdm.denoisers import (
    Model,
    arguments,
    check_prompts,
    computed_in,
    denoiser_of,
    denoisers_in,
    load_pipeline,
    pipeline_index,
)
from qsdm.denoisers.conditioning import is_batched
from qsdm.graph import Graph
from qsdm.measurement.frames import pictures_of
from qsdm.measurement.protocol import of_pictures, prompts_digest, seed_of
from qsdm.measurement.scoring import ScoredShard, digests, outcome_of
from qsdm.metrics import Metric
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.calibration import PackedWeights
from qsdm.store.provenance import provenance

if TYPE_CHECKING:
    from torch import Tensor

    from qsdm.prompts import Prompt


class Packed(Interface):
    """The quantized weights that `qsdm.quant.calibration` wrote."""

    def dequantize(self, weight: str, method: QuantMethod, out: Tensor | None = None) -> Tensor: ...


class Evaluator:
    """Draws and scores pictures of one model, one configuration after the other.

    From one configuration to the next only weights whose method changes are written. Prompt embeddings are made once.

    Args:
        graph: that of the space, whose weights configurations name.
        packed: quantized weights; None if only full precision is drawn.
        metrics: by name; all of them are in every outcome.
        prompts: see `qsdm.measurement.protocol.protocol_of`.
        batch_size: pictures at a time, at most.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        packed: Packed | None,
        metrics: Mapping[str, Metric],
        protocol: Protocol,
        prompts: Sequence[Prompt],
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive (got {batch_size})")
        self.model, self.graph, self.metrics, self.protocol, self.batch_size = (
            model,
            graph,
            dict(metrics),
            protocol,
            batch_size,
        )
        self.prompts = of_pictures(prompts, protocol.num_images)
        if prompts_digest(self.prompts) != protocol.prompts:
            raise EvaluationError(
                f"the prompts are not those of the protocol {protocol.digest[:12]}: they changed since it was made"
            )
        check_prompts(model, self.prompts)
        self.pipeline = load_pipeline(model)
        self.denoiser = denoiser_of(self.pipeline, model)
        if isinstance(packed, PackedWeights):  # now, while the weights are as they were loaded
            packed.require(self.denoiser.get_parameter, graph)
        if torch.cuda.is_available():
            self.pipeline.to("cuda")  # type: ignore[attr-defined]
        for name in {model.component, *denoisers_in(pipeline_index(model))}:
            if (module := getattr(self.pipeline, name, None)) is not None:
                compute_in(module, computed_in(model.dtype))
        channels_last(self.denoiser, getattr(self.pipeline, "vae", None))
        if hasattr(self.pipeline, "encode_prompt"):
            self.pipeline.encode_prompt = remembered(self.pipeline.encode_prompt)
        self._batched = is_batched(type(self.pipeline), self.prompts)
        self._switch: Any = None
        if packed is not None:
            from qsdm.quant.swap import Switch

            self._switch = Switch(self.denoiser, graph, packed.dequantize)
        self._full: np.ndarray | None = None

    def under(self, protocol: Protocol, prompts: Sequence[Prompt]) -> Evaluator:
        """An evaluator of another protocol (seeds, number of pictures), on the pipeline that this one loaded."""
        other = object.__new__(Evaluator)
        other.__dict__.update(self.__dict__)
        other.protocol, other._full = protocol, None
        other.prompts = of_pictures(prompts, protocol.num_images)
        return other

    @property
    def captions(self) -> list[str]:
        """The prompts as texts, for metrics: names where they are classes."""
        return [str(prompt) for prompt in self.prompts]

    def switch(self, qconfig: QuantConfig) -> int:
        """Realize ``qconfig`` in the denoiser; how many weights were written."""
        if self._switch is not None:
            return self._switch.to(qconfig)
        if qconfig.methods:
            raise EvaluationError(
                f"no quantized weights of {self.model.name!r} were given: run qsdm.calibrate first"
            )
        return 0

    @torch.inference_mode()
    def pictures(self, qconfig: QuantConfig, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Pictures ``start`` to ``stop`` (default: all) of the protocol, uint8 [N, H, W, 3].

        Of videos, `Protocol.frames` of each, together. A batch that does not fit into memory is
        halved, and so are those after it: the pictures change by rounding.

        Raises:
            EvaluationError: a picture is not finite.
        """
        self.switch(qconfig)
        made = []
        stop = self.protocol.num_images if stop is None else stop
        while start < stop:
            places = range(start, min(start + (self.batch_size if self._batched else 1), stop))
            try:
                made.append(self._batch(qconfig, places))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = -(-min(self.batch_size, len(places)) // 2)
                torch.cuda.empty_cache()
                continue
            start = places.stop
        return np.concatenate(made)

    def _batch(self, qconfig: QuantConfig, places: range) -> np.ndarray:
        call = arguments(
            self.pipeline,
            self.model,
            [self.prompts[i] for i in places],
            generator=[
                torch.Generator().manual_seed(seed_of(self.protocol.seed_set, i)) for i in places
            ],
            output_type="pt",
        )
        images = pictures_of(self.pipeline(**call), self.protocol.frames)  # type: ignore[operator]
        if len(images) != len(places) * self.protocol.frames:
            raise EvaluationError(
                f"{type(self.pipeline).__name__} drew {len(images)} pictures where "
                f"{len(places) * self.protocol.frames} were asked for: correct model.call, or give batch_size=1"
            )
        images = images.expand(-1, 3, -1, -1)  # gray ones, too
        if images.shape[2:] != (self.protocol.resolution_px,) * 2:
            height, width = images.shape[2:]
            raise EvaluationError(
                f"{type(self.pipeline).__name__} draws pictures of {width} x {height} px, not of "
                f"{self.protocol.resolution_px}: correct model.resolution_px or model.call"
            )
        finite = torch.isfinite(images).flatten(1).all(1)
        if not finite.all():
            bad = places[int((~finite).nonzero()[0]) // self.protocol.frames]
            raise EvaluationError(
                f"picture {bad} of configuration {qconfig.digest[:12]} is not finite: nothing is stored for it"
            )
        return (
            images.mul(255)
            .round()
            .clamp(0, 255)
            .byte()
            .permute(0, 2, 3, 1)
            .contiguous()
            .cpu()
            .numpy()
        )

    @property
    def has_full(self) -> bool:
        return self._full is not None

    def full(self, images: np.ndarray | None = None) -> np.ndarray:
        """The full-precision pictures: those given before, or made now."""
        if images is not None:
            self._full = images
        if self._full is None:
            self._full = self.pictures(QuantConfig(self.model.name, {}))
        return self._full

    def _full_of(self, start: int, stop: int) -> np.ndarray:
        frames = self.protocol.frames
        return self.full()[start * frames : stop * frames]

    def outcome(self, qconfig: QuantConfig) -> Outcome:
        """DrawTask the protocol's pictures and score them.

        Raises:
            EvaluationError: a picture or a metric is not finite.
        """
        return outcome_of(
            qconfig, self.protocol, self.metrics, [self.seen(qconfig, 0, self.protocol.num_images)]
        )

    def seen(self, qconfig: QuantConfig, start: int, stop: int) -> ScoredShard:
        """DrawTask pictures ``start`` to ``stop`` of the protocol, and keep what the metrics need of them."""
        began = time.perf_counter()
        images = (
            self.pictures(qconfig, start, stop) if qconfig.methods else self._full_of(start, stop)
        )
        drawn = time.perf_counter()
        full = self._full_of(start, stop) if qconfig.methods else None
        captions = [text for text in self.captions[start:stop] for _ in range(self.protocol.frames)]
        features = {
            name: metric.features(images, captions, full) for name, metric in self.metrics.items()
        }
        about = {
            **made_by(),
            "drawing_s": round(drawn - began, 3),
            "scoring_s": round(time.perf_counter() - drawn, 3),
            "batch_size": self.batch_size,
            "num_threads": torch.get_num_threads(),
            "computed_in": str(computed_in(self.protocol.dtype)).removeprefix("torch."),
        }
        return ScoredShard(features, digests(images), about)


@cache
def made_by() -> dict[str, Any]:
    """Provenance of this process, asked for once."""
    return provenance()


def is_out_of_memory(error: Exception) -> bool:
    """Of an accelerator or of this machine, for which torch raises a bare RuntimeError."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def compute_in(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Let the denoiser compute in ``dtype`` between float32 inputs and outputs: the sampler keeps its precision."""
    if dtype == torch.float32:
        return
    nn.Module.to(denoiser, dtype)  # diffusers' own `to` warns

    def cast(value: Any, wanted: torch.dtype) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(wanted) if value.is_floating_point() else value
        if isinstance(value, Mapping):
            entries = {key: cast(entry, wanted) for key, entry in value.items()}
            return (
                entries if type(value) is dict else type(value)(**entries)
            )  # a diffusers ModelOutput
        if isinstance(value, tuple | list):
            return type(value)(cast(entry, wanted) for entry in value)
        return value

    denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: (cast(args, dtype), cast(kwargs, dtype)), with_kwargs=True
    )
    denoiser.register_forward_hook(lambda _, __, out: cast(out, torch.float32))


def channels_last(*modules: nn.Module | None) -> None:
    """Lay the kernels of convolutions out as libraries read them: on CPUs they then take about 0.8 of the time."""
    for module in modules:
        for parameter in module.parameters() if module is not None else ():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _is_plain(value: Any) -> bool:
    """Whether equal texts of it mean equal values, unlike those of tensors and pictures."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | torch.device | torch.dtype)


def remembered(encode: Any, limit_bytes: int = 2**31) -> Any:
    """A pipeline's ``encode_prompt`` that encodes the same captions with the same options once.

    Args:
        limit_bytes: of what is kept (a T5's embedding of a caption takes some MB). The first are kept, not the last:
            every configuration asks for all captions in the same order.
    """
    names = inspect.signature(encode)
    known: dict[str, Any] = {}
    free = limit_bytes

    def encode_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal free
        given = names.bind(*args, **kwargs).arguments
        if not all(map(_is_plain, given.values())):
            return encode(*args, **kwargs)
        key = repr(sorted(given.items(), key=lambda pair: pair[0]))
        if key in known:
            return known[key]
        made = encode(*args, **kwargs)
        parts = made if isinstance(made, tuple | list) else (made,)
        size = sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
        if size <= free:
            known[key], free = made, free - size
        return made

    return encode_once
