"""What commands hand to trackers: every key that a dashboard shows is there, with its data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fabricated_store import fabricate

from qsdm.report import tracked
from qsdm.report.tracked import OWN, PANELS, track
from qsdm.run.trackers import Start, Tracker, Wandb
from qsdm.run.trackers import tracked as open_run
from qsdm.store import Store
from qsdm.text import ignore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = fabricate(tmp_path_factory.mktemp("store"))
    for name in ("graph.html", "report.html"):
        store.path(name).write_text("<p>a page</p>")
    for name in ("role", "block", "weights", "interventions"):
        picture = store.path("pictures/comparison.png").read_bytes()
        store.path(f"sensitivity/traced-{name}.png").write_bytes(picture)
    store.path("predictor/traced/fold-0.safetensors").write_bytes(b"a fold")
    store.path("chosen-steps.json").write_bytes(store.path("chosen.json").read_bytes())
    return store


def expected(command: str) -> set[str]:
    return {key for key in PANELS[command] if key.partition("/")[2] not in OWN.get(command, ())}


def test_nothing_is_drawn_where_nothing_is_tracked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsdm.report.results.read", lambda *_: pytest.fail("the store was read"))
    track(ignore, "search", store, "traced")


@pytest.mark.parametrize("command", sorted(set(PANELS) - {"why", "compare"}))
def test_every_key_of_a_command_is_logged(
    store: Store, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsdm.report.figures.write", lambda path, _: path.write_bytes(b"PNG"))
    values: dict[str, Any] = {}

    def log(entries: Any) -> None:
        values.update(entries)
        assert all(value.exists() for value in entries.values() if isinstance(value, Path))

    track(log, command, store, "traced")
    assert set(values) == expected(command)
    for value in values.values():
        assert isinstance(value, Path) or (value and all(isinstance(row, dict) for row in value))


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    track(values.update, "search", Store(tmp_path, "nothing"), "traced")
    assert values == {}


def test_a_damaged_store_is_told_and_stops_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, "broken")
    store.path("graph.json").parent.mkdir(parents=True)
    store.path("graph.json").write_text("{")
    values: dict[str, Any] = {}
    track(values.update, "trace", store)
    assert "is damaged" in values["trace/not_tracked"]


@pytest.mark.slow
def test_an_offline_run_of_wandb_holds_every_key(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """History by its keys, artifacts by their names, as W&B's own reader gives them."""
    import wandb

    picture = store.path("pictures/comparison.png").read_bytes()
    monkeypatch.setattr("qsdm.report.figures.write", lambda path, _: path.write_bytes(picture))
    for kind in ("DIR", "DATA_DIR", "CACHE_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{kind}", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    begin = Start("main", tmp_path, None, {}, Wandb.offline)
    with open_run(Tracker.wandb, begin) as log:
        for command in set(PANELS) - {"why", "compare"}:
            track(log, command, store, "traced")
    wandb.teardown()
    (path,) = tmp_path.rglob("*.wandb")
    read = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", path],
        capture_output=True,
        text=True,
        check=True,
    )
    entries = list(map(json.loads, read.stdout.splitlines()))
    lines = [k for e in entries if e["type"] == "history" for k in e["history"]["item"]]
    history = {key.partition(".")[0] for key in lines}  # media: key.path, key.size, ...
    artifacts = {
        e["artifact"]["name"] for e in entries if e["type"] == "artifact" and "artifact" in e
    }
    keys = set().union(*map(expected, set(PANELS) - {"why", "compare"}))
    files = {
        f"{command}/{key}"
        for command, names in tracked.FILES.items()
        for key, name in names.items()
        if not name.endswith((".png", ".html"))
    }
    assert keys - files <= history
    assert {key.replace("/", "-") for key in files} <= artifacts
