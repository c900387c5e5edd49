"""What every engine does: results of all tasks, whatever some of them do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from engine_work import SMALL, needs_ray, needs_submitit, start

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine import Engine, EngineError, Failure
from qsdm.engine.local import Local, num_cores
from qsdm.engine.ray import Ray
from qsdm.engine.serial import Serial
from qsdm.engine.slurm import Slurm
from qsdm.measure import measure
from qsdm.outcome import Outcome
from qsdm.qconfig import SpaceSpec
from qsdm.store import Store
from qsdm.trace import trace
from qsdm.workspace import Workspace


def test_serial_sets_a_failing_task_aside() -> None:
    with Serial().open(start) as pool:
        results = dict(pool.map([("square", 2), ("raise", 3), ("square", 4)]))
    assert results == {0: 4, 1: Failure("ValueError: cannot do 3"), 2: 16}


@pytest.mark.parametrize(
    ("engine", "num_workers"),
    [
        (Serial(), 1),
        (Local(3), 3),
        (Local(), num_cores()),
        (Local(gpus=2), 2),
        (Local(4, gpus=2), 4),
        (Ray(num_workers=5), 5),
        (Ray(), None),
        (Slurm(), None),
        (Slurm(cluster="debug"), 1),
    ],
)
def test_engines_tell_their_workers_or_not(engine: Engine, num_workers: int | None) -> None:
    assert engine.num_workers == num_workers


@pytest.mark.parametrize(("engine", "package"), [(Ray(), "ray"), (Slurm(), "submitit")])
def test_a_missing_package_is_named(
    engine: Engine, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=r"needs \w+: pip install 'qsdm\[(ray|slurm)\]'"):
        engine.open(start).__enter__()


@needs_ray
@needs_submitit
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)  # a dozen processes start, each importing all
@pytest.mark.usefixtures("path_of_workers")
def test_every_engine_measures_the_same(tiny_model: Model, tmp_path: Path) -> None:
    """To rounding, each configuration once."""
    space = SpaceSpec("small", ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"))
    engines = {
        "serial": Serial(),
        "local 2": Local(2),
        "local 4": Local(4),
        "ray": Ray(num_workers=1, init=SMALL),
        "slurm": Slurm(cluster="local", folder=str(tmp_path / "jobs"), poll_s=0.1),
    }
    trace(Workspace(tiny_model, root=tmp_path / "serial"))
    calibrate(Workspace(tiny_model, space, tmp_path / "serial"))
    found: dict[str, list[Outcome]] = {}
    for name, engine in engines.items():
        store = tmp_path / name
        for part in ("graph.json", "calibration"):
            if not (target := store / "tiny" / part).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(tmp_path / "serial" / "tiny" / part)
        measured = measure(
            Workspace(tiny_model, space, store),
            num_configs=3,
            num_images=4,
            batch_size=3,
            engine=engine,
        )
        kept = Store(store, "tiny").outcomes()
        assert (
            len(kept) == len({outcome.key for outcome in kept}) == 4
        )  # full precision is one of them
        assert {outcome.key for outcome in measured} < {outcome.key for outcome in kept}
        found[name] = measured
    for name, outcomes in found.items():
        for outcome, wanted in zip(outcomes, found["serial"], strict=True):
            assert outcome.key == wanted.key, name
            assert outcome.metrics == pytest.approx(wanted.metrics, rel=1e-3), name


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers and num_threads must be positive"):
        Local(num_workers=0)
    with pytest.raises(ValueError, match=r"retries and gpus must not be negative \(got 1, -1\)"):
        Local(gpus=-1)
    with pytest.raises(ValueError, match="num_workers, num_threads and num_cpus must be positive"):
        Ray(num_cpus=0)
    with pytest.raises(ValueError, match=r"tasks_per_job must be positive \(got 0\)"):
        Slurm(tasks_per_job=0)
    with pytest.raises(ValueError, match=r"start_s must be positive \(got nan\)"):
        Ray(start_s=float("nan"))
    with pytest.raises(
        ValueError, match=r"cluster must be one of slurm, local, debug \(got 'pbs'\)"
    ):
        Slurm(cluster="pbs")
