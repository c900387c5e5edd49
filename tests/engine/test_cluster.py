"""A simulated cluster, see `experiments/bench/cluster.py`: deaths, slow nodes, a lost driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.bench import cluster
from qsdm.engine import EngineError
from qsdm.engine.ray import Ray


def test_64_workers_that_die_and_a_lost_driver_lose_nothing(tmp_path: Path) -> None:
    num_tasks = 24 * cluster.NUM_SHARDS
    report = cluster.simulate(tmp_path, num_workers=64, num_configs=24, seed=0)
    assert report.faults == []
    assert report.runs >= 2  # the first driver was lost
    assert report.deaths > 5
    # What was running when the driver was lost is drawn again, and nothing else.
    assert num_tasks <= report.tasks <= num_tasks + 64
    more = [cluster.QuantConfig("toy", {})]  # a fault would be told
    (told,) = cluster.faults_in(cluster.Store(tmp_path, "toy"), more)
    assert told == "1 of 1 configurations have no outcome"


def test_workers_of_which_none_starts_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "DEATH", 1.0)
    simulated = cluster.Cluster(64, np.random.default_rng(0))
    with (
        cluster.in_place_of_ray(simulated),
        Ray().open(cluster.start) as pool,
        pytest.raises(EngineError, match="a worker could not start: the actor died"),
    ):
        list(pool.map([None]))
    assert simulated.deaths == 65
