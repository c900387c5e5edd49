"""Many configurations under one or two protocols, through an engine, into the store: what `measure` and `realize` have
in common.

The full-precision pictures of a protocol are made first and stored; other pictures are compared with them. What the
store already holds is not measured again.
"""

from __future__ import annotations

import dataclasses
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
from qsdm.evaluation import EvaluationError, Evaluator, drawing_digest, prompts_of, protocol_of
from qsdm.graph import Graph
from qsdm.log import Log, ignore
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, Space, SpaceSpec
from qsdm.store import OutcomeDatabase, Store, StoreError, read_json, read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class Draw:
    """A task: pictures ``start`` to ``stop`` of a protocol => uint8 [N, H, W, 3]."""

    qconfig: QuantConfig
    protocol: Protocol
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Score:
    """A task: all pictures of a protocol => `Outcome`.

    Attributes:
        full: file of the full-precision pictures.
    """

    qconfig: QuantConfig
    protocol: Protocol
    full: Path


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker needs to begin."""

    model: Model
    graph: Graph
    packed: Path | None
    batch_size: int

    def __call__(self) -> Callable[[Draw | Score], np.ndarray | Outcome]:
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

        def work(task: Draw | Score) -> np.ndarray | Outcome:
            ready = evaluator(task.protocol)
            if isinstance(task, Draw):
                return ready.pictures(task.qconfig, task.start, task.stop)
            if not ready.has_full:
                ready.full(read_full(task.full))
            return ready.outcome(task.qconfig)

        return work


@dataclass(slots=True)
class Measured:
    """Outcomes by the digest of their configuration, and the reasons why others were set aside."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

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

    def protocol(self, seed_set: int, num_images: int) -> Protocol:
        """Raises EvaluationError if the model has no metrics."""
        if not self.model.metrics:
            raise EvaluationError(
                f"model {self.model.name} has no metrics: add +metrics@model.metrics=NAME, with a NAME of conf/metrics"
            )
        return protocol_of(self.model, self.model.metrics, prompts_of(self.model), seed_set, num_images)

    def full(self, protocol: Protocol) -> Path:
        """The file of the protocol's full-precision pictures, made if there is none."""
        name = full_name(protocol)
        try:
            return self.store.find(name, made_by="measure")
        except StoreError:
            path = self.store.path(name)
        images = self.draw(QuantConfig(self.model.name, {}), protocol, protocol.num_images, "full precision")
        write_tensors(path, {"images": images}, {"protocol": protocol.to_json()})
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
        size = batch or self.batch_size
        tasks = [Draw(qconfig, protocol, i, min(i + size, num_images)) for i in range(0, num_images, size)]
        parts: dict[int, np.ndarray] = {}
        for i, result in tqdm(self.pool.map(tasks), what, len(tasks), disable=None if what else True, unit="batch"):
            if isinstance(result, Failure):
                raise EvaluationError(f"configuration {qconfig.digest[:12]} draws no pictures: {result.reason}")
            parts[i] = result
        return np.concatenate([parts[i] for i in range(len(tasks))])

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
        for outcome in self.store.outcomes(protocol):
            if outcome.qconfig.digest in wanted:
                measured.outcomes[outcome.qconfig.digest] = outcome
        missing = [qconfig for digest, qconfig in wanted.items() if digest not in measured.outcomes]
        if not missing:
            return measured
        database = OutcomeDatabase(self.store.path("outcomes.sqlite"))
        full = self.full(protocol)
        tasks = [Score(qconfig, protocol, full) for qconfig in missing]
        for i, result in tqdm(self.pool.map(tasks), what, len(tasks), disable=None, unit="configuration"):
            digest = missing[i].digest
            if isinstance(result, Failure):
                measured.failures[digest] = result.reason
                tqdm.write(f"configuration {digest[:12]} was set aside: {result.reason}")
                continue
            outcome = dataclasses.replace(result, provenance={**result.provenance, "stage": what})
            database.add(outcome, protocol)
            measured.outcomes[digest] = outcome
            values = {f"{what}/{name}": value for name, value in outcome.metrics.items() if value is not None}
            log(values | {f"{what}/outcomes": len(measured.outcomes), f"{what}/set_aside": len(measured.failures)})
        return measured


@contextmanager
def bench(
    model: Model, space: SpaceSpec, store: Path, engine: Engine, batch_size: int = 64, quantized: bool = True
) -> Iterator[Bench]:
    """Start workers for a traced and calibrated model.

    Args:
        quantized: False if only full precision is drawn.

    Raises:
        StoreError: it is not traced or not calibrated.
    """
    if batch_size < 1:
        raise EvaluationError(f"batch_size must be positive (got {batch_size})")
    place = Store(store, model.name)
    graph = Graph.from_json(read_json(place.find("graph.json", made_by="trace")))
    spaced = space.of(graph, model.full_bits)
    packed = None
    if quantized:
        packed = place.find(f"calibration/{space.name}/weights.safetensors", made_by="calibrate").parent
    with engine.open(Start(model, spaced.graph, packed, batch_size)) as pool:
        yield Bench(model, spaced, place, pool, batch_size)


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
    """Full-precision pictures uint8 [N, H, W, 3]."""
    images = read_tensors(path)[0].get("images")
    if images is None or images.dtype != np.uint8 or images.ndim != 4:
        raise StoreError(f"{path} holds no pictures: remove it, it is made again")
    return images
