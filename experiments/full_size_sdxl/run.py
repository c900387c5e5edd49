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
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "bench"))

from stage_log import run_stages  # noqa: E402

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
    objective = ["objective=quality", "~objective.weights.fd_lite0", "+objective.weights.psnr=1"]
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


def stages(args: argparse.Namespace) -> dict[str, list[str]]:
    """The commands, once the captions are written."""
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "prompts.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    of = commands(args.folder, args.configs)
    return {name: of[name] for name in STAGES}


if __name__ == "__main__":
    run_stages(
        __doc__,
        stages,
        lambda parser: parser.add_argument(
            "--configs", type=int, default=3, help="number of configurations that are measured"
        ),
    )
