"""Compare pipelines on the same captions and starting noise: is the quantized one good enough?

    python -m qsdm.compare emoji_unet store/emoji_unet/checkpoint
    python -m qsdm.compare sdxl/ sdxl-sdnq/ sdxl-torchao/ prompts=coco prompts.path=captions.json
    python -m qsdm.compare emoji_unet emoji_unet:steps=5 emoji_unet:steps=3
    python -m qsdm.compare flux/ flux-Q4_0.gguf prompts=parti prompts.path=PartiPrompts.tsv
    python -m qsdm.compare emoji_unet store/emoji_unet/checkpoint limit.psnr=24 limit.fd_lite0=250

The first one is the reference, at full precision; the others are anything that diffusers loads: a
checkpoint of qsdm, SDNQ, torchao or bitsandbytes, a plain folder, a folder of the denoiser alone, a
single file (safetensors or GGUF), a hub id, or a NAME of conf/model. Options follow a colon, as in
``folder:steps=4,guidance=1``: steps, guidance, dtype, sampler, component, revision, config, name,
and call.KEY or load.KEY for further arguments of the pipeline's call or of from_pretrained. What is
not given is as for the reference.

Every metric is printed with paired differences: "better" and "worse" only where the 95 % interval
excludes 0. ``limit.METRIC=VALUE`` makes the exit status 1 if a pipeline's metric is worse than
VALUE: below it where more is better (PSNR), above it where less is better (distances). Pictures are
stored as they are drawn, so a killed run continues where it stopped.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm import run
from qsdm.denoisers import Model, prompts_of
from qsdm.engine.local import Local
from qsdm.prompts import Prompts
from qsdm.run.conf import choices, load
from qsdm.store import Store, StoreError
from qsdm.text import MANY, Log, ignore, require

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.measurement.comparison import ContenderOutcome
    from qsdm.measurement.contender import Contender
    from qsdm.metrics import Metric
    from qsdm.store.schemas import Comparison


class LimitExceeded(ValueError):
    """A pipeline is worse than a limit allows; everything is written nevertheless."""


def compare(
    pipelines: Sequence[str],
    store: Path = Path("store"),
    out: Path | None = None,
    prompts: Prompts | None = None,
    metrics: Mapping[str, Metric] | None = None,
    limit: Mapping[str, float] | None = None,
    num_images: int = 256,
    seed_set: int = 0,
    batch_size: int = 16,
    shard: int = 32,
    engine: Engine = Local(num_workers=1),  # noqa: B008 (a frozen value)
    log: Log = ignore,
) -> Comparison:
    """Draw the same pictures with several pipelines, and score every two of them in pairs.

    Args:
        pipelines: two or more, the reference first; as arguments without a key. Each is a NAME of
            conf/model, a path or a hub id, with options after a colon: `folder:steps=4`.
        store: folder of the artifacts; the pictures are kept in it.
        out: folder of the page, the JSON and the grid; by default one below the store.
        prompts: what is drawn; by default that of the reference.
        metrics: what the pictures are scored by; by default those of the reference, or metrics of
            fidelity that need no files.
        limit: the worst allowed value of a metric, as limit.psnr=30.
        num_images: pictures per pipeline.
        seed_set: which starting noise; pictures of two seed sets have only the captions in common.
        batch_size: pictures at a time; halved where memory does not suffice.
        shard: pictures per file; a killed run continues after the last file.
        engine: where workers run. With more than one, seconds and memory are those of workers that
            share the machine.
        log: receives the metrics of every pipeline.

    Returns:
        What compare.json holds.

    Raises:
        ComparisonError: the pipelines do not draw the same, or a value is out of range.
        ModelError: a pipeline cannot be loaded.
        EvaluationError: a pipeline draws no pictures.
        StoreError: ``out`` is a file, or cannot be written.
        LimitExceeded: a pipeline is worse than a limit allows; everything is written nevertheless.

    Example:
        >>> from qsdm.compare import compare
        >>> from qsdm.engine.serial import Serial
        >>> content = compare(["emoji_unet", "emoji_unet:steps=5"], num_images=8, engine=Serial())
        emoji_unet ...
        >>> [pipeline["name"] for pipeline in content["pipelines"]]
        ['emoji_unet', 'emoji_unet steps=5']
    """
    from qsdm.checkpoint.opening import check_packages, open_pipeline
    from qsdm.measurement import comparison
    from qsdm.measurement.protocol import versions_of
    from qsdm.measurement.spelling import Chosen, check_alike, read_contenders
    from qsdm.report import comparison as report

    require(2, MANY, num_images=num_images)
    require(1, MANY, batch_size=batch_size, shard=shard)
    contenders = read_contenders(pipelines, Chosen(named, prompts, metrics))
    reference = contenders[0].model
    check_limits(limit or {}, reference.metrics)
    check_alike(contenders)
    for contender in contenders:
        check_packages(contender)
    versions_of(reference.metrics)  # now: one whose files are missing raises
    where = Store(Path(store), reference.name)
    folder = Path(out or where.path(f"compare/{folder_name(contenders)}"))
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file, and a folder is to be written: give out=FOLDER")
    setup = comparison.Setup(
        where.path("pictures/compare"),
        prompts_of(reference),
        reference.metrics,
        seed_set,
        num_images,
        batch_size,
        shard,
        engine,
        open_pipeline,
        os.getpid(),
    )
    measured: list[ContenderOutcome] = []
    for contender in contenders:
        measured.append(comparison.measure(setup, contender, measured[0] if measured else None))
        values = measured[-1].outcome.metrics
        log({f"compare/{contender.name}/{n}": v for n, v in values.items() if v is not None})
    content = report.contents(setup, measured, limit or {})
    print(report.as_text(content))
    report.write(folder, content, measured)
    for name in (report.PAGE, report.DATA):
        print(folder / name)
    files = {"page": report.PAGE, "pictures": report.GRID, "file": report.DATA}
    log({f"compare/{key}": folder / name for key, name in files.items()})
    log({"compare/differences": list(content["differences"])})
    if exceeded := [line for line in content["limits"] if not line["kept"]]:
        raise LimitExceeded("; ".join(map(report.limit_sentence, exceeded)))
    return content


def named(name: str) -> Model | None:
    """Look up a model of conf/model.

    Args:
        name: of it, or any other text.

    Returns:
        The model; None if no model has this name.
    """
    if name not in choices()["model"] or name == "any":
        return None
    model: Model = load("model", name)
    return model


def check_limits(limits: Mapping[str, float], metrics: Mapping[str, Metric]) -> None:
    """Refuse limits of what is not measured.

    Args:
        limits: by name of the metric.
        metrics: that are measured.

    Raises:
        ValueError: a metric is not measured, or a limit is no finite number.
    """
    for name, value in limits.items():
        if name not in metrics:
            raise ValueError(
                f"limit.{name}: {name} is not measured; the metrics are {', '.join(metrics)}"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"limit.{name}: wanted a finite number (got {value!r})")


def folder_name(contenders: Sequence[Contender]) -> str:
    """Name the folder of a comparison after all pipelines but the reference.

    Args:
        contenders: the reference and the others.
    """
    names = "+".join(contender.name for contender in contenders[1:])
    return re.sub(r"[^\w.+=-]+", "_", names)[:120].strip(".") or "others"


if __name__ == "__main__":
    run.main(compare)
