"""Files that are written again only if what they were written from has changed.

FOLDER.json beside FOLDER::

    schema      qsdm/memo/1
    made_from   digest of what decides the content of the folder
    files       of the folder: size in bytes and time of the last change in ns, by path
    result      what the caller wants to know of it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from qsdm.store.artifacts import Artifact, typed
from qsdm.store.files import StoreError


class _Memo(TypedDict):
    made_from: str
    files: dict[str, tuple[int, int]]
    result: dict[str, Any]


MEMO: Artifact[_Memo] = Artifact("qsdm/memo/1", "realize", typed(_Memo))


def recall(folder: Path, made_from: str) -> dict[str, Any] | None:
    """What `remember` stored of a folder.

    Args:
        folder: of the files.
        made_from: digest of what decides their content.

    Returns:
        The result; None if the files must be written: they were made from something else, one was
        changed since, or the memo is missing or damaged.
    """
    path = _beside(folder)
    try:
        memo = MEMO.read(path) if path.exists() else None
    except StoreError:
        return None
    if memo is None or memo["made_from"] != made_from or memo["files"] != changes_in(folder):
        return None
    return memo["result"]


def remember(folder: Path, made_from: str, result: Mapping[str, Any]) -> None:
    """Store that a folder was written.

    Args:
        folder: of the files, all of them written.
        made_from: digest of what decides their content.
        result: plain data.

    Raises:
        StoreError: it cannot be written.
    """
    content = {"made_from": made_from, "files": changes_in(folder), "result": dict(result)}
    MEMO.write(_beside(folder), content)


def changes_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Size in bytes and time of the last change in ns of each file, by its path in the folder.

    Args:
        folder: which may be missing.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    }


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
