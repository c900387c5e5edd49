"""Scored pictures of a configuration => `Outcome`, with values of halves and of first pictures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qsdm.metrics import Metric, reduce_subsets
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig

NUM_SPLITS = 16
PREFIXES = (16, 64, 256)


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """Features and digests of some pictures of a configuration; the pictures are discarded.

    Attributes:
        features: by metric, float32 [N, F].
        digests: sha256 of each picture, uint8 [N, 32].
        about: provenance; what ends in _s is in seconds.
    """

    features: Mapping[str, np.ndarray]
    digests: np.ndarray
    about: Mapping[str, Any]


def outcome_of(
    qconfig: QuantConfig,
    protocol: Protocol,
    metrics: Mapping[str, Metric],
    shards: Sequence[ScoredShard],
) -> Outcome:
    """Compute the outcome of all pictures of a protocol.

    Args:
        qconfig: the configuration.
        protocol: of the pictures.
        metrics: by name.
        shards: of the pictures, in their order.

    Returns:
        The outcome.

    Raises:
        EvaluationError: a metric is not finite.
    """
    began = time.perf_counter()
    values: dict[str, float | None] = {}
    halves: dict[str, tuple[tuple[float, float], ...]] = {}
    pictures = np.concatenate([shard.digests for shard in shards])
    num, frames = protocol.num_images, protocol.frames
    assert len(pictures) == num * frames
    prefixes: dict[int, dict[str, float | None]] = {first: {} for first in PREFIXES if first < num}
    subsets = [rows_of(np.arange(first), frames) for first in (num, *prefixes)]
    subsets += [rows_of(half, frames) for pair in splits(num) for half in pair]
    for name, metric in metrics.items():
        features = np.concatenate([shard.features[name] for shard in shards])
        values[name], *others = reduce_subsets(metric, features, subsets)
        for first, value in zip(prefixes, others, strict=False):
            prefixes[first][name] = value
        of_halves = [short(value) for value in others[len(prefixes) :] if value is not None]
        if of_halves and len(of_halves) == len(others) - len(prefixes):
            halves[name] = tuple(zip(of_halves[::2], of_halves[1::2], strict=True))
    seconds = {key: sum(shard.about[key] for shard in shards) for key in ("drawing_s", "scoring_s")}
    seconds["scoring_s"] = round(seconds["scoring_s"] + time.perf_counter() - began, 3)
    digest = hashlib.sha256(pictures.tobytes()).hexdigest()
    about = {**shards[0].about, **seconds, "pictures": digest}
    versions = {name: metric.version for name, metric in metrics.items()}
    return Outcome(qconfig, protocol.digest, values, num, halves, prefixes, about, versions)


def digests(images: np.ndarray) -> np.ndarray:
    """Hash each picture.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        sha256, uint8 [N, 32].
    """
    return np.stack(
        [np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8) for image in images]
    )


@cache
def splits(num_images: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Halve the pictures of a protocol in `NUM_SPLITS` ways, the same for all configurations.

    Args:
        num_images: drawings of the protocol.

    Returns:
        Both halves of each way, indices [N / 2]; nothing for fewer than four drawings.
    """
    if num_images < 4:
        return ()
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for k in range(NUM_SPLITS):
        order = np.random.default_rng([num_images, k]).permutation(num_images)
        half = (num_images + 1) // 2
        pairs.append((np.sort(order[:half]), np.sort(order[half:])))
    return tuple(pairs)


def rows_of(drawings: np.ndarray, frames: int) -> np.ndarray:
    """List the pictures of some drawings; a video's frames, which are alike, stay together.

    Args:
        drawings: their indices.
        frames: pictures of each.

    Returns:
        Indices of the pictures.
    """
    return (drawings[:, None] * frames + np.arange(frames)).ravel()


def short(value: float) -> float:
    """Round to six digits: far below a half's noise, and a third of the bytes.

    Args:
        value: of a metric.
    """
    return float(f"{value:.6g}")
