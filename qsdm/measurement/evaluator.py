"""Pictures of a protocol and metrics => `Outcome`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from qsdm.denoisers import check_prompts, computed_in
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.protocol import of_pictures, prompts_digest, seed_of
from qsdm.measurement.scoring import ScoredShard, digests, outcome_of
from qsdm.metrics import Metric
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig
from qsdm.store.provenance import provenance


@dataclass(slots=True, eq=False)
class Evaluator:
    """Draws and scores the pictures of one protocol. Several of them may share a drawer.

    Attributes:
        drawer: the pipeline.
        metrics: by name; all of them are in every outcome.
        protocol: how the pictures are drawn.
        prompts: those of the model; from then on, one per picture.

    Raises:
        EvaluationError: the prompts are not those of the protocol.
        PromptsError: the pipeline cannot draw them.
    """

    drawer: Drawer
    metrics: Mapping[str, Metric]
    protocol: Protocol
    prompts: Sequence[Prompt]
    _full: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.prompts = of_pictures(self.prompts, self.protocol.num_images)
        if prompts_digest(self.prompts) != self.protocol.prompts:
            raise EvaluationError(
                f"the prompts are not those of the protocol {self.protocol.digest[:12]}: "
                "they changed since it was made"
            )
        check_prompts(self.drawer.model, self.prompts)

    @property
    def captions(self) -> list[str]:
        """The prompts as texts, for metrics: names where they are classes."""
        return [str(prompt) for prompt in self.prompts]

    def pictures(self, qconfig: QuantConfig, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Draw pictures of the protocol, those of a video together.

        Args:
            qconfig: the configuration.
            start: number of the first drawing.
            stop: one after the last; None for all.

        Returns:
            Pictures, uint8 [N, H, W, 3].

        Raises:
            EvaluationError: a picture is not finite.
        """
        numbers = range(self.protocol.num_images)[start:stop]
        drawings = [
            Drawing(i, self.prompts[i], seed_of(self.protocol.seed_set, i)) for i in numbers
        ]
        return self.drawer.draw(qconfig, drawings, self.protocol.frames)

    @property
    def has_full(self) -> bool:
        """Whether the full-precision pictures are here."""
        return self._full is not None

    def full(self, images: np.ndarray | None = None) -> np.ndarray:
        """The full-precision pictures of the protocol.

        Args:
            images: uint8 [N, H, W, 3], if they were drawn before.

        Returns:
            These, those of the last call, or new ones.
        """
        if images is not None:
            self._full = images
        if self._full is None:
            self._full = self.pictures(QuantConfig(self.drawer.model.name, {}))
        return self._full

    def outcome(self, qconfig: QuantConfig) -> Outcome:
        """Draw the protocol's pictures and score them.

        Args:
            qconfig: the configuration.

        Returns:
            The outcome.

        Raises:
            EvaluationError: a picture or a metric is not finite.
        """
        shard = self.score(qconfig, 0, self.protocol.num_images)
        return outcome_of(qconfig, self.protocol, self.metrics, [shard])

    def score(self, qconfig: QuantConfig, start: int, stop: int) -> ScoredShard:
        """Draw pictures of the protocol, and keep what the metrics need of them.

        Args:
            qconfig: the configuration.
            start: number of the first drawing.
            stop: one after the last.

        Returns:
            Features and digests of the pictures.

        Raises:
            EvaluationError: a picture is not finite.
        """
        frames, quantized = self.protocol.frames, not qconfig.is_full
        part = slice(start * frames, stop * frames)
        began = time.perf_counter()
        images = self.pictures(qconfig, start, stop) if quantized else self.full()[part]
        drawn = time.perf_counter()
        full = self.full()[part] if quantized else None
        captions = [text for text in self.captions[start:stop] for _ in range(frames)]
        features = {
            name: metric.features(images, captions, full) for name, metric in self.metrics.items()
        }
        about = {
            **_provenance(),
            "drawing_s": round(drawn - began, 3),
            "scoring_s": round(time.perf_counter() - drawn, 3),
            "batch_size": self.drawer.batch_size,
            "num_threads": torch.get_num_threads(),
            "computed_in": str(computed_in(self.protocol.dtype)).removeprefix("torch."),
        }
        return ScoredShard(features, digests(images), about)


@cache
def _provenance() -> dict[str, Any]:
    """Of this process, asked for once."""
    return provenance()
