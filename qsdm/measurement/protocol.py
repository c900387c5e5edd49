"""Model and prompts => `Protocol`: how pictures are made, in digests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from qsdm.denoisers import (
    Model,
    ModelError,
    frames_of,
    pipeline_digest,
    sampler_of,
    weights_digest,
)
from qsdm.denoisers.identity import SAME_PICTURES, WEIGHTS, unseen_digest, unseen_sampler
from qsdm.graph import canonical
from qsdm.metrics import Metric
from qsdm.outcome import Protocol
from qsdm.prompts import Prompt


def seed_of(seed_set: int, i: int) -> int:
    """Compute the seed of a picture: a hash, so two seed sets share no noise.

    Args:
        seed_set: its number.
        i: number of the picture.

    Returns:
        63 bits.
    """
    return int.from_bytes(hashlib.sha256(f"qsdm {seed_set} {i}".encode()).digest()[:8], "big") >> 1


def of_pictures(prompts: Sequence[Prompt], num_images: int) -> list[Prompt]:
    """Assign a prompt to each picture: from the first again after the last.

    Args:
        prompts: as many as there are.
        num_images: number of pictures.

    Returns:
        One prompt per picture.
    """
    return [prompts[i % len(prompts)] for i in range(num_images)]


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Hash prompts in their order.

    Args:
        prompts: one per picture.

    Returns:
        sha256.
    """
    return hashlib.sha256(
        canonical([p if isinstance(p, str) else p.to_json() for p in prompts])
    ).hexdigest()


def protocol_of(
    model: Model, prompts: Sequence[Prompt], seed_set: int, num_images: int
) -> Protocol:
    """Describe how pictures are drawn, in digests.

    Args:
        model: that draws them.
        prompts: as many as there are (see `of_pictures`).
        seed_set: of the starting noise.
        num_images: pictures per configuration.

    Returns:
        The protocol.

    Raises:
        ModelError: files of the model are missing.
    """
    from qsdm.quant.fitting import VERSION

    return Protocol(
        denoiser=model.name,
        weights=weights_digest(model),
        quantizer_version=str(VERSION),
        sampler=sampler_of(model),
        steps=model.steps,
        guidance=float(model.guidance),
        resolution_px=model.resolution_px,
        dtype=model.dtype,
        prompts=prompts_digest(of_pictures(prompts, num_images)),
        seed_set=seed_set,
        num_images=num_images,
        frames=frames_of(model),
        pipeline=pipeline_digest(model),
    )


def versions_of(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """List the version of each metric.

    Args:
        metrics: by name.

    Returns:
        Versions by name.
    """
    return {name: metric.version for name, metric in sorted(metrics.items())}


def adopted(former: Protocol, model: Model) -> Protocol:
    """Turn a protocol of qsdm 0.1.0 into one of today's pipeline, if they are the same.

    They are if 0.1.0 would have taken the two for the same and ``model.load`` chooses nothing by
    which they could differ. 0.1.0 digested all weights of a pipeline's folder. So where some of
    them are not loaded (an encoder is left out, a variant is chosen), the digests differ, and the
    outcomes stay apart: they may be of either kind.

    Args:
        former: a protocol without a digest of the pipeline.
        model: as it is today.

    Returns:
        Today's protocol, or the former one where they may differ.
    """
    chosen = {name for name, value in model.load.items() if value is not None}
    if chosen - SAME_PICTURES - WEIGHTS:
        return former
    try:
        weights, sampler, pipeline = (
            weights_digest(model),
            sampler_of(model),
            pipeline_digest(model),
        )
        same = [(weights, sampler)]
        # 0.1.0 knew models of the hub by id and revision.
        if model.directory is None and not model.load:
            same.append((unseen_digest(model), unseen_sampler(model)))
    except ModelError:
        return former
    if (former.weights, former.sampler) not in same:
        return former
    return dataclasses.replace(former, weights=weights, sampler=sampler, pipeline=pipeline)


def drawing_digest(protocol: Protocol) -> str:
    """Hash what decides the full-precision pictures: the protocol without the quantizers.

    Args:
        protocol: of the pictures.

    Returns:
        The digest.
    """
    return dataclasses.replace(protocol, quantizer_version="").digest
