"""The whole way of a user at SDXL's full size: from weights to pictures of the small checkpoint.

    python experiments/full_size_sdxl/run.py FOLDER             # every stage that is not done yet
    python experiments/full_size_sdxl/run.py FOLDER --only trace calibrate
    python experiments/full_size_sdxl/run.py FOLDER --configs 1  # measure one configuration, not 3
    python experiments/full_size_sdxl/run.py FOLDER --table

FOLDER, outside the repository, takes 20 GB. The pipeline is `StableDiffusionXLPipeline` with random
weights (`build.py`), so its pictures mean nothing, and most labels are made up (`labels.py`).
Seconds, memory and disk are those of a real one. Each stage is a command in a process of its own.
Its seconds, CPU-seconds, the most memory beside mapped files (RssAnon of all its processes
together) and the bytes it left in FOLDER are added to FOLDER/stages.json. A killed run continues
with the first stage that is missing, and a stage with what it had stored; the seconds of all tries
are added up.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent
EDGE, STEPS, NUM_IMAGES, LABELS = 256, 2, 2, 40
CALIBRATED, METHODS = "uaq-3,uaq-4,kmeans_a-3,kmeans_a-4", "uaq-3,kmeans_a-4"
STAGES = ("build", "trace", "calibrate", "probe", "measure", "labels", "train", "search", "realize",
          "draw")  # fmt: skip
CAPTIONS = ["a red fox in the snow", "a lighthouse at night"]


def commands(folder: Path, num_configs: int) -> dict[str, list[str]]:
    """The command of each stage, without the interpreter.

    Args:
        folder: of pipeline and store.
        num_configs: number of configurations that are measured.
    """
    model = ["+model=sdxl", f"path={folder / 'sdxl'}", f"store={folder / 'store'}"]
    wide = [f"space.methods=[{CALIBRATED}]", "space.name=four"]
    space = [f"space.methods=[{METHODS}]", "space.name=four"]  # fewer uniform ones to draw
    drawn = [
        "model.dtype=bfloat16",
        f"model.resolution_px={EDGE}",
        f"model.steps={STEPS}",
        "model.guidance=1",  # none: half the forwards
        "prompts=captions",
        f"prompts.path={folder / 'prompts.json'}",
        "+model.metrics.psnr._target_=qsdm.metrics.fidelity.Psnr",
    ]
    objective = ["~objective.weights.fd_lite0", "+objective.weights.psnr=1"]
    pictures = [f"batch_size={NUM_IMAGES}", "engine=one_worker", "engine.num_threads=2"]
    every = [*model, *space, *drawn]
    images = f"num_images={NUM_IMAGES}"
    few = ["candidates=1", "num_random=0", "budget.avg_bits=3.7"]
    probes = ["fidelity=forward", "num_steps=1", "max_probes=11"]
    own = {
        "build": [str(HERE / "build.py"), str(folder / "sdxl")],
        "labels": [str(HERE / "labels.py"), str(folder), str(LABELS), METHODS],
        "draw": [str(HERE / "draw.py"), str(folder), str(EDGE), str(STEPS), *CAPTIONS],
    }
    of = {
        "trace": model,
        "calibrate": [*model, *wide],
        "probe": [*every, *objective, *pictures, images, *probes],
        "measure": [*every, *pictures, images, f"num_configs={num_configs}"],
        "train": [*every, *objective, images, "probes=false"],
        "search": [*every, *objective, "evaluations=1000"],
        "realize": [*every, *objective, *pictures, images, *few],
    }
    return own | {name: ["-m", f"qsdm.{name}", *keys] for name, keys in of.items()}


def measured(command: list[str], folder: Path) -> tuple[int, dict[str, float]]:
    """Run a command, and measure it with all its processes.

    Args:
        command: arguments of the interpreter.
        folder: whose size is measured.

    Returns:
        Exit status; wall_s, cpu_s, memory_gib, and disk_gib (added).
    """
    before, began = size_gib(folder), time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, *command])
    most = [0.0]

    def watch() -> None:
        while process.poll() is None:
            most[0] = max(most[0], private_gib(process.pid))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    watcher.join()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, {
        "wall_s": time.perf_counter() - began,
        "cpu_s": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
        "memory_gib": most[0],
        "disk_gib": size_gib(folder) - before,
    }


def private_gib(pid: int) -> float:
    """Memory beside mapped files, of a process and all its children."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            line = re.search(r"RssAnon:\s+(\d+)", status)
            total += int(line[1]) if line else 0
    except (psutil.Error, OSError):  # it ended meanwhile
        pass
    return total / 2**20


def size_gib(folder: Path) -> float:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it was removed meanwhile
            continue
    return total / 2**30


def added(tries: list[dict[str, float]]) -> dict[str, float]:
    """What several tries of a stage took together.

    Args:
        tries: figures of each; the last one finished.
    """
    last = tries[-1]
    summed = {key: sum(each[key] for each in tries) for key in ("wall_s", "cpu_s", "disk_gib")}
    return last | summed | {"memory_gib": max(each["memory_gib"] for each in tries)}


def table(stages: dict[str, list[dict[str, float]]]) -> str:
    """The stages that were run, as Markdown.

    Args:
        stages: figures of each try by stage.
    """
    lines = [
        "| stage | seconds | CPU-seconds | GiB of memory | GiB of disk |",
        "|---|---|---|---|---|",
    ]
    for name in filter(stages.get, STAGES):
        row = added(stages[name])
        again = "" if len(stages[name]) == 1 else f" ({len(stages[name])} tries)"
        lines.append(
            f"| {name}{again} | {row['wall_s']:.0f} | {row['cpu_s']:.0f} | "
            f"{row['memory_gib']:.1f} | {row['disk_gib']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--configs", type=int, default=3, help="that are measured")
    parser.add_argument("--table", action="store_true", help="print what was measured so far")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stages.json"
    stages = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if args.table:
        print(table(stages))
        return
    (folder / "prompts.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    to_run = commands(folder, args.configs)
    for name in STAGES:
        tries = stages.setdefault(name, [])
        if name not in args.only or (tries and tries[-1]["status"] == 0):
            continue
        status, figures = measured(to_run[name], folder)
        tries.append({"status": status, **figures})
        file.write_text(json.dumps(stages, indent=1), encoding="utf-8")
        if status:
            sys.exit(f"{name} ended with status {status}; the same command tries again")
        print(table({name: tries}).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
