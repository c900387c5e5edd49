"""What runs in a worker: tasks, and what it loads to do them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from qsdm.denoisers import Model, prompts_of
from qsdm.engine import EngineError
from qsdm.graph import Graph
from qsdm.measurement.adapters import AdapterError, AdapterTask, Effects
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.forward import Call, ForwardTask, forward_errors, record
from qsdm.measurement.heap import keep_freed_memory
from qsdm.measurement.inputs import InputsTask, RoundingTask, outliers, rounding_errors
from qsdm.measurement.scoring import ScoredShard
from qsdm.outcome import Protocol
from qsdm.qconfig import QuantConfig
from qsdm.quant.calibrated import OtherWeights, PackedWeights
from qsdm.store import StoreError
from qsdm.store.tensors import map_tensor


@dataclass(frozen=True, slots=True)
class DrawTask:
    """Draw pictures of a protocol; the result is uint8 [N, H, W, 3].

    Attributes:
        qconfig: the configuration.
        protocol: how the pictures are drawn.
        start: number of the first drawing.
        stop: one after the last.
    """

    qconfig: QuantConfig
    protocol: Protocol
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Draw pictures of a protocol and score them; the result is a `ScoredShard`.

    Attributes:
        qconfig: the configuration.
        protocol: how the pictures are drawn.
        full: file of the full-precision pictures.
        start: number of the first drawing.
        stop: one after the last.
    """

    qconfig: QuantConfig
    protocol: Protocol
    full: Path
    start: int
    stop: int


Task = DrawTask | ScoreTask | ForwardTask | InputsTask | RoundingTask | AdapterTask


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What a worker needs to begin.

    Attributes:
        model: whose pipeline it loads, at its first task.
        graph: of the space.
        packed: directory of the quantized weights; None if only full precision is drawn.
        batch_size: number of drawings at a time, at most.
    """

    model: Model
    graph: Graph
    packed: Path | None
    batch_size: int

    def __call__(self) -> Callable[[Task], np.ndarray | ScoredShard]:
        """Prepare for tasks.

        Returns:
            A function from a task to its result.
        """
        keep_freed_memory()
        packed = PackedWeights(self.packed) if self.packed is not None else None
        prompts = prompts_of(self.model)
        evaluators: dict[str, Evaluator] = {}

        @cache
        def drawer() -> Drawer:
            try:
                return Drawer(self.model, self.graph, packed, self.batch_size)
            except OtherWeights as error:  # no other task can be done either
                raise EngineError(str(error)) from error

        def evaluator(protocol: Protocol) -> Evaluator:
            if protocol.digest not in evaluators:
                new = Evaluator(drawer(), self.model.metrics, protocol, prompts)
                evaluators[protocol.digest] = new
            return evaluators[protocol.digest]

        @cache
        def recorded(protocol: Protocol, num_steps: int) -> list[Call]:
            return record(drawer(), protocol, prompts, num_steps)

        @cache
        def effects(protocol: Protocol, num_steps: int, adapter: Path) -> Effects:
            try:
                return Effects(drawer(), recorded(protocol, num_steps), adapter)
            except AdapterError as error:  # no other task can be done either
                raise EngineError(str(error)) from error

        def work(task: Task) -> np.ndarray | ScoredShard:
            if isinstance(task, ForwardTask):
                return forward_errors(drawer(), task, recorded(task.protocol, task.num_steps))
            if isinstance(task, AdapterTask):
                known = effects(task.protocol, task.num_steps, task.adapter)
                return known.squares(task.qconfigs)
            if isinstance(task, InputsTask):
                return outliers(drawer(), recorded(task.protocol, task.num_steps))
            if isinstance(task, RoundingTask):
                calls = recorded(task.protocol, task.num_steps)
                return rounding_errors(drawer(), calls, task.bits)
            ready = evaluator(task.protocol)
            if isinstance(task, DrawTask):
                return ready.pictures(task.qconfig, task.start, task.stop)
            if not ready.has_full:
                ready.full(read_full(task.full))
            return ready.score(task.qconfig, task.start, task.stop)

        return work


def read_full(path: Path) -> np.ndarray:
    """Open a file of full-precision pictures; they are read when they are used.

    Args:
        path: of the file.

    Returns:
        Pictures, uint8 [N, H, W, 3].

    Raises:
        StoreError: the file is damaged or holds something else.
    """
    try:
        images = map_tensor(path, "images")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path} holds no whole pictures ({error}): remove it, it is made again"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise StoreError(f"{path} holds no pictures: remove it, it is made again")
    return images
