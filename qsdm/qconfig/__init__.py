"""Which method and bits each weight gets: methods by name, configurations, and their space.

A method's text form is ``name-bits`` (``uaq-4``, ``kmeans_c-3``, ``uaq_g64-4``, ``fp-16``). It
contains everything that changes the values of a weight. A configuration may round activations,
too: those of the whole denoiser, or the input of one layer (``uaq-4+a8``, see
`qsdm.qconfig.activations`), which a space may offer beside the methods. And it may name bins of the
sampler's steps in which another one applies (see `qsdm.qconfig.steps`).

References:
    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025),
        section 3: the methods, their overhead, the sampling.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, TypeVar

import numpy as np

from qsdm.graph import Graph, Op, Weight, canonical, merge_splits
from qsdm.qconfig import activations as widths
from qsdm.qconfig.steps import StepBin, in_order
from qsdm.quant.methods import METHODS
from qsdm.text import require

SCHEMA = "qsdm/qconfig/1"
SCHEMA_OF_ACTIVATIONS = "qsdm/qconfig/2"  # that of SCHEMA with bits of activations
SCHEMA_OF_STEPS = "qsdm/qconfig/3"  # that of activations with bins of steps
SCHEMAS = (SCHEMA, SCHEMA_OF_ACTIVATIONS, SCHEMA_OF_STEPS)
T = TypeVar("T")
_TEXT = re.compile(r"([a-z0-9_]+)-(\d+)")
_STEEPEST = 60.0  # exp(-60): an option of so small a share is never drawn


class OutsideSpace(ValueError):
    """A configuration has a weight or a method that the space lacks."""


@dataclass(frozen=True, slots=True, order=True)
class QuantMethod:
    """A quantization method at a bit width, and to how many bits the layer rounds its input.

    Example:
        >>> from qsdm.qconfig import QuantMethod
        >>> method = QuantMethod.parse("uaq-4+a8")
        >>> method.bits, method.inputs, str(method.of_weight)
        (4, 8, 'uaq-4')

    Attributes:
        name: a key of `qsdm.quant.methods.METHODS`.
        bits: width of a code.
        inputs: bits of the input of the weight's layer, 2 to 8; 16 where nothing is said of it.

    Raises:
        ValueError: there is no such method, or it has no such bit width.
    """

    name: str
    bits: int
    inputs: int = widths.FULL
    _text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inputs = "" if self.inputs == widths.FULL else f"+a{self.inputs}"
        object.__setattr__(self, "_text", f"{self.name}-{self.bits}{inputs}")
        widths.check(self.inputs)
        if self.name not in METHODS:
            raise ValueError(
                f"no quantization method {self.name!r} (got {self}): wanted {', '.join(METHODS)}, "
                "each with its bits, as in uaq-4"
            )
        if self.bits not in (allowed := METHODS[self.name].bits):
            raise ValueError(
                f"{self.name} has {', '.join(map(str, allowed))} bits (got {self.bits})"
            )

    @staticmethod
    @functools.lru_cache  # a store of 10,000 outcomes names few methods in many places
    def parse(text: str) -> QuantMethod:
        """The inverse of ``str``.

        Args:
            text: a method and its bits, as in ``uaq-4``, and those of the layer's input, as in
                ``uaq-4+a8``.

        Raises:
            ValueError: there is no such method, or it has no such bit width.
        """
        method, inputs = widths.parse(text)
        if (match := _TEXT.fullmatch(method or "")) is None:
            raise ValueError(
                f"wanted a method and its bits, as in uaq-4 or kmeans_c-3 (got {text!r})"
            )
        return QuantMethod(match[1], int(match[2]), widths.FULL if inputs is None else inputs)

    def __str__(self) -> str:
        return self._text

    @property
    def is_full(self) -> bool:
        """Whether nothing is quantized: neither the weight nor its layer's input."""
        return METHODS[self.name].table is None and self.inputs == widths.FULL

    @property
    def of_weight(self) -> QuantMethod:
        """The same without the layer's input: by this, values of a weight are fitted and stored."""
        return self if self.inputs == widths.FULL else QuantMethod(self.name, self.bits)

    @property
    def group_size(self) -> int | None:
        """Input values that share a scale; None if an output channel is not divided."""
        return METHODS[self.name].group_size

    def overhead_bits(self, weight: Weight, full_bits: int) -> int:
        """Bits of scales, zero points and codebooks beside the codes of one stored tensor.

        Args:
            weight: the weight that is quantized.
            full_bits: the paper's P, in which it stores scales and codebooks, 16 or 32.
        """
        method = METHODS[self.name]
        return method.overhead_bits(self.bits, weight.shape[0], weight.fan_in, full_bits)

    def size_bits(self, weight: Weight, full_bits: int) -> int:
        """Bits of all stored copies of a weight: codes, rounded up to whole bytes, and overhead.

        Args:
            weight: the weight that is quantized.
            full_bits: see `overhead_bits`.
        """
        copies = 1 + len(weight.ties)
        codes = 8 * math.ceil(math.prod(weight.shape) * self.bits / 8)
        return copies * (codes + self.overhead_bits(weight, full_bits))


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """A method for every weight of a denoiser, bits of activations, and bins of steps.

    Example:
        >>> from qsdm.qconfig import QuantConfig, QuantMethod
        >>> qconfig = QuantConfig("toy", {"proj": QuantMethod.parse("uaq-4")})
        >>> QuantConfig.from_json(qconfig.to_json()) == qconfig
        True
        >>> rounded = QuantConfig("toy", qconfig.methods, 8, {"proj": 6})
        >>> rounded.to_json()["methods"], rounded.to_json()["activations"]
        ({'proj': 'uaq-4+a6'}, 8)
        >>> from qsdm.qconfig.steps import StepBin
        >>> early = StepBin(0, 0.2, QuantConfig("toy", {}))  # in full precision
        >>> QuantConfig("toy", qconfig.methods, steps=(early,)).to_json()["steps"]
        [{'from': 0.0, 'to': 0.2}]

    Attributes:
        denoiser: name of the model.
        methods: by the weight's name; weights that are not named keep full precision. Bits of
            inputs that a method has go to ``inputs``.
        activations: bits of the inputs of all Linear and Conv layers, each token in a range of its
            own, while probabilities of attention get 8 bits from zero; None: they are not rounded.
        inputs: bits of the input of a weight's layer, by the weight's name; those that are not
            named have ``activations``. 16: it is not rounded.
        steps: bins of the sampler's steps in which another configuration applies instead of
            everything above, by their start.
        digest: sha256 of the canonical JSON, 64 hexadecimal digits, by which artifacts refer to it.

    Raises:
        ValueError: bits of activations are out of range, or bins of steps overlap or are of
            another denoiser.
    """

    denoiser: str
    methods: Mapping[str, QuantMethod]
    activations: int | None = None
    inputs: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[StepBin, ...] = ()
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.activations is not None and widths.check(self.activations) == widths.FULL:
            object.__setattr__(self, "activations", None)
        for name, bits in self.inputs.items():
            widths.check(bits, f"the activations of {name!r}")
        object.__setattr__(self, "steps", in_order(self.steps))
        if others := {one.qconfig.denoiser for one in self.steps} - {self.denoiser}:
            raise ValueError(
                f"wanted configurations of {self.denoiser!r} in its bins of steps "
                f"(got one of {min(others)!r})"
            )
        rounded = {n: m.inputs for n, m in self.methods.items() if m.inputs != widths.FULL}
        for name, bits in rounded.items():
            if self.inputs.get(name, bits) != bits:
                raise ValueError(
                    f"{name!r} has its input in {bits} bits as {self.methods[name]}, and in "
                    f"{self.inputs[name]} as one of the inputs: give one of both"
                )
        plain = {n: m.of_weight for n, m in self.methods.items()} if rounded else self.methods
        object.__setattr__(self, "methods", dict(plain))
        object.__setattr__(self, "inputs", {**self.inputs, **rounded})
        data = self.to_json()
        text = _canonical_texts(data) if self.has_methods_alone else canonical(data)
        object.__setattr__(self, "digest", hashlib.sha256(text).hexdigest())

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def rounds_activations(self) -> bool:
        """Whether it says anything about activations."""
        return self.activations is not None or bool(self.inputs)

    @property
    def is_full(self) -> bool:
        """Whether nothing is quantized at any step: neither weights nor activations."""
        return (
            not self.methods
            and not self.rounds_activations
            and all(one.qconfig.is_full for one in self.steps)
        )

    @property
    def has_methods_alone(self) -> bool:
        """Whether it says nothing of activations and of steps."""
        return not self.rounds_activations and not self.steps

    @property
    def weights(self) -> set[str]:
        """Names of all weights of which it says something."""
        return {*self.methods, *self.inputs}.union(*(one.qconfig.weights for one in self.steps))

    @property
    def decisions(self) -> dict[str, QuantMethod]:
        """Methods with the bits of their layers' inputs, by the weight's name."""
        if not self.inputs:
            return dict(self.methods)
        return {
            name: QuantMethod(method.name, method.bits, self.inputs[name])
            if name in self.inputs
            else method
            for name, method in self.methods.items()
        }

    @property
    def elsewhere(self) -> QuantConfig:
        """What applies in the steps that no bin holds."""
        if not self.steps:
            return self
        return QuantConfig(self.denoiser, self.methods, self.activations, self.inputs)

    @property
    def parts(self) -> list[tuple[float, QuantConfig]]:
        """Shares of the steps and what applies there, without parts that apply nowhere."""
        if not self.steps:
            return [(1.0, self)]
        rest = 1 - sum(one.share for one in self.steps)
        elsewhere = [(rest, self.elsewhere)] if rest > 1e-9 else []  # 1 - 5 * 0.2 is not 0
        return elsewhere + [(one.share, one.qconfig) for one in self.steps]

    def at(self, step: int, num_steps: int) -> QuantConfig:
        """What applies at a step.

        Args:
            step: its number, from 0.
            num_steps: of the sampler.

        Returns:
            A configuration without bins.
        """
        held = (one.qconfig for one in self.steps if one.holds(step, num_steps))
        return next(held, self.elsewhere)

    def part(self, name: str) -> QuantConfig:
        """What it says of one part of a pipeline, of several that share it.

        Args:
            name: of the part, with which names of its weights begin.

        Returns:
            A configuration of the same denoiser, whose weights are called as in the part alone.
        """
        start = f"{name}."

        def own(values: Mapping[str, T]) -> dict[str, T]:
            return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}

        return QuantConfig(self.denoiser, own(self.methods), inputs=own(self.inputs))

    def with_activations(self, bits: int | None) -> QuantConfig:
        """The same weights with other bits of activations, for all layers; bins keep theirs.

        Args:
            bits: 2 to 8; 16 or None: they are not rounded.

        Returns:
            The configuration.

        Raises:
            ValueError: the bits are out of range.
        """
        return QuantConfig(self.denoiser, self.methods, bits, steps=self.steps)

    def to_json(self) -> dict[str, Any]:
        """The configuration as an object that JSON can hold."""
        if self.has_methods_alone:  # as before there were activations: the digest is a key
            return {
                "schema": SCHEMA,
                "denoiser": self.denoiser,
                "methods": {k: m._text for k, m in self.methods.items()},
            }
        data: dict[str, Any] = {
            "schema": SCHEMA_OF_STEPS if self.steps else SCHEMA_OF_ACTIVATIONS,
            "denoiser": self.denoiser,
            "methods": self._texts(),
            "activations": self.activations,
        }
        if self.steps:
            data["steps"] = [_bin_to_json(one) for one in self.steps]
        return data

    def _texts(self) -> dict[str, str]:
        """The text forms of methods and inputs by the weight's name."""
        names = [*self.methods, *(name for name in self.inputs if name not in self.methods)]
        texts = {name: str(method) for name, method in self.methods.items()}
        return {n: widths.text_of(texts.get(n), self.inputs.get(n)) for n in names}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_json`.

        Args:
            data: what JSON holds.

        Raises:
            ValueError: it is not a configuration of these schemas.
        """
        from qsdm.store.files import decode

        schema = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
        if not isinstance(data, Mapping) or schema not in SCHEMAS:
            raise ValueError(f"wanted a configuration of schema {SCHEMA!r} (got {schema!r})")
        return decode(data, ConfigurationFile).qconfig()


@functools.lru_cache(maxsize=4096)  # a store of 100,000 outcomes names few methods in many places
def _parts(text: str) -> tuple[QuantMethod | None, int | None]:
    """The method, and the bits of its layer's input, of a text form."""
    method, bits = widths.parse(text)
    return None if method is None else QuantMethod.parse(method), bits


def _parsed(
    texts: Mapping[str, str], activations: int | None
) -> tuple[dict[str, QuantMethod], int | None, dict[str, int]]:
    """Methods, bits of all activations, and bits of single inputs, from JSON."""
    methods, inputs = {}, {}
    for name, text in texts.items():
        method, bits = _parts(text)
        if method is not None:
            methods[sys.intern(name)] = method  # all configurations share their weights' names
        if bits is not None:
            inputs[sys.intern(name)] = bits
    return methods, activations, inputs


def _canonical_texts(data: Mapping[str, Any]) -> bytes:
    """What `canonical` returns, of texts alone, in a twentieth of the time."""
    import msgspec

    text = msgspec.json.encode(data, order="sorted")
    # Python's json escapes these in another way, or where msgspec does not.
    is_plain = text.isascii() and b"\\" not in text and b"\x7f" not in text
    return text if is_plain else canonical(data)


def _bin_to_json(one: StepBin) -> dict[str, Any]:
    data: dict[str, Any] = {"from": one.start, "to": one.stop}
    if texts := one.qconfig._texts():
        data["methods"] = texts
    if one.qconfig.activations is not None:
        data["activations"] = one.qconfig.activations
    return data


_BinFile = TypedDict(
    "_BinFile",
    {
        "from": float,
        "to": float,
        "methods": NotRequired[dict[str, str]],
        "activations": NotRequired[int | None],
    },
)
"""A `StepBin` in JSON; without methods and activations, full precision."""


@dataclass(frozen=True, slots=True)
class ConfigurationFile:
    """A `QuantConfig` in JSON."""

    denoiser: str
    methods: dict[str, str]
    activations: int | None = None
    steps: list[_BinFile] = field(default_factory=list)
    schema: str = ""

    def qconfig(self) -> QuantConfig:
        """Read what it means.

        Returns:
            The configuration.

        Raises:
            ValueError: it is of another schema, or has what its schema lacks.
        """
        if self.schema not in SCHEMAS:
            raise ValueError(f"wanted a configuration of schema {SCHEMA!r} (got {self.schema!r})")
        if self.schema == SCHEMA and self.activations is not None:
            raise ValueError(
                f"a configuration with activations has schema {SCHEMA_OF_ACTIVATIONS!r} "
                f"(got {SCHEMA!r}): write that, or remove the activations"
            )
        if self.schema != SCHEMA_OF_STEPS and self.steps:
            raise ValueError(
                f"a configuration with bins of steps has schema {SCHEMA_OF_STEPS!r} "
                f"(got {self.schema!r}): write that, or remove the steps"
            )
        bins = [
            StepBin(
                one["from"],
                one["to"],
                QuantConfig(
                    self.denoiser, *_parsed(one.get("methods", {}), one.get("activations"))
                ),
            )
            for one in self.steps
        ]
        return QuantConfig(self.denoiser, *_parsed(self.methods, self.activations), tuple(bins))


def input_bits(graph: Graph, qconfig: QuantConfig) -> dict[str, int]:
    """To how many bits the layers of a graph round their inputs.

    Args:
        graph: of the denoiser.
        qconfig: the configuration; its bins of steps are left aside.

    Returns:
        2 to 8 by the name of a layer's parameter, tied ones included; layers that do not round
        are not named, nor are embedding tables, which read the numbers of rows.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks, as one of a layer that
            is never called, or the parts of one layer's weight have different bits.
    """
    if unknown := qconfig.weights - {weight.name for weight in graph.weights}:
        raise OutsideSpace(
            f"the graph of {graph.denoiser!r} has no weight {min(unknown)!r}: it has those of the "
            "layers that the denoiser calls"
        )
    bits: dict[str, int] = {}
    for weight in graph.weights:
        if graph.node_of(weight.name).op == Op.EMBEDDING:
            continue
        own = qconfig.inputs.get(weight.name, qconfig.activations or widths.FULL)
        for name in (weight.parameter, *weight.ties):
            if bits.setdefault(name, own) != own:
                raise OutsideSpace(
                    f"the parts of {name!r} read one input, which has one width: give all of them "
                    f"the same (got a{bits[name]} and a{own})"
                )
    return {name: own for name, own in bits.items() if own != widths.FULL}


@dataclass(frozen=True, slots=True)
class Space:
    """The configurations of a graph: the methods on offer for each of its W weights.

    Example:
        >>> from qsdm.graph import Graph, Node, Op, Weight
        >>> from qsdm.qconfig import Space
        >>> weight = Weight("proj", "proj.weight", (320, 1280))
        >>> graph = Graph("toy", (Node("proj", Op.LINEAR, weight=weight),), ())
        >>> space = Space.of(graph, ["uaq-3", "uaq-4"])
        >>> space.encode(space.uniform("uaq-4")).tolist()
        [1]

    Attributes:
        graph: of the denoiser.
        options: for each weight of ``graph.weights``, one or more methods, by bits and then as
            listed.
        full_bits: precision of the stored full-precision denoiser, 16 or 32.
        methods: all methods on offer for any weight, sorted.

    Raises:
        ValueError: there is a weight without methods, or a layer with a choice of widths for an
            input that several weights read.
    """

    graph: Graph
    options: tuple[tuple[QuantMethod, ...], ...]
    full_bits: int = 16
    methods: tuple[QuantMethod, ...] = field(init=False, compare=False, repr=False)
    _genes: dict[str, dict[str, int]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.options) != len(self.graph.weights) or not all(self.options):
            raise ValueError(
                "a space needs at least one method for each of the "
                f"{len(self.graph.weights)} weights (got methods for {len(self.options)})"
            )
        methods = {method for offered in self.options for method in offered}
        object.__setattr__(self, "methods", tuple(sorted(methods)))
        pairs = zip(self.graph.weights, self.options, strict=True)
        genes = {weight.name: {str(m): i for i, m in enumerate(own)} for weight, own in pairs}
        object.__setattr__(self, "_genes", genes)
        if self.rounds_inputs:
            self._require_one_width()

    def _require_one_width(self) -> None:
        """Refuse choices that would give one input two widths."""
        names: dict[str, list[str]] = {}
        offers: dict[str, set[int]] = {}
        for weight, offered in zip(self.graph.weights, self.options, strict=True):
            names.setdefault(weight.parameter, []).append(weight.name)
            offers.setdefault(weight.parameter, set()).update(m.inputs for m in offered)
        for parameter, parts in names.items():
            if len(parts) > 1 and (num := len(offers[parameter])) > 1:
                raise ValueError(
                    f"{' and '.join(parts)} read one input, which has one width (got a choice of "
                    f"{num}): leave such weights whole, by space.splits='^$'"
                )

    @property
    def rounds_inputs(self) -> bool:
        """Whether it offers to round inputs of layers."""
        return any(method.inputs != widths.FULL for method in self.methods)

    @property
    def of_weights(self) -> Space:
        """The same space without bits of inputs: what is calibrated."""
        if not self.rounds_inputs:
            return self
        options = (dict.fromkeys(m.of_weight for m in offered) for offered in self.options)
        return Space(self.graph, tuple(map(tuple, options)), self.full_bits)

    @staticmethod
    def of(
        graph: Graph,
        methods: Sequence[str | QuantMethod],
        full_bits: int = 16,
        max_overhead: float = 1.0,
    ) -> Space:
        """The space that offers every weight the same methods.

        Where a method's overhead would be too large, for small weights, K-Means-A of the same bits
        takes its place.

        Args:
            graph: of the denoiser.
            methods: objects or their text form.
            full_bits: precision of the stored full-precision denoiser, 16 or 32.
            max_overhead: largest overhead of a method, in bits per value of the weight, 0 or more.
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

    def sample(self, rng: np.random.Generator, share: float | None = None) -> QuantConfig:
        """A random configuration; average bits are spread evenly over the space's range.

        Each weight draws its bits, and then, uniformly, a method of these bits. The distribution of
        bits is tilted towards a target that is drawn uniformly between the smallest and the largest
        bits. With 3 and 4 bits that is p3 ~ U(0, 1), the paper's rule.

        Args:
            rng: the source of randomness.
            share: the target's position between the smallest and the largest bits, 0 to 1; None: it
                is drawn.
        """
        widths = sorted({method.bits for offered in self.options for method in offered})
        share = rng.random() if share is None else share
        target = widths[0] + share * (widths[-1] - widths[0])
        values = np.array(widths, dtype=np.float64)
        shares = tilted(values, np.ones(len(widths)), values, target)
        probability = dict(zip(widths, shares.tolist(), strict=True))
        genes = np.empty(len(self.options), dtype=np.int64)
        for i, offered in enumerate(self.options):
            p = np.array(
                [probability[m.bits] / sum(o.bits == m.bits for o in offered) for m in offered]
            )
            genes[i] = rng.choice(len(offered), p=p / p.sum())
        return self.decode(genes)

    def uniform(self, method: str | QuantMethod) -> QuantConfig:
        """The configuration with one method for every weight.

        Where the method is not on offer, K-Means-A of the same bits takes its place (weighted, if
        the method is), or else another method of the same bits. Where its bits of inputs are not on
        offer, the most that are take their place.

        Args:
            method: an object or its text form.

        Raises:
            OutsideSpace: a weight has no method of these bits.
        """
        requested = QuantMethod.parse(method) if isinstance(method, str) else method
        chosen = {}
        for weight, offered in zip(self.graph.weights, self.options, strict=True):
            candidates = [m for m in offered if m.bits == requested.bits]
            if not candidates:
                raise OutsideSpace(
                    f"no {requested.bits}-bit method is on offer for {weight.name!r} "
                    f"(offered: {', '.join(map(str, offered))})"
                )
            names = (_fallback(requested).name, requested.name)  # the worse first
            chosen[weight.name] = max(
                candidates,
                key=lambda m: (
                    names.index(m.name) if m.name in names else -1,
                    m.inputs == requested.inputs,
                    m.inputs,
                ),
            )
        return QuantConfig(self.graph.denoiser, chosen)

    def encode(self, qconfig: QuantConfig) -> np.ndarray:
        """The genes of a configuration.

        Args:
            qconfig: of this space.

        Returns:
            int64 [W], for each weight the index of its method in ``options``.

        Raises:
            OutsideSpace: it is of another denoiser, names too few or too many weights, or has a
                method that is not on offer.
        """
        if qconfig.denoiser != self.graph.denoiser:
            raise OutsideSpace(
                f"wanted a configuration of {self.graph.denoiser!r} "
                f"(got one of {qconfig.denoiser!r})"
            )
        if qconfig.activations is not None or qconfig.steps:
            raise OutsideSpace(
                "a space has methods of weights and bits of their layers' inputs, not those of the "
                "whole denoiser or bins of steps"
            )
        names = self._genes.keys()
        if unmatched := sorted(names ^ qconfig.methods.keys() | qconfig.inputs.keys() - names):
            raise OutsideSpace(
                "configuration and space must name the same weights "
                f"(only one of them has {unmatched[0]!r})"
            )
        decisions = qconfig.decisions
        genes = [own.get(decisions[name]._text, -1) for name, own in self._genes.items()]
        if -1 in genes:
            name, offered = list(self._genes.items())[genes.index(-1)]
            raise OutsideSpace(
                f"{decisions[name]} is not on offer for {name!r} (offered: {', '.join(offered)})"
            )
        return np.array(genes, dtype=np.int64)

    def decode(self, genes: np.ndarray) -> QuantConfig:
        """The inverse of `encode`.

        Args:
            genes: integers [W], for each weight the index of its method in ``options``.

        Raises:
            OutsideSpace: there are not W genes.
        """
        if len(genes) != len(self.options):
            raise OutsideSpace(f"wanted {len(self.options)} genes (got {len(genes)})")
        pairs = zip(self.graph.weights, self.options, genes, strict=True)
        return QuantConfig(
            self.graph.denoiser,
            {weight.name: offered[int(gene)] for weight, offered, gene in pairs},
        )


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """An entry of ``conf/space``: the options of a `Space`, without a graph.

    Attributes:
        name: names the space's folders in the store.
        methods: text forms, see `Space.of`.
        activations: bits of the inputs of layers, 2 to 8 and 16, each on offer with every method;
            none: inputs are not rounded, but where a method says so.
        splits: regular expression; weights whose module path matches it stay split by their
            concatenated inputs.
        max_overhead: see `Space.of`.

    Raises:
        ValueError: the name, the methods, the activations or the overhead are not allowed.
    """

    name: str
    methods: Sequence[str]
    splits: str = ""
    max_overhead: float = 1.0
    activations: Sequence[int] = ()

    def __post_init__(self) -> None:
        require(0, max_overhead=self.max_overhead)
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                "wanted a name of letters, digits, '.', '-' and '_', as it names a folder "
                f"(got {self.name!r})"
            )
        if isinstance(self.methods, str) or not self.methods:
            raise ValueError(
                f"wanted a list of methods, as in [uaq-3,uaq-4] (got {self.methods!r})"
            )
        if isinstance(self.activations, int):
            object.__setattr__(self, "activations", (self.activations,))
        for bits in self.activations:
            widths.check(bits)

    def of(self, graph: Graph, full_bits: int = 16) -> Space:
        """The space of a graph.

        Args:
            graph: of the denoiser.
            full_bits: precision of the stored full-precision denoiser, 16 or 32.
        """
        methods = [
            widths.text_of(str(method), bits)
            for method in self.methods
            for bits in (*dict.fromkeys(self.activations),) or (None,)
        ]
        return Space.of(merge_splits(graph, self.splits), methods, full_bits, self.max_overhead)


def _affordable(
    method: QuantMethod, weight: Weight, full_bits: int, max_overhead: float
) -> QuantMethod:
    if method.is_full or method.overhead_bits(weight, full_bits) <= max_overhead * math.prod(
        weight.shape
    ):
        return method
    return _fallback(method)


def _fallback(method: QuantMethod) -> QuantMethod:
    """The method that costs the least beside the codes."""
    name = "kmeans_a_w" if METHODS[method.name].is_weighted else "kmeans_a"
    return QuantMethod(name, method.bits, method.inputs)


def tilted(bits: np.ndarray, share: np.ndarray, values: np.ndarray, target: float) -> np.ndarray:
    """Choose probabilities of options that depend on their bits alone, by an expected total.

    They are proportional to share × exp(t × bits), with one t for all rows: of all distributions
    of this expected total, those of the greatest entropy.

    Args:
        bits: float64 [..., O], of each option.
        share: float64 [..., O], weight of each option among those of equal bits; 0 for none.
        values: float64 [..., O], summed over the options that are drawn; grows with bits.
        target: expected sum; one beyond what is possible gives the nearest that is.

    Returns:
        Float64 [..., O]; each row sums to one.
    """
    from scipy.optimize import brentq

    offset = np.where(share > 0, bits - bits[share > 0].mean(), 0)
    steepest = _STEEPEST / max(1.0, np.abs(offset).max())

    def probability(tilt: float) -> np.ndarray:
        p = share * np.exp(tilt * offset)
        return p / p.sum(axis=-1, keepdims=True)

    def excess(tilt: float) -> float:
        return float((probability(tilt) * values).sum() - target)

    if excess(-steepest) >= 0:
        return probability(-steepest)
    if excess(steepest) <= 0:
        return probability(steepest)
    return probability(brentq(excess, -steepest, steepest, xtol=1e-12))
