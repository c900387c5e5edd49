"""Recipes of other engines become configurations, and configurations their recipes.

    python -m qsdm.recipe +model=sdxl file=SKIP_LIST.json           # a configuration, to be measured beside ours
    python -m qsdm.recipe +model=sdxl file=RULES.txt default=uaq-3  # what no rule matches gets uaq-3
    python -m qsdm.recipe +model=emoji_unet to=torchao              # what realize chose, as torchao reads it

Reads a configuration of ours, a JSON list of modules to skip, a quantization config of diffusers or transformers
(bitsandbytes, quanto, SDNQ), or tensor rules of stable-diffusion.cpp (``to_q=q4_0,ff\\.net=q8_0``). Writes qsdm,
torchao, gguf (such rules) or sdnq. What is not carried over exactly is told, with the number of weights that it is
about.

Writes ``recipes/NAME.*`` into the model's store.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm import cost, run
from qsdm.graph import Graph
from qsdm.qconfig import QuantConfig, QuantMethod, Space
from qsdm.recipes import Read, RecipeError, Written, gguf, native, sdnq, skip_list, torchao
from qsdm.store import StoreError
from qsdm.store.files import write_text
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    pass


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


@takes_workspace("model", "space", "store", "file")
def recipe(
    workspace: Workspace,
    file: Path | None = None,
    to: Format = Format.qsdm,
    default: str = "uaq-4",
) -> Written:
    """Read one recipe and write it in another form.

    Args:
        workspace: model, space and store; the graph is used with the space's splits.
        file: the recipe; what realize chose, if none is given.
        to: the form that is written: qsdm, torchao, gguf or sdnq.
        default: method of the weights that a recipe says nothing about.

    Raises:
        StoreError: the model is not traced, or the file cannot be read.
        RecipeError: the file holds no recipe that is known here, or one of another denoiser.
    """
    fallback, own = QuantMethod.parse(default), workspace.space
    source = workspace.find("chosen.json", "realize") if file is None else file
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{source} cannot be read ({type(error).__name__}): give file=PATH of a recipe"
        ) from error
    found = read(own.graph, text, fallback)
    written = WRITERS[to](own.graph, found.qconfig)
    target = workspace.path(f"recipes/{source.name.partition('.')[0]}{written.suffix}")
    write_text(target, written.text)
    usage = measuring(workspace, found.qconfig) if to is Format.qsdm else written.usage
    print(f"{source}: {summary(own, found.qconfig)}")
    for note in (*found.notes, *written.notes):
        print(f"  {note}")
    print(f"{target}\n{usage.replace('FILE', str(target))}")
    return written


def read(graph: Graph, text: str, default: QuantMethod) -> Read:
    """A recipe in any form; what it holds says which.

    Raises:
        RecipeError: it is none that is known here.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return gguf.read(graph, text, default)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"the recipe begins like JSON and is none: {error}") from error
    if isinstance(data, dict):
        data = data.get("quantization_config", data)
    if isinstance(data, list) and not all(isinstance(entry, str) for entry in data):
        raise RecipeError(
            "wanted one recipe or a list of modules to skip (got a list of something else)"
        )
    if isinstance(data, list):
        return skip_list.read(graph, data, default)
    if "schema" in data:
        return native.read(graph, data)
    if data.get("quant_method") == "sdnq" or {"modules_dtype_dict", "modules_quant_config"} & set(
        data
    ):
        return sdnq.read(graph, data, default)
    if {"quant_method", *skip_list.KEYS} & set(data):
        return skip_list.read(graph, data, default)
    raise RecipeError(
        f"wanted a configuration, or a quantization config with quant_method or modules_to_not_convert "
        f"(got the keys {', '.join(map(repr, data)) or 'of an empty object'})"
    )


def summary(space: Space, qconfig: QuantConfig) -> str:
    counts = Counter(
        str(qconfig.methods.get(weight.name, "full precision")) for weight in space.graph.weights
    )
    methods = ", ".join(f"{count} {method}" for method, count in counts.most_common())
    return f"{methods}; {cost.avg_bits(space.graph, qconfig, space.full_bits):.4f} bits per weight"


def measuring(workspace: Workspace, qconfig: QuantConfig) -> str:
    """The command that measures a configuration, after one that calibrates its methods where the space lacks them."""
    spec, space = workspace.chosen_spec, workspace.space
    command = f"+model={workspace.name} space={spec.name}"
    offered = {
        weight.name: options
        for weight, options in zip(space.graph.weights, space.options, strict=True)
    }
    if all(method in offered[name] for name, method in qconfig.methods.items()):
        return f"python -m qsdm.measure {command} configs=FILE"
    methods = sorted({*qconfig.methods.values(), *space.methods})
    weights = {weight.name: weight for weight in space.graph.weights}
    overhead = max(
        method.overhead_bits(weights[name], space.full_bits) / math.prod(weights[name].shape)
        for name, method in qconfig.methods.items()
    )
    command += f" space.name={spec.name}_{qconfig.digest[:8]} 'space.methods=[{','.join(map(str, methods))}]'"
    if overhead > spec.max_overhead:
        command += f" space.max_overhead={math.ceil(overhead)}"
    return f"python -m qsdm.calibrate {command}\npython -m qsdm.measure {command} configs=FILE"


if __name__ == "__main__":
    run.main(recipe)
