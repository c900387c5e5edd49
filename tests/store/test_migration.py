"""Stores of qsdm 0.1.0, whose protocols had the metrics in them, stay usable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from outcomes import PROTOCOL, outcome

from qsdm.denoisers import Model, prompts_of
from qsdm.graph import canonical
from qsdm.measurement.protocol import protocol_of
from qsdm.outcome import Outcome, Protocol
from qsdm.store import Store
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.workspace import Workspace


def former(protocol: Protocol, metrics: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Digest and JSON of a protocol as 0.1.0 wrote it."""
    data = protocol.to_json()
    del data["schema"], data["pipeline"]
    data["fit"] = data.pop("quantizer_version")
    data["metrics"] = metrics
    return hashlib.sha256(canonical(data)).hexdigest(), data


def write_former(
    path: Path, rows: list[tuple[Outcome, dict[str, str]]], protocol: Protocol
) -> None:
    """A database as 0.1.0 wrote it: the protocols contain the versions of the metrics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE outcome (qconfig TEXT, protocol TEXT, json TEXT NOT NULL, "
        "PRIMARY KEY (qconfig, protocol))"
    )
    db.execute("CREATE TABLE protocol (digest TEXT PRIMARY KEY, json TEXT NOT NULL)")
    for one, metrics in rows:
        digest, data = former(protocol, metrics)
        db.execute("INSERT OR IGNORE INTO protocol VALUES (?, ?)", (digest, json.dumps(data)))
        row = {**one.to_json(), "schema": 2, "protocol": digest}
        del row["versions"], row["earlier"]
        db.execute(
            "INSERT INTO outcome VALUES (?, ?, ?)", (one.qconfig.digest, digest, json.dumps(row))
        )
    db.commit()
    db.close()


def test_metrics_move_from_the_protocol_to_the_outcomes(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "outcomes.sqlite"
    fid = dataclasses.replace(outcome(3), metrics={"fid": 9.0})
    write_former(
        path,
        [(outcome(3), {"fd": "1"}), (outcome(4), {"fd": "1"}), (fid, {"fid": "7"})],
        PROTOCOL,
    )
    files = Store(tmp_path, "toy")
    assert set(files.protocols()) == {PROTOCOL.digest}
    three, four = files.outcomes(PROTOCOL)
    assert three.metrics == {"fd": 1.0, "fid": 9.0}  # two protocols of the same pictures are one
    assert three.versions == {"fd": "1", "fid": "7"}
    assert four == dataclasses.replace(outcome(4), versions={"fd": "1"})


def test_what_is_added_joins_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "outcomes.sqlite"
    write_former(path, [(outcome(3), {"fd": "1"})], PROTOCOL)
    more = dataclasses.replace(outcome(3), metrics={"fid": 9.0}, versions={"fid": "7"})
    OutcomeDatabase(path).add(more, PROTOCOL)
    (one,) = OutcomeDatabase(path).read()
    assert one.metrics == {"fd": 1.0, "fid": 9.0}
    assert one.versions == {"fd": "1", "fid": "7"}


@pytest.fixture
def model(tiny_model: Model, tmp_path: Path) -> Model:
    shutil.copytree(Path(tiny_model.path), tmp_path / "pipeline")
    return dataclasses.replace(tiny_model, path=str(tmp_path / "pipeline"))


def test_outcomes_of_the_same_pipeline_are_adopted(model: Model, tmp_path: Path) -> None:
    now = protocol_of(model, prompts_of(model), 0, 8)
    one = dataclasses.replace(outcome(3), protocol=now.digest)
    path = tmp_path / "store" / "tiny" / "outcomes.sqlite"
    write_former(path, [(one, {"fd": "1"})], dataclasses.replace(now, pipeline=""))
    files = Workspace(model, None, tmp_path / "store").store
    assert [o.metrics for o in files.outcomes(now)] == [{"fd": 1.0}]
    assert set(files.protocols()) == {now.digest}
    # Without the model nothing tells, and everything is still read.
    assert len(Store(tmp_path / "store", "tiny").outcomes()) == 1

    left_out = dataclasses.replace(model, load={"text_encoder": None, "tokenizer": None})
    without = protocol_of(left_out, prompts_of(model), 0, 8)
    assert Workspace(left_out, None, tmp_path / "store").store.outcomes(without) == []


def test_outcomes_of_other_weights_are_not_adopted(model: Model, tmp_path: Path) -> None:
    now = protocol_of(model, prompts_of(model), 0, 8)
    path = tmp_path / "store" / "tiny" / "outcomes.sqlite"
    other = dataclasses.replace(now, pipeline="", weights="0" * 64)
    write_former(path, [(outcome(3), {"fd": "1"})], other)
    files = Workspace(model, None, tmp_path / "store").store
    assert files.outcomes(now) == []
    assert len(files.outcomes()) == 1
