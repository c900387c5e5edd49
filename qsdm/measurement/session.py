"""Many configurations under one or two protocols, through an engine, into the store: what `measure` and `realize` have
in common.

The full-precision pictures of a protocol are made first and stored; other pictures are compared with them. What the
store already holds is not measured again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
from tqdm import tqdm

from qsdm.denoisers import Model, check_prompts, prompts_of
from qsdm.engine import Engine, Failure, Pool
from qsdm.log import Log, ignore
from qsdm.measurement.protocol import drawing_digest, protocol_of, versions_of
from qsdm.measurement.scoring import outcome_of
from qsdm.measurement.shards import Shards
from qsdm.measurement.worker import DrawTask, ScoreTask, WorkerStart, read_full
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.qconfig import QuantConfig, Space
from qsdm.store import Store, StoreError
from qsdm.store.files import replace
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.tensors import TensorFile


@dataclass(slots=True)
class Measured:
    """Outcomes by the digest of their configuration, and the reasons why others were set aside."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def set_aside(self, qconfig: QuantConfig, reason: str) -> None:
        self.failures[qconfig.digest] = reason
        tqdm.write(f"configuration {qconfig.digest[:12]} was set aside: {reason}")

    def of(self, qconfig: QuantConfig) -> Outcome:
        """Raises EvaluationError if it was set aside."""
        if qconfig.digest not in self.outcomes:
            reason = self.failures.get(qconfig.digest, "it was not measured")
            raise EvaluationError(f"configuration {qconfig.digest[:12]} has no outcome: {reason}")
        return self.outcomes[qconfig.digest]


class Subject(Interface):
    """What is measured; a `qsdm.workspace.Workspace`."""

    @property
    def model(self) -> Model: ...

    @property
    def space(self) -> Space: ...

    @property
    def store(self) -> Store: ...

    @property
    def packed(self) -> Path:
        """The directory of the quantized weights. Raises StoreError if the model was not calibrated."""


@dataclass(frozen=True, slots=True)
class Session:
    """Running workers for one model and space. See `open_session`."""

    model: Model
    space: Space
    store: Store
    pool: Pool
    batch_size: int
    shard: int

    def protocol(self, seed_set: int, num_images: int) -> Protocol:
        """Raises EvaluationError if the model has no metrics."""
        if not self.model.metrics:
            raise EvaluationError(
                f"model {self.model.name} has no metrics: add metrics=NAME, with a NAME of conf/metrics"
            )
        return protocol_of(self.model, prompts_of(self.model), seed_set, num_images)

    @property
    def versions(self) -> dict[str, str]:
        """Of the metrics that every outcome shall have, by name."""
        return versions_of(self.model.metrics)

    def full(self, protocol: Protocol) -> Path:
        """The file of the protocol's full-precision pictures, made if there is none."""
        path = self.store.path(full_name(protocol))
        num, frames, edge = protocol.num_images, protocol.frames, protocol.resolution_px
        shape = (num * frames, edge, edge, 3)
        if path.exists():
            try:
                if read_full(path).shape != shape:
                    raise StoreError(f"{path} holds pictures of another number or size")
                return path
            except StoreError as error:
                tqdm.write(f"full precision is drawn again: {error}")
        about = {"qsdm": json.dumps({"protocol": protocol.to_json()})}
        size = frames * math.prod(shape[1:])

        def fill(partial: Path) -> None:
            with TensorFile(partial, {"images": ("U8", shape)}, about) as file:
                for start, images in self._batches(
                    QuantConfig(self.model.name, {}), protocol, num, "full precision"
                ):
                    file.write("images", images.data, start * size)

        replace(path, fill)
        return path

    def draw(
        self,
        qconfig: QuantConfig,
        protocol: Protocol,
        num_images: int,
        what: str | None = None,
        batch: int | None = None,
    ) -> np.ndarray:
        """The pictures of a protocol's first drawings, uint8 [N, H, W, 3], one batch per task."""
        parts = dict(self._batches(qconfig, protocol, num_images, what, batch))
        return np.concatenate([parts[start] for start in sorted(parts)])

    def _batches(
        self,
        qconfig: QuantConfig,
        protocol: Protocol,
        num_images: int,
        what: str | None,
        batch: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Place of the first picture, and a batch of pictures, as they come."""
        size = batch or self.batch_size
        tasks = [
            DrawTask(qconfig, protocol, i, min(i + size, num_images))
            for i in range(0, num_images, size)
        ]
        for i, result in tqdm(
            self.pool.map(tasks), what, len(tasks), disable=None if what else True, unit="batch"
        ):
            if isinstance(result, Failure):
                raise EvaluationError(
                    f"configuration {qconfig.digest[:12]} draws no pictures: {result.reason}"
                )
            wanted = (tasks[i].stop - tasks[i].start) * protocol.frames
            if len(result) != wanted:
                raise EvaluationError(
                    f"configuration {qconfig.digest[:12]} drew {len(result)} pictures, not {wanted}"
                )
            yield tasks[i].start, result

    def measure(
        self,
        qconfigs: Sequence[QuantConfig],
        protocol: Protocol,
        what: str = "measure",
        log: Log = ignore,
    ) -> Measured:
        """Outcomes of the configurations, written to the store as they come.

        Args:
            qconfigs: may name one twice.
            what: they are measured for, stored with them: measure, candidates or realize.
        """
        wanted = {qconfig.digest: qconfig for qconfig in qconfigs}
        measured = Measured()
        versions = self.versions
        shards = Shards(self.store, protocol, self.shard, versions)
        partial: dict[str, Outcome] = {}  # metrics were added since, or are of another version
        for outcome in self.store.outcomes(protocol):
            if outcome.qconfig.digest in wanted:
                if outcome.lacks(versions):
                    partial[outcome.qconfig.digest] = outcome
                    continue
                measured.outcomes[outcome.qconfig.digest] = outcome
                shards.remove(
                    outcome.qconfig
                )  # of a run that was killed between storing and removing
        missing = [qconfig for digest, qconfig in wanted.items() if digest not in measured.outcomes]
        if not missing:
            return measured
        database = OutcomeDatabase(self.store.path("outcomes.sqlite"))
        full = self.full(protocol)
        spans = {qconfig.digest: shards.missing(qconfig) for qconfig in missing}
        tasks = [
            ScoreTask(qconfig, protocol, full, *span)
            for qconfig in missing
            for span in spans[qconfig.digest]
        ]
        bar = tqdm(desc=what, total=len(missing), disable=None, unit="configuration")
        whole = [
            qconfig for qconfig in missing if not spans[qconfig.digest]
        ]  # all drawn, then killed
        with bar:
            for qconfig in whole:
                self._add(qconfig, protocol, shards, database, measured, partial, what, log)
                bar.update()
            for i, result in self.pool.map(tasks):
                qconfig = tasks[i].qconfig
                if isinstance(result, Failure):
                    if qconfig.digest not in measured.failures:
                        measured.set_aside(qconfig, result.reason)
                        bar.update()
                    continue
                shards.add(qconfig, tasks[i].start, result)
                if not shards.missing(qconfig):
                    self._add(qconfig, protocol, shards, database, measured, partial, what, log)
                    bar.update()
        return measured

    def _add(
        self,
        qconfig: QuantConfig,
        protocol: Protocol,
        shards: Shards,
        database: OutcomeDatabase,
        measured: Measured,
        partial: Mapping[str, Outcome],
        what: str,
        log: Log,
    ) -> None:
        """Store the outcome of what was seen, if it is finite, beside what is known of its pictures (``partial``)."""
        try:
            outcome = outcome_of(qconfig, protocol, self.model.metrics, shards.collect(qconfig))
        except EvaluationError as error:
            measured.set_aside(qconfig, str(error))
            return
        outcome = dataclasses.replace(outcome, provenance={**outcome.provenance, "stage": what})
        database.add(outcome, protocol)
        shards.remove(qconfig)
        if (before := partial.get(qconfig.digest)) is not None:
            outcome = before.merged(outcome)
        measured.outcomes[qconfig.digest] = outcome
        values = {
            f"{what}/{name}": value for name, value in outcome.metrics.items() if value is not None
        }
        log(
            values
            | {
                f"{what}/outcomes": len(measured.outcomes),
                f"{what}/set_aside": len(measured.failures),
            }
        )


@contextmanager
def open_session(
    subject: Subject,
    engine: Engine,
    batch_size: int = 16,
    quantized: bool = True,
    shard: int = 1024,
) -> Iterator[Session]:
    """Start workers for a traced and calibrated model.

    Args:
        subject: what is measured.
        engine: where workers run.
        batch_size: pictures that a worker draws at a time, at most.
        quantized: False if only full precision is drawn.
        shard: pictures per task; a configuration of more is drawn by several workers.

    Raises:
        StoreError: it is not traced or not calibrated.
    """
    if batch_size < 1 or shard < 1:
        raise EvaluationError(
            f"batch_size and shard must be positive (got {batch_size} and {shard})"
        )
    model, space = subject.model, subject.space
    packed = subject.packed if quantized else None
    if model.prompts is not None:
        check_prompts(model, prompts_of(model))
    with engine.open(WorkerStart(model, space.graph, packed, batch_size)) as pool:
        yield Session(model, space, subject.store, pool, batch_size, shard)


def full_name(protocol: Protocol) -> str:
    """The artifact that holds a protocol's full-precision pictures."""
    return f"pictures/full-{drawing_digest(protocol)[:16]}.safetensors"
