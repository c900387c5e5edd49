"""Model, metrics and prompts => `Protocol`: how pictures are made and scored, in digests and versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from qsdm.denoisers import (
    ZOO,
    Model,
    ModelError,
    describing_folder,
    frames_of,
    weights_digest,
)
from qsdm.graph import canonical
from qsdm.metrics import Metric
from qsdm.outcome import Protocol
from qsdm.prompts import Captions, Prompt


def seed_of(seed_set: int, i: int) -> int:
    """Seed of picture ``i``, 63 bits. A hash, so two seed sets share no noise."""
    return int.from_bytes(hashlib.sha256(f"qsdm {seed_set} {i}".encode()).digest()[:8], "big") >> 1


def prompts_of(model: Model) -> Sequence[Prompt]:
    """What the model draws.

    Raises:
        ModelError: the model names no prompts.
        PromptsError: they cannot be read.
    """
    if model.prompts is None:
        raise ModelError(
            f"model {model.name} has no prompts: add prompts=NAME, with a NAME of conf/prompts"
        )
    if isinstance(model.prompts, str):
        path = ZOO / model.name / "prompts.json" if model.prompts == "zoo" else model.prompts
        return Captions(str(path)).read()
    return model.prompts.read()


def of_pictures(prompts: Sequence[Prompt], num_images: int) -> list[Prompt]:
    """The prompt of each picture: from the first again after the last."""
    return [prompts[i % len(prompts)] for i in range(num_images)]


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(
        canonical([p if isinstance(p, str) else p.to_json() for p in prompts])
    ).hexdigest()


def protocol_of(
    model: Model,
    metrics: Mapping[str, Metric],
    prompts: Sequence[Prompt],
    seed_set: int,
    num_images: int,
) -> Protocol:
    """How `Evaluator` makes and scores pictures, in digests and versions.

    Args:
        prompts: as many as there are (see `of_pictures`).
    """
    from qsdm.quant.fitting import VERSION

    return Protocol(
        denoiser=model.name,
        weights=weights_digest(model),
        fit=str(VERSION),
        sampler=sampler_of(model),
        steps=model.steps,
        guidance=float(model.guidance),
        resolution_px=model.resolution_px,
        dtype=model.dtype,
        prompts=prompts_digest(of_pictures(prompts, num_images)),
        seed_set=seed_set,
        num_images=num_images,
        frames=frames_of(model),
        metrics={name: metric.version for name, metric in sorted(metrics.items())},
    )


def sampler_of(model: Model) -> str:
    """The scheduler's class, with a digest of its options and of what else the pipeline is called with."""
    directory = describing_folder(model) if model.file is not None else model.directory
    if directory is None:
        from diffusers import DiffusionPipeline

        try:
            index: Mapping[str, Any] = DiffusionPipeline.load_config(
                model.path, revision=model.revision
            )
        except OSError as error:
            raise ModelError(
                f"no pipeline {model.path!r} here: download it once with `hf download {model.path}`"
            ) from error
        options: Any = model.revision
    else:
        try:
            index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
            options = json.loads(
                (directory / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{directory} is no diffusers pipeline ({error}): give path=DIRECTORY of one"
            ) from error
        options.pop("_diffusers_version", None)
    # Not `canonical`: a scheduler's options may hold infinity.
    digest = hashlib.sha256(
        json.dumps([options, dict(model.call)], sort_keys=True).encode()
    ).hexdigest()
    return f"{model.sampler or index['scheduler'][1]} {digest[:12]}"


def drawing_digest(protocol: Protocol) -> str:
    """Digest of what decides the full-precision pictures: the protocol without metrics and fit."""
    return dataclasses.replace(protocol, metrics={}, fit="").digest
