"""Checksums of files that carry none of their own, listed in a file beside them.

    checksums.json in a checkpoint    components that `qsdm.checkpoint.save_quantized` copies
    qsdm/zoo/checksums.json           everything that ships with a checkout of qsdm

The files that ship were published before artifacts carried checksums, and digests of some of them
are part of protocols, so they stay as they are, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict

from qsdm import store
from qsdm.store.artifacts import Artifact, typed
from qsdm.store.checksum import checksum_of_file
from qsdm.store.files import StoreError

NAME = "checksums.json"


class _Files(TypedDict):
    files: dict[str, str]


FILES: Artifact[_Files] = Artifact("qsdm/files/1", "realize", typed(_Files))


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """List files with their checksums in ``folder``.

    Args:
        folder: where the list is written.
        files: paths below ``folder``.

    Raises:
        StoreError: the list cannot be written.
        OSError: a file cannot be read.
    """
    checksums = {
        path.relative_to(folder).as_posix(): checksum_of_file(path) for path in sorted(files)
    }
    FILES.write(folder / NAME, {"files": checksums})


def read_checksums(folder: Path) -> Mapping[str, str]:
    """The checksums that `write_checksums` listed.

    Args:
        folder: where the list is.

    Returns:
        Checksum by path relative to ``folder``; empty if there is no list.

    Raises:
        StoreError: the list is damaged.
    """
    path = folder / NAME
    return FILES.read(path)["files"] if path.exists() else {}


def fault(path: Path, expected: str) -> str:
    """What is wrong with a file, as the end of a sentence.

    Args:
        path: the file.
        expected: its checksum.

    Returns:
        An empty text if nothing is wrong.
    """
    try:
        return "" if checksum_of_file(path) == expected else "was changed after it was saved"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def check_shipped(path: Path) -> None:
    """Compare a file or folder that ships with qsdm with its checksums, once per process.

    Args:
        path: any path; one outside `qsdm.store.ZOO` is not checked.

    Raises:
        StoreError: a file is damaged or missing, or this installation has no zoo.
    """
    require_zoo(path)
    if path.is_relative_to(store.ZOO):
        _check_shipped(store.ZOO, path)


def require_zoo(path: Path) -> None:
    """Refuse a path of the zoo where there is no zoo, as in an installed wheel.

    Args:
        path: any path; one outside `qsdm.store.ZOO` is not checked.

    Raises:
        StoreError: it is in the zoo, and this installation has none.
    """
    zoo = store.ZOO
    if path.is_relative_to(zoo) and not path.exists() and not (zoo / NAME).exists():
        raise StoreError(
            f"{path.relative_to(zoo)} is not in {zoo}: the emoji pipelines come with a checkout of "
            "qsdm, not with its wheel; clone the repository and set QSDM_ZOO=CHECKOUT/qsdm/zoo, "
            "or give path=DIRECTORY of your own pipeline"
        )


@cache
def _check_shipped(zoo: Path, path: Path) -> None:
    for name, expected in read_checksums(zoo).items():
        file = zoo / name
        if file.is_relative_to(path) and (problem := fault(file, expected)):
            raise StoreError(
                f"{file}, which ships with qsdm, {problem}: restore it with git checkout, or "
                f"remove {zoo / NAME} if you changed it on purpose"
            )
