"""Damaged rows of outcomes are counted and can be measured again; the others stay usable."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pyarrow.parquet
import pytest
from outcomes import PROTOCOL, outcome

from qsdm.outcome import Outcome, Protocol
from qsdm.store import Store, StoreError
from qsdm.store.__main__ import main
from qsdm.store.files import warn_once
from qsdm.store.manifest import check_shipped, write_checksums
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.parquet import read_outcomes_parquet, write_outcomes_parquet
from qsdm.store.rows import decode_row, encode_row


@pytest.fixture
def database(tmp_path: Path) -> OutcomeDatabase:
    warn_once.cache_clear()
    database = OutcomeDatabase(tmp_path / "toy" / "outcomes.sqlite")
    for bits in (2, 3, 4, 5):
        database.add(outcome(bits), PROTOCOL)
    return database


def change(database: OutcomeDatabase, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(database.path)) as db, db:
        db.execute(statement, values)


def test_every_flipped_bit_of_a_row_is_told_or_changes_nothing() -> None:
    row, num_errors = encode_row(outcome(3).to_json()).encode(), 0
    assert decode_row(row, Outcome.from_json) == outcome(3)
    for bit in range(8 * len(row)):
        flipped = bytearray(row)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert decode_row(bytes(flipped), Outcome.from_json) == outcome(3)
        except ValueError:
            num_errors += 1
    assert num_errors > 7 * len(row)  # what is left are letters of the key "checksum"


def test_rows_of_the_first_version_are_read() -> None:
    old = outcome(3).to_json() | {"halves": {"fd": [1.0, 2.0]}}
    del old["schema"], old["prefixes"]
    assert decode_row(json.dumps(old).encode(), Outcome.from_json).halves == {"fd": ((1.0, 2.0),)}
    assert decode_row(json.dumps(PROTOCOL.to_json()).encode(), Protocol.from_json) == PROTOCOL


@pytest.mark.parametrize(
    "value",
    [None, 3, b"\xff\xfe", "", "{", '{"schema": 2}', "[]"],
    ids=repr,
)
def test_damaged_rows_are_counted_and_measured_again(
    database: OutcomeDatabase, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    change(database, "PRAGMA ignore_check_constraints = 1")
    text = "" if value is None else value
    change(database, "UPDATE outcome SET json = ? WHERE rowid = 2", text)
    assert database.read() == [outcome(2), outcome(4), outcome(5)]
    assert (
        f"1 of 4 outcomes in {database.path} are damaged and were skipped: "
        "run python -m qsdm.measure +model=toy again"
    ) in capsys.readouterr().err
    database.add(outcome(3), PROTOCOL)
    assert set(map(str, database.read())) == set(map(str, map(outcome, (2, 3, 4, 5))))


def test_a_damaged_protocol_is_told_and_written_again(
    database: OutcomeDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    change(database, "UPDATE protocol SET json = replace(json, '\"steps\": ', '\"steps\": 1')")
    assert database.protocols() == {}
    assert "1 of 1 protocols" in capsys.readouterr().err
    database.add(outcome(3), PROTOCOL)
    assert database.protocols() == {PROTOCOL.digest: PROTOCOL}


def test_a_database_is_never_taken_for_an_empty_one(database: OutcomeDatabase) -> None:
    """SQLite treats an empty file as a new database; tables could be created beside lost ones."""
    whole = database.path.read_bytes()
    for damaged in (b"", whole[:50], whole[:5000], whole.replace(b"tableoutcome", b"tableoutcame")):
        database.path.write_bytes(damaged)
        try:
            outcomes = OutcomeDatabase(database.path).read()
        except StoreError as error:
            assert "run python -m qsdm.store --repair" in str(error)  # noqa: PT017
        else:
            assert outcomes == [outcome(bits) for bits in (2, 3, 4, 5)]
    database.path.unlink()
    database.path.with_name("outcomes.sqlite-wal").write_bytes(b"log of another database")
    with pytest.raises(StoreError, match="exists without its database"):
        OutcomeDatabase(database.path)


def test_a_key_of_another_type_hides_no_row(
    database: OutcomeDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit of a record's header makes a text a blob, which equals no text."""
    text, blob = b"\x06\x81\x0d\x81\x0d", b"\x06\x81\x0d\x81\x0c"  # of 64 bytes, in the index
    whole = database.path.read_bytes()
    assert whole.count(text) == 4
    database.path.write_bytes(whole.replace(text, blob, 1))
    assert database.read([PROTOCOL.digest]) == [outcome(bits) for bits in (2, 3, 4, 5)]
    assert "is damaged" in capsys.readouterr().err


def test_flipped_bits_of_a_database_are_told_or_change_nothing(
    database: OutcomeDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, expected = database.path.read_bytes(), [outcome(bits) for bits in (2, 3, 4, 5)]
    used = [i for i, byte in enumerate(whole) if byte]
    for offset in used[::7]:
        database.path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])
        warn_once.cache_clear()
        try:
            again = OutcomeDatabase(database.path)
            outcomes, protocols = again.read(), again.protocols()
        except StoreError:
            continue
        finally:
            for suffix in ("-wal", "-shm"):
                database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)
        warnings = capsys.readouterr().err
        assert all(one in expected for one in outcomes)
        assert warnings or (outcomes == expected and protocols == {PROTOCOL.digest: PROTOCOL}), (
            offset
        )


def test_a_row_that_the_index_lacks_is_told_and_read(
    database: OutcomeDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of some protocols are found by the index, so a fault in it must not hide any."""
    whole = database.path.read_bytes()
    name = outcome(3).qconfig.digest.encode() + PROTOCOL.digest.encode()
    in_index = max(i for i in range(len(whole)) if whole.startswith(name, i))
    in_table = min(i for i in range(len(whole)) if whole.startswith(name, i))
    assert in_index != in_table
    for offset in (in_index, in_table):
        changed = bytes([whole[offset + 70] ^ 1])  # in the protocol's digest
        database.path.write_bytes(whole[: offset + 70] + changed + whole[offset + 71 :])
        warn_once.cache_clear()
        again = OutcomeDatabase(database.path)
        assert again.read([PROTOCOL.digest]) == [outcome(bits) for bits in (2, 3, 4, 5)]
        assert again.counts() == {PROTOCOL.digest: 4}
        assert "is damaged (row 2 missing from index" in capsys.readouterr().err


def test_a_damaged_database_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warn_once.cache_clear()
    database = OutcomeDatabase(tmp_path / "toy" / "outcomes.sqlite")
    for bits in range(2, 9):  # one row a page
        large = dataclasses.replace(outcome(bits), provenance={"note": "x" * 2500})
        database.add(large, PROTOCOL)
    assert main([str(tmp_path / "toy")]) == 0
    data = bytearray(database.path.read_bytes())
    page = data.index(b"uaq-5") // 4096 * 4096
    data[page : page + 4096] = b"\0" * 4096
    database.path.write_bytes(data)
    with closing(sqlite3.connect(database.path)) as db:
        fault = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    assert fault != "ok"
    before = database.read()
    bits = {one.qconfig.methods["a"].bits for one in before}
    assert bits == {2, 3, 4, 6, 7, 8}
    assert main([str(tmp_path / "toy")]) == 1
    assert "--repair" in capsys.readouterr().out
    assert main(["--repair", str(tmp_path / "toy")]) == 0
    assert main([str(tmp_path / "toy")]) == 0
    again = OutcomeDatabase(database.path)
    assert again.read() == before
    assert database.path.with_name("outcomes.sqlite.damaged").read_bytes() == bytes(data)


def test_damaged_rows_of_a_shipped_table_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_once.cache_clear()
    monkeypatch.setattr("qsdm.store.ZOO", tmp_path / "zoo")
    path = tmp_path / "zoo" / "toy" / "store" / "outcomes.parquet"
    write_outcomes_parquet(path, [outcome(3), outcome(4)], {})
    table = pyarrow.parquet.read_table(path)
    texts = table["json"].to_pylist()
    texts[0] = texts[0].replace("uaq-3", "uaq-2")
    column = table.schema.get_field_index("json")
    pyarrow.parquet.write_table(table.set_column(column, "json", [texts]), path)
    assert Store(tmp_path / "mine", "toy").outcomes() == [outcome(4)]
    assert "1 of 2 outcomes" in (warnings := capsys.readouterr().err)
    assert "+model=toy" in warnings


def test_a_flipped_bit_of_a_page_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_outcomes_parquet(path, [outcome(3), outcome(4)], {})
    whole = path.read_bytes()
    for offset in range(4, len(whole), 29):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with suppress(StoreError):
            assert read_outcomes_parquet(path) == [outcome(3), outcome(4)]


def test_what_ships_is_compared_with_its_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsdm.store.ZOO", tmp_path)
    for name in ("toy/store/outcomes.parquet", "toy/pipeline/unet/weights", "toy/reference"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    check_shipped(tmp_path)  # as long as there is no list
    write_checksums(tmp_path, [path for path in tmp_path.rglob("*") if path.is_file()])
    check_shipped(tmp_path / "toy")
    (tmp_path / "toy/pipeline/unet/weights").write_text("other")
    check_shipped(tmp_path / "toy/store/outcomes.parquet")
    with pytest.raises(
        StoreError, match=r"weights, which ships with qsdm, was changed after it was saved"
    ):
        check_shipped(tmp_path / "toy/pipeline")
    (tmp_path / "toy/reference").unlink()
    with pytest.raises(StoreError, match=r"reference.* cannot be read .*git checkout"):
        check_shipped(tmp_path / "toy/reference")
