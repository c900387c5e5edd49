"""Trace every denoiser class of diffusers from a config without weights, and tabulate the results.

    make trace-table
    python experiments/trace_table/table.py [--only NAME ...] [--write docs/tracing.md]

Each class of ``diffusers.models.transformers`` and ``diffusers.models.unets`` is built as a
skeleton from ``configs.yaml`` (or from its defaults), given inputs, and traced in a separate
process. So the memory is that of one class, including imports, and a class that hangs is stopped
after five minutes. The table is written between two marks in the document.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).with_name("configs.yaml")
NOT_DENOISERS = {"MotionAdapter": "weights for another module, which has no forward"}
START, END = "<!-- table -->", "<!-- end of table -->"
PATIENCE_S = 300


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one class.

    Attributes:
        inputs: how they were found: built, repaired (by what its first runs complained of), or
            overrides.
        coverage: share of Linear and Conv modules whose weight is used.
        note: which weights are not, or why it cannot be traced.
    """

    name: str
    inputs: str = ""
    coverage: float = 0.0
    num_weights: int = 0
    num_nodes: int = 0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    note: str = ""

    @property
    def traced(self) -> bool:
        return self.num_nodes > 0

    @property
    def counts(self) -> bool:
        """Traced wholly, or the missing share is named with its cause."""
        return self.traced and (self.coverage == 1 or ":" in self.note)


def classes() -> list[str]:
    import diffusers.models.transformers
    import diffusers.models.unets
    from torch import nn

    names = set()
    for package in (diffusers.models.transformers, diffusers.models.unets):
        for name in dir(package):
            entry = getattr(package, name)
            if (
                inspect.isclass(entry)
                and issubclass(entry, nn.Module)
                and name not in NOT_DENOISERS
            ):
                names.add(name)
    return sorted(names)


def find(name: str) -> Any:
    import diffusers.models.transformers
    import diffusers.models.unets

    return getattr(diffusers.models.transformers, name, None) or getattr(
        diffusers.models.unets, name
    )


def row(name: str, settings: dict[str, Any]) -> Row:
    from qsdm import tracing
    from qsdm.tracing import skeleton

    began = time.process_time()
    try:
        module = skeleton.build(find(name), settings.get("config", {}))
        graph, how = tracing.trace_unaided(module, {}, name)
    except Exception as error:  # whatever it is goes into the table
        message = " ".join(str(error).split())
        return Row(
            name,
            note=f"{type(error).__name__}: {message}"
            if not isinstance(error, tracing.TraceError)
            else message,
        )
    missing = tracing.uncovered(module, graph)
    owners = sum(isinstance(child, tracing.QUANTIZABLE) for child in module.modules())
    note = settings.get("missing", "")
    if missing:
        note = f"{len(missing)} not called ({missing[0]}, ...){': ' + note if note else ''}"
    return Row(
        name,
        how.partition(":")[0],
        1 - len(missing) / owners,
        len(graph.weights),
        len(graph.nodes),
        time.process_time() - began,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        note,
    )


def child(name: str, settings: dict[str, Any], answers: Connection) -> None:
    answers.send(asdict(row(name, settings)))


def all_rows(names: list[str]) -> list[Row]:
    """One after the other; the parent has imported everything, and never runs anything in parallel
    before a fork.
    """
    import torch

    import qsdm.tracing  # noqa: F401

    torch.set_num_threads(1)
    settings = yaml.safe_load(CONFIGS.read_text(encoding="utf-8")) or {}
    context = multiprocessing.get_context("fork")
    rows = []
    for name in names:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(name, settings.get(name, {}), theirs))
        process.start()
        theirs.close()
        try:
            answer = (
                Row(**mine.recv())
                if mine.poll(PATIENCE_S)
                else Row(name, note=f"not done in {PATIENCE_S} s")
            )
        except EOFError:
            answer = Row(name, note="its process died")
        process.kill()
        process.join()
        rows.append(answer)
        print(line(answer), flush=True)
    return rows


def line(row: Row) -> str:
    if not row.traced:
        return f"| {row.name} | no | | | | | | {row.note[:300].replace('|', '/')} |"
    return (
        f"| {row.name} | {row.inputs} | {row.coverage:.1%} | {row.num_weights} "
        f"| {row.num_nodes} | "
        f"{row.cpu_s:.1f} | {row.peak_mb:.0f} | {row.note.replace('|', '/')} |"
    )


def table(rows: list[Row]) -> str:
    kinds = Counter(row.inputs for row in rows if row.counts)
    total = sum(kinds.values())
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    head = [
        f"**{total} of {len(rows)} classes** are traced with all weights, or with the missing "
        f"share named ({by_kind}).",
        "",
        "| class | inputs | coverage | weights | nodes | CPU s | peak MB | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these classes, without writing")
    parser.add_argument(
        "--unaided",
        action="store_true",
        help="without what qsdm knows of single classes (overrides/)",
    )
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    args = parser.parse_args()
    names = classes()
    if args.unaided:
        from qsdm.tracing import inputs

        inputs.overrides_of = lambda _cls: {}
    if args.only and (unknown := sorted(set(args.only) - set(names))):
        sys.exit(
            f"no denoiser class {unknown[0]!r} in this diffusers (there are {', '.join(names)})"
        )
    rows = all_rows(args.only or names)
    text = table(rows)
    print(text.splitlines()[0])
    if args.write and not (args.only or args.unaided):
        before, rest = args.write.read_text(encoding="utf-8").split(START)
        after = rest.split(END)[1]
        args.write.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
