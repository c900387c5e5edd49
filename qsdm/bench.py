"""Many configurations under one or two protocols, through an engine, into the store: what `measure` and `realize` have
in common.

The full-precision pictures of a protocol are made first and stored; other pictures are compared with them. What the
store already holds is not measured again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qsdm.calibration import PackedWeights, read_table
from qsdm.denoisers import Model
from qsdm.engine import Engine, EngineError, Failure, Pool
from qsdm.evaluation import Evaluator
from qsdm.graph import Graph
from qsdm.log import Log, ignore
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.protocols import drawing_digest, prompts_of, protocol_of
from qsdm.qconfig import QuantConfig, Space, SpaceSpec
from qsdm.scoring import Seen, outcome_of
from qsdm.shards import Shards
from qsdm.store import OutcomeDatabase, Store, StoreError, read_json, replace
from qsdm.tensor_file import TensorFile, map_tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """A task: pictures ``start`` to ``stop`` of a protocol => uint8 [N, H, W, 3]."""

    qconfig: QuantConfig
    protocol: Protocol
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Look:
    """A task: pictures ``start`` to ``stop`` of a protocol => what the metrics need of them, `Seen`.

    Attributes:
        full: file of the full-precision pictures.
    """

    qconfig: QuantConfig
    protocol: Protocol
    full: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker needs to begin."""

    model: Model
    graph: Graph
    packed: Path | None
    batch_size: int

    def __call__(self) -> Callable[[Draw | Look], np.ndarray | Seen]:
        packed = PackedWeights(self.packed) if self.packed is not None else None
        prompts = prompts_of(self.model)
        evaluators: dict[str, Evaluator] = {}

        def evaluator(protocol: Protocol) -> Evaluator:
            if protocol.digest not in evaluators:
                first = next(iter(evaluators.values()), None)
                if first is None:
                    made = Evaluator(
                        self.model, self.graph, packed, self.model.metrics, protocol, prompts, self.batch_size
                    )
                    if packed is not None:
                        check_packed(self.graph, dict(made.denoiser.named_parameters()), packed)
                else:
                    made = first.under(protocol, prompts)
                evaluators[protocol.digest] = made
            return evaluators[protocol.digest]

        def work(task: Draw | Look) -> np.ndarray | Seen:
            ready = evaluator(task.protocol)
            if isinstance(task, Draw):
                return ready.pictures(task.qconfig, task.start, task.stop)
            if not ready.has_full:
                ready.full(read_full(task.full))
            return ready.seen(task.qconfig, task.start, task.stop)

        return work


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


@dataclass(frozen=True, slots=True)
class Bench:
    """Running workers for one model and space. See `bench`."""

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
        return protocol_of(self.model, self.model.metrics, prompts_of(self.model), seed_set, num_images)

    def full(self, protocol: Protocol) -> Path:
        """The file of the protocol's full-precision pictures, made if there is none."""
        path = self.store.path(full_name(protocol))
        if path.exists():
            try:
                read_full(path)
                return path
            except StoreError as error:
                tqdm.write(f"full precision is drawn again: {error}")
        about = {"qsdm": json.dumps({"protocol": protocol.to_json()})}
        shape = (protocol.num_images, protocol.resolution_px, protocol.resolution_px, 3)
        size = math.prod(shape[1:])

        def fill(partial: Path) -> None:
            with TensorFile(partial, {"images": ("U8", shape)}, about) as file:
                for start, images in self._batches(
                    QuantConfig(self.model.name, {}), protocol, shape[0], "full precision"
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
        """The first pictures of a protocol, uint8 [N, H, W, 3], one batch per task."""
        parts = dict(self._batches(qconfig, protocol, num_images, what, batch))
        return np.concatenate([parts[start] for start in sorted(parts)])

    def _batches(
        self, qconfig: QuantConfig, protocol: Protocol, num_images: int, what: str | None, batch: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Place of the first picture, and a batch of pictures, as they come."""
        size = batch or self.batch_size
        tasks = [Draw(qconfig, protocol, i, min(i + size, num_images)) for i in range(0, num_images, size)]
        for i, result in tqdm(self.pool.map(tasks), what, len(tasks), disable=None if what else True, unit="batch"):
            if isinstance(result, Failure):
                raise EvaluationError(f"configuration {qconfig.digest[:12]} draws no pictures: {result.reason}")
            yield tasks[i].start, result

    def measure(
        self, qconfigs: Sequence[QuantConfig], protocol: Protocol, what: str = "measure", log: Log = ignore
    ) -> Measured:
        """Outcomes of the configurations, written to the store as they come.

        Args:
            qconfigs: may name one twice.
            what: they are measured for, stored with them: measure, candidates or realize.
        """
        wanted = {qconfig.digest: qconfig for qconfig in qconfigs}
        measured = Measured()
        shards = Shards(self.store, protocol, self.shard)
        for outcome in self.store.outcomes(protocol):
            if outcome.qconfig.digest in wanted:
                measured.outcomes[outcome.qconfig.digest] = outcome
                shards.remove(outcome.qconfig)  # of a run that was killed between storing and removing
        missing = [qconfig for digest, qconfig in wanted.items() if digest not in measured.outcomes]
        if not missing:
            return measured
        database = OutcomeDatabase(self.store.path("outcomes.sqlite"))
        full = self.full(protocol)
        spans = {qconfig.digest: shards.missing(qconfig) for qconfig in missing}
        tasks = [Look(qconfig, protocol, full, *span) for qconfig in missing for span in spans[qconfig.digest]]
        bar = tqdm(desc=what, total=len(missing), disable=None, unit="configuration")
        whole = [qconfig for qconfig in missing if not spans[qconfig.digest]]  # all drawn, then killed
        with bar:
            for qconfig in whole:
                self._add(qconfig, protocol, shards, database, measured, what, log)
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
                    self._add(qconfig, protocol, shards, database, measured, what, log)
                    bar.update()
        return measured

    def _add(
        self,
        qconfig: QuantConfig,
        protocol: Protocol,
        shards: Shards,
        database: OutcomeDatabase,
        measured: Measured,
        what: str,
        log: Log,
    ) -> None:
        """Store the outcome of what was seen, if it is finite."""
        try:
            outcome = outcome_of(qconfig, protocol, self.model.metrics, shards.collect(qconfig))
        except EvaluationError as error:
            measured.set_aside(qconfig, str(error))
            return
        outcome = dataclasses.replace(outcome, provenance={**outcome.provenance, "stage": what})
        database.add(outcome, protocol)
        shards.remove(qconfig)
        measured.outcomes[qconfig.digest] = outcome
        values = {f"{what}/{name}": value for name, value in outcome.metrics.items() if value is not None}
        log(values | {f"{what}/outcomes": len(measured.outcomes), f"{what}/set_aside": len(measured.failures)})


@contextmanager
def bench(
    model: Model,
    space: SpaceSpec,
    store: Path,
    engine: Engine,
    batch_size: int = 16,
    quantized: bool = True,
    shard: int = 1024,
) -> Iterator[Bench]:
    """Start workers for a traced and calibrated model.

    Args:
        quantized: False if only full precision is drawn.
        shard: pictures per task; a configuration of more is drawn by several workers.

    Raises:
        StoreError: it is not traced or not calibrated.
    """
    if batch_size < 1 or shard < 1:
        raise EvaluationError(f"batch_size and shard must be positive (got {batch_size} and {shard})")
    place = Store(store, model.name)
    graph = Graph.from_json(read_json(place.find("graph.json", made_by="trace")))
    spaced = space.of(graph, model.full_bits)
    packed = None
    if quantized:
        packed = place.find(f"calibration/{space.name}/weights.safetensors", made_by="calibrate").parent
    with engine.open(Start(model, spaced.graph, packed, batch_size)) as pool:
        yield Bench(model, spaced, place, pool, batch_size, shard)


def check_packed(graph: Graph, parameters: Mapping[str, Any], packed: PackedWeights) -> None:
    """Refuse packed weights of another training: some errors to the denoiser's own weights must be those of the table.

    Raises:
        EngineError: they are not; no other task can be done either.
    """
    table = read_table(packed.path)
    names = {name: i for i, name in enumerate(table.weights)}
    for weight in graph.weights[:: max(1, len(graph.weights) // 4)]:
        if weight.name not in names:
            continue
        row = table.rel_error[names[weight.name]]
        best = int(np.nanargmin(row))
        own = parameters[weight.parameter].detach()[:, weight.start : weight.start + weight.shape[1]].float()
        difference = packed.dequantize(weight.name, table.methods[best]) - own
        error = float(difference.square().sum() / own.square().sum().clamp_min(1e-30))
        if abs(error - row[best]) > 0.2 * row[best] + 1e-4:
            raise EngineError(
                f"{packed.path} was made from other weights of {graph.denoiser!r}: "
                f"run python -m qsdm.calibrate +model={graph.denoiser}"
            )


def full_name(protocol: Protocol) -> str:
    """The artifact that holds a protocol's full-precision pictures."""
    return f"pictures/full-{drawing_digest(protocol)[:16]}.safetensors"


def read_full(path: Path) -> np.ndarray:
    """Full-precision pictures uint8 [N, H, W, 3], read from the file when they are looked at."""
    try:
        images = map_tensor(path, "images")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} holds no pictures ({error}): remove it, it is made again") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise StoreError(f"{path} holds no pictures: remove it, it is made again")
    return images
