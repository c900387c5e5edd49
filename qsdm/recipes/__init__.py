"""Recipes of other engines, which say which tensor gets which type: reading and writing them.

One file per foreign format, on plain text and JSON values: no engine is imported. A reader is
``read(graph, data, default, loader) -> Read``, a writer is
``write(graph, qconfig, loader) -> Written``, and ``holds(method) -> Holding`` says what the engine
has for one of our methods. Formats differ in what they can express, so readers and writers return a
sentence, with the number of weights, about everything that is not carried over exactly.

A configuration decides per weight, an engine per tensor: the parts of a layer that is split by its
inputs are one tensor there, and a weight with ties is several.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qsdm.graph import Graph, Weight
from qsdm.qconfig import QuantConfig, QuantMethod

UNIFORM = ("uaq", "uaq_refined", "uaq_asym", "uaq_w", "uaq_g32", "uaq_g64", "uaq_g128")
CODEBOOK_PER_ROW = ("kmeans_c", "kmeans_c_w")
CODEBOOK_PER_TENSOR = ("kmeans_a", "kmeans_a_w")
"""Methods that store values of the same kind, however they are fitted."""


class RecipeError(ValueError):
    """A recipe cannot be read or written; the message says what was wanted."""


@dataclass(frozen=True, slots=True)
class Read:
    """A foreign recipe as a configuration.

    Attributes:
        qconfig: weights that keep full precision are not named in it.
        notes: one sentence for each thing that is only approximately the same.
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
        usage: how to give the file to the engine.
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
        keep: names of modules that stay in float32 (``_keep_in_fp32_modules`` of the class); each
            backend compares them with a layer's name by the rule of its skip list.
        single_file: whether the class has ``from_single_file``, without which it cannot read GGUF
            files.
    """

    denoiser: str
    keep: tuple[str, ...] = ()
    single_file: bool = True


@dataclass(frozen=True, slots=True)
class Holding:
    """What an engine has for one of our methods.

    Attributes:
        kind: the engine's type, in the words of the format's writer.
        limit: what is lost; empty if nothing is.
        substitute: whether values of another kind are stored, such as a uniform grid for a
            codebook.
    """

    kind: str
    limit: str = ""
    substitute: bool = False


def holding(engine: str, table: Mapping[str, Holding], method: QuantMethod) -> Holding:
    """Look up a method in a format's table.

    Args:
        engine: its name, for the message.
        table: `Holding` by name of the method.
        method: to be written.

    Returns:
        What the engine has for the method.

    Raises:
        RecipeError: the table has no such method.
    """
    if method.name not in table:
        raise RecipeError(
            f"{method} cannot be written for {engine}, which has no type for it: choose one of "
            f"{', '.join(table)}, or add it to HOLDS of the format"
        )
    return table[method.name]


@dataclass(frozen=True, slots=True)
class Layer:
    """A parameter with all its input channels, which is what other engines decide about.

    Attributes:
        parameters: its name in the state dict, and the names of its ties.
        shape: ``[out, in, *kernel]``.
        weights: the whole parameter, or its parts by input.
    """

    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    weights: tuple[Weight, ...]

    @property
    def is_linear(self) -> bool:
        """Whether it belongs to a Linear layer, not to a Conv."""
        return len(self.shape) == 2


def layers(graph: Graph) -> list[Layer]:
    """List the parameters that hold a graph's weights.

    Args:
        graph: of the denoiser.

    Returns:
        Layers in the order of the graph.
    """
    parts: dict[str, list[Weight]] = {}
    for weight in graph.weights:
        parts.setdefault(weight.parameter, []).append(weight)
    whole = []
    for name, weights in parts.items():
        out, _, *kernel = weights[0].shape
        channels = sum(weight.shape[1] for weight in weights)
        whole.append(Layer((name, *weights[0].ties), (out, channels, *kernel), tuple(weights)))
    return whole


NoteCounts = Counter[str]
"""Sentence => number of weights that it is about."""

Decision = tuple[QuantMethod | None, Sequence[str]]
"""A method, or None for full precision, and how it differs from what the recipe asks for."""


def sentences(counts: NoteCounts) -> tuple[str, ...]:
    """Put the number of weights in front of each note.

    Args:
        counts: of the notes.
    """
    return tuple(
        f"{count} {'weight' if count == 1 else 'weights'}: {text}" for text, count in counts.items()
    )


def assemble(graph: Graph, decide: Callable[[str, Layer], Decision]) -> Read:
    """Build the configuration that a function decides on.

    If tied parameters are treated differently, the widest method counts for all.

    Args:
        graph: of the denoiser.
        decide: function from a parameter's name and its layer to a decision.

    Returns:
        The configuration, with notes about what is not carried over exactly.
    """
    counts = NoteCounts()
    methods: dict[str, QuantMethod] = {}
    for layer in layers(graph):
        decided = [decide(name, layer) for name in layer.parameters]
        method, _ = widest = max(decided, key=lambda decision: _bits(decision[0]))
        if any(other != method for other, _ in decided):
            tied = "its tied parameters have several types there: the widest is taken for all"
            counts[tied] += len(layer.weights)
        for sentence in widest[1]:
            counts[sentence] += len(layer.weights)
        if method is None or not is_low(method):
            continue
        methods |= {weight.name: method for weight in layer.weights}
        if len(layer.weights) > 1:
            counts[
                "part of a layer that is one tensor there: each part gets the layer's method"
            ] += len(layer.weights)
    return Read(QuantConfig(graph.denoiser, methods), sentences(counts))


def decisions(
    graph: Graph, qconfig: QuantConfig, counts: NoteCounts
) -> Iterator[tuple[str, Layer, QuantMethod | None]]:
    """List what a configuration decides, parameter by parameter.

    Args:
        graph: of the denoiser.
        qconfig: one of this graph.
        counts: receives the notes about parts of layers.

    Yields:
        Name of a parameter, including ties; its layer; its method, None for full precision.

    Raises:
        RecipeError: the configuration belongs to another denoiser or names a weight that the graph
            does not have.
    """
    check(graph, qconfig)
    for layer in layers(graph):
        methods = [qconfig.methods.get(weight.name) for weight in layer.weights]
        method = max(methods, key=_bits)
        part = "part of a layer that is one tensor there: the"
        if len(set(methods)) > 1:
            counts[f"{part} widest of the parts' methods is taken"] += len(methods)
        elif len(methods) > 1 and is_low(method):
            counts[f"{part} parts share their scales or codebooks"] += len(methods)
        for name in layer.parameters:
            yield name, layer, method if is_low(method) else None


def check(graph: Graph, qconfig: QuantConfig) -> None:
    """Check that a configuration belongs to a graph.

    Args:
        graph: of the denoiser.
        qconfig: to be checked.

    Raises:
        RecipeError: it belongs to another denoiser or names a weight that the graph does not have.
    """
    if qconfig.denoiser != graph.denoiser:
        raise RecipeError(
            f"wanted a configuration of {graph.denoiser!r} (got one of {qconfig.denoiser!r}): "
            f"{distance(graph, qconfig.methods)}"
        )
    names = [weight.name for weight in graph.weights]
    if unknown := qconfig.weights - set(names):
        first = min(unknown)
        raise RecipeError(
            f"the graph of {graph.denoiser!r} has no weight {first!r}: "
            "choose the space that the configuration was made in, with space=NAME "
            f"({len(unknown)} of the {len(qconfig.weights)} names are unknown; "
            f"{closest(first, names)})"
        )


def refuse_activations(engine: str, qconfig: QuantConfig) -> None:
    """Refuse a configuration of more than weights, which a recipe of weights cannot say.

    torchao and SDNQ round activations in ways of their own: Linear layers only, symmetric, and not
    the probabilities of attention.

    Args:
        engine: its name.
        qconfig: to be written.

    Raises:
        RecipeError: it rounds activations, or changes with the steps.
    """
    if qconfig.steps:
        raise RecipeError(
            f"{engine} quantizes a weight once, not by bins of steps as this configuration does "
            f"({', '.join(map(str, qconfig.steps))}): write it with to=qsdm"
        )
    if qconfig.rounds_activations:
        widths = {*qconfig.inputs.values(), *filter(None, [qconfig.activations])}
        text = ", ".join(f"a{bits}" for bits in sorted(widths))
        raise RecipeError(
            f"{engine} has no way to round activations as this configuration does ({text}): write "
            "it with to=qsdm, or remove its activations to write its weights alone"
        )


def is_low(method: QuantMethod | None) -> bool:
    """Whether fewer than 16 bits are stored.

    Args:
        method: of a weight; None for full precision.
    """
    return method is not None and method.name != "fp"


def _bits(method: QuantMethod | None) -> int:
    return 16 if method is None else method.bits


def affine(bits: int, group: int | None = None) -> QuantMethod:
    """Choose the uniform method that is nearest to an engine's.

    Args:
        bits: 2 to 8.
        group: inputs that share a scale in the engine; None for a scale per output channel.
    """
    if group is None:
        return QuantMethod("uaq", bits)
    near = min((32, 64, 128), key=lambda size: (abs(size.bit_length() - group.bit_length()), size))
    return QuantMethod(f"uaq_g{near}", bits)


def strings(data: Mapping[str, object], key: str) -> list[str]:
    """Read a list of names.

    Args:
        data: mapping that may hold it.
        key: under which it is; a single name counts as a list of one.

    Returns:
        The names; none if there is no such key.

    Raises:
        RecipeError: the key holds something else.
    """
    value = data.get(key) or []
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise RecipeError(f"wanted a list of names under {key!r} (got {value!r})")
    return value


def closest(name: str, names: Iterable[str]) -> str:
    """Point to the name that looks most like another one.

    Args:
        name: that is unknown.
        names: that exist.
    """
    near = difflib.get_close_matches(name, list(names), 1, 0)
    return f"closest to {name!r} is {near[0]!r}" if near else "the graph has no weights"


def distance(graph: Graph, names: Iterable[str]) -> str:
    """Say how far the names of a recipe are from those of a graph.

    Args:
        graph: of the denoiser.
        names: of the recipe's weights or tensors.

    Returns:
        The share of the graph's weights that the recipe names, and the nearest name.
    """
    given = list(dict.fromkeys(name.removesuffix(".weight") for name in names))
    own = {weight.name for weight in graph.weights}
    own |= {layer.parameters[0].removesuffix(".weight") for layer in layers(graph)}
    weights = graph.weights
    named = [w for w in weights if {w.name, w.parameter.removesuffix(".weight")} & set(given)]
    share = f"it names {len(named)} of the {len(weights)} weights ({len(named) / len(weights):.0%})"
    strange = next((name for name in given if name not in own), None)
    return share if strange is None else f"{share}, and {closest(strange, sorted(own))}"


def require_overlap(graph: Graph, entries: Iterable[str], matched: set[str]) -> None:
    """Refuse a recipe none of whose names or patterns is about this graph.

    Args:
        graph: for which the recipe is read.
        entries: all names and patterns of the recipe.
        matched: those that match something.

    Raises:
        RecipeError: there are entries, and none of them is in ``matched``.
    """
    entries = list(dict.fromkeys(entries))
    if not entries or matched:
        return
    paths = [weight.parameter.removesuffix(".weight") for weight in graph.weights]
    raise RecipeError(
        f"none of the {len(entries)} names or patterns of the recipe matches any of the "
        f"{len(paths)} weights of {graph.denoiser!r} ({closest(entries[0], paths)}): "
        "give a recipe of this denoiser"
    )


def contains(graph: Graph, entry: str) -> bool:
    """Whether any part of a module's path ends with a name.

    Args:
        graph: of the denoiser.
        entry: name of a module, of a part of a path, or the end of such a name.
    """
    names = [node.name for node in graph.nodes]
    names += [name for layer in layers(graph) for name in layer.parameters]
    return any(f"{entry}." in f"{name}." for name in names)


def idle(entries: Iterable[str], matched: set[str]) -> tuple[str, ...]:
    """Name the entries of a recipe that had no effect.

    Args:
        entries: all names and patterns of the recipe.
        matched: those that decided about a weight.

    Returns:
        One sentence, or none.
    """
    names = [repr(entry) for entry in dict.fromkeys(entries) if entry not in matched]
    if not names:
        return ()
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    listed = ", ".join(names[:8]) + more
    return (f"{len(names)} of the names or patterns decide about no weight: {listed}",)
