"""What it costs to open a store of 100,000 outcomes and 1,000 shards, for several commands.

    make bench-store
    python experiments/bench/store.py [--outcomes 100000] [--shards 1000] [--protocols 20]
        [--folder DIR]

The outcomes are those that ship with emoji_unet, with other random configurations of its 127
weights and other values of their nine metrics: 13 kB each. They are of as many protocols
as --protocols says: one of the labels, the others of other noise, every other one of earlier
weights. The library writes them, and the shards. The store is kept in --folder and used again.

Each command is opened in a fresh process, up to where its own work begins:

- measure: which of 1,000 configurations are there, and whose shards;
- train: labels, test sets, probes and full precision;
- search: labels, and what was proposed and measured;
- page: everything that the page shows.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import qsdm
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.qconfig import QuantConfig
from qsdm.workspace import Workspace

NAME = "emoji_unet"
QUALITY = Objective({"fd_lite0": -1.0})
NUM_ASKED = 1_000  # configurations of a `measure` that was killed
NUM_SHARDS_EACH = 2  # that a configuration has when it is killed, of four
PROTOCOL = "protocol.txt"
LIMIT_S, LIMIT_GIB = 5.0, 1.0


def protocols_of(workspace: Workspace, num: int) -> list[Protocol]:
    """Make protocols up: today's, other noise, and earlier weights.

    Args:
        workspace: with the outcomes that ship.
        num: of protocols.

    Returns:
        That of the shipped labels first.
    """
    today = workspace.labels(QUALITY).protocol
    others = (
        dataclasses.replace(today, seed_set=100 + i, weights=today.weights if i % 2 else f"{i:064}")
        for i in range(num - 1)
    )
    return [today, *others]


def made_up(
    workspace: Workspace, num: int, protocols: list[Protocol]
) -> Iterator[tuple[Outcome, Protocol]]:
    """Make outcomes up.

    Args:
        workspace: with the outcomes that ship.
        num: of outcomes.
        protocols: of the outcomes, which take turns.

    Yields:
        An outcome and its protocol.
    """
    space, rng = workspace.space, np.random.default_rng(0)
    num_options = [len(options) for options in space.options]
    templates = workspace.labels(QUALITY).outcomes
    for i in range(num):
        template, protocol = templates[i % len(templates)], protocols[i % len(protocols)]
        scale = 1 + 0.1 * rng.standard_normal()
        metrics = {name: None if v is None else v * scale for name, v in template.metrics.items()}
        qconfig = space.decode(rng.integers(num_options))
        yield (
            dataclasses.replace(
                template, qconfig=qconfig, protocol=protocol.digest, metrics=metrics
            ),
            protocol,
        )


def asked(workspace: Workspace) -> list[QuantConfig]:
    """The configurations that `measure` is asked for."""
    space, rng = workspace.space, np.random.default_rng(1)
    num_options = [len(options) for options in space.options]
    return [space.decode(rng.integers(num_options)) for _ in range(NUM_ASKED)]


def build(folder: Path, num_outcomes: int, num_shards: int, num_protocols: int) -> None:
    """Write the store.

    Args:
        folder: of the store.
        num_outcomes: of all protocols together.
        num_shards: of configurations that are not complete.
        num_protocols: of the outcomes.
    """
    from qsdm.calibrate import calibrate
    from qsdm.measurement.scoring import ScoredShard
    from qsdm.measurement.shards import Shards
    from qsdm.store.outcomes import OutcomeDatabase
    from qsdm.trace import trace

    workspace = qsdm.open(NAME, store=folder)
    trace(workspace)
    calibrate(workspace)
    protocols = protocols_of(workspace, num_protocols)
    (folder / PROTOCOL).write_text(protocols[0].digest, encoding="utf-8")
    database = OutcomeDatabase(workspace.path("outcomes.sqlite"))
    outcomes = made_up(workspace, num_outcomes, protocols)
    database.add_all(tqdm(outcomes, "outcomes", num_outcomes, disable=None))
    size = protocols[0].num_images // 4
    shards = Shards(workspace.store, protocols[0], size, {"fd_lite0": "as it is today"})
    rng = np.random.default_rng(2)
    features = {"fd_lite0": rng.standard_normal((size, 160)).astype(np.float32)}
    digests = rng.integers(0, 256, (size, 32), dtype=np.uint8)
    qconfigs = asked(workspace)
    for i in range(num_shards):
        start = i % NUM_SHARDS_EACH * size
        shards.add(qconfigs[i // NUM_SHARDS_EACH], start, ScoredShard(features, digests, {}))


def open_measure(workspace: Workspace) -> str:
    from qsdm.measurement.intake import Intake

    digest = (workspace.root / PROTOCOL).read_text(encoding="utf-8")
    today = workspace.store.protocols()[digest]
    intake = Intake(workspace.store, today, {}, today.num_images // 4)
    missing = intake.expect(asked(workspace))
    return f"{len(missing)} configurations to measure"


def open_train(workspace: Workspace) -> str:
    from qsdm.measurement.labels import label_of_full
    from qsdm.train import usable_probes

    bank = workspace.bank()
    labels = bank.labels(QUALITY)
    usable_probes(bank, workspace.table, QUALITY, labels)
    label_of_full(bank.outcomes, labels.protocol.digest, QUALITY, workspace.space.full_bits)
    return f"{len(labels)} labels, {len(bank.tests(QUALITY))} test sets"


def open_search(workspace: Workspace) -> str:
    bank = workspace.bank()
    labels = bank.labels(QUALITY)
    bank.proposed(QUALITY, labels)
    return f"{len(labels)} labels"


def open_page(workspace: Workspace) -> str:
    from qsdm.report import results

    return f"{len(results.read(workspace.store).outcomes)} outcomes shown"


COMMANDS: dict[str, Callable[[Workspace], str]] = {
    "measure": open_measure,
    "train": open_train,
    "search": open_search,
    "page": open_page,
}


def opened(command: str, folder: Path) -> None:
    """Open the store as a command does, and print what it took as JSON.

    Args:
        command: one of `COMMANDS`.
        folder: of the store.
    """
    for module in ("measurement.intake", "predictor.best_probes", "train", "report.results"):
        importlib.import_module(f"qsdm.{module}")  # which takes as long for an empty store
    workspace = qsdm.open(NAME, store=folder)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    what = COMMANDS[command](workspace)
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([what, wall_s, cpu_s, after.ru_maxrss / 2**20]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outcomes", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--protocols", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-store"))
    parser.add_argument("--only", choices=COMMANDS, nargs="+", default=list(COMMANDS))
    parser.add_argument("--open", choices=COMMANDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        opened(args.open, args.folder)
        return
    folder = args.folder / f"{args.outcomes}-{args.shards}-{args.protocols}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        build(partial, args.outcomes, args.shards, args.protocols)
        partial.rename(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{args.outcomes:,} outcomes, {args.shards:,} shards: {size / 2**30:.2f} GiB")
    print(f"{'':<10}{'s':>8}{'CPU-s':>8}{'GiB':>8}   (limits: {LIMIT_S} s, {LIMIT_GIB} GiB)")
    for command in args.only:
        again = [sys.executable, __file__, "--folder", str(folder), "--open", command]
        answer = subprocess.run(again, check=True, capture_output=True, text=True).stdout
        what, wall_s, cpu_s, gib = json.loads(answer.splitlines()[-1])
        missed = "" if wall_s <= LIMIT_S and gib <= LIMIT_GIB else "   MISSED"
        print(f"{command:<10}{wall_s:>8.1f}{cpu_s:>8.1f}{gib:>8.2f}   {what}{missed}", flush=True)


if __name__ == "__main__":
    main()
