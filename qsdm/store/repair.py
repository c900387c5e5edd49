"""What is wrong with a database of outcomes, and a new one made of the rows that can be read."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from qsdm.outcome import Outcome, Protocol
from qsdm.store.outcomes import OutcomeDatabase, integrity, salvaged
from qsdm.store.rows import Former, decode_row, decode_rows, former_of, of_today


def problems(path: Path) -> str:
    """Check a database by SQLite's own means, and row by row.

    Args:
        path: a database that can be opened.

    Returns:
        A sentence that says what is wrong and what to do; empty if nothing is wrong.
    """
    with closing(sqlite3.connect(path)) as db:
        fault = integrity(db)
    num_damaged = 0
    for table, build in (("outcome", Outcome.from_json), ("protocol", Protocol.from_json)):
        for text in salvaged(path, table):
            try:
                decode_row(text, build)
            except ValueError:
                num_damaged += 1
    if fault is None and not num_damaged:
        return ""
    return (
        f"{path} is damaged ({fault or f'{num_damaged} rows'}): run python -m qsdm.store --repair "
        f"{path.parent}, then python -m qsdm.measure +model={path.absolute().parent.name}"
    )


def repair(path: Path) -> Path:
    """Write a new database of all rows that can be read; the damaged one is kept beside it.

    Args:
        path: the damaged database.

    Returns:
        Where the damaged one is kept.

    Raises:
        StoreError: it cannot be written.
    """
    outcomes: list[Outcome] = []
    protocols: dict[str, Protocol] = {}
    former: Former = {}
    with suppress(sqlite3.DatabaseError):
        readable = decode_rows(salvaged(path, "protocol"), Protocol.from_json, path, "protocols")
        protocols = {protocol.digest: protocol for protocol in readable}
        former = former_of(salvaged(path, "protocol"))
    with suppress(sqlite3.DatabaseError):
        stored = decode_rows(salvaged(path, "outcome"), Outcome.from_json, path, "outcomes")
        outcomes = [of_today(outcome, former) for outcome in stored]
    backup = path.with_name(f"{path.name}.damaged")
    number = 1
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(backup)
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(backup.with_name(backup.name + suffix))
    OutcomeDatabase(path).add_all(
        (outcome, protocols[outcome.protocol])
        for outcome in outcomes
        if outcome.protocol in protocols
    )
    return backup
