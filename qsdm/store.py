"""Where artifacts lie, and how they are written: atomically, as JSON, safetensors, Parquet and SQLite, never as a
pickle.

    store/<denoiser>/graph.json, graph.html           trace (calibrate adds the errors to the page)
    store/<denoiser>/calibration/<space>/             calibrate: table.safetensors, weights.safetensors
    store/<denoiser>/outcomes.sqlite                  measure (one driver writes, as outcomes come)
    store/<denoiser>/predictor/<space>/               train: fold-K.safetensors, report.json
    store/<denoiser>/sensitivity/<space>.json         attribute
    store/<denoiser>/search/<space>.json              search
    store/<denoiser>/summary.json, report.html        realize
    store/<denoiser>/stages.json                      the main job: what it need not repeat

Some models ship a store of their own (``qsdm/zoo/<denoiser>/store``). It is read where the user's store lacks a file,
and never written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.outcome import SCHEMA, Outcome, Protocol

ZOO = Path(__file__).parent / "zoo"


class StoreError(Exception):
    """An artifact is missing, damaged or of another kind; the message says which command makes it."""


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of one denoiser.

    Attributes:
        root: the user's store, for reading and writing.
        denoiser: name of the model.
    """

    root: Path
    denoiser: str

    def path(self, name: str) -> Path:
        """Where to write the artifact ``name``."""
        return Path(self.root) / self.denoiser / name

    def find(self, name: str, made_by: str) -> Path:
        """Where the artifact ``name`` is: in the user's store, else in the shipped one.

        Args:
            made_by: the command that makes it, for the error.
        """
        for path in (self.path(name), ZOO / self.denoiser / "store" / name):
            if path.exists():
                return path
        raise StoreError(
            f"no {name} for {self.denoiser!r} in {self.root}/: run python -m qsdm.{made_by} +model={self.denoiser}"
        )

    def outcomes(self, protocol: Protocol | None = None) -> list[Outcome]:
        """Measured outcomes, shipped ones first, each (configuration, protocol) once; of ``protocol`` only, if one is
        given."""
        found: dict[tuple[str, str], Outcome] = {}
        shipped = ZOO / self.denoiser / "store" / "outcomes.parquet"
        if shipped.exists():
            found |= {outcome.key: outcome for outcome in read_outcomes_parquet(shipped)}
        if (path := self.path("outcomes.sqlite")).exists():
            found |= {outcome.key: outcome for outcome in OutcomeDatabase(path).read()}
        return [outcome for outcome in found.values() if protocol is None or outcome.protocol == protocol.digest]

    def protocols(self) -> dict[str, Protocol]:
        """Protocols by digest, of all stored outcomes."""
        found: dict[str, Protocol] = {}
        shipped = ZOO / self.denoiser / "store" / "protocols.json"
        if shipped.exists():
            found |= {p.digest: p for p in map(Protocol.from_json, read_json(shipped))}
        if (path := self.path("outcomes.sqlite")).exists():
            found |= OutcomeDatabase(path).protocols()
        return found


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
                db.execute("CREATE TABLE IF NOT EXISTS protocol (digest TEXT PRIMARY KEY, json TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path} is no database of outcomes ({error}): move it away and measure again") from error

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
                    "INSERT OR IGNORE INTO protocol VALUES (?, ?)", (protocol.digest, json.dumps(protocol.to_json()))
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
                Outcome.from_json(json.loads(text)) for (text,) in db.execute("SELECT json FROM outcome ORDER BY rowid")
            ]

    def protocols(self) -> dict[str, Protocol]:
        with closing(self._connect()) as db:
            return {
                digest: Protocol.from_json(json.loads(text))
                for digest, text in db.execute("SELECT digest, json FROM protocol")
            }


def replace(path: Path, write: Any) -> None:
    """Write beside ``path`` and rename: a reader sees the old file or the new one, never a half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(
            f"{path} was not written ({error.strerror or error}): free some space or choose another store="
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    replace(
        path, lambda partial: partial.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    )


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as JSON ({error}): remove it and make it again") from error


def write_text(path: Path, text: str) -> None:
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Arrays by name as safetensors; ``about`` is anything that JSON can hold."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    data = save(arrays, metadata={"qsdm": json.dumps(about, allow_nan=False)})
    replace(path, lambda partial: partial.write_bytes(data))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The inverse of `write_tensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["qsdm"])
            return {name: file.get_tensor(name) for name in list(file.keys())}, about
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is damaged or not ours ({error}): remove it and make it again") from error


def write_outcomes_parquet(path: Path, outcomes: Sequence[Outcome], columns: Mapping[str, Sequence[Any]]) -> None:
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
        | {"pictures": o.provenance.get("pictures"), "json": json.dumps(o.to_json(), allow_nan=False)}
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
        raise StoreError(f"{path} is damaged or no table of outcomes ({error}): restore it") from error


def provenance() -> dict[str, Any]:
    """What made an artifact: versions, commit, time; nothing of the machine's names or paths."""
    versions = {}
    for package in ("qsdm", "torch", "diffusers", "transformers", "numpy", "torch-geometric"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": versions,
        "commit": git.stdout.strip() if git.returncode == 0 else None,
    }
