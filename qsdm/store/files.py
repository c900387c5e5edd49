"""Files written completely or not at all: readers see the old file or the new one, never a part."""

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


class StoreError(Exception):
    """An artifact is missing, damaged or of another kind; the message says what to do."""


@cache
def warn_once(sentence: str) -> None:
    """Print a warning about a file that is used nevertheless, once per process.

    Args:
        sentence: what the user should know.
    """
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and rename it to ``path`` once it is complete.

    Args:
        path: the file, replaced if it exists. Its folder is made if need be.
        write: fills the file whose path it is given.

    Raises:
        StoreError: it cannot be written.
    """

    def fill(partial: Path) -> None:
        write(partial)
        partial.replace(path)

    write_beside(path, fill)


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden file beside ``path``; remove what is left of it.

    Args:
        path: beside which to write. Its folder is made if need be.
        write: fills the file whose path it is given, and may rename it.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
    except OSError as error:
        raise StoreError(
            f"{path} was not written ({error.strerror or error}): "
            "free some space or choose another store="
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON.

    Args:
        path: the file, replaced if it exists.
        data: anything that JSON can hold.

    Raises:
        StoreError: it cannot be written.
        ValueError: a number is not finite.
    """
    replace(
        path,
        lambda partial: partial.write_text(
            json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        ),
    )


def read_json(path: Path) -> Any:
    """Read JSON without a schema: inputs, and files of other programs.

    Warns about content that does not match its checksum.

    Args:
        path: the file.

    Returns:
        What the file holds, without its checksum.

    Raises:
        StoreError: there is no such file, or it is not JSON.
    """
    from qsdm.store.checksum import KEY, is_whole

    try:
        data = decode(path.read_bytes(), object)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read as JSON ({error}): remove it and create it again"
        ) from error
    if not isinstance(data, dict):
        return data
    if not is_whole(data):
        warn_once(f"{path} was edited after it was written; it is used as it is")
    return {key: value for key, value in data.items() if key != KEY}


def decode(data: bytes | Any, kind: type[T]) -> T:
    """Convert JSON, or what JSON holds, to a type that msgspec can decode.

    Args:
        data: bytes are JSON text; anything else is what JSON holds.
        kind: the type.

    Raises:
        ValueError: it is not JSON, or not of this type; the message says where, as in
            ``$.nodes[3].op``.
    """
    import msgspec

    try:
        if isinstance(data, bytes):
            return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=kind)
        return msgspec.convert(data, kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.DecodeError as error:  # ValidationError among them
        message = str(error).replace("Expected ", "wanted ", 1).replace(" - at `$", " at `$")
        raise ValueError(message) from error


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8.

    Args:
        path: the file, replaced if it exists.
        text: its content.

    Raises:
        StoreError: it cannot be written.
    """
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
