"""Other trackers than W&B: what they are sent, and what is said where they are not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from qsdm.run.conf import BadInput
from qsdm.run.trackers import Start, Tracker, Wandb, columns_of, is_table, plain_name, tracked
from qsdm.text import ignore

BEGIN = Start("grow", Path("outputs"), None, {"seed": 3})


def test_nothing_is_tracked_by_default() -> None:
    with tracked(Tracker.wandb, BEGIN) as log:
        assert log is ignore
    assert BEGIN.mode is Wandb.disabled


@pytest.mark.parametrize("tracker", [Tracker.mlflow, Tracker.trackio])
def test_a_tracker_that_is_not_installed_is_named(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker.value, None)
    with (
        pytest.raises(BadInput, match=f"run pip install {tracker.value}"),
        tracked(tracker, BEGIN),
    ):
        pass


def test_tables_are_lists_of_rows() -> None:
    rows: list[Any] = [{"a": 1}, {"b": 2, "a": 3}]
    assert is_table(rows)
    assert columns_of(rows) == (["a", "b"], [[1, None], [3, 2]])
    assert not any(map(is_table, ([], [1, 2], "text", {"a": 1})))


def test_names_of_artifacts_have_no_slash() -> None:
    assert plain_name("why/conv1#0/uaq-3") == "why-conv1-0-uaq-3"


@pytest.mark.slow
def test_mlflow_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/fold-0.bin").write_bytes(b"0")
    (tmp_path / "page.html").write_text("<p>")
    with tracked(Tracker.mlflow, BEGIN) as log:
        for height in (1, 2.5):
            log({"height": height})
        log({"grow/rows": [{"a": 1}], "grow/note": "green", "grow/page": tmp_path / "page.html"})
        log({"grow/predictor": tmp_path / "folder", "why/conv1#0/uaq-3": -1.0})
    (run,) = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"grow/height": 2.5, "why/conv1_0/uaq-3": -1.0}
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "grow/height")
    assert [(one.step, one.value) for one in history] == [(0, 1.0), (1, 2.5)]
    assert run.data.tags["grow/note"] == "green"
    files = {
        path.path
        for folder in ("", "grow", "grow/page", "grow/predictor")
        for path in client.list_artifacts(run.info.run_id, folder)
        if not path.is_dir
    }
    assert files == {
        "config.json",
        "grow/rows.json",
        "grow/page/page.html",
        "grow/predictor/fold-0.bin",
    }


@pytest.mark.slow
def test_trackio_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from its database: values as they are, tables and pictures as media."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    pytest.importorskip("trackio")
    from PIL import Image
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    picture = tmp_path / "front.png"
    Image.new("RGB", (2, 2)).save(picture)
    begin = Start("grow", tmp_path, "sweep", {"seed": 3})
    with tracked(Tracker.trackio, begin) as log:
        for height in (1, 2.5):
            log({"height": height})
        log({"grow/rows": [{"a": 1, "b": None}], "grow/note": "green", "grow/front": picture})
        log({"grow/page": tmp_path / "page.html", "why/conv1#0/uaq-3": -1.0})
    (run,) = Api().runs("qsdm")
    config = run.config
    assert config is not None
    assert (config["command"], config["seed"]) == ("grow", 3)
    logs = SQLiteStorage.get_logs("qsdm", run.name)
    values = {key: value for entry in logs for key, value in entry.items()}
    assert [entry["grow/height"] for entry in logs if "grow/height" in entry] == [1, 2.5]
    assert values["grow/note"] == "green"
    assert values["grow/page"] == str(tmp_path / "page.html")
    assert values["why/conv1#0/uaq-3"] == -1.0
    assert values["run/succeeded"] == 1
    assert values["grow/rows"]["_type"] == "trackio.table"
    assert values["grow/rows"]["_value"] == [{"a": 1, "b": None}]
    assert values["grow/front"]["_type"] == "trackio.image"
    assert list(tmp_path.rglob("media/**/*.png"))
