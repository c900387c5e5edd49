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
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from qsdm.measurement.plan import Plan
    from qsdm.qconfig import Space

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
OVERHEAD = 1.15  # text encoders, VAE and metrics, in units of the denoiser's operations


class Machine(NamedTuple):
    """What a plan assumes of a machine; neither of them was tried.

    Attributes:
        operations_per_s: that a denoiser in bfloat16 reaches: about a third of the data sheet's.
        dollars_per_hour: to rent it.
    """

    operations_per_s: float
    dollars_per_hour: float


MACHINES = {"H100": Machine(300e12, 2.50), "RTX 4090": Machine(65e12, 0.45)}


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
        """A number that a stage gives its command."""
        return next(int(s.keys[key]) for s in self.stages if s.command == command)


def words(keys: Mapping[str, Any]) -> list[str]:
    """Write keys as the command line has them."""

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
    """Run the stages that are not done yet.

    Args:
        study: whose stages run.
        out: folder of the notes on finished stages.
        arguments: command line of a stage.
        note: printed before the first stage.

    Returns:
        Exit status of the first stage that fails; else 0.
    """
    from qsdm import run

    print(note or f"{study.name}: {len(study.stages)} stages", flush=True)
    (out / "done").mkdir(parents=True, exist_ok=True)
    for stage in study.stages:
        line = arguments(stage)
        digest = hashlib.sha256(json.dumps(line).encode()).hexdigest()
        done = out / "done" / stage.file
        if done.exists() and done.read_text(encoding="utf-8").strip() == digest:
            print(f"== {stage.file}: done before", flush=True)
            continue
        print(f"== {stage.file}: python -m qsdm.{stage.command} {' '.join(line)}", flush=True)
        module = import_module(f"qsdm.{stage.command}")
        if status := run.execute(getattr(module, stage.command), line):
            return status
        done.write_text(digest + "\n", encoding="utf-8")
    print(f"{study.name}: all {len(study.stages)} stages are done", flush=True)
    return 0


def real(study: Study, out: Path, extra: Sequence[str]) -> int:
    """Run the stages on the published model."""
    store = out / "store"
    # compare takes pipelines instead of a model: the one that was studied, and its checkpoint
    pipeline = next((w.partition("=")[2] for w in extra if w.startswith("path=")), study.model)
    shared = {k: v for k, v in study.keys.items() if k.startswith("prompts")}
    of_prompts = [w for w in extra if w.startswith("prompts")]

    def arguments(stage: Stage) -> list[str]:
        keys = {"store": store} | dict(stage.keys)
        if stage.command in WITHOUT_MODEL:
            compared = [pipeline, str(store / study.model / "checkpoint")]
            return compared + words(shared | keys) + of_prompts
        return [f"+model={study.model}", *words({**study.keys, **keys}), *extra]

    return run_stages(study, out, arguments)


def small(study: Study, out: Path) -> int:
    """Run the stages on a tiny pipeline of the same class with random weights."""
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
            reference = f"{folder}:{','.join(words(options))}"
            return [reference, str(store / name / "checkpoint"), *words(prompts | keys)]
        return ["+model=any", *words(model | prompts | SMALL_METRICS | keys)]

    note = (
        f"{study.name}: a tiny {study.pipeline} with random weights; "
        "the published model was not run"
    )
    return run_stages(study, out, arguments, note)


def pictures(study: Study, space: Space) -> dict[str, Plan]:
    """What each stage draws."""
    from qsdm.measurement.plan import Plan

    images = study.number("measure", "num_images")
    rounds = study.number("search", "rounds") * study.number("search", "per_round")
    # realize draws its candidates; on fresh noise the chosen one, uniform and five random ones
    realized = study.number("realize", "candidates") + 1 + len(space.methods) + 5
    return {
        "probe": Plan(len(space.options), study.number("probe", "num_images")),
        "measure": Plan(study.number("measure", "num_configs"), images, images),
        "search": Plan(rounds, images),
        "realize": Plan(realized, images, images),
        "compare": Plan(2, study.number("compare", "num_images")),
    }


def plan(study: Study) -> int:
    """Print what the study takes: nothing is drawn, no weight is read."""
    from qsdm import tracing
    from qsdm.measurement.plan import Plan
    from qsdm.qconfig import QuantConfig
    from qsdm.qconfig.cost import size_bytes
    from qsdm.run.conf import load
    from qsdm.text import size, table
    from qsdm.trace import prepare

    model = load("model", study.model)
    module, inputs, _ = prepare(model)
    graph = tracing.trace(module, inputs, study.model, model.exclude, model.tied)
    space = load("space", "paper").of(graph, model.full_bits)
    calls = model.steps * (2 if model.guidance > 1 else 1)
    operations = 2 * sum(node.macs for node in graph.nodes) * calls * OVERHEAD
    numbers = {stage: part.num_pictures for stage, part in pictures(study, space).items()}
    rows = []
    for stage, number in (numbers | {"all": sum(numbers.values())}).items():
        cells = [stage, f"{number:,}"]
        for machine in MACHINES.values():
            priced = replace(
                Plan(1, number),
                picture_s=operations / machine.operations_per_s,
                price_per_hour=machine.dollars_per_hour,
            )
            cells += [f"{(priced.seconds or 0) / 3600:,.1f}", f"{priced.price or 0:,.0f}"]
        rows.append(cells)
    heads = ["stage", "pictures"]
    for name in MACHINES:
        heads += [f"{name}, hours", "dollars"]
    print(f"{study.name}: {study.model}, {len(space.options)} weights, {calls} calls a picture of")
    print(f"{operations / 1e12:,.0f} tera operations; estimates, neither machine was tried")
    print(table(heads, rows, are_texts=True))
    full = size_bytes(space.graph, QuantConfig(study.model, {}), space.full_bits)
    packed = sum(size_bytes(space.graph, space.uniform(m), space.full_bits) for m in space.methods)
    kept = study.number("measure", "num_images") + study.number("compare", "num_images")
    disk = full + packed + 2 * kept * 3 * model.resolution_px**2
    print(
        f"disk: {size(disk)} (denoiser {size(full)}, its packed weights {size(packed)}, pictures "
        "of full precision), besides the pipeline's other parts"
    )
    print(f"memory: {size(2 * full)} and more, for the denoiser at full precision and packed")
    return 0


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
    is_planned = options.get("plan", "false") == "true"
    is_small = options.get("small", "false") == "true"
    if extra and (is_planned or is_small):
        sys.exit(f"error: a plan and a small run take no keys of commands (got {' '.join(extra)})")
    if is_planned:
        return plan(study)
    suffix = "-small" if is_small else ""
    out = Path(options.get("out", f"outputs/studies/{study.name}{suffix}")).absolute()
    return small(study, out) if is_small else real(study, out, extra)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
