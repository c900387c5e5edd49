"""What was seen of a configuration's pictures => `Outcome`: values, those of halves and of the first pictures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qsdm.metrics import Metric
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig

NUM_SPLITS = 16
PREFIXES = (16, 64, 256)


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """What is left of some pictures of a configuration once they are looked at.

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
    """The outcome of all pictures of a protocol, which were drawn at once or in shards, in their order.

    Raises:
        EvaluationError: a metric is not finite.
    """
    began = time.perf_counter()
    values: dict[str, float | None] = {}
    halves: dict[str, tuple[tuple[float, float], ...]] = {}
    seen = np.concatenate([shard.digests for shard in shards])
    num, frames = protocol.num_images, protocol.frames
    assert len(seen) == num * frames
    prefixes: dict[int, dict[str, float | None]] = {first: {} for first in PREFIXES if first < num}
    for name, metric in metrics.items():
        features = np.concatenate([shard.features[name] for shard in shards])
        values[name] = metric.reduce(features)
        for first, found in prefixes.items():
            found[name] = metric.reduce(features[: first * frames])
        pairs = [
            (metric.reduce(features[of(a, frames)]), metric.reduce(features[of(b, frames)]))
            for a, b in splits(num)
        ]
        known = tuple((short(a), short(b)) for a, b in pairs if a is not None and b is not None)
        if pairs and len(known) == len(pairs):
            halves[name] = known
    seconds = {key: sum(shard.about[key] for shard in shards) for key in ("drawing_s", "scoring_s")}
    seconds["scoring_s"] = round(seconds["scoring_s"] + time.perf_counter() - began, 3)
    about = {**shards[0].about, **seconds, "pictures": hashlib.sha256(seen.tobytes()).hexdigest()}
    return Outcome(
        qconfig,
        protocol.digest,
        values,
        num,
        halves,
        prefixes,
        about,
        {name: metric.version for name, metric in metrics.items()},
    )


def digests(images: np.ndarray) -> np.ndarray:
    """sha256 of each picture, uint8 [N, 32]."""
    return np.stack(
        [np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8) for image in images]
    )


@cache
def splits(num_images: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The same for all configurations: `NUM_SPLITS` ways to halve four or more pictures, indices [N / 2] each."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    if num_images < 4:
        return ()
    for k in range(NUM_SPLITS):
        order = np.random.default_rng([num_images, k]).permutation(num_images)
        half = (num_images + 1) // 2
        found.append((np.sort(order[:half]), np.sort(order[half:])))
    return tuple(found)


def of(drawings: np.ndarray, frames: int) -> np.ndarray:
    """Indices of the pictures of some drawings: a video's frames, which are alike, stay together."""
    return (drawings[:, None] * frames + np.arange(frames)).ravel()


def short(value: float) -> float:
    """Six digits: far below a half's noise, and a third of the bytes."""
    return float(f"{value:.6g}")
