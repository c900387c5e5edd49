"""Files that are written whole or not at all: a reader sees the old file or the new one, never a half."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def tell(sentence: str) -> None:
    """Say once per process what the user should know of a file that is used nevertheless."""
    print(sentence, file=sys.stderr, flush=True)


class StoreError(Exception):
    """An artifact is missing, damaged or of another kind; the message says which command makes it."""


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and rename: a reader sees the old file or the new one, never a half."""

    def fill(partial: Path) -> None:
        write(partial)
        os.replace(partial, path)

    write_beside(path, fill)


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Hand a hidden file in the folder of ``path`` to ``write``, and remove what is left of it.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
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
    """JSON that somebody else may have written: inputs, and the files of other programs.

    Of content that does not agree with its checksum the user is told. The checksum itself is left out.

    Raises:
        StoreError: there is no such file, or it is no JSON.
    """
    from qsdm.store.checksum import KEY, is_whole

    try:
        data = decode(path.read_bytes(), object)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read as JSON ({error}): remove it and make it again"
        ) from error
    if not isinstance(data, dict):
        return data
    if not is_whole(data):
        tell(f"{path} was changed after it was written; it is taken as it is")
    return {key: value for key, value in data.items() if key != KEY}


def decode(data: bytes | Any, kind: type[T]) -> T:
    """JSON, or what it holds, as a type that msgspec can read.

    Args:
        data: bytes are JSON; anything else is what JSON holds.

    Raises:
        ValueError: it is no JSON, or not of this type; the message says where, as in ``$.nodes[3].op``.
    """
    import msgspec

    try:
        if isinstance(data, bytes):
            data = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
        return msgspec.convert(data, kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.DecodeError as error:  # ValidationError among them
        told = str(error).replace("Expected ", "wanted ", 1).replace(" - at `$", " at `$")
        raise ValueError(told) from error


def write_text(path: Path, text: str) -> None:
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
