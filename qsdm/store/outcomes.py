"""Outcomes in files: SQLite, to which they are added as they come, and Parquet, in which they are shipped."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qsdm.outcome import SCHEMA, Outcome, Protocol
from qsdm.store.files import StoreError, replace


class OutcomeDatabase:
    """Outcomes as they come, in SQLite's write-ahead mode: what was added survives a kill; adding the same key again
    changes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._connect()) as db, db:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS outcome "
                    "(qconfig TEXT, protocol TEXT, json TEXT NOT NULL, PRIMARY KEY (qconfig, protocol))"
                )
                db.execute(
                    "CREATE TABLE IF NOT EXISTS protocol (digest TEXT PRIMARY KEY, json TEXT NOT NULL)"
                )
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{path} is no database of outcomes ({error}): move it away and measure again"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60)
        db.execute("PRAGMA journal_mode=WAL")
        return db

    def add(self, outcome: Outcome, protocol: Protocol) -> None:
        """Raises StoreError if it cannot be written (a full disk)."""
        assert outcome.protocol == protocol.digest
        try:
            with closing(self._connect()) as db, db:
                db.execute(
                    "INSERT OR IGNORE INTO protocol VALUES (?, ?)",
                    (protocol.digest, json.dumps(protocol.to_json())),
                )
                db.execute(
                    "INSERT OR IGNORE INTO outcome VALUES (?, ?, ?)",
                    (*outcome.key, json.dumps(outcome.to_json(), allow_nan=False)),
                )
        except sqlite3.Error as error:
            raise StoreError(
                f"the outcome was not written to {self.path} ({error}): free some space and run again; "
                "what was stored before is kept"
            ) from error

    def read(self) -> list[Outcome]:
        with closing(self._connect()) as db:
            return [
                Outcome.from_json(json.loads(text))
                for (text,) in db.execute("SELECT json FROM outcome ORDER BY rowid")
            ]

    def protocols(self) -> dict[str, Protocol]:
        with closing(self._connect()) as db:
            return {
                digest: Protocol.from_json(json.loads(text))
                for digest, text in db.execute("SELECT digest, json FROM protocol")
            }


def write_outcomes_parquet(
    path: Path, outcomes: Sequence[Outcome], columns: Mapping[str, Sequence[Any]]
) -> None:
    """One row per outcome: digests, what it was measured for, sample count, metrics with their standard errors, digest
    of the pictures, and the whole outcome as JSON. The schema's version is in the table's metadata.

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
        | {
            "pictures": o.provenance.get("pictures"),
            "json": json.dumps(o.to_json(), allow_nan=False),
        }
        for i, o in enumerate(outcomes)
    ]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"qsdm_schema": str(SCHEMA)})
    replace(path, lambda partial: pyarrow.parquet.write_table(table, partial, compression="zstd"))


def read_outcomes_parquet(path: Path) -> list[Outcome]:
    import pyarrow
    import pyarrow.parquet

    try:
        return [
            Outcome.from_json(json.loads(text))
            for text in pyarrow.parquet.read_table(path, columns=["json"])["json"].to_pylist()
        ]
    except (OSError, pyarrow.ArrowException, KeyError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged or no table of outcomes ({error}): restore it"
        ) from error
