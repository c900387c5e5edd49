"""What one configuration measured, and how: `Protocol`, `Outcome`, `Objective`."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from qsdm.graph import canonical
from qsdm.qconfig import QuantConfig

SCHEMA = 2  # of an outcome's JSON


class EvaluationError(ValueError):
    """A configuration cannot be measured; nothing is stored for it."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How pictures are made and scored. Outcomes of different protocols are never compared.

    Attributes:
        denoiser: name of the model.
        weights: sha256 of the pipeline's files.
        fit: options of the quantizers' fit that are not in a method's name, and the version of its algorithms.
        sampler: class of the scheduler.
        dtype: in which the denoiser computes.
        prompts: sha256 of the captions in order.
        seed_set: pictures of two seed sets share no starting noise.
        num_images: drawings; of a pipeline that draws videos, videos.
        frames: pictures that metrics take of each drawing: 1, or evenly spaced frames of a video.
        metrics: version of each metric by its name, with all that changes its value.
    """

    denoiser: str
    weights: str
    fit: str
    sampler: str
    steps: int
    guidance: float
    resolution_px: int
    dtype: str
    prompts: str
    seed_set: int
    num_images: int
    metrics: Mapping[str, str]
    frames: int = 1
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ValueError(f"num_images must be at least 2 (got {self.num_images})")
        if self.frames < 1:
            raise ValueError(f"frames must be positive (got {self.frames})")
        object.__setattr__(self, "metrics", dict(self.metrics))
        object.__setattr__(self, "digest", hashlib.sha256(canonical(self.to_json())).hexdigest())

    def to_json(self) -> dict[str, Any]:
        data = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "digest"
        }
        if self.frames == 1:  # as in the digests of protocols before there were videos
            del data["frames"]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Protocol:
        """Raises ValueError if ``data`` is no protocol."""
        from qsdm.store.files import decode

        decode(data, _ProtocolFile)  # the values are kept as they are: the digest tells 2 from 2.0
        return Protocol(
            **{name: data[name] for name in _ProtocolFile.__annotations__ if name in data}
        )


class _ProtocolFile(TypedDict):
    """A `Protocol` in JSON."""

    denoiser: str
    weights: str
    fit: str
    sampler: str
    steps: int
    guidance: float
    resolution_px: int
    dtype: str
    prompts: str
    seed_set: int
    num_images: int
    metrics: dict[str, str]
    frames: NotRequired[int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The metrics of one configuration under one protocol.

    Attributes:
        qconfig: no methods at all is the full-precision denoiser.
        protocol: the digest of the protocol.
        metrics: value by name; None where a metric is not defined (PSNR of full precision to itself).
        num_images: that every metric was computed from; of videos each counts once, whatever its frames.
        halves: by metric, its values on the two halves of the pictures in `NUM_SPLITS` ways, for the noise of a label;
            may lack a metric.
        prefixes: metrics of the first 16, 64, ... pictures, by their number.
        provenance: versions, commit, seconds; ``stage``, what it was measured for: measure, test,
            candidates or realize.

    Raises:
        EvaluationError: a metric is not finite.
    """

    qconfig: QuantConfig
    protocol: str
    metrics: Mapping[str, float | None]
    num_images: int
    halves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    prefixes: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if value is not None and not math.isfinite(value):
                raise EvaluationError(
                    f"metric {name} of configuration {self.qconfig.digest[:12]} is {value}: it is not stored"
                )

    @property
    def key(self) -> tuple[str, str]:
        return self.qconfig.digest, self.protocol

    @property
    def is_label(self) -> bool:
        """Measured to learn from, not proposed by a search, whose near copies would flatter held-out scores."""
        return self.provenance.get("stage", "measure") == "measure"

    def standard_error(self, name: str) -> float | None:
        """Of a metric, over prompts and starting noise: the root mean square of half the difference of two halves.

        The half-sample bootstrap: as much as the metric varies between halves, it varies between samples of all the
        pictures. Resampling with repetition would not do here: neighbours, kernels and distances of distributions see
        a repeated picture as one that agrees with itself.

        References:
            The Jackknife, the Bootstrap and Other Resampling Plans (Efron, 1982), section 8.1.
        """
        pairs = self.halves.get(name)
        if not pairs:
            return None
        return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / (4 * len(pairs)))

    def interval(self, name: str) -> tuple[float, float] | None:
        """Of 95 % for a metric of this many pictures, where its noise is known."""
        value, error = self.metrics.get(name), self.standard_error(name)
        return (
            None if value is None or error is None else (value - 1.96 * error, value + 1.96 * error)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "qconfig": self.qconfig.to_json(),
            "protocol": self.protocol,
            "metrics": dict(self.metrics),
            "num_images": self.num_images,
            "halves": {name: [list(pair) for pair in pairs] for name, pairs in self.halves.items()},
            "prefixes": {str(num): dict(values) for num, values in self.prefixes.items()},
            "provenance": dict(self.provenance),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Outcome:
        """Raises ValueError if ``data`` is no outcome."""
        from qsdm.store.files import decode

        if data.get("schema", 1) not in (1, SCHEMA):
            raise ValueError(f"wanted an outcome of schema {SCHEMA}, got {data['schema']!r}")
        if data.get("schema", 1) == 1:  # one way to halve the pictures, no prefixes
            data = {
                **data,
                "halves": {
                    name: [pair]
                    for name, pair in decode(data.get("halves"), dict[str, Any]).items()
                },
                "prefixes": {},
            }
        stored = decode(data, _OutcomeFile)
        return Outcome(
            QuantConfig.from_json(stored.qconfig),
            stored.protocol,
            stored.metrics,
            stored.num_images,
            stored.halves,
            {int(num): values for num, values in stored.prefixes.items()},
            stored.provenance,
        )


@dataclass(frozen=True, slots=True)
class _OutcomeFile:
    """An `Outcome` in JSON, without the number of its schema."""

    qconfig: dict[str, Any]
    protocol: str
    metrics: dict[str, float | None]
    num_images: int
    halves: dict[str, tuple[tuple[float, float], ...]]
    prefixes: dict[str, dict[str, float | None]]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Objective:
    """A linear form of metrics and costs; larger is better.

    Attributes:
        weights: by name of a metric or of a cost (``avg_bits``), as {"fid": -1, "avg_bits": -150}.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(w) for w in self.weights.values()):
            raise ValueError(
                "an objective needs finite weights by metric, as {fid: -1, avg_bits: -150} "
                f"(got {dict(self.weights)})"
            )

    def __call__(self, values: Mapping[str, float | None]) -> float:
        """Raises KeyError if a metric of the objective is missing."""
        total = 0.0
        for name, weight in self.weights.items():
            value = values.get(name)
            if value is None:
                raise KeyError(
                    f"the objective needs the metric {name!r} (measured: {', '.join(sorted(values)) or 'none'})"
                )
            total += weight * value
        return total
