"""Recipes of other engines become configurations, and configurations their recipes.

    python -m qsdm.recipe +model=sdxl file=SKIP_LIST.json           # a configuration to measure
    python -m qsdm.recipe +model=sdxl file=RULES.txt default=uaq-3  # uaq-3 where no rule matches
    python -m qsdm.recipe +model=emoji_unet to=torchao              # what realize chose

Reads a configuration of qsdm, a JSON list of modules to skip, a quantization config of diffusers or
transformers (bitsandbytes, quanto, torchao, SDNQ), or tensor rules of stable-diffusion.cpp
(``to_q=q4_0,ff\\.net=q8_0``). Writes qsdm, torchao, gguf (such rules) or sdnq. Anything that cannot
be converted exactly is reported, with the number of affected weights.

    python -m qsdm.recipe audit FILE +model=NAME  # which layer got what, its score, what to change
    python -m qsdm.recipe list                    # recipes that ship with qsdm; show NAME, use NAME

Writes ``recipes/NAME.*`` into the model's store.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qsdm import denoisers, run
from qsdm.graph import Graph, subgraph
from qsdm.qconfig import QuantConfig, QuantMethod, Space, cost
from qsdm.recipes import (
    Loader,
    Read,
    RecipeError,
    Written,
    gguf,
    native,
    sdnq,
    skip_list,
    torchao,
)
from qsdm.recipes.skip_list import Engine
from qsdm.store import StoreError
from qsdm.store.files import write_text
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from qsdm.denoisers import Model


class Format(StrEnum):
    """What can be written."""

    qsdm = "qsdm"
    torchao = "torchao"
    gguf = "gguf"
    sdnq = "sdnq"


WRITERS = {
    Format.qsdm: native.write,
    Format.torchao: torchao.write,
    Format.gguf: gguf.write,
    Format.sdnq: sdnq.write,
}

WORDS = {
    "audit": ("qsdm.shelf.audit", "audit"),
    "list": ("qsdm.shelf", "list_recipes"),
    "show": ("qsdm.shelf", "show_recipe"),
    "use": ("qsdm.shelf", "use_recipe"),
}
"""Module and function of what the first argument names."""


@takes_workspace("model", "space", "store", "file")
def recipe(
    workspace: Workspace,
    file: Path | None = None,
    to: Format = Format.qsdm,
    default: str = "uaq-4",
    rules: Engine | None = None,
) -> Written:
    """Read one recipe and write it in another form.

    Args:
        workspace: model, space and store; the graph is used with the space's splits.
        file: the recipe; by default, the configuration that realize chose.
        to: the format to write: qsdm, torchao, gguf or sdnq.
        default: method of the weights that a recipe does not mention.
        rules: whose rule a list of modules to skip follows if its file does not say so: torchao,
            quanto, bitsandbytes or gguf. By default, names are compared as torchao does, and Conv
            layers are quantized too.

    Returns:
        The written recipe; of several denoisers of a pipeline, each of which gets a file, the last.

    Raises:
        ModelError: this version of diffusers lacks the denoiser's class, or an engine holds no such
            part of a pipeline.
        StoreError: the model was not traced, or the file cannot be read.
        RecipeError: the format of the file is unknown, or it is for another denoiser.

    Example:
        >>> import qsdm
        >>> from qsdm.recipe import Format, recipe
        >>> emoji = qsdm.open("emoji_unet")
        >>> recipe(emoji, to=Format.torchao)  # doctest: +SKIP
    """
    fallback, own, model = QuantMethod.parse(default), workspace.space, workspace.model
    if to is not Format.qsdm and not model.denoisers:
        denoisers.require_denoiser(model, f"to={to}")
    source = workspace.find("chosen.json", "realize") if file is None else file
    try:
        contents = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{source} cannot be read ({type(error).__name__}): give file=PATH of a recipe"
        ) from error
    several = len(model.components) > 1
    if several and not is_native(contents):
        denoisers.require_one_part(model, "recipes of other engines are of")
    loader = None if several else loader_of(model)
    source_recipe = read(own.graph, contents, fallback, rules, loader)
    qconfig, stem = source_recipe.qconfig, source.name.partition(".")[0]
    print(f"{source}: {summary(own, qconfig)}")
    pieces = {stem: (own.graph, qconfig, loader)}
    notes = source_recipe.notes
    if several and to is not Format.qsdm:
        chosen = [one for one in model.parts if one.denoisers]
        pieces = {f"{stem}-{one.component}": piece(own.graph, qconfig, one) for one in chosen}
        rest = [name for name in model.components if name not in model.denoisers]
        notes += (
            f"{' and '.join(rest)} left out, as {to} holds denoisers alone: "
            "qsdm.checkpoint.load_quantized loads all parts of what realize writes",
        ) * bool(rest)
    for name, (graph, methods, own_loader) in pieces.items():
        written = WRITERS[to](graph, methods, own_loader)
        target = workspace.path(f"recipes/{name}{written.suffix}")
        write_text(target, written.text)
        usage = measuring(workspace, qconfig) if to is Format.qsdm else written.usage
        for note in (*notes, *written.notes):
            print(f"  {note}")
        print(f"{target}\n{usage.replace('FILE', str(target))}")
        notes = ()
    return written


def is_native(contents: str) -> bool:
    """Whether a file holds a configuration of qsdm.

    Args:
        contents: of the file.
    """
    try:
        data = json.loads(contents)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "schema" in data


def piece(graph: Graph, qconfig: QuantConfig, model: Model) -> tuple[Graph, QuantConfig, Loader]:
    """Take what belongs to one denoiser out of what several parts of a pipeline share.

    Args:
        graph: of all parts.
        qconfig: of all parts.
        model: of the denoiser.

    Returns:
        Its graph, configuration and loader.
    """
    own = subgraph(graph, model.component, graph.denoiser)
    return own, qconfig.part(model.component), loader_of(model)


def loader_of(model: Model) -> Loader:
    """Look up what diffusers does with the model's class.

    Args:
        model: whose denoiser it is.

    Returns:
        What its class says.

    Raises:
        ModelError: this version of diffusers lacks the class.
    """
    cls = denoisers.denoiser_class(model)
    keep = getattr(cls, "_keep_in_fp32_modules", None) or ()
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    return Loader(cls.__name__, names, hasattr(cls, "from_single_file"))


def read(
    graph: Graph,
    text: str,
    default: QuantMethod,
    rules: Engine | None = None,
    loader: Loader | None = None,
) -> Read:
    """Read a recipe, whose contents tell its format.

    Args:
        graph: of the denoiser.
        text: of the file; a byte order mark is ignored.
        default: method of the weights that the recipe does not mention.
        rules: whose rule a skip list follows if the text does not say so.
        loader: what diffusers does with the denoiser's class; None if that is not known.

    Returns:
        The configuration, and notes on what is only nearly the same.

    Raises:
        RecipeError: the format is unknown, or the recipe is for another denoiser.

    Example:
        >>> from qsdm.graph import Graph, Node, Op, Role, Weight
        >>> from qsdm.qconfig import QuantMethod
        >>> from qsdm.recipe import read
        >>> names = ("proj", "out")
        >>> weights = [Weight(name, f"{name}.weight", (64, 512)) for name in names]
        >>> nodes = tuple(Node(w.name, Op.LINEAR, Role.FF_IN, weight=w) for w in weights)
        >>> graph = Graph("tiny", nodes, ((0, 1),))
        >>> read(graph, '["out"]', QuantMethod("uaq", 4)).qconfig.methods
        {'proj': QuantMethod(name='uaq', bits=4, inputs=16)}
    """
    text = text.removeprefix("\ufeff")
    if text.lstrip()[:1] not in ("{", "["):
        return gguf.read(graph, text, default, loader)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"the recipe looks like JSON and cannot be read ({error}): restore the file"
        ) from error
    if isinstance(data, dict):
        data = data.get("quantization_config", data)
    if not isinstance(data, dict | list):
        raise RecipeError(f"wanted a mapping under 'quantization_config' (got {data!r})")
    if isinstance(data, list) and not all(isinstance(entry, str) for entry in data):
        raise RecipeError(
            "wanted one recipe or a list of modules to skip (got a list of something else)"
        )
    if isinstance(data, list):
        return skip_list.read(graph, data, default, loader, rules)
    if "schema" in data:
        return native.read(graph, data)
    engine = engine_of(data)
    if engine == "sdnq":
        return sdnq.read(graph, data, default, loader)
    if engine == "torchao":
        return torchao.read(graph, data, default, loader)
    if engine is not None and engine in Engine.__members__:
        return skip_list.read(graph, data, default, loader, Engine(engine))
    if engine is None and not set(skip_list.KEYS) & set(data):
        raise RecipeError(
            "wanted a configuration, or a quantization config with quant_method or "
            "modules_to_not_convert "
            f"(got the keys {', '.join(map(repr, data)) or 'of an empty object'})"
        )
    skips = skip_list.read(graph, data, default, loader, rules)
    if engine in (None, skip_list.MODELOPT):
        return skips
    note = f"the type of {engine!r} is not read: weights get {default}"
    return Read(skips.qconfig, (*skips.notes, note))


OTHER_NAMES = {
    "quanto_quantize": "quanto",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
}
"""Of engines, as some configs spell them."""


def engine_of(data: dict[str, object]) -> str | None:
    """Tell the engine of a quantization config by its ``quant_method``, or by its keys.

    ``BitsAndBytesConfig.to_json_string`` writes no such name, and a config of torchao alone has
    none.

    Args:
        data: the config.

    Returns:
        Name of the engine; None if no key tells.

    Raises:
        RecipeError: ``quant_method`` is not a name.
    """
    if (engine := data.get("quant_method")) is not None:
        if not isinstance(engine, str):
            raise RecipeError(f"wanted the name of an engine as quant_method (got {engine!r})")
        return OTHER_NAMES.get(engine, engine)
    bitsandbytes = {"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"}
    if bitsandbytes & set(data) or any(key.startswith(("bnb_4bit_", "llm_int8_")) for key in data):
        return "bitsandbytes"
    if {"_type", "quant_type"} & set(data):
        return "torchao"
    if sdnq.KEYS & set(data):
        return "sdnq"
    for key in skip_list.QUANTO_KEYS:
        if key in data:
            is_type = isinstance(data[key], str) and data[key] in skip_list.QUANTO_TYPES
            return "quanto" if is_type and "group_size" not in data else "sdnq"
    return None


def summary(space: Space, qconfig: QuantConfig) -> str:
    """Count the methods of a configuration, for the terminal.

    Args:
        space: of the weights.
        qconfig: the configuration.

    Returns:
        One line, with the average bits.
    """
    counts = Counter(
        str(qconfig.methods.get(weight.name, "full precision")) for weight in space.graph.weights
    )
    methods = ", ".join(f"{count} {method}" for method, count in counts.most_common())
    return f"{methods}; {cost.avg_bits(space.graph, qconfig, space.full_bits):.4f} bits per weight"


def measuring(workspace: Workspace, qconfig: QuantConfig) -> str:
    """Write the commands that measure a configuration.

    Args:
        workspace: model, space and store.
        qconfig: the configuration, of which the user has a FILE.

    Returns:
        One command, after one that calibrates the methods if the space does not offer them all.
    """
    spec, space = workspace.chosen_spec, workspace.space
    command = f"+model={workspace.name} space={spec.name}"
    offered = {
        weight.name: options
        for weight, options in zip(space.graph.weights, space.of_weights.options, strict=True)
    }
    if all(method in offered[name] for name, method in qconfig.methods.items()):
        return f"python -m qsdm.measure {command} configs=FILE"
    methods = sorted({*qconfig.methods.values(), *space.of_weights.methods})
    weights = {weight.name: weight for weight in space.graph.weights}
    overhead = max(
        method.overhead_bits(weights[name], space.full_bits) / math.prod(weights[name].shape)
        for name, method in qconfig.methods.items()
    )
    command += f" space.name={spec.name}_{qconfig.digest[:8]}"
    command += f" 'space.methods=[{','.join(map(str, methods))}]'"
    if overhead > spec.max_overhead:
        command += f" space.max_overhead={math.ceil(overhead)}"
    return f"python -m qsdm.calibrate {command}\npython -m qsdm.measure {command} configs=FILE"


def cli(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``recipe``, or what its first argument names.

    Args:
        arguments: of the command line; by default, those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    first = arguments[0] if arguments else ""
    if first in WORDS:
        module, function = WORDS[first]
        run.main(getattr(import_module(module), function), arguments[1:])
    if re.fullmatch(r"[a-z]+", first):
        close = difflib.get_close_matches(first, WORDS, 1)
        guess = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(WORDS)}"
        sys.exit(f"error: recipe has no {first!r}: {guess}, or file=PATH of a recipe")
    run.main(recipe, arguments)


if __name__ == "__main__":
    cli()
