"""From what a user types to the contenders of a comparison: ``folder:steps=4,guidance=1``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qsdm.denoisers import (
    Model,
    check_prompts,
    discover,
    frames_of,
    pipeline_class,
    prompts_of,
    require_one_part,
)
from qsdm.denoisers.identity import WEIGHTS
from qsdm.measurement.contender import Contender
from qsdm.metrics import Metric
from qsdm.prompts import Prompts
from qsdm.text import MANY

FIELDS = ("steps", "guidance", "dtype", "sampler", "revision")
OPTIONS = (*FIELDS, "component", "config", "name")


class ComparisonError(ValueError):
    """The pipelines cannot be compared; the message says what was wanted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """What all contenders draw, and by what it is scored.

    Attributes:
        named: the model of a name in conf/model; None for any other text.
        prompts: None for those of the reference.
        metrics: by name; None for those of the reference.
    """

    named: Callable[[str], Model | None]
    prompts: Prompts | None = None
    metrics: Mapping[str, Metric] | None = None


def read_contenders(pipelines: Sequence[str], chosen: Chosen) -> list[Contender]:
    """Find the pipelines of a comparison.

    Args:
        pipelines: the reference and the others, as `qsdm.compare` takes them.
        chosen: what they draw.

    Returns:
        The contenders, with names that occur once.

    Raises:
        ComparisonError: there are fewer than two, or one is spelled wrongly.
        ModelError: one is no pipeline.
    """
    if isinstance(pipelines, str) or len(pipelines) < 2:
        given = [pipelines] if isinstance(pipelines, str) else list(pipelines)
        raise ComparisonError(
            f"wanted two or more pipelines, the reference first (got {', '.join(given) or 'none'}):"
            " python -m qsdm.compare REFERENCE OTHER"
        )
    contenders: list[Contender] = []
    for spelling in pipelines:
        path, options = read_options(str(spelling))
        base = contenders[0].model if contenders else None
        contender = read_contender(path, options, base, chosen)
        model = contender.model
        if base is None:
            prompts = chosen.prompts or model.prompts
            model = with_metrics(dataclasses.replace(model, prompts=prompts), chosen.metrics)
        else:
            model = dataclasses.replace(model, prompts=base.prompts, metrics=base.metrics)
        name = str(options.get("name") or default_name(path, spelling))
        taken = {contender.name for contender in contenders}
        if name in taken:
            name = next(n for i in range(2, MANY) if (n := f"{name} ({i})") not in taken)
        contenders.append(dataclasses.replace(contender, name=name, model=model))
    return contenders


def with_metrics(model: Model, metrics: Mapping[str, Metric] | None) -> Model:
    """Choose the metrics of a comparison.

    Args:
        model: of the reference.
        metrics: that were asked for.

    Returns:
        The model with them, with its own, or with metrics that need no files; PSNR is added if none
        of them compares single pictures.
    """
    from qsdm.metrics.fidelity import FeatureDistance, Lpips, Psnr, Ssim

    chosen = dict(metrics or model.metrics or {})
    if not chosen:
        chosen = {metric.name: metric for metric in (Psnr(), Ssim(), FeatureDistance())}
    if not any(isinstance(m, FeatureDistance | Lpips | Psnr | Ssim) for m in chosen.values()):
        chosen["psnr"] = Psnr()
    return dataclasses.replace(model, metrics=chosen)


def read_options(spelling: str) -> tuple[str, dict[str, Any]]:
    """Separate a pipeline from its options.

    Args:
        spelling: such as ``folder:steps=4,guidance=1``.

    Returns:
        The path or name, and the options.

    Raises:
        ComparisonError: an option does not exist, or has no value.

    Example:
        >>> from qsdm.measurement.spelling import read_options
        >>> read_options("sdxl-turbo/:steps=4,guidance=0.0,call.clip_skip=2")
        ('sdxl-turbo/', {'steps': 4, 'guidance': 0.0, 'call.clip_skip': 2})
    """
    match = re.fullmatch(r"(.*?):([A-Za-z_][\w.]*=.*)", spelling, re.DOTALL)
    if match is None:
        return spelling, {}
    options: dict[str, Any] = {}
    for part in re.split(r",(?=[A-Za-z_][\w.]*=)", match[2]):
        key, _, value = part.partition("=")
        if key not in OPTIONS and not re.fullmatch(r"(call|load)\.\w+", key):
            raise ComparisonError(
                f"{match[1]} takes no option {key!r}: give {', '.join(OPTIONS)}, call.KEY or "
                "load.KEY"
            )
        if not value:
            raise ComparisonError(f"{match[1]}: the option {key} has no value: give {key}=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return match[1], options


def read_contender(
    path: str, options: Mapping[str, Any], base: Model | None, chosen: Chosen
) -> Contender:
    """Describe a pipeline.

    Args:
        path: NAME of conf/model, path or hub id.
        options: that follow it.
        base: of the reference, from which everything is taken that is not given; None for the
            reference itself.
        chosen: knows the names of conf/model.

    Returns:
        The pipeline, with its path as name.

    Raises:
        ComparisonError: an option has a wrong value.
        ModelError: there is no pipeline.
    """
    given: dict[str, Any] = {key: options[key] for key in FIELDS if key in options}
    call, load = (
        {k.partition(".")[2]: v for k, v in options.items() if k.startswith(f"{key}.")}
        for key in ("call", "load")
    )
    if "config" in options:
        load["config"] = str(options["config"])
    try:
        if (model := chosen.named(path)) is not None:
            if "component" in options:
                raise ValueError(f"a model of conf/model has its component, {model.component}")
        elif base is not None and is_denoiser(Path(path).expanduser()):
            if ignored := [key for key in load if key not in (*WEIGHTS, "config")]:
                raise ValueError(
                    f"of a denoiser alone, load.variant and load.use_safetensors are read "
                    f"(got load.{ignored[0]})"
                )
            model = dataclasses.replace(base, call={**base.call, **call}, **given)
            return Contender(path, model, Path(path).expanduser(), load)
        else:
            model = discovered(path, {**options, "load": load}, base)
        given |= {"call": {**model.call, **call}, "load": {**model.load, **load}}
        return Contender(path, dataclasses.replace(model, **given))
    except (TypeError, ValueError) as error:
        raise ComparisonError(f"{path}: {error}") from error


def discovered(path: str, options: Mapping[str, Any], base: Model | None) -> Model:
    """Describe a pipeline that no YAML describes.

    Args:
        path: folder, single file or hub id.
        options: that follow it; ``load``, arguments of from_pretrained.
        base: of the reference; None for the reference itself.

    Returns:
        The model.

    Raises:
        ModelError: there is no pipeline.
    """
    which: dict[str, Any] = {key: options.get(key) for key in ("revision", "component")}
    load = dict(options["load"])
    if base is None:
        model = discover(path, **which, load=load)
        require_one_part(model, "component names")
        return model
    folder = base.directory or Path(base.path)
    if Path(path).expanduser().is_file():
        load.setdefault("config", base.load.get("config") if base.file else str(folder))
        which["component"] = which["component"] or base.component
    model = discover(path, **which, resolution_px=base.resolution_px, load=load)
    require_one_part(model, "component names")
    alike = pipeline_class(model) == pipeline_class(base)
    return dataclasses.replace(
        model,
        steps=base.steps,
        guidance=base.guidance,
        frames=base.frames,
        dtype=base.dtype,
        sampler=base.sampler if alike else None,
        call=base.call if alike else {},
    )


def is_denoiser(path: Path) -> bool:
    """Whether a path holds the denoiser alone, to take the place of the reference's own.

    Args:
        path: a GGUF file, or a folder with the config of a model but no pipeline.
    """
    if path.is_file():
        return path.suffix == ".gguf"
    return (path / "config.json").is_file() and not (path / "model_index.json").is_file()


def default_name(path: str, spelling: str) -> str:
    """Name a pipeline in tables: the last part of its path, and its options.

    Args:
        path: of the pipeline.
        spelling: path and options.
    """
    options = spelling[len(path) + 1 :].replace(",", " ")
    last = Path(path).expanduser().resolve().name if "/" in path or path.startswith(".") else path
    return f"{last} {options}".strip()


def check_alike(contenders: Sequence[Contender]) -> None:
    """Refuse pipelines that do not draw pictures of the same prompts and size.

    Args:
        contenders: the reference and the others.

    Raises:
        ComparisonError: a pipeline draws other pictures than the reference.
        ModelError: there are no prompts, or files are missing.
        PromptsError: a pipeline cannot draw the prompts.
    """
    first = contenders[0]
    prompts = prompts_of(first.model)
    for other in contenders:
        if other.model.resolution_px != first.model.resolution_px:
            raise ComparisonError(
                f"{other.name} draws pictures of {other.model.resolution_px} px and {first.name} "
                f"of {first.model.resolution_px}: compare pipelines of one resolution"
            )
        wants = [draws(contender.model) for contender in (first, other)]
        if all(wants) and wants[0] != wants[1]:
            raise ComparisonError(
                f"{other.name} draws {wants[1]} and {first.name} {wants[0]}: compare pipelines "
                "that take the same prompts"
            )
        if frames_of(other.model) != frames_of(first.model):
            raise ComparisonError(
                f"{other.name} draws {frames_of(other.model)} frames and {first.name} "
                f"{frames_of(first.model)}: compare pictures with pictures, videos with videos"
            )
        check_prompts(other.model, prompts)


def draws(model: Model) -> str | None:
    """Say what a pipeline takes.

    Args:
        model: of the pipeline.

    Returns:
        captions, classes or nothing; None if its class is not known.
    """
    if (cls := pipeline_class(model)) is None:
        return None
    takes = inspect.signature(cls.__call__).parameters
    return "captions" if "prompt" in takes else "classes" if "class_labels" in takes else "nothing"
