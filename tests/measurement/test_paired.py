"""Paired differences: right values, small errors, and words only where an interval excludes 0."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from outcomes import PROTOCOL

from qsdm.measurement.paired import Difference, difference, mean_difference
from qsdm.measurement.scoring import ScoredShard, outcome_of
from qsdm.outcome import Outcome
from qsdm.qconfig import QuantConfig


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the pictures' only feature."""

    name: str = "mean"
    version: str = "1"
    larger_is_better: bool = True
    label: str = "mean"
    digits: int = 2

    def features(self, *_: object) -> np.ndarray:
        raise NotImplementedError

    def reduce(self, features: np.ndarray) -> float:
        return float(features.mean())


def outcome(values: np.ndarray) -> Outcome:
    """Of pictures that have these values, in order."""
    protocol = dataclasses.replace(PROTOCOL, num_images=len(values))
    shard = ScoredShard(
        {"mean": values[:, None]},
        np.zeros((len(values), 32), np.uint8),
        {"drawing_s": 0.0, "scoring_s": 0.0},
    )
    return outcome_of(QuantConfig("toy", {}), protocol, {"mean": Mean()}, [shard])


def test_the_error_is_that_of_the_differences_and_not_of_the_values() -> None:
    rng = np.random.default_rng(0)
    num = 400
    captions = rng.normal(0, 10, num)  # what both pictures of a caption have in common
    reference = outcome(captions)
    moved = outcome(captions + rng.normal(0.5, 1, num))
    away = difference(moved, reference, "mean")
    assert away is not None
    assert away.standard_error is not None
    assert away.value == pytest.approx(moved.metrics["mean"] - reference.metrics["mean"])
    assert away.standard_error == pytest.approx(1 / np.sqrt(num), rel=0.35)
    assert away.standard_error < reference.standard_error("mean") / 5
    assert away.verdict(larger_is_better=True) == "better"
    assert away.verdict(larger_is_better=False) == "worse"


def test_an_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    num_covered = 0
    for _ in range(200):
        captions = rng.normal(0, 5, 64)
        shifted = outcome(captions + rng.normal(0.3, 1, 64))
        low, high = difference(shifted, outcome(captions), "mean").interval
        num_covered += low <= 0.3 <= high
    assert 0.85 <= num_covered / 200 <= 1


def test_nothing_differs_from_itself() -> None:
    same = outcome(np.arange(20.0))
    away = difference(same, same, "mean")
    assert away == Difference(0.0, 0.0)
    assert away.sign == 0
    assert away.verdict(True) == away.verdict(False) == "no difference seen"


def test_of_a_few_pictures_nothing_is_said() -> None:
    away = difference(outcome(np.array([1.0, 2, 3])), outcome(np.zeros(3)), "mean")
    assert away == Difference(2.0, None)
    assert away.interval is None
    assert away.verdict(True) == "too few pictures to tell"


def test_the_mean_of_several_outcomes_has_the_error_of_the_mean() -> None:
    rng = np.random.default_rng(2)
    reference = outcome(np.zeros(256))
    others = [outcome(rng.normal(2, 1, 256)) for _ in range(4)]
    mean = mean_difference(others, reference, "mean")
    alone = difference(others[0], reference, "mean")
    assert mean.value == pytest.approx(np.mean([other.metrics["mean"] for other in others]))
    assert mean.standard_error < 0.75 * alone.standard_error


def test_what_is_not_defined_has_no_difference() -> None:
    same = outcome(np.arange(4.0))
    assert difference(same, same, "fid") is None
    undefined = dataclasses.replace(same, metrics={"mean": None})
    assert difference(same, undefined, "mean") is None
    assert difference(undefined, same, "mean") is None


def test_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need the same pictures \(got 4 and 5 of them\)"):
        difference(outcome(np.zeros(4)), outcome(np.zeros(5)), "mean")
    with pytest.raises(ValueError, match="one or more outcomes"):
        mean_difference([], outcome(np.zeros(4)), "mean")
