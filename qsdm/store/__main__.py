"""Check a store: every artifact against its checksums, and the database by SQLite's own check.

    python -m qsdm.store store/emoji_unet
    python -m qsdm.store --repair store/emoji_unet

Prints a line for each damaged artifact, with the command that writes it again; the exit status is 1
if there is any. With ``--repair`` a damaged outcomes.sqlite is rewritten from all rows that can be
read, and kept as outcomes.sqlite.damaged; nothing else is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qsdm.store.artifacts import Artifact
from qsdm.store.checksum import is_whole
from qsdm.store.files import StoreError, decode
from qsdm.store.manifest import NAME, fault, read_checksums
from qsdm.store.memo import MEMO
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.parquet import read_outcomes_parquet
from qsdm.store.repair import problems, repair
from qsdm.store.schemas import (
    CERTIFICATE,
    CHOSEN,
    CHOSEN_STEPS,
    FRONT,
    GRAPH,
    REPORT,
    ROUNDS,
    SENSITIVITIES,
    SUMMARY,
    WHY,
)
from qsdm.store.tensors import check_tensors

ARTIFACTS: dict[str, Artifact] = {
    "graph.json": GRAPH,
    "chosen.json": CHOSEN,
    "chosen-steps.json": CHOSEN_STEPS,
    "summary.json": SUMMARY,
    "checkpoint.json": MEMO,
    "predictor/*/report.json": REPORT,
    "search/*-rounds.json": ROUNDS,
    "search/*.json": FRONT,
    "sensitivity/*-certificate.json": CERTIFICATE,
    "sensitivity/*.json": SENSITIVITIES,
    "why/*.json": WHY,
}
"""By path in the model's folder; of patterns that match the same file, the first counts."""

TENSORS = {
    "*.safetensors": "python -m qsdm.trace export=pyg",
    "calibration/*/*.safetensors": "python -m qsdm.calibrate",
    "predictor/*/*.safetensors": "python -m qsdm.train",
    "pictures/*.safetensors": "remove it: it is written again when it is needed",
    "shards/*/*.safetensors": "remove it: its pictures are drawn again",
    "checkpoint/*/diffusion_pytorch_model*.safetensors": "python -m qsdm.realize",
    "checkpoint/*/model*.safetensors": "python -m qsdm.realize",
}
"""The command that writes them, or what else to do, by path in the model's folder."""


def check(folder: Path) -> Iterator[tuple[Path, str]]:
    """Check every artifact of a model.

    Args:
        folder: the model's folder in a store.

    Yields:
        The artifact's path, and a sentence that says what is wrong with it: empty if nothing is.
    """
    artifacts: dict[Path, Artifact] = {}
    for pattern, artifact in ARTIFACTS.items():
        for path in sorted(folder.glob(pattern)):
            artifacts.setdefault(path, artifact)
    for path, artifact in artifacts.items():
        yield path, _error_of(partial(artifact.read, path, folder.name))
    for pattern, remedy in TENSORS.items():
        advice = f"run {remedy} +model={folder.name}" if remedy.startswith("python") else remedy
        for path in sorted(folder.glob(pattern)):
            yield path, _error_of(partial(check_tensors, path, advice))
    if (path := folder / "stages.json").exists():
        remedy = "remove it: the main job then checks every stage"
        yield path, _error_of(partial(_check_json, path, remedy))
    yield from _check_checkpoint(folder)
    if (path := folder / "outcomes.parquet").exists():
        yield path, _error_of(lambda: read_outcomes_parquet(path))
    if (path := folder / "outcomes.sqlite").exists():
        yield path, _error_of(lambda: OutcomeDatabase(path)) or problems(path)


def _check_checkpoint(folder: Path) -> Iterator[tuple[Path, str]]:
    checkpoint = folder / "checkpoint"
    if not (path := checkpoint / NAME).exists():
        return
    if error := _error_of(lambda: read_checksums(checkpoint)):
        yield path, error
        return
    remedy = f"run python -m qsdm.realize +model={folder.name} again"
    for name, expected in read_checksums(checkpoint).items():
        error = fault(checkpoint / name, expected)
        yield checkpoint / name, error and f"{checkpoint / name} {error}: {remedy}"


def _check_json(path: Path, remedy: str) -> None:
    try:
        whole = is_whole(decode(path.read_bytes(), dict[str, Any]))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): {remedy}") from error
    if not whole:
        raise StoreError(f"{path} is damaged (its content does not match its checksum): {remedy}")


def _error_of(read: Callable[[], object]) -> str:
    """The message of the StoreError that ``read`` raises; empty if it raises none."""
    try:
        read()
    except StoreError as error:
        return str(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the stores that the command line names, and print what is damaged.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        The exit status: 1 if an artifact is damaged and was not repaired.
    """
    parser = argparse.ArgumentParser(
        "python -m qsdm.store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, nargs="+", help="a model's folder in a store, such as store/emoji_unet"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="rewrite a damaged outcomes.sqlite from the rows that can be read",
    )
    args = parser.parse_args(arguments)
    status = 0
    for folder in args.folder:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder: wanted one such as store/emoji_unet")
        checked = list(check(folder))
        damaged = [(path, error) for path, error in checked if error]
        for path, error in damaged:
            if args.repair and path.name == "outcomes.sqlite":
                backup = repair(path)
                count = len(OutcomeDatabase(path).read())
                print(
                    f"{path} was rewritten with {count} outcomes; the damaged file is now {backup}"
                )
            else:
                print(error)
                status = 1
        print(f"{folder}: {len(checked)} artifacts, {len(damaged)} damaged")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
