"""measure: real pictures of a tiny pipeline, resumable, in this process and in others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine.serial import Serial
from qsdm.evaluation import EvaluationError
from qsdm.measure import measure, read_configs, sample
from qsdm.qconfig import QuantConfig, SpaceSpec
from qsdm.store import Store, StoreError
from qsdm.trace import trace

SPACE = SpaceSpec("small", ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"))


@pytest.fixture(scope="module")
def store(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traced and calibrated."""
    store = tmp_path_factory.mktemp("store")
    trace(tiny_model, store)
    calibrate(tiny_model, SPACE, store)
    return store


def test_measures_each_configuration_once(tiny_model: Model, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged: list[dict] = []
    arguments = {
        "num_images": 6,
        "batch_size": 4,
        "engine": Serial(),
        "log": lambda values: logged.append(dict(values)),
    }
    first = measure(tiny_model, SPACE, store, num_configs=2, **arguments)
    assert [len(outcome.qconfig.methods) > 0 for outcome in first] == [True, True]
    assert all(outcome.num_images == 6 and outcome.metrics["psnr"] > 5 for outcome in first)
    assert set(first[0].halves) == {"fd_lite0", "psnr"}
    printed = capsys.readouterr().out
    assert "fp" in printed
    assert first[0].qconfig.digest[:12] in printed
    num_logged = len(logged)
    again = measure(tiny_model, SPACE, store, num_configs=3, **arguments)
    assert again[:2] == first  # provenance, with its times, included: nothing was measured again
    assert len(again) == 3
    assert len(logged) == num_logged + 1
    kept = Store(store, tiny_model.name).outcomes()
    assert len(kept) == 4  # full precision is one of them
    assert [outcome.metrics["psnr"] for outcome in kept if not outcome.qconfig.methods] == [None]
