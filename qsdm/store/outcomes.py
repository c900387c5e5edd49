"""Outcomes in SQLite, to which they are added as they arrive.

Each row carries the checksum of its content. Damaged rows are skipped and counted, the others stay
usable; measuring again replaces the damaged ones.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from qsdm.outcome import Outcome, Protocol
from qsdm.store.files import StoreError, warn_once, write_beside
from qsdm.store.rows import (
    Part,
    decode_row,
    decode_rows,
    encode_row,
    former_of,
    merged,
    of_today,
)

Row = TypeVar("Row", Outcome, Protocol)
T = TypeVar("T")
_MOST_ROWS = 100_000  # tried one by one, as a damaged row may have any number
_ENVIRONMENT_ERRORS = {  # not the fault of the file
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
_KEYS = {  # with their types: a text does not equal the blob of its bytes
    "outcome": "qconfig, protocol, typeof(qconfig) || typeof(protocol)",
    "protocol": "digest, typeof(digest)",
}
_AGREEING: dict[Path, tuple[tuple[int, int, int], ...]] = {}
"""Databases whose tables agree with their indices, and the state of the files that was checked."""


class OutcomeDatabase:
    """Measured outcomes and their protocols, in SQLite's write-ahead mode.

    What was added survives a kill. Adding the same key again adds the missing metrics.

    Args:
        path: the file, created if it does not exist.

    Raises:
        StoreError: it is not a database of outcomes, or too damaged to be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and not path.exists():  # SQLite would apply it to a new database
            raise StoreError(
                f"{log} exists without its database: restore {path}, or remove the log"
            )
        if not path.exists():
            _create(path)
        if path.stat().st_size == 0:  # SQLite would treat it as a new database
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
        """A transaction that raises StoreError instead of SQLite's own errors."""
        try:
            with closing(self._connect()) as db, db:
                yield db
        except sqlite3.DatabaseError as error:
            if not _is_of_environment(error):
                raise self._damaged(str(error)) from error
            raise StoreError(
                f"{self.path} cannot be written ({error}): free some space, or wait for the "
                "program that uses it, and run again; what was stored before is kept"
            ) from error

    def _damaged(self, reason: str) -> StoreError:
        return StoreError(
            f"{self.path} is damaged or not a database of outcomes ({reason}): run python -m "
            f"qsdm.store --repair {self.path.parent}, which keeps what can be read"
        )

    def add(self, outcome: Outcome, protocol: Protocol) -> None:
        """Add an outcome, or its metrics to the stored outcome of the same key.

        Args:
            outcome: what was measured.
            protocol: its protocol.

        Raises:
            StoreError: it cannot be written, for example because the disk is full.
        """
        self.add_all([(outcome, protocol)])

    def add_all(self, measured: Iterable[tuple[Outcome, Protocol]]) -> None:
        """Add many outcomes as `add` does, in one transaction: all of them or none.

        Args:
            measured: outcomes, each with its protocol.

        Raises:
            StoreError: they cannot be written, for example because the disk is full.
        """
        protocols: set[str] = set()
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")  # another driver may add to the same outcome
            for outcome, protocol in measured:
                assert outcome.protocol == protocol.digest
                if protocol.digest not in protocols:
                    keys = {"digest": protocol.digest}
                    _add(db, "protocol", keys, protocol, Protocol.from_json)
                    protocols.add(protocol.digest)
                keys = {"qconfig": outcome.qconfig.digest, "protocol": outcome.protocol}
                _add(db, "outcome", keys, outcome, Outcome.from_json)

    def read(
        self, protocols: Collection[str] | None = None, part: Part | None = None
    ) -> list[Outcome]:
        """Read the undamaged outcomes, in the order in which they were added.

        Args:
            protocols: digests of those whose outcomes are read; None for all.
            part: the part that is wanted; None for both. Some outcomes of the other part may be
                among them.

        Returns:
            The outcomes.
        """
        former = self._read("protocol", former_of)
        wanted = None
        if protocols is not None:
            # Rows of the first schema name their protocols as it did.
            wanted = {*protocols, *(old for old, (now, _) in former.items() if now in protocols)}

        build: Callable[[bytes], Outcome | None] = Outcome.from_json
        if part is not None:
            merged_ones = former.keys() | {now for now, _ in former.values()}
            build = replace(part, protocols=part.protocols | merged_ones).outcome

        def decoded(texts: Iterable[object]) -> list[Outcome]:
            return decode_rows(texts, build, self.path, "outcomes")

        outcomes = merged(of_today(o, former) for o in self._read("outcome", decoded, wanted))
        return [o for o in outcomes if protocols is None or o.protocol in protocols]

    def protocols(self) -> dict[str, Protocol]:
        """All undamaged protocols, by digest."""
        protocols = self._read(
            "protocol",
            lambda texts: decode_rows(texts, Protocol.from_json, self.path, "protocols"),
        )
        return {protocol.digest: protocol for protocol in protocols}

    def counts(self) -> dict[str, int]:
        """Count the rows of each protocol by its digest; of a damaged file, those that are read."""
        former = self._read("protocol", former_of)
        counts: Counter[str] = Counter()
        query = f"SELECT protocol, count(*) FROM outcome INDEXED BY {_index('outcome')} GROUP BY 1"
        with self._opened() as db:
            try:
                rows = db.execute(query).fetchall() if self._disagreement(db) is None else None
            except sqlite3.DatabaseError as error:
                if _is_of_environment(error):
                    raise
                rows = None
        if rows is None:
            return Counter(outcome.protocol for outcome in self.read())
        for digest, num in rows:
            name = str(digest, "utf-8", "replace")
            counts[former[name][0] if name in former else name] += num
        return counts

    def _read(
        self,
        table: str,
        decoded: Callable[[Iterable[object]], T],
        protocols: Collection[str] | None = None,
    ) -> T:
        """Decode the rows of a table, of outcomes only those of some protocols."""
        query = f"SELECT json FROM {table} NOT INDEXED ORDER BY rowid"
        values = tuple(protocols or ())
        if protocols is not None:
            query = (
                f"SELECT json FROM outcome WHERE rowid IN (SELECT rowid FROM outcome INDEXED BY "
                f"{_index('outcome')} WHERE protocol IN ({', '.join('?' * len(values))})) "
                "ORDER BY rowid"
            )
        with self._opened() as db:
            try:
                if (problem := self._disagreement(db)) is None:
                    return decoded(text for (text,) in db.execute(query, values))
            except sqlite3.DatabaseError as error:
                if _is_of_environment(error):
                    raise
                problem = str(error)
            problem = integrity(db) or problem
        rows = salvaged(self.path, table)
        warn_once(
            f"{self.path} is damaged ({problem}), only {len(rows)} {table}s could be read: run "
            f"python -m qsdm.store --repair {self.path.parent}"
        )
        return decoded(rows)

    def _disagreement(self, db: sqlite3.Connection) -> str | None:
        """Whether each table and its index hold the same keys, compared once per state of the file.

        A damaged page may lack rows. It is one of the table or one of the index, and all else that
        is read has checksums, so nothing is lost unseen; SQLite's own check, which reads every
        page, takes many times as long.
        """
        stamp = self._stamp()
        if _AGREEING.get(self.path) == stamp:
            return None
        for table, keys in _KEYS.items():
            query = f"SELECT rowid, {keys} FROM {table}"
            sums = [
                sum(hash(row) for row in db.execute(f"{query} {order}"))
                for order in ("NOT INDEXED", f"INDEXED BY {_index(table)}")
            ]
            if sums[0] != sums[1]:
                return f"rows and index of the table {table} differ"
        _AGREEING[self.path] = stamp
        return None

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        states = [file.stat() for file in files if file.exists()]
        # While a database is open it has a log, which is empty if nothing was written.
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in states if s.st_size)


def _index(table: str) -> str:
    """The index that SQLite makes of a table's primary key."""
    return f"sqlite_autoindex_{table}_1"


def _is_of_environment(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _ENVIRONMENT_ERRORS


def integrity(db: sqlite3.Connection) -> str | None:
    """The first fault that SQLite finds in a database.

    Args:
        db: an open connection.

    Returns:
        SQLite's description of it; None if there is none.
    """
    try:
        (answer,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    return None if text == "ok" else " ".join(text.split())


def salvaged(path: Path, table: str) -> list[object]:
    """The rows of a damaged database that can be read.

    Args:
        path: the database.
        table: one of ``outcome`` and ``protocol``.

    Returns:
        The ``json`` column in the order of the rows; of a damaged row it may be anything.
    """
    rows: dict[int, object] = {}
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        for order in ("", "DESC"):  # from either end up to a fault
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


def _create(path: Path) -> None:
    """Create an empty database, never seen incomplete, unless another process was faster."""

    def fill(partial: Path) -> None:
        with closing(sqlite3.connect(partial)) as db, db:
            for name, columns in _TABLES.items():
                db.execute(f"CREATE TABLE {name} ({columns})")
        with suppress(FileExistsError):
            try:
                path.hardlink_to(partial)
            except (PermissionError, NotImplementedError):  # a file system without hard links
                partial.replace(path)
        partial.unlink(missing_ok=True)

    write_beside(path, fill)


def _add(
    db: sqlite3.Connection,
    table: str,
    keys: Mapping[str, str],
    content: Row,
    build: Callable[[Any], Row],
) -> None:
    """Insert a row, or merge it into the row of the same keys; a damaged row is replaced."""
    values: tuple[str, ...] = tuple(keys.values())
    where = " AND ".join(f"{key} = ?" for key in keys)
    existing = db.execute(f"SELECT json FROM {table} WHERE {where}", values).fetchone()
    if existing is None:
        row = (*values, encode_row(content.to_json()))
        db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        return
    with suppress(ValueError):
        stored = decode_row(existing[0], build)
        if not isinstance(stored, Outcome) or not isinstance(content, Outcome):
            return
        content = stored.merged(content)
        if content == stored:
            return
    text = encode_row(content.to_json())
    db.execute(f"UPDATE {table} SET json = ? WHERE {where}", (text, *values))
