"""Files that are written whole or not at all: a reader sees the old file or the new one, never a half."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


class StoreError(Exception):
    """An artifact is missing, damaged or of another kind; the message says which command makes it."""


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
        path,
        lambda partial: partial.write_text(
            json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        ),
    )


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read as JSON ({error}): remove it and make it again"
        ) from error


def write_text(path: Path, text: str) -> None:
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
