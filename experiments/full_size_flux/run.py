"""FLUX at its full size of 12 billion parameters: trace, calibrate, and a checkpoint of 3.7 bits.

    python experiments/full_size_flux/run.py FOLDER          # every stage that is not done yet
    python experiments/full_size_flux/run.py FOLDER --only build trace
    python experiments/full_size_flux/run.py FOLDER --table
    python experiments/full_size_flux/run.py FOLDER --small  # the same stages of a tiny transformer

FOLDER, outside the repository, takes 41 GB. The weights are random (`build.py`), so pictures mean
nothing; seconds, memory and disk are those of a real one. Each stage is a command in a process of
its own, whose seconds, CPU-seconds, most memory beside mapped files (RssAnon) and bytes on disk are
kept in FOLDER/stages.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "bench"))

from stage_log import run_stages  # noqa: E402

METHODS = "uaq-3,uaq-4"
AVG_BITS = 3.7


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each stage, without the interpreter.

    Args:
        args: ``folder`` of pipeline and store; ``small`` for the tiny transformer.
    """
    flux, store = args.folder / "flux", args.folder / "store"
    kind = ["+model=any", "+model.name=flux"] if args.small else ["+model=flux"]
    model = [*kind, f"path={flux}", f"store={store}"]
    space = [f"space.methods=[{METHODS}]", "space.name=two"]
    return {
        "build": [str(HERE / "build.py"), str(flux), *["--small"] * args.small],
        "trace": ["-m", "qsdm.trace", *model],
        "calibrate": ["-m", "qsdm.calibrate", *model, *space],
        "pack": [str(HERE / "pack.py"), str(args.folder), METHODS, str(AVG_BITS)],
        "draw": [str(HERE / "draw.py"), str(args.folder)],
    }


if __name__ == "__main__":
    run_stages(
        __doc__, commands, lambda parser: parser.add_argument("--small", action="store_true")
    )
