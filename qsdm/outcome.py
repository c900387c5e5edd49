"""What one configuration measured, and how: `Protocol`, `Outcome`, `Objective`."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from qsdm.graph import canonical
from qsdm.qconfig import ConfigurationFile, QuantConfig

SCHEMA = 3  # of an outcome's JSON
PROTOCOL_SCHEMA = 2

LORA_RETENTION = "lora_retention"
"""Metric of one adapter, see `qsdm.measurement.retention`; outcomes do not hold it."""
SIGNIFICANT_Z = 1.96
"""Half the width of a 95 % interval, in standard errors."""


class EvaluationError(ValueError):
    """A configuration cannot be measured; nothing is stored for it."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How pictures are made; outcomes of different protocols are never compared.

    What is measured of the pictures is not part of it: each metric has a version of its own.

    Attributes:
        denoiser: name of the model.
        weights: digest of the weights that are loaded.
        quantizer_version: of the quantizers' algorithms and options that are not in a method's
            name.
        sampler: class of the scheduler, with a digest of its options and of the pipeline's further
            arguments.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        resolution_px: edge of the square pictures.
        dtype: in which the denoiser computes.
        prompts: sha256 of the captions in order.
        seed_set: pictures of two seed sets share no starting noise.
        num_images: drawings; of a pipeline that draws videos, videos.
        frames: pictures that metrics take of each drawing: 1, or evenly spaced frames of a video.
        pipeline: digest of what is loaded besides weights; empty in outcomes of qsdm 0.1.0, which
            did not store it.
        digest: sha256 over all of it.

    Raises:
        ValueError: there are fewer than two drawings, or no frames.
    """

    denoiser: str
    weights: str
    quantizer_version: str
    sampler: str
    steps: int
    guidance: float
    resolution_px: int
    dtype: str
    prompts: str
    seed_set: int
    num_images: int
    frames: int = 1
    pipeline: str = ""
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ValueError(f"num_images must be at least 2 (got {self.num_images})")
        if self.frames < 1:
            raise ValueError(f"frames must be positive (got {self.frames})")
        object.__setattr__(self, "digest", hashlib.sha256(canonical(self.to_json())).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """The contents of a protocol's file: its fields, and the number of the schema."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "digest")
        return {"schema": PROTOCOL_SCHEMA, **{name: getattr(self, name) for name in names}}

    @staticmethod
    def from_json(data: Mapping[str, Any] | bytes) -> Protocol:
        """Read a protocol of this schema or of the first, which held the metrics' versions.

        Args:
            data: what `to_json` returned, or its JSON.

        Returns:
            The protocol; for the versions, see `versions_in`.

        Raises:
            ValueError: ``data`` is not a protocol, or of a later schema.
        """
        from qsdm.store.files import decode

        fields = decode(data, dict[str, Any]) if isinstance(data, bytes) else dict(data)
        schema = fields.pop("schema", 1)
        if schema == 1:
            fields |= {"quantizer_version": fields.pop("fit", None)}
            fields.pop("metrics", None)
        elif schema != PROTOCOL_SCHEMA:
            raise ValueError(f"wanted a protocol of schema {PROTOCOL_SCHEMA}, got {schema!r}")
        # The values are kept as they are: the digest tells 2 from 2.0.
        decode(fields, _ProtocolFile)
        names = _ProtocolFile.__annotations__
        return Protocol(**{name: fields[name] for name in names if name in fields})


class _ProtocolFile(TypedDict):
    """A `Protocol` in JSON, without the number of its schema."""

    denoiser: str
    weights: str
    quantizer_version: str
    sampler: str
    steps: int
    guidance: float
    resolution_px: int
    dtype: str
    prompts: str
    seed_set: int
    num_images: int
    frames: NotRequired[int]
    pipeline: NotRequired[str]


def versions_in(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Read the versions of the metrics in a protocol's JSON of the first schema.

    Args:
        protocol: as it was stored.

    Returns:
        Version by name of the metric; empty for a later schema.

    Raises:
        ValueError: the versions are not texts by name.
    """
    from qsdm.store.files import decode

    return decode(protocol.get("metrics", {}), dict[str, str])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The metrics of one configuration under one protocol.

    Attributes:
        qconfig: one without any method is the full-precision denoiser.
        protocol: the digest of the protocol.
        metrics: value by name; None where a metric is not defined (PSNR of full precision to
            itself).
        num_images: number of pictures that every metric was computed from; a video counts once,
            whatever its frames.
        halves: by metric, its values on the two halves of the pictures in `NUM_SPLITS` ways, for
            the noise of a label; may lack a metric.
        prefixes: metrics of the first 16, 64, ... pictures, by their number.
        provenance: versions, commit, seconds; ``stage``, what it was measured for: measure, test,
            probe, rounds, candidates or realize.
        versions: of each metric by its name, with all that changes its value.
        earlier: by name of a metric and its version, value and halves that another version has
            replaced.

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
    versions: Mapping[str, str] = field(default_factory=dict)
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if value is not None and not math.isfinite(value):
                raise EvaluationError(
                    f"metric {name} of configuration {self.qconfig.digest[:12]} is {value}: "
                    "it is not stored"
                )

    @property
    def key(self) -> tuple[str, str]:
        """What names it in a store: the digests of the configuration and of the protocol."""
        return self.qconfig.digest, self.protocol

    @property
    def is_label(self) -> bool:
        """Whether it was measured to learn from, and not because a search proposed it.

        Near copies among the proposals of a search would flatter held-out scores.
        """
        return self.provenance.get("stage", "measure") == "measure"

    @property
    def is_mixed_label(self) -> bool:
        """Whether it is a label of a configuration that quantizes several weights.

        A large store holds many of them, and few other outcomes: of full precision, of probes, of
        tests, of proposals.
        """
        return self.is_label and len(self.qconfig.methods.keys() | self.qconfig.inputs.keys()) > 1

    def lacks(self, versions: Mapping[str, str]) -> set[str]:
        """List the metrics that are still to be measured.

        Args:
            versions: of the metrics that are needed, by name.

        Returns:
            Names of metrics that are missing, or present in another version.
        """
        return {
            name
            for name, version in versions.items()
            if name not in self.metrics or self.versions.get(name) != version
        }

    def merged(self, other: Outcome) -> Outcome:
        """Add the metrics of another measurement of the same pictures.

        Args:
            other: the later one, of the same configuration and protocol.

        Returns:
            The outcome with all metrics; values that ``other`` replaces are in ``earlier``.
        """
        assert self.key == other.key
        news = {
            name
            for name in other.metrics
            if name not in self.metrics
            or (name in other.versions and self.versions.get(name) != other.versions[name])
        }
        if not news and not other.earlier:
            return self
        earlier = {**other.earlier, **self.earlier}
        for name in news & self.metrics.keys():
            replaced = {"value": self.metrics[name], "halves": self.halves.get(name, ())}
            earlier[f"{name}: {self.versions.get(name, 'unknown')}"] = replaced

        def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
            same = {name: value for name, value in first.items() if name not in news}
            return same | {name: second[name] for name in second if name in news}

        prefixes = {
            num: joined(self.prefixes.get(num, {}), other.prefixes.get(num, {}))
            for num in {**self.prefixes, **other.prefixes}
        }
        return dataclasses.replace(
            self,
            metrics={**self.metrics, **joined(self.metrics, other.metrics)},
            halves=joined(self.halves, other.halves),
            prefixes=prefixes,
            versions=joined(self.versions, other.versions),
            earlier=earlier,
        )

    def standard_error(self, name: str) -> float | None:
        """Estimate the standard error of a metric over prompts and starting noise.

        It is the root mean square of half the difference of two halves (the half-sample bootstrap):
        the metric varies between samples of all the pictures as much as it varies between halves.
        Resampling with repetition would not do: neighbors, kernels and distances of distributions
        see a repeated picture as one that agrees with itself.

        Args:
            name: of the metric.

        Returns:
            In the metric's units; None without halves.

        References:
            The Jackknife, the Bootstrap and Other Resampling Plans (Efron, 1982), section 8.1.
        """
        pairs = self.halves.get(name)
        return error_of_halves(pairs) if pairs else None

    def interval(self, name: str) -> tuple[float, float] | None:
        """Compute the 95 % confidence interval of a metric.

        Args:
            name: of the metric.

        Returns:
            Its ends; None without a value or without halves.
        """
        value, error = self.metrics.get(name), self.standard_error(name)
        if value is None or error is None:
            return None
        return value - SIGNIFICANT_Z * error, value + SIGNIFICANT_Z * error

    def to_json(self) -> dict[str, Any]:
        """The contents of an outcome's record."""
        return {
            "schema": SCHEMA,
            "qconfig": self.qconfig.to_json(),
            "protocol": self.protocol,
            "metrics": dict(self.metrics),
            "num_images": self.num_images,
            "halves": {name: [list(pair) for pair in pairs] for name, pairs in self.halves.items()},
            "prefixes": {str(num): dict(values) for num, values in self.prefixes.items()},
            "provenance": dict(self.provenance),
            "versions": dict(self.versions),
            "earlier": {key: dict(kept) for key, kept in self.earlier.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any] | bytes) -> Outcome:
        """The inverse of `to_json`; also reads the two earlier schemas.

        Args:
            data: what `to_json` returned, or its JSON, which takes a third of the time.

        Returns:
            The outcome.

        Raises:
            ValueError: ``data`` is not an outcome.
        """
        from qsdm.store.files import decode

        if isinstance(data, bytes):
            try:
                if (stored := decode(data, _OutcomeFile)).schema in (2, SCHEMA):
                    return stored.outcome()
            except ValueError:  # of the first schema, or wrong
                pass
            data = decode(data, dict[str, Any])
        if data.get("schema", 1) not in (1, 2, SCHEMA):
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
        return decode(data, _OutcomeFile).outcome()


def error_of_halves(pairs: Sequence[tuple[float, float]]) -> float:
    """Estimate the standard error of a value from its values on two halves of the pictures.

    Args:
        pairs: one for each way to halve them, at least one.

    Returns:
        The root mean square of half the difference, see `Outcome.standard_error`.
    """
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / (4 * len(pairs)))


@dataclass(frozen=True, slots=True)
class _OutcomeFile:
    """An `Outcome` in JSON."""

    qconfig: ConfigurationFile
    protocol: str
    metrics: dict[str, float | None]
    num_images: int
    halves: dict[str, tuple[tuple[float, float], ...]]
    prefixes: dict[str, dict[str, float | None]]
    provenance: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = 1

    def outcome(self) -> Outcome:
        """What it means."""
        return Outcome(
            self.qconfig.qconfig(),
            self.protocol,
            self.metrics,
            self.num_images,
            self.halves,
            {int(num): values for num, values in self.prefixes.items()},
            self.provenance,
            self.versions,
            self.earlier,
        )


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of metrics and costs; larger is better.

    Attributes:
        weights: by name of a metric or of a cost (``avg_bits``), as {"fid": -1, "avg_bits": -150}.
        fidelity: metric of how close pictures are to those of full precision, which a search keeps
            as an axis of its own, not as a part of the sum; None for none.

    Raises:
        ValueError: there are no weights, or one is not finite.

    Example:
        >>> from qsdm.outcome import Objective
        >>> quality = Objective({"fid": -1.0, "avg_bits": -150.0})
        >>> quality({"fid": 20.0, "avg_bits": 3.5})
        -545.0
    """

    weights: Mapping[str, float]
    fidelity: str | None = None

    def __post_init__(self) -> None:
        numbers = [w for w in self.weights.values() if isinstance(w, int | float)]
        if len(numbers) < max(1, len(self.weights)) or not all(map(math.isfinite, numbers)):
            raise ValueError(
                "an objective needs finite weights by metric, as {fid: -1, avg_bits: -150} "
                f"(got {dict(self.weights)})"
            )

    @property
    def metrics(self) -> list[str]:
        """Names of its metrics, in its order; what is left is a cost."""
        return [name for name in self.weights if name != "avg_bits"]

    def __call__(self, values: Mapping[str, float | None]) -> float:
        """Compute the sum.

        Args:
            values: metrics and costs by name; may hold more than the objective needs.

        Returns:
            The sum.

        Raises:
            KeyError: a metric of the objective is missing, or not defined.
        """
        total = 0.0
        for name, weight in self.weights.items():
            value = values.get(name)
            if value is None:
                raise KeyError(
                    f"the objective needs the metric {name!r} "
                    f"(measured: {', '.join(sorted(values)) or 'none'})"
                )
            total += weight * value
        return total


def require_measured(names: Iterable[str], metrics: Iterable[str]) -> None:
    """Check that what is asked for will be measured, before anything is.

    Args:
        names: of metrics.
        metrics: names of those that a model has.

    Raises:
        EvaluationError: there are no metrics.
        ValueError: a metric is not among them.
    """
    measured = list(metrics)
    if not measured:
        raise EvaluationError(
            "the model has no metrics: add metrics=NAME, with a NAME of conf/metrics"
        )
    for name in names:
        if name not in measured:
            raise ValueError(f"{name!r} is not measured; the metrics are {', '.join(measured)}")
