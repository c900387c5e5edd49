"""Many configurations under one or two protocols, through an engine, into the store.

This is what `measure` and `realize` have in common. The full-precision pictures of a protocol are
drawn first and stored; other pictures are compared with them. What the store already holds is not
measured again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from tqdm import tqdm

from qsdm.denoisers import Model, check_prompts, prompts_of, require_one_part
from qsdm.engine import Engine, Failure, Pool
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.measurement.intake import Intake, Measured
from qsdm.measurement.memory import loaded_bytes
from qsdm.measurement.protocol import drawing_digest, protocol_of, versions_of
from qsdm.measurement.worker import DrawTask, WorkerStart, read_full
from qsdm.outcome import EvaluationError, Protocol
from qsdm.qconfig import QuantConfig, Space
from qsdm.qconfig.steps import require_steps
from qsdm.quant.calibrated import fitted_version
from qsdm.store import Store, StoreError
from qsdm.store.files import replace
from qsdm.store.room import require_memory
from qsdm.store.tensors import TensorFile
from qsdm.text import Log, ignore

ADVICE = "give model.load.NAME=null for a part of the pipeline that it can do without"


class Subject(Interface):
    """What is measured: a `qsdm.workspace.Workspace`."""

    @property
    def model(self) -> Model:
        """Whose denoiser is quantized."""
        ...

    @property
    def space(self) -> Space:
        """Of the configurations."""
        ...

    @property
    def store(self) -> Store:
        """Of the model."""
        ...

    @property
    def packed(self) -> Path:
        """The directory of the quantized weights.

        Raises:
            StoreError: the model was not calibrated.
        """
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """Running workers for one model and space; see `open_session`.

    Attributes:
        model: whose denoiser is quantized.
        space: of the configurations.
        store: of the model.
        pool: the workers.
        batch_size: number of drawings at a time, at most.
        shard: number of drawings per task.
        quantizer_version: of the quantized weights.
        num_workers: of the engine; None if it does not know.
    """

    model: Model
    space: Space
    store: Store
    pool: Pool
    batch_size: int
    shard: int
    quantizer_version: str
    num_workers: int | None = None

    def protocol(self, seed_set: int, num_images: int) -> Protocol:
        """How pictures are drawn.

        Args:
            seed_set: of the starting noise.
            num_images: drawings per configuration.

        Returns:
            The protocol.

        Raises:
            EvaluationError: the model has no metrics.
        """
        if not self.model.metrics:
            raise EvaluationError(
                f"model {self.model.name} has no metrics: add metrics=NAME, "
                "with a NAME of conf/metrics"
            )
        return self.drawing(seed_set, num_images)

    def drawing(self, seed_set: int, num_images: int) -> Protocol:
        """As `protocol`, for a model that may have no metrics.

        Args:
            seed_set: see `protocol`.
            num_images: see `protocol`.

        Returns:
            The protocol.
        """
        plain = protocol_of(self.model, prompts_of(self.model), seed_set, num_images)
        return dataclasses.replace(plain, quantizer_version=self.quantizer_version)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the metrics that every outcome shall have, by name."""
        return versions_of(self.model.metrics)

    def full(self, protocol: Protocol) -> Path:
        """The full-precision pictures of a protocol, drawn if they are missing or damaged.

        Args:
            protocol: how they are drawn.

        Returns:
            Their file.

        Raises:
            EvaluationError: a picture cannot be drawn.
            StoreError: the file cannot be written.
        """
        return self._stored(QuantConfig(self.model.name, {}), protocol, protocol.num_images)

    def pictures(
        self, qconfig: QuantConfig, protocol: Protocol, num_images: int, batch: int | None = None
    ) -> np.ndarray:
        """A protocol's first pictures under a configuration, drawn unless the store holds them.

        Args:
            qconfig: the configuration.
            protocol: how they are drawn.
            num_images: number of drawings.
            batch: drawings per task; None for the batch size.

        Returns:
            Pictures, uint8 [N, H, W, 3].

        Raises:
            EvaluationError: a picture cannot be drawn.
            StoreError: the file cannot be written.
        """
        require_steps(qconfig, protocol.steps)
        if qconfig.is_full:
            return read_full(self.full(protocol))[: num_images * protocol.frames]
        return read_full(self._stored(qconfig, protocol, num_images, batch))

    def _stored(
        self, qconfig: QuantConfig, protocol: Protocol, num_images: int, batch: int | None = None
    ) -> Path:
        """The file of pictures, which are drawn if it is missing or damaged."""
        name, what = full_name(protocol), "full precision"
        if not qconfig.is_full:
            name = f"pictures/{qconfig.digest[:16]}-{protocol.digest[:16]}.safetensors"
            what = f"configuration {qconfig.digest[:12]}"
        path = self.store.path(name)
        frames, edge = protocol.frames, protocol.resolution_px
        shape = (num_images * frames, edge, edge, 3)
        if path.exists():
            try:
                if read_full(path).shape != shape:
                    raise StoreError(f"{path} holds pictures of another number or size")
                return path
            except StoreError as error:
                tqdm.write(f"{what} is drawn again: {error}")
        about = {"protocol": protocol.to_json(), "qconfig": qconfig.to_json()}
        size = frames * math.prod(shape[1:])

        def fill(partial: Path) -> None:
            metadata = {"qsdm": json.dumps(about)}
            with TensorFile(partial, {"images": ("U8", shape)}, metadata) as file:
                for start, images in self._batches(qconfig, protocol, num_images, batch, what):
                    file.write("images", images.data, start * size)

        replace(path, fill)
        return path

    def _batches(
        self,
        qconfig: QuantConfig,
        protocol: Protocol,
        num_images: int,
        batch: int | None,
        what: str,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of the first drawing, and a batch of pictures, as they arrive."""
        size = batch or self.batch_size
        tasks = [
            DrawTask(qconfig, protocol, i, min(i + size, num_images))
            for i in range(0, num_images, size)
        ]
        for i, result in tqdm(self.pool.map(tasks), what, len(tasks), disable=None, unit="batch"):
            if isinstance(result, Failure):
                raise EvaluationError(
                    f"configuration {qconfig.digest[:12]} draws no pictures: {result.reason}"
                )
            expected = (tasks[i].stop - tasks[i].start) * protocol.frames
            if len(result) != expected:
                raise EvaluationError(
                    f"configuration {qconfig.digest[:12]} drew {len(result)} pictures, "
                    f"not {expected}"
                )
            yield tasks[i].start, result

    def measure(
        self,
        qconfigs: Sequence[QuantConfig],
        protocol: Protocol,
        stage: str = "measure",
        log: Log = ignore,
    ) -> Measured:
        """Measure configurations; outcomes are written to the store as they arrive.

        Args:
            qconfigs: configurations, of which one may occur twice.
            protocol: how their pictures are drawn.
            stage: what they are measured for: measure, test, probe, rounds, candidates or realize.
            log: receives the metrics of every outcome.

        Returns:
            Their outcomes.

        Raises:
            StoreError: the store is damaged or cannot be written.
            EvaluationError: full precision draws no pictures.
            ValueError: a configuration's bin holds none of the protocol's steps.
        """
        for qconfig in qconfigs:
            require_steps(qconfig, protocol.steps)
        intake = Intake(self.store, protocol, self.model.metrics, self.shard, stage, log)
        missing = intake.expect(qconfigs)
        if not missing:
            return intake.measured
        full = self.full(protocol)
        workers = self.num_workers or 1
        if len(missing) < 2 * workers and len(missing) % workers:  # else some would be idle
            intake.split(workers, self.batch_size)
        with tqdm(desc=stage, total=len(missing), disable=None, unit="configuration") as bar:
            tasks = intake.tasks(full)
            bar.update(len(missing) - len(intake.missing()))
            for i, result in self.pool.map(tasks):
                bar.update(intake.take(tasks[i], result))
        return intake.measured


@contextmanager
def open_session(
    subject: Subject,
    engine: Engine,
    batch_size: int = 16,
    shard: int = 1024,
    check: bool = True,
) -> Iterator[Session]:
    """Start workers for a traced and calibrated model.

    Args:
        subject: what is measured.
        engine: where workers run.
        batch_size: number of drawings at a time, at most.
        shard: number of drawings per task; a configuration of more is drawn by several workers.
        check: whether to refuse prompts that the pipeline cannot draw now, rather than when
            something is drawn. It imports the pipeline's class, which takes seconds.

    Yields:
        The session.

    Raises:
        StoreError: the model is not traced or not calibrated.
        EvaluationError: a number is out of range.
        ModelError: bits of inputs are offered for several parts of a pipeline.
        PromptsError: the pipeline needs other prompts.
    """
    if batch_size < 1 or shard < 1:
        raise EvaluationError(
            f"batch_size and shard must be positive (got {batch_size} and {shard})"
        )
    model, space = subject.model, subject.space
    packed = subject.packed
    if space.rounds_inputs:
        require_one_part(model, "bits of inputs are chosen in")
    if check:
        _check(model)
    with engine.open(WorkerStart(model, space.graph, packed, batch_size)) as pool:
        here = engine.num_workers if isinstance(engine, Local | Serial) else None
        checked = _CheckedPool(pool, model, here, is_checked=check)
        yield Session(
            model,
            space,
            subject.store,
            checked,
            batch_size,
            shard,
            fitted_version(packed),
            engine.num_workers,
        )


@dataclass(slots=True)
class _CheckedPool:
    """Workers that get no task before it is known that they can draw the prompts, and have memory.

    Both are checked once: a file of captions may be large, and later the workers run.

    Attributes:
        pool: the workers.
        model: whose pipeline each of them loads.
        num_here: of them on this machine; None if they may be on others.
        is_checked: whether the prompts were.
    """

    pool: Pool
    model: Model
    num_here: int | None
    is_checked: bool

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        if not self.is_checked:
            _check(self.model)
            self.is_checked = True
        if self.num_here is not None and tasks:
            num_workers = min(self.num_here, len(tasks))
            require_memory("drawing", loaded_bytes(self.model), num_workers, ADVICE)
            self.num_here = None
        return self.pool.map(tasks)


def _check(model: Model) -> None:
    if model.prompts is not None:
        check_prompts(model, prompts_of(model))


def full_name(protocol: Protocol) -> str:
    """Name of the artifact that holds a protocol's full-precision pictures.

    Args:
        protocol: how they are drawn.
    """
    return f"pictures/full-{drawing_digest(protocol)[:16]}.safetensors"
