"""One running measurement: which outcomes are there, which are missing, and what workers return."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from qsdm.engine import Failure
from qsdm.measurement.protocol import versions_of
from qsdm.measurement.scoring import ScoredShard, outcome_of
from qsdm.measurement.shards import Shards
from qsdm.measurement.worker import ScoreTask
from qsdm.metrics import Metric
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.qconfig import QuantConfig
from qsdm.store import Store
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.text import Log, ignore


@dataclass(slots=True)
class Measured:
    """What came out of a measurement.

    Attributes:
        outcomes: by digest of the configuration.
        failures: why other configurations were set aside, by digest.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def set_aside(self, qconfig: QuantConfig, reason: str) -> None:
        """Note that a configuration cannot be measured, and tell the user.

        Args:
            qconfig: the configuration.
            reason: one sentence.
        """
        self.failures[qconfig.digest] = reason
        tqdm.write(f"configuration {qconfig.digest[:12]} was set aside: {reason}")

    def of(self, qconfig: QuantConfig) -> Outcome:
        """The outcome of a configuration.

        Args:
            qconfig: the configuration.

        Raises:
            EvaluationError: it has none.
        """
        if qconfig.digest not in self.outcomes:
            reason = self.failures.get(qconfig.digest, "it was not measured")
            raise EvaluationError(f"configuration {qconfig.digest[:12]} has no outcome: {reason}")
        return self.outcomes[qconfig.digest]


@dataclass(slots=True, eq=False)
class Intake:
    """Takes what workers return, and stores each outcome as soon as its pictures are complete.

    Attributes:
        store: of the model.
        protocol: of all pictures.
        metrics: that every outcome shall have, by name.
        shard: drawings per task.
        stage: what is measured for, stored with the outcomes: measure, test, candidates or realize.
        log: receives the metrics of every outcome.
        measured: outcomes so far.
    """

    store: Store
    protocol: Protocol
    metrics: Mapping[str, Metric]
    shard: int
    stage: str = "measure"
    log: Log = ignore
    measured: Measured = field(default_factory=Measured, init=False)
    _shards: Shards = field(init=False)
    _database: OutcomeDatabase | None = field(default=None, init=False)
    _expected: dict[str, QuantConfig] = field(default_factory=dict, init=False)
    _partial: dict[str, Outcome] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        versions = versions_of(self.metrics)
        self._shards = Shards(self.store, self.protocol, self.shard, versions)

    def expect(self, qconfigs: Sequence[QuantConfig]) -> list[QuantConfig]:
        """Begin with the configurations that are to be measured.

        Args:
            qconfigs: configurations, of which one may occur twice.

        Returns:
            Those without an outcome, or whose outcome lacks a metric.

        Raises:
            StoreError: the outcomes are damaged.
        """
        self._expected = {qconfig.digest: qconfig for qconfig in qconfigs}
        begun = self._shards.begun()
        for outcome in self.store.outcomes(self.protocol):
            digest = outcome.qconfig.digest
            if digest not in self._expected:
                continue
            if outcome.lacks(self._shards.versions):
                self._partial[digest] = outcome
                continue
            self.measured.outcomes[digest] = outcome
            if digest[:16] in begun:  # by a run that was killed before it removed them
                self._shards.remove(outcome.qconfig)
        missing = self.missing()
        if missing:  # now, before anything is drawn
            self._database = OutcomeDatabase(self.store.path("outcomes.sqlite"))
        return missing

    def missing(self) -> list[QuantConfig]:
        """List the configurations that are neither measured nor set aside."""
        done = self.measured.outcomes.keys() | self.measured.failures.keys()
        return [qconfig for digest, qconfig in self._expected.items() if digest not in done]

    def split(self, num_parts: int, batch_size: int) -> None:
        """Make smaller shards, of whole batches, so that several workers draw a configuration.

        Args:
            num_parts: of a configuration, at most.
            batch_size: number of drawings at a time, at most.
        """
        part = -(-self.protocol.num_images // num_parts)
        whole = -(-part // batch_size) * batch_size
        self._shards = dataclasses.replace(self._shards, size=min(self.shard, whole))

    def tasks(self, full: Path) -> list[ScoreTask]:
        """Store the outcomes whose pictures are complete, and list what is to be drawn for others.

        Args:
            full: file of the full-precision pictures.

        Returns:
            A task per missing shard.

        Raises:
            StoreError: an outcome cannot be written.
        """
        tasks: list[ScoreTask] = []
        for qconfig in self.missing():
            spans = self._shards.missing(qconfig)
            if not spans:  # a run was killed between its last shard and its outcome
                self._finish(qconfig)
            tasks += [ScoreTask(qconfig, self.protocol, full, *span) for span in spans]
        return tasks

    def take(self, task: ScoreTask, result: ScoredShard | Failure) -> int:
        """Take what a worker returned.

        Args:
            task: that it did.
            result: the scored pictures, or why there are none.

        Returns:
            1 if the task's configuration is finished or set aside by it, else 0.

        Raises:
            StoreError: a shard or an outcome cannot be written.
        """
        qconfig = task.qconfig
        if isinstance(result, Failure):
            if qconfig.digest in self.measured.failures:
                return 0
            self.measured.set_aside(qconfig, result.reason)
            return 1
        self._shards.add(qconfig, task.start, result)
        if self._shards.missing(qconfig):
            return 0
        self._finish(qconfig)
        return 1

    def _finish(self, qconfig: QuantConfig) -> None:
        """Store the outcome of a configuration, if it is finite, beside metrics measured before."""
        shards = self._shards.collect(qconfig)
        try:
            outcome = outcome_of(qconfig, self.protocol, self.metrics, shards)
        except EvaluationError as error:
            self.measured.set_aside(qconfig, str(error))
            return
        about = {**outcome.provenance, "stage": self.stage}
        outcome = dataclasses.replace(outcome, provenance=about)
        assert self._database is not None
        self._database.add(outcome, self.protocol)
        self._shards.remove(qconfig)
        if (before := self._partial.get(qconfig.digest)) is not None:
            outcome = before.merged(outcome)
        self.measured.outcomes[qconfig.digest] = outcome
        values = {
            f"{self.stage}/{name}": value
            for name, value in outcome.metrics.items()
            if value is not None
        }
        counts = {
            f"{self.stage}/outcomes": len(self.measured.outcomes),
            f"{self.stage}/set_aside": len(self.measured.failures),
        }
        self.log(values | counts)
