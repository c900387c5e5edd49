"""What `qsdm compare` costs beyond drawing.

    make bench
    python experiments/bench/compare.py [--images 256] [--write FILE.json]

CPU seconds of one thread for two pipelines of the zoo, ``NAME`` and ``NAME:guidance=3``, which take
equally long to draw, with all metrics of ``metrics=emoji``:

    bare        both pipelines as a user loads and calls them, in the same batches
    compare     everything that compare does, in one process in which all is imported: so what it
                costs more grows with the pictures
    drawing     of compare, loading included
    scoring     of compare: features of pictures, metrics of all of them and of halves
    page        of compare: paired differences, JSON, pictures, HTML
    start-up    of the command by itself: CPU seconds for two pictures of each, less those of a
                script that draws the same; whatever the number of pictures

Each is measured several times, bare and compare in turn; the least counts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import PIPELINES, cpu_seconds, draw_bare
from stages import model_of

from qsdm.checkpoint import opening
from qsdm.compare import compare
from qsdm.denoisers import prompts_of
from qsdm.engine.serial import Serial
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.protocol import of_pictures
from qsdm.report import comparison as report

BATCH = 16
OPTIONS = "guidance=3"


def clocked(owner: Any, name: str, seconds: dict[str, float], stage: str) -> None:
    """Make a function add its CPU seconds to those of a stage."""
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        kept: list[Any] = []
        taken = cpu_seconds(lambda: kept.append(function(*args, **kwargs)))
        seconds[stage] = seconds.get(stage, 0.0) + taken
        return kept[0]

    setattr(owner, name, timed)


def bare(name: str, num_images: int) -> None:
    """Draw with both pipelines, as a user does."""
    for model in (model_of(name), dataclasses.replace(model_of(name), guidance=3.0)):
        draw_bare(model, of_pictures(prompts_of(model), num_images), BATCH)()


def compared(name: str, num_images: int) -> None:
    with tempfile.TemporaryDirectory() as store, contextlib.redirect_stdout(io.StringIO()):
        compare(
            [name, f"{name}:{OPTIONS}"],
            Path(store),
            num_images=num_images,
            batch_size=BATCH,
            engine=Serial(),
        )


def of_command(*arguments: str) -> float:
    """CPU seconds of a command and of what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_up(name: str) -> float:
    """CPU seconds that the command takes beyond a script, for two pictures of each pipeline."""
    pair = (name, f"{name}:{OPTIONS}")
    with tempfile.TemporaryDirectory() as store:
        command = of_command("-m", "qsdm.compare", *pair, f"store={store}", "num_images=2")
    return command - of_command(__file__, "--bare", name, "--images", "2")


def measure(name: str, num_images: int, repeats: int, seconds: dict[str, float]) -> dict[str, Any]:
    """What comparing two pipelines takes, by stage."""
    compared(name, 4)  # imports, networks, the features of reference pictures
    bare(name, 4)
    found: dict[str, Any] = {"bare": [], "compare": []}
    for _ in range(repeats):
        found["bare"].append(cpu_seconds(lambda: bare(name, num_images)))
        seconds.clear()
        found["compare"].append(cpu_seconds(lambda: compared(name, num_images)))
        if found["compare"][-1] == min(found["compare"]):
            found |= seconds
    found |= {key: min(found[key]) for key in ("bare", "compare")}
    found["scoring"] = found["compare"] - found["drawing"] - found["page"]
    return {**found, "start-up": start_up(name)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--names", nargs="+", choices=PIPELINES, default=PIPELINES)
    parser.add_argument("--bare", choices=PIPELINES, help="only draw with both pipelines")
    parser.add_argument("--write", type=Path, help="JSON of what was measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.bare:
        bare(args.bare, args.images)
        return
    seconds: dict[str, float] = {}
    clocked(Drawer, "draw", seconds, "drawing")
    clocked(opening, "open_pipeline", seconds, "drawing")
    clocked(report, "contents", seconds, "page")
    clocked(report, "write", seconds, "page")
    heads = ("bare", "compare", "drawing", "scoring", "page", "start-up")
    print(f"{f'CPU s, {args.images} pictures of each':<30}", end="")
    print("".join(f"{head:>10}" for head in heads) + "  overhead  scoring and page / bare")
    everything = {}
    for name in args.names:
        found = everything[name] = measure(name, args.images, args.repeats, seconds)
        overhead = 100 * (found["compare"] / found["bare"] - 1)
        added = 100 * (found["scoring"] + found["page"]) / found["bare"]
        print(f"{name:<30}" + "".join(f"{found[head]:>10.2f}" for head in heads), end="")
        print(f"{overhead:>8.1f} %{added:>23.1f} %", flush=True)
    print("target: overhead 5 %")
    if args.write:
        args.write.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
