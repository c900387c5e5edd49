"""A running measurement without a pipeline: what is missing, what comes in, what is stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qsdm.engine import Failure
from qsdm.measurement.intake import Intake
from qsdm.measurement.scoring import ScoredShard
from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.store import Store, StoreError
from qsdm.store.outcomes import OutcomeDatabase

NUM, SHARD = 8, 4
PROTOCOL = Protocol("a", "0", "1", "DDIM", 10, 2.0, 32, "float32", "1", 0, NUM, pipeline="p")
CONFIGS = [QuantConfig("a", {"w": QuantMethod("uaq", bits)}) for bits in (2, 3, 4)]
FULL_PICTURES = Path("full.safetensors")


class Mean:
    """The mean of a feature; other values are another version."""

    larger_is_better = True

    def __init__(self, name: str = "mean", version: str = "1") -> None:
        self.name, self.version = name, version

    def features(self, images, captions, full) -> np.ndarray:
        raise NotImplementedError

    def reduce(self, features: np.ndarray) -> float:
        return float(features.mean())


def shard_of(start: int, value: float = 0.0, names: tuple[str, ...] = ("mean",)) -> ScoredShard:
    values = np.arange(start, start + SHARD, dtype=np.float32)[:, None] + np.float32(value)
    about = {"drawing_s": 1.0, "scoring_s": 0.5, "made": "2026-01-01", "versions": {}}
    digests = np.full((SHARD, 32), start, np.uint8)
    return ScoredShard(dict.fromkeys(names, values), digests, about)


def intake_of(root: Path, *metrics: Mean, shard: int = SHARD, **options) -> Intake:
    by_name = {metric.name: metric for metric in metrics or (Mean(),)}
    return Intake(Store(root, "a"), PROTOCOL, by_name, shard, **options)


def run(intake: Intake, *, stop_after: int | None = None) -> None:
    """Every task in order, with the values that its configuration's bits say."""
    for task in intake.tasks(FULL_PICTURES)[:stop_after]:
        bits = task.qconfig.methods["w"].bits
        intake.take(task, shard_of(task.start, bits, tuple(intake.metrics)))


def test_an_outcome_is_stored_when_its_last_shard_arrives(tmp_path: Path) -> None:
    logged: list[dict] = []
    intake = intake_of(tmp_path, stage="realize", log=lambda values: logged.append(dict(values)))
    assert intake.expect([*CONFIGS, CONFIGS[0]]) == CONFIGS
    tasks = intake.tasks(FULL_PICTURES)
    assert [(t.qconfig, t.start, t.stop) for t in tasks[:2]] == [
        (CONFIGS[0], 0, 4),
        (CONFIGS[0], 4, 8),
    ]
    assert intake.take(tasks[1], shard_of(4, 2.0)) == 0
    assert not Store(tmp_path, "a").outcomes()
    assert intake.take(tasks[0], shard_of(0, 2.0)) == 1
    (stored,) = Store(tmp_path, "a").outcomes(PROTOCOL)
    assert stored.metrics == {"mean": pytest.approx(3.5 + 2)}
    assert stored.provenance["stage"] == "realize"
    assert stored.provenance["drawing_s"] == 2.0
    assert intake.missing() == CONFIGS[1:]
    assert logged == [{"realize/mean": 5.5, "realize/outcomes": 1, "realize/set_aside": 0}]
    assert not list(tmp_path.rglob("shards/*/*"))


def test_a_killed_measurement_continues_within_a_configuration(tmp_path: Path) -> None:
    first = intake_of(tmp_path)
    first.expect(CONFIGS)
    run(first, stop_after=3)  # one and a half configurations
    second = intake_of(tmp_path)
    assert second.expect(CONFIGS) == CONFIGS[1:]
    tasks = second.tasks(FULL_PICTURES)
    assert [(t.qconfig, t.start) for t in tasks] == [
        (CONFIGS[1], 4),
        (CONFIGS[2], 0),
        (CONFIGS[2], 4),
    ]
    run(second)
    whole = intake_of(tmp_path / "undisturbed")
    whole.expect(CONFIGS)
    run(whole)
    assert {d: o.metrics for d, o in second.measured.outcomes.items()} == {
        d: o.metrics for d, o in whole.measured.outcomes.items()
    }
    assert not second.missing()


def test_few_configurations_are_split_into_whole_batches(tmp_path: Path) -> None:
    """All workers draw, the same batches as one would, and files of other splits do not stay."""
    spans = {}
    for parts, batch_size in ((1, 2), (2, 16), (3, 2), (4, 1), (8, 2)):
        intake = intake_of(tmp_path, shard=NUM)
        intake.expect(CONFIGS[:1])
        intake.split(parts, batch_size)
        spans[parts] = [(t.start, t.stop) for t in intake.tasks(FULL_PICTURES)]
    halves, quarters = [(0, 4), (4, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert spans == {1: [(0, 8)], 2: [(0, 8)], 3: halves, 4: quarters, 8: quarters}
    first = intake_of(tmp_path, shard=NUM)
    first.expect(CONFIGS[:1])
    first.split(3, 2)
    first._shards.add(CONFIGS[0], 4, shard_of(4))
    (killed,) = tmp_path.rglob("shards/*/*")
    second = intake_of(tmp_path, shard=NUM)
    second.expect(CONFIGS[:1])
    second.split(3, 2)
    assert [(t.start, t.stop) for t in second.tasks(FULL_PICTURES)] == [(0, 4)]
    killed.rename(killed.with_name(killed.name.replace("-4.", "-3.")))  # of another split
    run(second)
    assert second.measured.outcomes[CONFIGS[0].digest].metrics == {"mean": pytest.approx(3.5 + 1)}
    assert not list(tmp_path.rglob("shards/*/*"))


def test_an_outcome_that_was_not_stored_before_the_kill_is(tmp_path: Path) -> None:
    """All its shards lie there: nothing is drawn again."""
    first = intake_of(tmp_path)
    first.expect(CONFIGS[:1])
    for task in first.tasks(FULL_PICTURES):
        first._shards.add(task.qconfig, task.start, shard_of(task.start))
    second = intake_of(tmp_path)
    assert second.expect(CONFIGS[:1]) == CONFIGS[:1]
    assert second.tasks(FULL_PICTURES) == []
    assert second.measured.of(CONFIGS[0]).metrics == {"mean": 3.5}
    assert len(Store(tmp_path, "a").outcomes(PROTOCOL)) == 1


def test_a_failure_sets_its_configuration_aside_once(tmp_path: Path) -> None:
    intake = intake_of(tmp_path)
    intake.expect(CONFIGS[:2])
    tasks = intake.tasks(FULL_PICTURES)
    assert [intake.take(task, Failure("no picture")) for task in tasks[:2]] == [1, 0]
    assert [intake.take(task, shard_of(task.start)) for task in tasks[2:]] == [0, 1]
    assert intake.measured.failures == {CONFIGS[0].digest: "no picture"}
    assert not intake.missing()
    with pytest.raises(EvaluationError, match="has no outcome: no picture"):
        intake.measured.of(CONFIGS[0])
    with pytest.raises(EvaluationError, match="it was not measured"):
        intake.measured.of(CONFIGS[2])


def test_a_value_that_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    intake = intake_of(tmp_path)
    intake.expect(CONFIGS[:1])
    finished = [
        intake.take(task, shard_of(task.start, np.nan)) for task in intake.tasks(FULL_PICTURES)
    ]
    assert finished == [0, 1]
    assert "mean of configuration" in intake.measured.failures[CONFIGS[0].digest]
    assert not Store(tmp_path, "a").outcomes()


def test_a_metric_that_was_added_later_joins_what_was_measured(tmp_path: Path) -> None:
    first = intake_of(tmp_path)
    first.expect(CONFIGS)
    run(first)
    assert intake_of(tmp_path).expect(CONFIGS) == []
    second = intake_of(tmp_path, Mean(), Mean("other"))
    assert second.expect(CONFIGS[:1]) == CONFIGS[:1]
    run(second)
    assert set(second.measured.of(CONFIGS[0]).metrics) == {"mean", "other"}
    third = intake_of(tmp_path, Mean(version="2"))
    assert third.expect(CONFIGS[:1]) == CONFIGS[:1], "another version is measured again"


def test_shards_of_other_metrics_or_sizes_are_drawn_again(tmp_path: Path) -> None:
    first = intake_of(tmp_path)
    first.expect(CONFIGS[:1])
    run(first, stop_after=1)
    (path,) = tmp_path.rglob("shards/*/*")
    for metrics, number in (((Mean(),), 1), ((Mean(version="2"),), 2), ((Mean("other"),), 2)):
        intake = intake_of(tmp_path, *metrics)
        intake.expect(CONFIGS[:1])
        assert len(intake.tasks(FULL_PICTURES)) == number
    path.write_bytes(path.read_bytes()[:-1])
    damaged = intake_of(tmp_path)
    damaged.expect(CONFIGS[:1])
    assert len(damaged.tasks(FULL_PICTURES)) == 2


def test_outcomes_of_another_protocol_do_not_count(tmp_path: Path) -> None:
    other = dataclasses.replace(PROTOCOL, seed_set=1)
    outcome = Outcome(CONFIGS[0], other.digest, {"mean": 1.0}, NUM, versions={"mean": "1"})
    OutcomeDatabase(Store(tmp_path, "a").path("outcomes.sqlite")).add(outcome, other)
    assert intake_of(tmp_path).expect(CONFIGS[:1]) == CONFIGS[:1]


def test_a_damaged_store_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    path = Store(tmp_path, "a").path("outcomes.sqlite")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database of outcomes" * 10)
    with pytest.raises(StoreError, match="damaged or not a database"):
        intake_of(tmp_path).expect(CONFIGS)
