"""Atomic artifacts: what was written can be read, damage is reported, stored outcomes survive."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from outcomes import PROTOCOL, outcome

from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.store import Store, StoreError
from qsdm.store.files import read_json, replace, write_json
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.parquet import read_outcomes_parquet, write_outcomes_parquet
from qsdm.store.provenance import provenance
from qsdm.store.tensors import TensorFile, map_tensor, read_tensors, write_tensors

ROOT = Path(__file__).parents[2]


def test_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"a": [1, None, "é"]})
    assert read_json(tmp_path / "deep" / "a.json") == {"a": [1, None, "é"]}
    tensors = {"x": np.arange(6, dtype=np.int64).reshape(2, 3).T, "y": np.float32([0.5])}
    write_tensors(tmp_path / "a.safetensors", tensors, {"kind": "test"})
    arrays, about = read_tensors(tmp_path / "a.safetensors")
    assert about == {"kind": "test"}
    assert all(np.array_equal(arrays[name], tensors[name]) for name in tensors)
    other = dataclasses.replace(outcome(5), protocol="f" * 64)
    write_outcomes_parquet(tmp_path / "a.parquet", [outcome(3), other, outcome(4)], {})
    assert read_outcomes_parquet(tmp_path / "a.parquet") == [outcome(3), outcome(4), other]
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as file:  # a row group per protocol
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]
    write_outcomes_parquet(tmp_path / "a.parquet", [outcome(4), outcome(2)], {})  # another file
    assert read_outcomes_parquet(tmp_path / "a.parquet") == [outcome(4), outcome(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.parquet",
        "a.safetensors",
        "deep",
    ], "no partial files"


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"good": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"bad": float("nan")})
    assert read_json(path) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", '{"a": '])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(
        StoreError, match=r"a\.json cannot be read as JSON .*: remove it and create it again"
    ):
        read_json(tmp_path / "a.json")


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": np.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match="damaged or was not written by qsdm"):
        read_tensors(path)


def test_a_flipped_bit_in_a_large_part_is_found_wherever_it_is(tmp_path: Path) -> None:
    """Large parts are read and hashed in chunks."""
    path, rng = tmp_path / "a.safetensors", np.random.default_rng(0)
    parts = {name: rng.integers(0, 256, 9_000_001, dtype=np.uint8) for name in ("a", "b")}
    write_tensors(path, {**parts, "small": np.arange(9)}, {})
    arrays, _ = read_tensors(path)
    assert all(np.array_equal(arrays[name], part) for name, part in parts.items())
    size = path.stat().st_size
    for name, from_end in (("b", 1), ("b", 9_000_001), ("a", 9_000_002), ("a", 13_500_000)):
        with path.open("r+b") as file:
            file.seek(size - from_end)
            byte = file.read(1)[0]
            file.seek(size - from_end)
            file.write(bytes([byte ^ 4]))
        with pytest.raises(StoreError, match=f"its part '{name}' was changed after"):
            read_tensors(path)
        with path.open("r+b") as file:
            file.seek(size - from_end)
            file.write(bytes([byte]))
    assert np.array_equal(read_tensors(path)[0]["a"], parts["a"])


def test_foreign_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(StoreError, match="damaged or was not written by qsdm"):
        read_tensors(tmp_path / "a.safetensors")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StoreError, match="damaged or not a table of outcomes"):
        read_outcomes_parquet(tmp_path / "a.parquet")


def test_a_missing_artifact_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"run python -m qsdm\.trace \+model=toy"):
        Store(tmp_path, "toy").find("graph.json", "trace")


def test_the_shipped_store_is_read_where_the_users_lacks_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsdm.store.ZOO", tmp_path / "zoo")
    shipped, store = tmp_path / "zoo" / "toy" / "store", Store(tmp_path / "mine", "toy")
    write_json(shipped / "graph.json", "shipped")
    write_outcomes_parquet(shipped / "outcomes.parquet", [outcome(3, 1.0), outcome(4, 1.0)], {})
    write_json(shipped / "protocols.json", [PROTOCOL.to_json()])
    assert read_json(store.find("graph.json", "trace")) == "shipped"
    assert store.outcomes(PROTOCOL) == [outcome(3, 1.0), outcome(4, 1.0)]
    OutcomeDatabase(store.path("outcomes.sqlite")).add(outcome(2), PROTOCOL)
    assert store.outcomes() == [outcome(3, 1.0), outcome(4, 1.0), outcome(2)]
    assert set(store.protocols()) == {PROTOCOL.digest}
    write_json(store.path("graph.json"), "mine")
    assert read_json(store.find("graph.json", "trace")) == "mine"


def test_outcomes_are_stored_once(tmp_path: Path) -> None:
    database = OutcomeDatabase(tmp_path / "o.sqlite")
    for value in (1.0, 2.0):
        database.add(outcome(3, value), PROTOCOL)
    database.add(outcome(4), PROTOCOL)
    assert database.read() == [outcome(3, 1.0), outcome(4)]
    assert OutcomeDatabase(tmp_path / "o.sqlite").protocols() == {PROTOCOL.digest: PROTOCOL}


def test_outcomes_of_chosen_protocols(tmp_path: Path) -> None:
    other = dataclasses.replace(PROTOCOL, seed_set=7)
    store = Store(tmp_path, "any")
    store.path("outcomes.sqlite").parent.mkdir(parents=True)
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    database.add(outcome(3, 1.0), PROTOCOL)
    database.add(dataclasses.replace(outcome(3, 2.0), protocol=other.digest), other)
    (digest,) = store.measured(lambda p: p.seed_set == 7)
    assert store.measured(lambda p: p.seed_set == 7)[digest].metrics == {"fd": 2.0}
    assert store.measured(lambda p: p.seed_set == 9) == {}
    assert store.outcomes(PROTOCOL) == store.outcomes([PROTOCOL.digest]) == [outcome(3, 1.0)]
    assert store.counts() == {PROTOCOL.digest: 1, other.digest: 1}


def test_mixed_labels_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is merged with another file's outcome belongs where that one does."""
    monkeypatch.setattr("qsdm.store.ZOO", tmp_path / "zoo")
    shipped, store = tmp_path / "zoo" / "toy" / "store", Store(tmp_path / "mine", "toy")

    def mixed(bits: int, stage: str, metric: str = "fd") -> Outcome:
        methods = {"a": QuantMethod("uaq", bits), "b": QuantMethod("uaq", 4)}
        about = {"stage": stage}
        return dataclasses.replace(
            outcome(4), qconfig=QuantConfig("toy", methods), metrics={metric: 1.0}, provenance=about
        )

    tested, label, learned = mixed(2, "test"), mixed(3, "measure"), mixed(4, "measure")
    write_outcomes_parquet(shipped / "outcomes.parquet", [tested, label], {})
    write_json(shipped / "protocols.json", [PROTOCOL.to_json()])
    alone, proposed = outcome(4), mixed(5, "rounds")
    more = [mixed(2, "measure", "fid"), mixed(3, "test", "fid")]
    stored = [alone, proposed, learned, *more]
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    database.add_all((one, PROTOCOL) for one in stored)
    both = [tested.merged(more[0]), label.merged(more[1]), alone, proposed, learned]
    assert store.outcomes() == both
    labels = [both[1], learned]
    assert store.outcomes(mixed_labels=True) == labels
    rows: list[Outcome] = []
    decoded = Outcome.from_json

    def noted(text: bytes) -> Outcome:
        rows.append(decoded(text))
        return rows[-1]

    monkeypatch.setattr(Outcome, "from_json", noted)
    assert store.outcomes(PROTOCOL, mixed_labels=False) == [o for o in both if o not in labels]
    assert learned not in rows


def test_many_outcomes_are_added_all_or_none(tmp_path: Path) -> None:
    database = OutcomeDatabase(tmp_path / "o.sqlite")
    many = [(outcome(bits), PROTOCOL) for bits in (2, 3, 4)]

    def interrupted() -> Iterator[tuple[Outcome, Protocol]]:
        yield from many
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.add_all(interrupted())
    assert database.read() == []
    database.add_all(many)
    assert database.read() == [outcome(bits) for bits in (2, 3, 4)]


def test_a_foreign_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "o.sqlite").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(
        StoreError,
        match=r"damaged or not a database of outcomes .*run python -m qsdm\.store --repair",
    ):
        OutcomeDatabase(tmp_path / "o.sqlite")


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = OutcomeDatabase(tmp_path / "o.sqlite")
    database.add(outcome(3), PROTOCOL)
    connect = database._connect

    def full() -> sqlite3.Connection:
        db = connect()
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own "database or disk is full"
        return db

    monkeypatch.setattr(database, "_connect", full)
    big = Outcome(
        outcome(4).qconfig, PROTOCOL.digest, {"fd": 1.0}, 8, provenance={"note": "x" * 100_000}
    )
    with pytest.raises(StoreError, match=r"full.*free some space.*what was stored before is kept"):
        database.add(big, PROTOCOL)
    assert database.read() == [outcome(3)]


def test_what_was_added_survives_a_kill(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from qsdm.store.outcomes import OutcomeDatabase
from outcomes import PROTOCOL, outcome
database = OutcomeDatabase(Path({str(tmp_path / "o.sqlite")!r}))
for bits in (2, 3, 4):
    database.add(outcome(bits), PROTOCOL)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert OutcomeDatabase(tmp_path / "o.sqlite").read() == [outcome(bits) for bits in (2, 3, 4)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="was not written"):
        write_json(tmp_path / "a.json", 1)


def test_a_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file lies where the store's folder should be."""
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="was not written"):
        write_json(tmp_path / "store" / "toy" / "a.json", 1)


def test_provenance_holds_versions_and_nothing_of_the_machine() -> None:
    about = provenance()
    assert "numpy" in about["versions"]
    assert str(Path.home()) not in json.dumps(about)


def test_a_file_that_was_written_in_part_is_no_file(tmp_path: Path) -> None:
    """Neither when nothing more comes, nor when an error interrupts."""
    path = tmp_path / "pictures.safetensors"

    def write(count: int, error: Exception | None = None) -> None:
        def fill(partial: Path) -> None:
            with TensorFile(partial, {"images": ("U8", (4, 2))}, {}) as file:
                for i in range(count):
                    file.write("images", bytes([i, i]), 2 * i)
                if error is not None:
                    raise error

        replace(path, fill)

    with pytest.raises(ValueError, match="'images' was not written completely"):
        write(3)
    with pytest.raises(KeyError, match="interrupted"):
        write(4, KeyError("interrupted"))
    assert list(tmp_path.iterdir()) == []
    write(4)
    assert map_tensor(path, "images").tolist() == [[i, i] for i in range(4)]
