"""Recipes of other engines: which tensor gets which type, read as a configuration of ours and written from one.

One file per foreign format, on plain text and JSON values: no engine is imported. A reader is
``read(graph, data, default, loader) -> Read``, a writer ``write(graph, qconfig, loader) -> Written``, and
``holds(method) -> Holding`` says what the engine has for a method of ours. Formats differ in what they can say, so
readers and writers return a sentence, with the number of weights, about everything that is not carried over exactly.

A configuration decides per weight, an engine per tensor: the parts of a layer that is split by its inputs are one
tensor there, and a weight with ties is several.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qsdm.graph import Graph, Weight
from qsdm.qconfig import QuantConfig, QuantMethod


class RecipeError(ValueError):
    """A recipe that cannot be read; the message says what was wanted."""


@dataclass(frozen=True, slots=True)
class Read:
    """A foreign recipe as a configuration.

    Attributes:
        qconfig: weights that keep full precision are not named in it.
        notes: one sentence for each thing that is only nearly the same.
    """

    qconfig: QuantConfig
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A configuration as a foreign recipe.

    Attributes:
        text: of the file.
        suffix: of the file's name.
        notes: one sentence for each thing that the format cannot express.
        usage: how the engine is given the file.
    """

    text: str
    suffix: str
    notes: tuple[str, ...]
    usage: str


@dataclass(frozen=True, slots=True)
class Loader:
    """What diffusers does with a class of denoisers when it loads one, whatever a recipe says.

    Attributes:
        denoiser: name of the class.
        keep: names of modules that stay at float32 (``_keep_in_fp32_modules`` of the class); each backend compares
            them with a layer's name by the rule of its skip list.
        single_file: the class has ``from_single_file``, without which it reads no GGUF file.
    """

    denoiser: str
    keep: tuple[str, ...] = ()
    single_file: bool = True


@dataclass(frozen=True, slots=True)
class Holding:
    """What an engine has for a method of ours.

    Attributes:
        kind: the engine's type, as the format's writer names it.
        limit: what is lost; empty if nothing is.
    """

    kind: str
    limit: str = ""


def holding(engine: str, table: Mapping[str, Holding], method: QuantMethod) -> Holding:
    """The entry of a format's table for a method.

    Args:
        engine: its name, for the message.
        table: `Holding` by name of the method.
        method: that is written.

    Raises:
        RecipeError: the table has no such method.
    """
    if method.name not in table:
        raise RecipeError(
            f"{method} cannot be written for {engine}, which has no type for it here: choose one of "
            f"{', '.join(table)}, or add it to HOLDS of the format"
        )
    return table[method.name]


@dataclass(frozen=True, slots=True)
class Layer:
    """What other engines decide on: a parameter with all its input channels.

    Attributes:
        parameters: its name in the state dict, and those of its ties.
        shape: ``[out, in, *kernel]``.
        weights: the whole, or its parts by input.
    """

    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    weights: tuple[Weight, ...]

    @property
    def is_linear(self) -> bool:
        return len(self.shape) == 2


def layers(graph: Graph) -> list[Layer]:
    """The parameters that hold a graph's weights, in its order."""
    parts: dict[str, list[Weight]] = {}
    for weight in graph.weights:
        parts.setdefault(weight.parameter, []).append(weight)
    found = []
    for name, weights in parts.items():
        out, _, *kernel = weights[0].shape
        channels = sum(weight.shape[1] for weight in weights)
        found.append(Layer((name, *weights[0].ties), (out, channels, *kernel), tuple(weights)))
    return found


Said = Counter[str]  # sentence => weights that it is about
Decision = tuple[
    QuantMethod | None, Sequence[str]
]  # None for full precision; in what it differs from the original


def sentences(said: Said) -> tuple[str, ...]:
    return tuple(
        f"{count} {'weight' if count == 1 else 'weights'}: {text}" for text, count in said.items()
    )


def assemble(graph: Graph, decide: Callable[[str, Layer], Decision]) -> Read:
    """The configuration whose decisions are ``decide(parameter, layer)``.

    Where tied parameters are treated differently, the widest method holds for all.
    """
    said = Said()
    methods: dict[str, QuantMethod] = {}
    for layer in layers(graph):
        decided = [decide(name, layer) for name in layer.parameters]
        method, _ = widest = max(decided, key=lambda found: _bits(found[0]))
        if any(found != method for found, _ in decided):
            said["its tied parameters have several types there: the widest is taken for all"] += (
                len(layer.weights)
            )
        for sentence in widest[1]:
            said[sentence] += len(layer.weights)
        if method is None or not is_low(method):
            continue
        methods |= {weight.name: method for weight in layer.weights}
        if len(layer.weights) > 1:
            said["part of a layer that is one tensor there: each part gets the layer's method"] += (
                len(layer.weights)
            )
    return Read(QuantConfig(graph.denoiser, methods), sentences(said))


def decisions(
    graph: Graph, qconfig: QuantConfig, said: Said
) -> Iterator[tuple[str, Layer, QuantMethod | None]]:
    """(parameter, its layer, method or None for full precision) of every parameter, ties included.

    Raises:
        RecipeError: the configuration is of another denoiser or names a weight that the graph does not have.
    """
    check(graph, qconfig)
    for layer in layers(graph):
        methods = [qconfig.methods.get(weight.name) for weight in layer.weights]
        method = max(methods, key=_bits)
        if len(set(methods)) > 1:
            said[
                "part of a layer that is one tensor there: the widest of the parts' methods is taken"
            ] += len(methods)
        elif len(methods) > 1 and is_low(method):
            said[
                "part of a layer that is one tensor there: the parts share their scales or codebooks"
            ] += len(methods)
        for name in layer.parameters:
            yield name, layer, method if is_low(method) else None


def check(graph: Graph, qconfig: QuantConfig) -> None:
    """Raises RecipeError if the configuration is not one of this graph."""
    if qconfig.denoiser != graph.denoiser:
        raise RecipeError(
            f"wanted a configuration of {graph.denoiser!r} (got one of {qconfig.denoiser!r})"
        )
    names = [weight.name for weight in graph.weights]
    if odd := set(qconfig.methods) - set(names):
        raise RecipeError(
            f"the graph of {graph.denoiser!r} has no weight {min(odd)!r}: "
            "choose the space that the configuration was made in, with space=NAME "
            f"({len(odd)} of the {len(qconfig.methods)} names are unknown; {closest(min(odd), names)})"
        )


def is_low(method: QuantMethod | None) -> bool:
    """Whether fewer than 16 bits are stored."""
    return method is not None and method.name != "fp"


def _bits(method: QuantMethod | None) -> int:
    return 16 if method is None else method.bits


def affine(bits: int, group: int | None = None) -> QuantMethod:
    """The uniform method with the group size nearest to ``group``, None for a scale per output channel."""
    if group is None:
        return QuantMethod("uaq", bits)
    near = min((32, 64, 128), key=lambda size: (abs(size.bit_length() - group.bit_length()), size))
    return QuantMethod(f"uaq_g{near}", bits)


def strings(data: Mapping[str, object], key: str) -> list[str]:
    """The list of names under ``key``, or none.

    Raises:
        RecipeError: there is something else.
    """
    value = data.get(key) or []
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RecipeError(f"wanted a list of names under {key!r} (got {value!r})")
    return value


def closest(name: str, names: Iterable[str]) -> str:
    """A hint at the name that looks most like ``name``."""
    near = difflib.get_close_matches(name, list(names), 1, 0)
    return f"closest to {name!r} is {near[0]!r}" if near else "the graph has no weights"


def require_overlap(graph: Graph, entries: Iterable[str], matched: set[str]) -> None:
    """Refuse a recipe none of whose names or patterns is about this graph.

    Args:
        graph: that the recipe is read for.
        entries: all names and patterns of the recipe.
        matched: those that are about something.

    Raises:
        RecipeError: there are entries, and none of them is in ``matched``.
    """
    entries = list(dict.fromkeys(entries))
    if not entries or matched:
        return
    paths = [weight.parameter.removesuffix(".weight") for weight in graph.weights]
    raise RecipeError(
        f"none of the {len(entries)} names or patterns of the recipe is about any of the "
        f"{len(paths)} weights of {graph.denoiser!r} ({closest(entries[0], paths)}): "
        "give a recipe of this denoiser"
    )


def contains(graph: Graph, entry: str) -> bool:
    """Whether a module, a part of one's path or a piece of a path's name is called ``entry``."""
    names = [node.name for node in graph.nodes]
    names += [name for layer in layers(graph) for name in layer.parameters]
    return any(f"{entry}." in f"{name}." for name in names)


def idle(entries: Iterable[str], matched: set[str]) -> tuple[str, ...]:
    """A sentence that names the entries that decided about no weight."""
    names = [repr(entry) for entry in dict.fromkeys(entries) if entry not in matched]
    if not names:
        return ()
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (
        f"{len(names)} of the names or patterns decide about no weight: {', '.join(names[:8])}{more}",
    )
