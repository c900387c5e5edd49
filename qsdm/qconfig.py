"""Which method and bits each weight gets: methods by name, configurations, and the space they are drawn from.

A method's text form is ``name-bits`` (``uaq-4``, ``kmeans_c-3``, ``uaq_g64-4``, ``fp-16``). All that changes a weight's
values is in it.

References:
    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025), section 3: the methods,
        their overhead, the sampling.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsdm.bounds import require
from qsdm.graph import Graph, Weight, canonical, merge_splits
from qsdm.quant.methods import METHODS

SCHEMA = "qsdm/qconfig/1"
_TEXT = re.compile(r"([a-z0-9_]+)-(\d+)")


class OutsideSpace(ValueError):
    """A configuration names a weight or a method that the space does not hold."""


@dataclass(frozen=True, slots=True, order=True)
class QuantMethod:
    """A quantization method at a bit width.

    Attributes:
        name: of an entry of `qsdm.quant.methods.METHODS`.
        bits: of a code.

    Raises:
        ValueError: there is no such method, or it has no such bit width.
    """

    name: str
    bits: int

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(
                f"no quantization method {self.name!r} (got {self}): wanted {', '.join(METHODS)}, "
                "each with its bits, as uaq-4"
            )
        if self.bits not in (allowed := METHODS[self.name].bits):
            raise ValueError(
                f"{self.name} has {', '.join(map(str, allowed))} bits (got {self.bits})"
            )

    @staticmethod
    def parse(text: str) -> QuantMethod:
        """The inverse of ``str``."""
        if (match := _TEXT.fullmatch(text)) is None:
            raise ValueError(f"wanted a method and its bits, as uaq-4 or kmeans_c-3 (got {text!r})")
        return QuantMethod(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.name}-{self.bits}"

    @property
    def is_full(self) -> bool:
        """Full precision: nothing is quantized."""
        return METHODS[self.name].table is None

    @property
    def group_size(self) -> int | None:
        """Input values that share a scale, for block-wise methods."""
        return METHODS[self.name].group_size

    def overhead_bits(self, weight: Weight, full_bits: int) -> int:
        """Bits of scales, zero points and codebooks beside the codes of one stored tensor.

        Args:
            weight: that is quantized.
            full_bits: P, the precision in which scales and codebooks are stored.
        """
        method = METHODS[self.name]
        return method.overhead_bits(self.bits, weight.shape[0], weight.fan_in, full_bits)

    def size_bits(self, weight: Weight, full_bits: int) -> int:
        """Bits of all stored copies of ``weight``: the codes, filled up to whole bytes, and the overhead."""
        copies = 1 + len(weight.ties)
        codes = 8 * math.ceil(math.prod(weight.shape) * self.bits / 8)
        return copies * (codes + self.overhead_bits(weight, full_bits))


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """A method for every weight of a denoiser.

    Attributes:
        methods: by weight name. Weights that are not named keep full precision.
        digest: sha256 of the canonical JSON; names the configuration everywhere.
    """

    denoiser: str
    methods: Mapping[str, QuantMethod]
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", dict(self.methods))
        object.__setattr__(self, "digest", hashlib.sha256(canonical(self.to_json())).hexdigest())

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "denoiser": self.denoiser,
            "methods": {k: str(m) for k, m in self.methods.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> QuantConfig:
        """Raises ValueError if ``data`` is no configuration of this schema."""
        from qsdm.store.files import decode

        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"wanted a configuration of schema {SCHEMA!r} (got {found!r})")
        stored = decode(data, _ConfigurationFile)
        return QuantConfig(
            stored.denoiser,
            {name: QuantMethod.parse(text) for name, text in stored.methods.items()},
        )


@dataclass(frozen=True, slots=True)
class _ConfigurationFile:
    """A configuration in JSON, without the name of its schema."""

    denoiser: str
    methods: dict[str, str]


@dataclass(frozen=True, slots=True)
class Space:
    """The configurations of a graph: for each of its W weights the methods on offer.

    Attributes:
        options: per weight of ``graph.weights``, one or more methods, by bits and then as listed.
        full_bits: precision of the stored full-precision denoiser, 16 or 32.
    """

    graph: Graph
    options: tuple[tuple[QuantMethod, ...], ...]
    full_bits: int = 16

    def __post_init__(self) -> None:
        if len(self.options) != len(self.graph.weights) or not all(self.options):
            raise ValueError(
                f"a space needs at least one method for each of the {len(self.graph.weights)} weights "
                f"(got {len(self.options)})"
            )

    @staticmethod
    def of(
        graph: Graph,
        methods: Sequence[str | QuantMethod],
        full_bits: int = 16,
        max_overhead: float = 1.0,
    ) -> Space:
        """The same methods for every weight, but none whose overhead is too much for a small one.

        Args:
            max_overhead: bits per weight; above it K-Means-A of the same bits takes the method's place.
        """
        parsed = sorted(
            (m if isinstance(m, QuantMethod) else QuantMethod.parse(m) for m in methods),
            key=lambda m: m.bits,
        )
        options = tuple(
            tuple(
                dict.fromkeys(
                    _affordable(method, weight, full_bits, max_overhead) for method in parsed
                )
            )
            for weight in graph.weights
        )
        return Space(graph, options, full_bits)

    @property
    def methods(self) -> tuple[QuantMethod, ...]:
        """All methods on offer for any weight, sorted."""
        return tuple(sorted({method for offered in self.options for method in offered}))

    def sample(self, rng: np.random.Generator, share: float | None = None) -> QuantConfig:
        """A random configuration whose average bits spread evenly over the space's range.

        Each weight draws its bits, then uniformly a method of these bits. The distribution of bits is tilted towards a
        target drawn uniformly between the smallest and the largest; with 3 and 4 bits that is p3 ~ U(0, 1), the paper's
        rule.

        Args:
            share: where between the smallest and the largest bits the target lies, 0 to 1, if it is not to be drawn.
        """
        widths = sorted({method.bits for offered in self.options for method in offered})
        share = rng.random() if share is None else share
        probability = _tilted(widths, widths[0] + share * (widths[-1] - widths[0]))
        genes = np.empty(len(self.options), dtype=np.int64)
        for i, offered in enumerate(self.options):
            p = np.array(
                [probability[m.bits] / sum(o.bits == m.bits for o in offered) for m in offered]
            )
            genes[i] = rng.choice(len(offered), p=p / p.sum())
        return self.decode(genes)

    def uniform(self, method: str | QuantMethod) -> QuantConfig:
        """The same method for every weight, or what takes its place where it is not on offer (K-Means-A of the same
        bits)."""
        wanted = QuantMethod.parse(method) if isinstance(method, str) else method
        chosen = {}
        for weight, offered in zip(self.graph.weights, self.options, strict=True):
            near = [m for m in offered if m.bits == wanted.bits]
            if not near:
                raise OutsideSpace(
                    f"no {wanted.bits}-bit method is on offer for {weight.name!r} "
                    f"(offered: {', '.join(map(str, offered))})"
                )
            substitute = next((m for m in near if m.name == "kmeans_a"), near[0])
            chosen[weight.name] = wanted if wanted in near else substitute
        return QuantConfig(self.graph.denoiser, chosen)

    def encode(self, qconfig: QuantConfig) -> np.ndarray:
        """Configuration => genes, int64 [W]: index into the options of each weight.

        Raises:
            OutsideSpace: it is of another denoiser, leaves a weight out, names one too many, or a method that is not on
                offer.
        """
        if qconfig.denoiser != self.graph.denoiser:
            raise OutsideSpace(
                f"wanted a configuration of {self.graph.denoiser!r} (got one of {qconfig.denoiser!r})"
            )
        names = {weight.name for weight in self.graph.weights}
        if odd := sorted(names ^ set(qconfig.methods)):
            raise OutsideSpace(
                f"configuration and space must name the same weights (only one of them has {odd[0]!r})"
            )
        genes = np.empty(len(self.options), dtype=np.int64)
        for i, (weight, offered) in enumerate(zip(self.graph.weights, self.options, strict=True)):
            method = qconfig.methods[weight.name]
            if method not in offered:
                raise OutsideSpace(
                    f"{method} is not on offer for {weight.name!r} (offered: {', '.join(map(str, offered))})"
                )
            genes[i] = offered.index(method)
        return genes

    def decode(self, genes: np.ndarray) -> QuantConfig:
        """The inverse of `encode`."""
        if len(genes) != len(self.options):
            raise OutsideSpace(f"wanted {len(self.options)} genes (got {len(genes)})")
        pairs = zip(self.graph.weights, self.options, genes, strict=True)
        return QuantConfig(
            self.graph.denoiser,
            {weight.name: offered[int(gene)] for weight, offered, gene in pairs},
        )


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """One entry of ``conf/space``: what makes the `Space` of any graph.

    Attributes:
        methods: text forms, offered for every weight that affords them.
        splits: regular expression; weights whose module path matches it stay split by their concatenated inputs.
        max_overhead: bits per weight of scales and codebooks, above which K-Means-A takes a method's place.
    """

    name: str
    methods: Sequence[str]
    splits: str = ""
    max_overhead: float = 1.0

    def __post_init__(self) -> None:
        require(0, max_overhead=self.max_overhead)
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"wanted a name of letters, digits, '.', '-' and '_', as of a folder (got {self.name!r})"
            )
        if isinstance(self.methods, str) or not self.methods:
            raise ValueError(f"wanted a list of methods, as [uaq-3,uaq-4] (got {self.methods!r})")

    def of(self, graph: Graph, full_bits: int = 16) -> Space:
        return Space.of(
            merge_splits(graph, self.splits), self.methods, full_bits, self.max_overhead
        )


def _affordable(
    method: QuantMethod, weight: Weight, full_bits: int, max_overhead: float
) -> QuantMethod:
    if method.is_full or method.overhead_bits(weight, full_bits) <= max_overhead * math.prod(
        weight.shape
    ):
        return method
    return QuantMethod("kmeans_a", method.bits)


def _tilted(widths: Sequence[int], target: float) -> dict[int, float]:
    """The distribution over ``widths`` of greatest entropy whose mean is ``target``: p(b) ~ exp(t b), t by
    bisection."""
    values = np.array(widths, dtype=np.float64)
    if len(values) == 1:
        return {widths[0]: 1.0}
    low, high = -60.0, 60.0
    for _ in range(100):
        tilt = (low + high) / 2
        p = np.exp(tilt * (values - values.mean()) - np.abs(tilt) * np.ptp(values) / 2)
        p /= p.sum()
        low, high = (tilt, high) if p @ values < target else (low, tilt)
    return dict(zip(widths, p.tolist(), strict=True))
