"""Keys of the command line, read from the signatures of what takes them, and spelled for Hydra."""

from __future__ import annotations

import dataclasses
import inspect
import keyword
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any

from qsdm.run.conf import OF_MODEL, BadInput, choices, defaults, unknown_key
from qsdm.run.trackers import Tracker, Wandb

SHORT = {
    "path": "model.path",
    "config": "model.load.config",
    "frames": "model.frames",
}
"""Keys that stand for one inside a group, for every command that takes the group."""

TEXTS_BY_NAME = Mapping[str, str]
"""Part of the type of keys such as ``pin.NAME=TEXT``, whose names may hold dots and more."""

OF_TRACKERS = ("wandb", "tracker")
"""Keys of every command that its function does not take."""

FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun"),
)
"""Flags of Hydra whose value is an argument of its own."""


@cache
def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """List the parameters of a function or class, except ``log``.

    A parameter whose type has a method ``of_keys`` stands for the parameters of that method: the
    keys model, space and store make a workspace. A command without a default space has no use for
    one.

    Args:
        target: function of a command, or the ``_target_`` of a YAML.

    Returns:
        Parameters by name.
    """
    result = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if name == "log":
            continue
        parts = getattr(hint_of(target, parameter), "of_keys", None)
        if parts is None:
            result[name] = parameter
            continue
        for key, part in inspect.signature(parts).parameters.items():
            if key != "space" or "space" in defaults(target.__name__):
                kind = hint_of(parts, part)
                default = inspect.Parameter.empty if key == "space" else part.default
                result[key] = part.replace(annotation=kind, default=default)
    return MappingProxyType(result)


def shorthands(function: Callable[..., Any]) -> dict[str, str]:
    """List the `SHORT` keys that a command takes, and those that Python reserves.

    Args:
        function: of the command.

    Returns:
        Long key by short key.
    """
    taken = parameters(function)
    reserved = {name[:-1]: name for name in taken if keyword.iskeyword(name[:-1])}  # from => from_
    return reserved | {
        key: full
        for key, full in SHORT.items()
        if full.partition(".")[0] in taken and key not in taken
    }


def schema(target: Callable[..., Any], trackers: bool = False) -> list[Any]:
    """Describe the keys of a function or class as fields of `dataclasses.make_dataclass`.

    Numbers, strings, paths and enums keep their type and default. Anything else is not restricted
    here, but checked when it is made.

    Args:
        target: function of a command, or the ``_target_`` of a YAML.
        trackers: add the keys that say where a run is logged to.

    Returns:
        Name, type and field of each key.
    """
    fields = []
    for name, parameter in parameters(target).items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kind = _simple(hint_of(target, parameter))
        default = (
            "???" if kind is Any or parameter.default is parameter.empty else parameter.default
        )
        default = str(default) if isinstance(default, Path) else default
        fields.append((name, kind, dataclasses.field(default=default)))
    if trackers:
        fields.append(("wandb", Wandb, dataclasses.field(default=Wandb.disabled)))
        fields.append(("tracker", Tracker, dataclasses.field(default=Tracker.wandb)))
    return fields


def hint_of(target: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Evaluate the annotation of a parameter.

    Args:
        target: whose parameter it is.
        parameter: of its signature.

    Returns:
        A type; `typing.Any` where the annotation names what is imported for type checkers only.
    """
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    return _evaluated(target, parameter.annotation)


@cache  # compiling one takes longer than all else that is done with a key
def _evaluated(target: Callable[..., Any], annotation: str) -> Any:
    names = vars(sys.modules[target.__module__]) if target.__module__ in sys.modules else {}
    # One annotation at a time: others may name classes of packages that are not imported yet.
    stub = type("Stub", (), {"__annotations__": {"value": annotation}})
    try:
        return typing.get_type_hints(stub, dict(names))["value"]
    except NameError:
        return Any


def _simple(hint: Any) -> Any:
    """The type that OmegaConf checks: a plain one, perhaps optional, or Any; paths are text."""
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    kinds = [str if kind is Path else kind for kind in (typing.get_args(hint) if union else [hint])]
    plain = [kind for kind in kinds if kind is not type(None)]
    if len(plain) != 1 or not isinstance(plain[0], type):
        return Any
    if plain[0] not in (int, float, str, bool) and not issubclass(plain[0], Enum):
        return Any
    return plain[0] | None if len(kinds) == 2 else plain[0]


def positional(function: Callable[..., Any]) -> str | None:
    """Find the key that takes a command's bare arguments: the first parameter, if it is of texts.

    Args:
        function: of the command.

    Returns:
        Its name; None if the command takes no bare arguments.
    """
    first = next(iter(parameters(function).items()), None)
    return first[0] if first and hint_of(function, first[1]) == Sequence[str] else None


def bare(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate bare arguments from flags and keys.

    An argument is bare if it has no ``=``, or a colon before it (``folder:steps=4``), or names an
    existing file.

    Args:
        arguments: of the command line.

    Returns:
        Bare arguments, and all others, each in their order.
    """
    alone: list[str] = []
    others: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, _ = argument.partition("=")
        is_key = equals and ":" not in key and not _exists(argument)
        is_flag = argument[:1] in "-+~" or before in FLAGS_WITH_VALUE
        (others if is_key or is_flag else alone).append(argument)
    return alone, others


def _exists(argument: str) -> bool:
    try:
        return Path(argument).expanduser().exists()
    except OSError:  # too long a name
        return False


def _quoted(text: str) -> str:
    """As Hydra reads a text that may contain anything."""
    slashes = re.sub(r"(\\+)(?='|$)", r"\1\1", text)  # others stand for themselves
    return "'" + slashes.replace("'", "\\'") + "'"


def spelled(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Spell arguments for Hydra: groups first, with a ``+`` where the command has no default.

    Args:
        arguments: of the command line.
        function: of the command.

    Returns:
        Flags, then overrides.

    Raises:
        BadInput: the command has no such key.
    """
    if (taker := positional(function)) is not None:
        alone, arguments = bare(arguments)
        if alone:
            arguments = [*arguments, f"{taker}=[{','.join(map(_quoted, alone))}]"]
    groups, chosen = choices(), set(defaults(function.__name__))
    short = shorthands(function)
    owned = OF_MODEL if "model" in parameters(function) else ()
    keys = [*(name for name, *_ in schema(function)), *short, *owned, *OF_TRACKERS]
    models = [
        argument.partition("=")[2]
        for argument in arguments
        if argument.lstrip("+").startswith("model=")
    ]
    by_model = {
        key.lstrip("/")
        for model in models
        if model in groups["model"]
        for key in defaults(f"model/{model}")
    }
    flags, first, parts, rest = [], [], [], []
    for argument in named_texts(arguments, function):
        match = re.fullmatch(r"([+~]*)([^=@]*)(@[^=]*)?(=.*)?", argument, re.DOTALL)
        assert match is not None
        sign, key, package, value = (part or "" for part in match.groups())
        if argument.startswith("-") or not (value or sign):
            flags.append(argument)  # argparse wants them before the overrides
            continue
        top = re.split(r"[./\[]", key)[0]
        if key in groups and re.fullmatch(r"=(?i:[-+]?\d[\d_.e+-]*|true|false)", value):
            value = f"={_quoted(value[1:])}"  # Hydra wants the name of an entry to be a text
        if top in owned and package in ("", f"@model.{top}") and not sign.strip("+"):
            if key == top:
                parts.append(f"{'' if key in by_model else '+'}{key}@model.{key}{value}")
            else:
                rest.append(f"++model.{key}{value}")
            continue
        if (
            top not in keys
            and top != "hydra"
            and not (package and re.split(r"[./\[]", package[1:])[0] in keys)
        ):
            raise BadInput(unknown_key(function.__name__, top, keys))
        if key in short:
            rest.append(f"++{short[key]}{value}")
        elif key in groups and not package and "~" not in sign:
            first.append(f"{'' if key in chosen else '+'}{key}{value}")
        elif "." in key and top in keys and not sign:
            rest.append(f"++{argument}")  # also what the YAML leaves out; `check` checks it later
        else:
            rest.append(argument)
    return flags + first + parts + rest


def named_texts(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Gather ``pin.NAME=TEXT`` in ``pin=[NAME=TEXT]``: Hydra splits names at dots, refuses ``#``.

    Args:
        arguments: of the command line.
        function: of the command; it concerns keys that take texts by name or a list of them.

    Returns:
        The arguments, each such key once, at its end.
    """
    kinds = {name: hint_of(function, p) for name, p in parameters(function).items()}
    taken = {name for name, kind in kinds.items() if TEXTS_BY_NAME in typing.get_args(kind)}
    gathered: dict[str, list[str]] = {}
    others = []
    for argument in arguments:
        key, _, rest = argument.lstrip("+").partition(".")
        if key in taken and "=" in rest:
            gathered.setdefault(key, []).append(rest)
        else:
            others.append(argument)
    lists = [f"{key}=[{','.join(map(_quoted, texts))}]" for key, texts in gathered.items()]
    return others + lists
