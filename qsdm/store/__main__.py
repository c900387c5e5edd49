"""Check a store: every artifact is read and compared with its checksums, and SQLite checks its database.

    python -m qsdm.store store/emoji_unet
    python -m qsdm.store --repair store/emoji_unet

Prints one line for each damaged artifact, with the command that makes it again; the exit status is 1 if there is any.
With ``--repair`` a damaged outcomes.sqlite is written anew from all rows that can be read, and kept as
outcomes.sqlite.damaged; nothing else is changed.
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
from qsdm.store.outcomes import OutcomeDatabase, problems, read_outcomes_parquet, repair
from qsdm.store.schemas import CHOSEN, FRONT, GRAPH, REPORT, SENSITIVITIES, SUMMARY
from qsdm.store.tensors import check_tensors

ARTIFACTS: dict[str, Artifact] = {
    "graph.json": GRAPH,
    "chosen.json": CHOSEN,
    "summary.json": SUMMARY,
    "predictor/*/report.json": REPORT,
    "search/*.json": FRONT,
    "sensitivity/*.json": SENSITIVITIES,
}
TENSORS = {
    "*.safetensors": "python -m qsdm.trace export=pyg",
    "calibration/*/*.safetensors": "python -m qsdm.calibrate",
    "predictor/*/*.safetensors": "python -m qsdm.train",
    "pictures/*.safetensors": "remove it: it is made when it is needed",
    "shards/*/*.safetensors": "remove it: its pictures are drawn again",
    "checkpoint/*/diffusion_pytorch_model*.safetensors": "python -m qsdm.realize",
}
"""What makes them, by where they lie."""


def check(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every artifact of a model's store, and what is wrong with it; nothing is an empty text."""
    for pattern, artifact in ARTIFACTS.items():
        for path in sorted(folder.glob(pattern)):
            yield path, _told(partial(artifact.read, path, folder.name))
    for pattern, remedy in TENSORS.items():
        told = f"run {remedy} +model={folder.name}" if remedy.startswith("python") else remedy
        for path in sorted(folder.glob(pattern)):
            yield path, _told(partial(check_tensors, path, told))
    if (path := folder / "stages.json").exists():
        yield path, _told(lambda: _check_json(path, "remove it: the main job checks every stage"))
    checkpoint = folder / "checkpoint"
    remedy = f"run python -m qsdm.realize +model={folder.name} again"
    if (path := checkpoint / NAME).exists():
        if told := _told(lambda: read_checksums(checkpoint)):
            yield path, told
        else:
            for name, expected in read_checksums(checkpoint).items():
                told = fault(checkpoint / name, expected)
                yield checkpoint / name, told and f"{checkpoint / name} {told}: {remedy}"
    if (path := folder / "outcomes.parquet").exists():
        yield path, _told(lambda: read_outcomes_parquet(path))
    if (path := folder / "outcomes.sqlite").exists():
        yield path, _told(lambda: OutcomeDatabase(path)) or problems(path)


def _check_json(path: Path, remedy: str) -> None:
    try:
        whole = is_whole(decode(path.read_bytes(), dict[str, Any]))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): {remedy}") from error
    if not whole:
        raise StoreError(f"{path} is damaged (its checksum is that of other content): {remedy}")


def _told(read: Callable[[], object]) -> str:
    try:
        read()
    except StoreError as error:
        return str(error)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m qsdm.store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="+", help="of a model in a store")
    parser.add_argument(
        "--repair", action="store_true", help="write a damaged outcomes.sqlite anew"
    )
    args = parser.parse_args(arguments)
    status = 0
    for folder in args.folder:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder: wanted one such as store/emoji_unet")
        checked = list(check(folder))
        damaged = [(path, told) for path, told in checked if told]
        for path, told in damaged:
            if args.repair and path.name == "outcomes.sqlite":
                kept = repair(path)
                count = len(OutcomeDatabase(path).read())
                print(f"{path} was written anew with {count} outcomes; the damaged one is {kept}")
            else:
                print(told)
                status = 1
        print(f"{folder}: {len(checked)} artifacts, {len(damaged)} damaged")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
