"""Faults in a long run: after each, the outcomes are those of an undisturbed run, none twice."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import workers as running_workers

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.measure import measure
from qsdm.measurement import drawer as drawing
from qsdm.measurement import evaluator
from qsdm.measurement import shards as shards_module
from qsdm.measurement.shards import Shards
from qsdm.outcome import EvaluationError, Outcome
from qsdm.qconfig import QuantConfig, SpaceSpec
from qsdm.store import Store, StoreError
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.tensors import write_tensors
from qsdm.trace import trace
from qsdm.workspace import Workspace

METHODS = ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4")
SPACE = SpaceSpec("small", METHODS)
NUM, IMAGES = 8, 4
KILLS = pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.soak)])


def run(model: Model, root: Path, **options: Any) -> list[Outcome]:
    given = {
        "num_configs": NUM,
        "num_images": IMAGES,
        "shard": IMAGES // 2,
        "engine": Serial(),
        **options,
    }
    return measure(Workspace(model, SPACE, root), **given)


@pytest.fixture(scope="module")
def calibrated(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibrated")
    trace(Workspace(tiny_model, root=root), page=False)
    calibrate(Workspace(tiny_model, SPACE, root))
    return root


@pytest.fixture
def root(calibrated: Path, tmp_path: Path) -> Path:
    shutil.copytree(calibrated, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Model, calibrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Outcome]:
    root = tmp_path_factory.mktemp("undisturbed") / "store"
    shutil.copytree(calibrated, root)
    return run(tiny_model, root)


def assert_same(
    root: Path, found: list[Outcome], wanted: list[Outcome], tolerance: float = 0.0
) -> None:
    assert [o.qconfig for o in found] == [o.qconfig for o in wanted]
    for outcome, other in zip(found, wanted, strict=True):
        assert outcome.metrics == pytest.approx(other.metrics, rel=tolerance, abs=0)
        if tolerance == 0:
            assert outcome.provenance["pictures"] == other.provenance["pictures"]
    stored = Store(root, "tiny").outcomes()
    assert len({o.key for o in stored}) == len(stored) == NUM + 1  # full precision is one of them


FORKS = """
import json, os, random, shutil, signal, sys, time, warnings
from pathlib import Path

def child(fields, reference, methods, root, num, images):
    import torch
    from qsdm.denoisers import Model
    from qsdm.engine.serial import Serial
    from qsdm.measure import measure
    from qsdm.metrics.fidelity import Psnr
    from qsdm.metrics.frechet import FrechetLite0
    from qsdm.qconfig import SpaceSpec

    torch.set_num_threads(1)
    model = Model(**fields, metrics={"fd_lite0": FrechetLite0(reference), "psnr": Psnr()})
    measure(
        model, SpaceSpec("small", methods), Path(root), num, num_images=images, shard=images // 2,
        engine=Serial(),
    )

def fork(given):
    pid = os.fork()
    if pid == 0:
        try:
            child(*given)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def end(pid):
    assert os.waitpid(pid, 0)[1] == 0

def interrupted(given, root, fresh, kills):
    # A store whose run came to its end is put aside, and a fresh one begun, until all kills have
    # met a living run.
    begun = time.monotonic()
    end(fork(given))
    whole, rng, stores, killed = time.monotonic() - begun, random.Random(0), 0, 0
    while killed < kills:
        pid = fork(given)
        time.sleep(rng.uniform(0.0, whole))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
        else:
            assert status == 0
            stores += 1
            root.rename(f"{root}-{stores}")
            shutil.copytree(fresh, root)
    end(fork(given))

if __name__ == "__main__":
    import diffusers, transformers  # once
    import qsdm.measurement.session, qsdm.measure, qsdm.metrics.lite0
    from diffusers import StableDiffusionPipeline
    given, kills, fresh = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    root = Path(given[3])
    for pid in [fork(given), fork(given)]:  # two runs of the same command at once
        end(pid)
    root.rename(f"{root}-twice")
    shutil.copytree(fresh, root)
    interrupted(given, root, fresh, kills)
"""


def forked(tmp_path: Path, model: Model, root: Path, fresh: Path, kills: int) -> list[Path]:
    """Run ``measure`` twice at once, then again and again, killed after random times.

    In one process that imports once. The stores made.
    """
    names = (
        "name",
        "path",
        "denoiser",
        "component",
        "resolution_px",
        "steps",
        "guidance",
        "prompts",
    )
    fields = {name: getattr(model, name) for name in names}
    given = json.dumps(
        [fields, model.metrics["fd_lite0"].reference, METHODS, str(root), NUM, IMAGES]
    )
    (tmp_path / "forks.py").write_text(FORKS)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(tmp_path / "forks.py"), given, str(kills), str(fresh)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [root, *root.parent.glob(f"{root.name}-*")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@KILLS
def test_two_runs_at_once_and_kill_9_of_the_driver_at_random_moments(
    tiny_model: Model,
    root: Path,
    calibrated: Path,
    undisturbed: list[Outcome],
    tmp_path: Path,
    kills: int,
) -> None:
    for store in forked(tmp_path, tiny_model, root, calibrated, kills):
        assert_same(store, run(tiny_model, store), undisturbed)
        assert not list(store.rglob("shards/*/*")), "shards of finished configurations are removed"


@pytest.mark.slow
@pytest.mark.timeout(600)
@KILLS
def test_kill_9_of_workers_at_random_moments(
    tiny_model: Model, root: Path, calibrated: Path, undisturbed: list[Outcome], kills: int
) -> None:
    rng, over, killed = random.Random(0), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        while killed < kills and not over.wait(rng.uniform(0.0, 4.0)):
            workers = running_workers()
            if workers:
                rng.choice(workers).kill()
                killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while killer.is_alive():
            found = run(tiny_model, root, engine=Local(num_workers=2, retries=kills))
            assert_same(root, found, undisturbed, tolerance=1e-6)
            shutil.rmtree(root)
            shutil.copytree(calibrated, root)
    finally:
        over.set()
        killer.join()
    assert killed == kills


def test_a_run_that_removes_shards_leaves_the_folder_to_another_that_writes_there(
    tiny_model: Model, root: Path, undisturbed: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, removals = shards_module.write_tensors, []
    last = undisturbed[-1].qconfig

    def interleaved(path: Path, *args) -> None:
        protocol = next(iter(Store(root, "tiny").protocols().values()), None)
        if protocol is not None:
            Shards(Store(root, "tiny"), protocol, IMAGES // 2, {}).remove(last)
            removals.append(path)
        write(path, *args)

    monkeypatch.setattr(shards_module, "write_tensors", interleaved)
    assert_same(root, run(tiny_model, root), undisturbed)
    assert removals, "shards were written while others were removed"


def test_shards_left_by_a_run_that_was_killed_before_it_removed_them(
    tiny_model: Model, root: Path, undisturbed: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "remove", lambda _shards, _qconfig: None)
        run(tiny_model, root)
    assert list(root.rglob("shards/*/*"))
    assert_same(root, run(tiny_model, root), undisturbed)
    assert not list(root.rglob("shards/*/*"))


def failing(
    function: Callable, times: int, error: Callable[[], Exception], after: int = 0
) -> Callable:
    """``function``, which after so many calls raises so many times."""
    calls = iter(range(after + times))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls, -1) >= after:
            raise error()
        return function(*args, **kwargs)

    return wrapped


def test_a_full_disk_keeps_what_was_stored(
    tiny_model: Model, root: Path, undisturbed: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = OutcomeDatabase._connect

    def small(self: OutcomeDatabase) -> sqlite3.Connection:
        db = connect(self)
        db.execute("PRAGMA max_page_count=16")  # SQLite's own "database or disk is full"
        return db

    with monkeypatch.context() as patch:
        patch.setattr(OutcomeDatabase, "_connect", small)
        with pytest.raises(
            StoreError, match=r"cannot be written \(database or disk is full\): free some space"
        ):
            run(tiny_model, root)
    assert 0 < len(Store(root, "tiny").outcomes()) < NUM + 1
    assert_same(root, run(tiny_model, root), undisturbed)


def test_no_space_for_a_shard(
    tiny_model: Model, root: Path, undisturbed: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qsdm.measurement import shards

    no_space = StoreError(
        "x was not written (No space left on device): free some space or choose another store="
    )
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_tensors", failing(write_tensors, 1, lambda: no_space, after=5))
        with pytest.raises(StoreError, match="free some space"):
            run(tiny_model, root)
    assert_same(root, run(tiny_model, root), undisturbed)


def test_a_batch_with_nan_concerns_its_configuration_only(
    tiny_model: Model, root: Path, undisturbed: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of one are broken in memory; measured again with whole ones, it has its outcome."""
    broken = undisturbed[3].qconfig
    switch = drawing.Drawer.switch

    def spoilt(self: drawing.Drawer, qconfig: QuantConfig | None) -> int:
        changed = switch(self, qconfig)
        if qconfig == broken:
            with torch.no_grad():
                next(self.denoiser.parameters()).fill_(torch.nan)
            self._switch = type(self._switch)(self.denoiser, self.graph, self._switch.dequantize)
        return changed

    with monkeypatch.context() as patch:
        patch.setattr(drawing.Drawer, "switch", spoilt)
        found = run(tiny_model, root, num_configs=4)
    assert broken not in [o.qconfig for o in found]
    assert_same(root, run(tiny_model, root), undisturbed)


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError,
    ],
    ids=["of an accelerator", "of torch", "of Python"],
)
def test_out_of_memory_halves_the_batch(
    error: Exception,
    tiny_model: Model,
    root: Path,
    undisturbed: list[Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw, sizes = drawing.Drawer._batch, []

    def narrow(
        self: drawing.Drawer, qconfig: QuantConfig | None, batch: list, frames: int
    ) -> np.ndarray:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise error()
        return draw(self, qconfig, batch, frames)

    monkeypatch.setattr(drawing.Drawer, "_batch", narrow)
    found = run(tiny_model, root, shard=IMAGES)
    assert sizes[:3] == [4, 2, 1]
    assert set(sizes[2:]) == {1}, "once halved, batches stay small"
    assert found[0].provenance["batch_size"] == 1
    assert_same(root, found, undisturbed, tolerance=0.02)


def test_one_picture_that_does_not_fit_is_told(
    tiny_model: Model, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing.Drawer, "_batch", failing(lambda: None, 10**6, MemoryError))
    with pytest.raises(EvaluationError, match="draws no pictures: MemoryError"):
        run(tiny_model, root)


@pytest.mark.parametrize(
    "content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "]
)
def test_damaged_full_precision_pictures_are_drawn_again(
    content: bytes, tiny_model: Model, root: Path, undisturbed: list[Outcome]
) -> None:
    run(tiny_model, root, num_configs=2)
    (pictures,) = root.rglob("pictures/full-*.safetensors")
    pictures.write_bytes(content or pictures.read_bytes()[:-7])  # cut short
    assert_same(root, run(tiny_model, root), undisturbed)


def test_foreign_files_in_the_store_change_nothing(
    tiny_model: Model, root: Path, undisturbed: list[Outcome]
) -> None:
    place = root / "tiny"
    (place / ".outcomes.parquet.123.partial").write_bytes(b"half")
    (place / "notes.txt").write_text("mine")
    run(tiny_model, root, num_configs=2)
    protocol = next(iter(Store(root, "tiny").protocols().values()))
    spoilt = (
        place / f"shards/{protocol.digest[:16]}/{undisturbed[5].qconfig.digest[:16]}-0.safetensors"
    )
    spoilt.parent.mkdir(parents=True, exist_ok=True)
    spoilt.write_bytes(b"foreign")
    assert_same(root, run(tiny_model, root), undisturbed)
    assert (place / "notes.txt").read_text() == "mine"


def test_a_foreign_database_is_told_and_left_alone(tiny_model: Model, root: Path) -> None:
    path = root / "tiny" / "outcomes.sqlite"
    path.write_bytes(b"not a database, but somebody's file" * 100)
    with pytest.raises(
        StoreError,
        match=r"outcomes\.sqlite is damaged or not a database of outcomes .*: run .* --repair",
    ):
        run(tiny_model, root)
    assert path.read_bytes().startswith(b"not a database")


def test_a_clock_that_goes_backwards(
    tiny_model: Model, root: Path, undisturbed: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    dates = iter(range(28, 0, -1))
    monkeypatch.setattr(
        evaluator,
        "_provenance",
        lambda: {"made": f"2026-01-{next(dates):02}T00:00:00+00:00", "versions": {}},
    )
    run(tiny_model, root, num_configs=5)
    found = run(tiny_model, root)
    assert_same(root, found, undisturbed)
    made = [outcome.provenance["made"] for outcome in found]
    assert made == sorted(made, reverse=True), "the clock was not used"


def test_shards_of_any_size_give_the_same_outcome(
    tiny_model: Model, root: Path, undisturbed: list[Outcome]
) -> None:
    found = run(tiny_model, root, shard=3)
    assert_same(root, found, undisturbed, tolerance=0.02)  # batches of other sizes
    assert (
        dataclasses.replace(found[0], provenance={}).halves.keys() == undisturbed[0].halves.keys()
    )
