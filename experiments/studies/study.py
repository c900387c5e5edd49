"""Run the study of one published denoiser, stage by stage; a killed run goes on where it stopped.

    python experiments/studies/study.py sdxl_w37 path=sdxl prompts.path=coco   # the real one
    python experiments/studies/study.py sdxl_w37 small=true  # the same stages, random weights, tiny
    python experiments/studies/study.py sdxl_w37 plan=true   # pictures, hours, disk, price

A study is a folder ``experiments/NAME`` with ``study.yaml`` (the model and its pipeline) and one
numbered YAML per stage: a command of qsdm and its keys. Further arguments ``KEY=VALUE`` go to every
stage that takes the model. What a stage has finished is noted in ``OUT/done``; a stage whose keys
have changed runs again, and every command goes on from what its store holds.

The small run builds a pipeline of the same class with random weights (as the tests do) and draws a
few pictures of 64 px: it shows that all stages run, and nothing about the published model.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

EXPERIMENTS = Path(__file__).parents[1]
ROOT = EXPERIMENTS.parent
NAMES = ("pixart_alpha_w34", "pixart_sigma_w39", "hunyuan_w365", "sdxl_w37", "sd15", "dit_xl2")

SMALL: dict[str, dict[str, Any]] = {
    "trace": {"page": False},
    "calibrate": {},
    "probe": {"num_images": 4, "engine": "serial", "max_probes": 16},
    "measure": {"num_configs": 16, "num_images": 4, "engine": "serial"},
    "train": {
        "num_images": 4, "predictor.folds": 2, "predictor.width": 8, "predictor.hops": 1,
        "predictor.epochs": 2,
    },
    "search": {"rounds": 1, "per_round": 1, "evaluations": 200, "engine": "serial"},
    "realize": {"candidates": 1, "num_random": 0, "num_images": 4, "engine": "serial"},
    "compare": {"num_images": 4, "engine": "serial"},
    "recipe": {},
}  # fmt: skip
"""What a small run changes in each command."""

SMALL_METRICS = {
    "+model.metrics.fd_lite0._target_": "qsdm.metrics.frechet.FrechetLite0",
    "+model.metrics.psnr._target_": "qsdm.metrics.fidelity.Psnr",
}
SIZE_PX, STEPS, GUIDANCE = 64, 2, 2.0  # of the small pipelines
SMALL_BITS = 6.0  # codebooks and scales weigh more in layers of 16 channels
WITHOUT_MODEL = ("compare",)
MACHINES = {
    "H100": (300e12, 2.50),
    "RTX 4090": (65e12, 0.45),
}
"""Operations per second that a denoiser in bfloat16 is assumed to reach, and dollars per hour:
about a third of what is printed on the box. Neither machine was tried."""
OVERHEAD = 1.15  # text encoders, VAE and metrics, in units of the denoiser's operations


@dataclass(frozen=True)
class Stage:
    """One numbered YAML.

    Attributes:
        file: its name, without the suffix.
        command: of qsdm.
        keys: of the command.
    """

    file: str
    command: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A folder of experiments.

    Attributes:
        name: of the folder.
        model: name in conf/model.
        pipeline: class in diffusers.
        keys: of every command that takes the model.
        stages: in their order.
    """

    name: str
    model: str
    pipeline: str
    keys: Mapping[str, Any]
    stages: tuple[Stage, ...]

    @staticmethod
    def read(name: str) -> Study:
        """Read a study's YAML files.

        Args:
            name: of the folder.

        Raises:
            SystemExit: there is no such study.
        """
        if name not in NAMES:
            sys.exit(f"error: no study {name!r}: give one of {', '.join(NAMES)}")
        folder = EXPERIMENTS / name
        about = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
        stages = []
        for path in sorted(folder.glob("[0-9]*.yaml")):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            stages.append(Stage(path.stem, content["command"], content.get("keys") or {}))
        return Study(name, about["model"], about["pipeline"], about["keys"], tuple(stages))

    def number(self, command: str, key: str) -> int:
        """A number of a stage."""
        return next(int(s.keys[key]) for s in self.stages if s.command == command)


def spelled(keys: Mapping[str, Any]) -> list[str]:
    """As the command line has them."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list | tuple):
            return f"[{','.join(map(str, value))}]"
        return str(value)

    return [f"{key}={text(value)}" for key, value in keys.items()]


def run_stages(
    study: Study, out: Path, arguments: Callable[[Stage], list[str]], note: str = ""
) -> int:
    """Run what is not done yet.

    Args:
        study: whose stages run.
        out: folder of the notes.
        arguments: of a stage.
        note: printed before the first stage.

    Returns:
        Exit status of the first stage that fails; else 0.
    """
    from qsdm import run

    print(note or f"{study.name}: {len(study.stages)} stages", flush=True)
    (out / "done").mkdir(parents=True, exist_ok=True)
    for stage in study.stages:
        words = arguments(stage)
        digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        done = out / "done" / stage.file
        if done.exists() and done.read_text(encoding="utf-8").strip() == digest:
            print(f"== {stage.file}: done before", flush=True)
            continue
        print(f"== {stage.file}: python -m qsdm.{stage.command} {' '.join(words)}", flush=True)
        module = import_module(f"qsdm.{stage.command}")
        if status := run.execute(getattr(module, stage.command), words):
            return status
        done.write_text(digest + "\n", encoding="utf-8")
    print(f"{study.name}: all {len(study.stages)} stages are done", flush=True)
    return 0


def real(study: Study, out: Path, extra: Sequence[str]) -> int:
    """The study itself."""
    store = out / "store"

    def arguments(stage: Stage) -> list[str]:
        keys = {"store": store} | dict(stage.keys)
        if stage.command in WITHOUT_MODEL:
            # the reference's path, whose options are those of the model
            place = next((w.partition("=")[2] for w in extra if w.startswith("path=")), study.model)
            own = [w for w in extra if w.startswith("prompts")]
            names = [place, str(store / study.model / "checkpoint")]
            prompts = {k: v for k, v in study.keys.items() if k.startswith("prompts")}
            return names + spelled(prompts | keys) + own
        return [f"+model={study.model}", *spelled({**study.keys, **keys}), *extra]

    return run_stages(study, out, arguments)


def small(study: Study, out: Path) -> int:
    """All stages on a tiny pipeline of the same class with random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from pipelines import CALLS, build_model
    from prompt_files import write_imagenet
    from tiny import CAPTIONS

    folder, store = out / "pipeline", out / "store"
    out.mkdir(parents=True, exist_ok=True)
    if not (folder / "model_index.json").exists():
        build_model(study.pipeline, folder)
    write_imagenet(out)
    (out / "captions.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    classes = study.keys.get("prompts") == "imagenet"
    prompts = {
        "prompts": "imagenet" if classes else "captions",
        "prompts.path": out / ("imagenet_class_index.json" if classes else "captions.json"),
    }
    name = f"{study.model}_small"
    call = {f"+model.call.{key}": value for key, value in CALLS.get(study.pipeline, {}).items()}
    model = {
        "path": folder, "+model.name": name, "+model.steps": STEPS, "+model.guidance": GUIDANCE,
        "+model.resolution_px": SIZE_PX, **call,
    }  # fmt: skip

    def arguments(stage: Stage) -> list[str]:
        keys = {k: v for k, v in stage.keys.items() if k != "objective"}
        keys |= {"store": store} | SMALL[stage.command]
        if "budget.avg_bits" in keys:
            keys["budget.avg_bits"] = SMALL_BITS
        if stage.command in WITHOUT_MODEL:
            options = {"steps": STEPS, "guidance": GUIDANCE}
            options |= {k.removeprefix("+model."): v for k, v in call.items()}
            reference = f"{folder}:{','.join(spelled(options))}"
            names = [reference, str(store / name / "checkpoint")]
            return names + spelled(prompts | keys)
        return ["+model=any", *spelled(model | prompts | SMALL_METRICS | keys)]

    note = (
        f"{study.name}: a tiny {study.pipeline} with random weights; "
        "the published model was not run"
    )
    return run_stages(study, out, arguments, note)


def plan(study: Study) -> int:
    """Print what the study takes: nothing is drawn, no weight is read."""
    from qsdm import tracing
    from qsdm.measurement.plan import Plan
    from qsdm.qconfig import QuantConfig, cost
    from qsdm.run.conf import load
    from qsdm.text import size, table
    from qsdm.trace import prepare

    model = load("model", study.model)
    module, inputs, _ = prepare(model)
    graph = tracing.trace(module, inputs, study.model, model.exclude, model.tied)
    space = load("space", "paper").of(graph, model.full_bits)
    calls = model.steps * (2 if model.guidance > 1 else 1)
    operations = 2 * sum(node.macs for node in graph.nodes) * calls * OVERHEAD
    images = study.number("measure", "num_images")
    per_round = study.number("search", "per_round")
    realized = study.number("realize", "candidates") + len(space.methods) + 6
    parts = {
        "probe": Plan(len(space.options), study.number("probe", "num_images")),
        "measure": Plan(study.number("measure", "num_configs"), images, images),
        "search": Plan(study.number("search", "rounds") * per_round, images),
        "realize": Plan(realized, images, images),
        "compare": Plan(2, study.number("compare", "num_images")),
    }
    total = sum(part.num_pictures for part in parts.values())
    rows = []
    for name, part in [*parts.items(), ("all", None)]:
        pictures = total if part is None else part.num_pictures
        cells = [name, f"{pictures:,}"]
        for speed, price in MACHINES.values():
            timed = replace(Plan(1, pictures), picture_s=operations / speed, price_per_hour=price)
            cells += [f"{(timed.seconds or 0) / 3600:,.1f}", f"{timed.price or 0:,.0f}"]
        rows.append(cells)
    heads = ["stage", "pictures"]
    for name in MACHINES:
        heads += [f"{name}, hours", "dollars"]
    print(f"{study.name}: {study.model}, {len(space.options)} weights, {calls} calls a picture of")
    print(f"{operations / 1e12:,.0f} tera operations; estimates, neither machine was tried")
    print(table(heads, rows, are_texts=True))
    of_space, bits = space.graph, space.full_bits
    full = cost.size_bytes(of_space, QuantConfig(study.model, {}), bits)
    methods = sum(cost.size_bytes(of_space, space.uniform(m), bits) for m in space.methods)
    pixels = 3 * model.resolution_px**2
    disk = full + methods + 2 * images * pixels + study.number("compare", "num_images") * 2 * pixels
    print(
        f"disk: {size(disk)} (denoiser {size(full)}, its packed weights {size(methods)}, pictures "
        "of full precision), besides the pipeline's other parts"
    )
    print(f"memory: {size(2 * full)} and more, for the denoiser at full precision and packed")
    return 0 if math.isfinite(operations) else 1


def main(arguments: Sequence[str]) -> int:
    """Run, plan or try a study.

    Args:
        arguments: NAME, then small=true, plan=true, out=FOLDER and keys of the commands.
    """
    if not arguments or "=" in arguments[0]:
        sys.exit(f"error: give a NAME of {', '.join(NAMES)}")
    study = Study.read(arguments[0])
    options = dict(word.split("=", 1) for word in arguments[1:] if "=" in word)
    extra = [w for w in arguments[1:] if w.partition("=")[0] not in ("small", "plan", "out")]
    if options.get("plan", "false") == "true":
        return plan(study)
    is_small = options.get("small", "false") == "true"
    suffix = "-small" if is_small else ""
    out = Path(options.get("out", f"outputs/studies/{study.name}{suffix}")).absolute()
    return small(study, out) if is_small else real(study, out, extra)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
