"""Outcomes in files: SQLite, to which they are added as they come, and Parquet, in which they are shipped.

Each row carries the checksum of its content. A damaged row is left out and counted, the others stay usable; measuring
again replaces it. Rows of version 0.1.0 have no checksum and are checked by their schema alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from qsdm.graph import canonical
from qsdm.outcome import SCHEMA, Outcome, Protocol, versions_in
from qsdm.store.checksum import KEY, checksum
from qsdm.store.files import StoreError, decode, replace, tell, write_beside

T = TypeVar("T")
Row = TypeVar("Row", Outcome, Protocol)
_MOST_ROWS = 100_000  # looked for one by one: the number of a damaged row may be any
_SURROUNDINGS = {  # errors that are no fault of the file
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}
_TABLES = {
    "outcome": "qconfig TEXT, protocol TEXT, json TEXT NOT NULL, PRIMARY KEY (qconfig, protocol)",
    "protocol": "digest TEXT PRIMARY KEY, json TEXT NOT NULL",
}


def encode_row(content: Mapping[str, Any]) -> str:
    """JSON of a row, the last entry of which is the checksum of the text without it."""
    text = json.dumps(content, allow_nan=False)
    return text[:-1] + _end_of(text.encode())


def _end_of(text: bytes) -> str:
    return f', "{KEY}": "{checksum(text)}"}}'


_LENGTH_OF_END = len(_end_of(b""))


def decode_row(text: object, build: Callable[[Any], T]) -> T:
    """The inverse of `encode_row`.

    Args:
        text: bytes, or whatever a damaged row holds in their place.

    Raises:
        ValueError: the row is damaged.
    """
    if not isinstance(text, bytes):
        raise ValueError(f"wanted a text, got {type(text).__name__}")
    start = len(text) - _LENGTH_OF_END
    data = decode(text, dict[str, Any])
    # Not of the content, as elsewhere: to write it as JSON again would take as long as reading it.
    end = _end_of(text[:start] + b"}").encode()
    if data.pop(KEY, None) is not None and text[start:] != end:
        raise ValueError("its content is not what its checksum says")
    return build(data)


def decode_rows(
    texts: Iterable[object], build: Callable[[Any], T], path: Path, what: str
) -> list[T]:
    """What the rows hold that are not damaged; the user is told of the others.

    Args:
        path: where they lie, in a folder that is called as the model.
        what: they are, in the plural.
    """
    found, num_damaged = [], 0
    for text in texts:
        try:
            found.append(decode_row(text, build))
        except ValueError:
            num_damaged += 1
    if num_damaged:
        tell(
            f"{num_damaged} of {len(found) + num_damaged} {what} in {path} are damaged and were "
            f"skipped: run python -m qsdm.measure +model={_model_of(path)} again"
        )
    return found


def _model_of(path: Path) -> str:
    """A user's store lies in STORE/<model>, the shipped one in zoo/<model>/store."""
    folder = path.absolute().parent
    return folder.parent.name if path.suffix == ".parquet" else folder.name


class OutcomeDatabase:
    """Outcomes as they come, in SQLite's write-ahead mode: what was added survives a kill; adding the same key again
    adds the metrics that were missing.

    Raises:
        StoreError: it is no database of outcomes, or so damaged that it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and not path.exists():  # SQLite would write it into a new database
            raise StoreError(f"{log} lies there without its database: restore {path}, or remove it")
        if not path.exists():
            _create(path)
        if path.stat().st_size == 0:  # SQLite would take it for a new database
            raise self._damaged("it is empty")
        with self._opened() as db:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = {name for (name,) in db.execute(query)}
        if names != {name.encode() for name in _TABLES}:
            raise self._damaged(f"its tables are {', '.join(sorted(map(repr, names))) or 'lost'}")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60)
        db.text_factory = bytes  # a damaged text may be no UTF-8
        db.execute("PRAGMA journal_mode=WAL")
        return db

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Raises StoreError instead of SQLite's own errors."""
        try:
            with closing(self._connect()) as db, db:
                yield db
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _SURROUNDINGS:
                raise self._damaged(str(error)) from error
            raise StoreError(
                f"{self.path} cannot be written ({error}): free some space, or wait for who else "
                "uses it, and run again; what was stored before is kept"
            ) from error

    def _damaged(self, reason: str) -> StoreError:
        return StoreError(
            f"{self.path} is damaged or no database of outcomes ({reason}): run python -m qsdm.store "
            f"--repair {self.path.parent}, which keeps what can be read"
        )

    def add(self, outcome: Outcome, protocol: Protocol) -> None:
        """Raises StoreError if it cannot be written (a full disk)."""
        assert outcome.protocol == protocol.digest
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")  # another driver may add to the same outcome
            _add(db, "protocol", {"digest": protocol.digest}, protocol, Protocol.from_json)
            keys = {"qconfig": outcome.qconfig.digest, "protocol": outcome.protocol}
            _add(db, "outcome", keys, outcome, Outcome.from_json)

    def read(self) -> list[Outcome]:
        """All outcomes that are not damaged, in the order in which they came."""
        former = former_of(self._texts("protocol"))
        rows = self._texts("outcome")
        found = decode_rows(rows, Outcome.from_json, self.path, "outcomes")
        return merged(of_today(outcome, former) for outcome in found)

    def protocols(self) -> dict[str, Protocol]:
        """By digest, those that are not damaged."""
        rows = self._texts("protocol")
        found = decode_rows(rows, Protocol.from_json, self.path, "protocols")
        return {protocol.digest: protocol for protocol in found}

    def _texts(self, table: str) -> list[object]:
        with self._opened() as db:
            if (problem := integrity(db)) is None:
                return [text for (text,) in db.execute(f"SELECT json FROM {table} ORDER BY rowid")]
        rows = salvaged(self.path, table)
        tell(
            f"{self.path} is damaged ({problem}), {len(rows)} {table}s could be read: run python "
            f"-m qsdm.store --repair {self.path.parent}"
        )
        return rows


Former = dict[str, tuple[str, dict[str, str]]]
"""Digest of a protocol under the first schema => today's digest, and the versions of its metrics."""


def former_of(texts: Iterable[object]) -> Former:
    """Rows of protocols => those of the first schema, which had the metrics in it. Damaged ones are passed over.

    Args:
        texts: the rows, of any schema.
    """
    former: Former = {}
    for text in texts:
        with suppress(ValueError):
            data = decode_row(text, lambda row: row)
            if "schema" not in data:
                digest = hashlib.sha256(canonical(data)).hexdigest()
                former[digest] = Protocol.from_json(data).digest, versions_in(data)
    return former


def of_today(outcome: Outcome, former: Former) -> Outcome:
    """An outcome with the versions of its metrics beside its protocol, not in it.

    Args:
        outcome: as it was stored.
        former: protocols of the first schema.
    """
    if outcome.protocol not in former:
        return outcome
    digest, versions = former[outcome.protocol]
    known = {name: versions[name] for name in outcome.metrics if name in versions}
    return dataclasses.replace(outcome, protocol=digest, versions=known)


def merged(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Each (configuration, protocol) once, with all metrics that were measured of it.

    Args:
        outcomes: of one key the first first.
    """
    by_key: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        before = by_key.get(outcome.key)
        by_key[outcome.key] = outcome if before is None else before.merged(outcome)
    return list(by_key.values())


def integrity(db: sqlite3.Connection) -> str | None:
    """The first fault that SQLite finds in a database, or None."""
    try:
        (answer,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    told = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    return None if told == "ok" else " ".join(told.split())


def salvaged(path: Path, table: str) -> list[object]:
    """What can be read of a damaged database, row by row."""
    rows: dict[int, object] = {}
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        for order in ("", "DESC"):  # up to the fault from either side
            with suppress(sqlite3.DatabaseError):
                query = f"SELECT rowid, json FROM {table} NOT INDEXED ORDER BY rowid {order}"
                for row, text in db.execute(query):
                    rows[row] = text
        between = range(min(rows, default=0), max(rows, default=0))
        for row in islice(between, _MOST_ROWS):  # between two faults
            if row not in rows:
                with suppress(sqlite3.DatabaseError):
                    query = f"SELECT rowid, json FROM {table} NOT INDEXED WHERE rowid = ?"
                    rows.update(dict(db.execute(query, (row,))))
    return [rows[row] for row in sorted(rows)]


def problems(path: Path) -> str:
    """What is wrong with a database that can be opened: by SQLite's own check, and row by row."""
    with closing(sqlite3.connect(path)) as db:
        fault = integrity(db)
    damaged = 0
    for table, build in (("outcome", Outcome.from_json), ("protocol", Protocol.from_json)):
        for text in salvaged(path, table):
            try:
                decode_row(text, build)
            except ValueError:
                damaged += 1
    if fault is None and not damaged:
        return ""
    return (
        f"{path} is damaged ({fault or f'{damaged} rows'}): run python -m qsdm.store --repair "
        f"{path.parent}, then python -m qsdm.measure +model={path.absolute().parent.name}"
    )


def repair(path: Path) -> Path:
    """Write a new database of all rows that can be read; the damaged one is kept beside it.

    Returns:
        Where it is kept.

    Raises:
        StoreError: it cannot be written.
    """
    outcomes: list[Outcome] = []
    protocols: dict[str, Protocol] = {}
    former: Former = {}
    with suppress(sqlite3.DatabaseError):
        known = decode_rows(salvaged(path, "protocol"), Protocol.from_json, path, "protocols")
        protocols = {protocol.digest: protocol for protocol in known}
        former = former_of(salvaged(path, "protocol"))
    with suppress(sqlite3.DatabaseError):
        found = decode_rows(salvaged(path, "outcome"), Outcome.from_json, path, "outcomes")
        outcomes = [of_today(outcome, former) for outcome in found]
    kept = path.with_name(f"{path.name}.damaged")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(kept)
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(kept.with_name(kept.name + suffix))
    database = OutcomeDatabase(path)
    for outcome in outcomes:
        if outcome.protocol in protocols:
            database.add(outcome, protocols[outcome.protocol])
    return kept


def _create(path: Path) -> None:
    """Make an empty database, unless another process was faster; nobody ever sees a half-made one."""

    def fill(partial: Path) -> None:
        with closing(sqlite3.connect(partial)) as db, db:
            for name, columns in _TABLES.items():
                db.execute(f"CREATE TABLE {name} ({columns})")
        with suppress(FileExistsError):
            try:
                os.link(partial, path)
            except (PermissionError, NotImplementedError):  # a file system without hard links
                os.replace(partial, path)
        partial.unlink(missing_ok=True)

    write_beside(path, fill)


def _add(
    db: sqlite3.Connection,
    table: str,
    keys: Mapping[str, str],
    content: Row,
    build: Callable[[Any], Row],
) -> None:
    """Insert a row, or what it knows beside a row of the same keys; a damaged one is replaced."""
    values: tuple[str, ...] = tuple(keys.values())
    where = " AND ".join(f"{key} = ?" for key in keys)
    before = db.execute(f"SELECT json FROM {table} WHERE {where}", values).fetchone()
    if before is None:
        row = (*values, encode_row(content.to_json()))
        db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        return
    with suppress(ValueError):
        stored = decode_row(before[0], build)
        if not isinstance(stored, Outcome) or not isinstance(content, Outcome):
            return
        content = stored.merged(content)
        if content == stored:
            return
    text = encode_row(content.to_json())
    db.execute(f"UPDATE {table} SET json = ? WHERE {where}", (text, *values))


def write_outcomes_parquet(
    path: Path, outcomes: Sequence[Outcome], columns: Mapping[str, Sequence[Any]]
) -> None:
    """One row per outcome: digests, what it was measured for, sample count, metrics with their standard errors, digest
    of the pictures, and the whole outcome as JSON with its checksum. The schema's version is in the table's metadata.

    Args:
        columns: what else is known of each outcome.
    """
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for o in outcomes for name in o.metrics))
    rows = [
        {
            "qconfig": o.qconfig.digest,
            "protocol": o.protocol,
            "stage": o.provenance.get("stage", "measure"),
            "num_images": o.num_images,
        }
        | {name: column[i] for name, column in columns.items()}
        | {f"metric/{name}": o.metrics.get(name) for name in names}
        | {f"standard_error/{name}": o.standard_error(name) for name in names}
        | {"pictures": o.provenance.get("pictures"), "json": encode_row(o.to_json())}
        for i, o in enumerate(outcomes)
    ]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"qsdm_schema": str(SCHEMA)})
    replace(
        path,
        lambda partial: pyarrow.parquet.write_table(
            table, partial, compression="zstd", write_page_checksum=True
        ),
    )


def read_outcomes_parquet(path: Path) -> list[Outcome]:
    """Raises StoreError if it is damaged as a whole; single damaged rows are left out and counted."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["json"], page_checksum_verification=True)
        texts = table["json"].cast(pyarrow.binary()).to_pylist()
    except (OSError, pyarrow.ArrowException, KeyError, ValueError) as error:
        told = str(error).splitlines()[0]
        raise StoreError(
            f"{path} is damaged or no table of outcomes ({told}): restore it, "
            "as with pip install --force-reinstall qsdm"
        ) from error
    return decode_rows(texts, Outcome.from_json, path, "outcomes")
