"""What ``--help`` prints: a command's docstrings, and its keys with their defaults."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from qsdm.run.conf import OF_MODEL, choices, defaults
from qsdm.run.keys import parameters, shorthands

COMMON = {
    "model": "whose denoiser it is.",
    "path": "directory or hub id of a diffusers pipeline, or FILE.safetensors: instead of the "
    "model's own, and for +model=any.",
    "config": "directory or hub id of the pipeline that describes a single file.",
    "prompts": "what the model draws; prompts.path=PATH of its file.",
    "metrics": "what the model's pictures are scored by.",
    "space": "methods on offer, and which weights are split by their inputs.",
    "objective": "what is good: a linear form of metrics and costs.",
    "engine": "where measurements run.",
    "strategy": "of the search.",
    "predictor": "how the graph network is fitted.",
    "attribution": "how sensitivities are computed.",
    "store": "folder of the artifacts.",
    "seed": "of all random draws.",
}


def help_text(function: Callable[..., Any]) -> str:
    """Explain a command from its docstrings, and list its keys with their defaults.

    Args:
        function: of the command.

    Returns:
        Lines of at most 118 characters.
    """
    name = function.__name__
    page = sys.modules[function.__module__].__doc__ or inspect.getdoc(function) or name
    meaning = COMMON | arguments_of(inspect.getdoc(function) or "")
    chosen, offered = defaults(name), choices()
    rows = []
    short = shorthands(function)
    reserved = {full: key for key, full in short.items() if full == f"{key}_"}
    for parameter_name, parameter in parameters(function).items():
        key, text = reserved.get(parameter_name, parameter_name), meaning.get(parameter_name, "")
        if key not in offered:
            default = "VALUE" if parameter.default is parameter.empty else parameter.default
            rows.append((f"{key}={default}", text))
            continue
        head = f"{key}={chosen[key]}" if key in chosen else f"+{key}=NAME"
        rows.append((head, f"{text} One of {', '.join(offered[key])}."))
        if key == "model":
            rows += [
                (f"{part}=NAME", f"{COMMON[part]} One of {', '.join(offered[part])}.")
                for part in OF_MODEL
            ]
    rows += [
        (f"{key}=VALUE", f"{meaning.get(key, '')} Short for {full}.")
        for key, full in short.items()
        if full not in reserved
    ]
    rows.append(("wandb=disabled", "where the run is logged to: disabled, offline or online."))
    rows.append(("tracker=wandb", "what logs it: wandb, or instead mlflow or trackio."))
    margin = max(len(key) for key, _ in rows) + 4
    lines = []
    for key, text in rows:
        first, *rest = textwrap.wrap(text.strip(), 118 - margin) or [""]
        lines += [f"  {key:<{margin - 2}}{first}".rstrip(), *(" " * margin + line for line in rest)]
    flags = (
        "-m seed=0,1,2 sweeps over values, --cfg job prints the config, "
        "--hydra-help lists the other flags."
    )
    return "\n".join([page.strip(), "", "Keys, with their defaults:", *lines, "", flags])


def arguments_of(docstring: str) -> dict[str, str]:
    """Read the ``Args:`` of a docstring.

    Args:
        docstring: without indentation.

    Returns:
        Meaning by name.
    """
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    meanings: dict[str, str] = {}
    for line in (section[1] if section else "").splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            meanings[name := match[1]] = match[2]
        elif line.strip() and meanings:
            meanings[name] += " " + line.strip()
    return meanings
