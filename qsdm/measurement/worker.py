"""What runs in a worker: tasks, and what it loads to do them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qsdm.denoisers import Model, prompts_of
from qsdm.engine import EngineError
from qsdm.graph import Graph
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.scoring import ScoredShard
from qsdm.outcome import Protocol
from qsdm.qconfig import QuantConfig
from qsdm.quant.calibration import OtherWeights, PackedWeights
from qsdm.store import StoreError
from qsdm.store.tensors import map_tensor


@dataclass(frozen=True, slots=True)
class DrawTask:
    """A task: pictures ``start`` to ``stop`` of a protocol => uint8 [N, H, W, 3]."""

    qconfig: QuantConfig
    protocol: Protocol
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """A task: pictures ``start`` to ``stop`` of a protocol => what the metrics need of them, `ScoredShard`.

    Attributes:
        full: file of the full-precision pictures.
    """

    qconfig: QuantConfig
    protocol: Protocol
    full: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What a worker needs to begin."""

    model: Model
    graph: Graph
    packed: Path | None
    batch_size: int

    def __call__(self) -> Callable[[DrawTask | ScoreTask], np.ndarray | ScoredShard]:
        packed = PackedWeights(self.packed) if self.packed is not None else None
        prompts = prompts_of(self.model)
        evaluators: dict[str, Evaluator] = {}

        def evaluator(protocol: Protocol) -> Evaluator:
            if protocol.digest not in evaluators:
                first = next(iter(evaluators.values()), None)
                if first is None:
                    try:
                        made = Evaluator(
                            self.model,
                            self.graph,
                            packed,
                            self.model.metrics,
                            protocol,
                            prompts,
                            self.batch_size,
                        )
                    except OtherWeights as error:  # no other task can be done either
                        raise EngineError(str(error)) from error
                else:
                    made = first.under(protocol, prompts)
                evaluators[protocol.digest] = made
            return evaluators[protocol.digest]

        def work(task: DrawTask | ScoreTask) -> np.ndarray | ScoredShard:
            ready = evaluator(task.protocol)
            if isinstance(task, DrawTask):
                return ready.pictures(task.qconfig, task.start, task.stop)
            if not ready.has_full:
                ready.full(read_full(task.full))
            return ready.seen(task.qconfig, task.start, task.stop)

        return work


def read_full(path: Path) -> np.ndarray:
    """Full-precision pictures uint8 [N, H, W, 3], read from the file when they are looked at."""
    try:
        images = map_tensor(path, "images")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path} holds no whole pictures ({error}): remove it, it is made again"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise StoreError(f"{path} holds no pictures: remove it, it is made again")
    return images
