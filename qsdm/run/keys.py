"""Keys and values of the command line, checked against the signatures of what takes them."""

from __future__ import annotations

import dataclasses
import inspect
import keyword
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any

from qsdm.run.conf import OF_MODEL, BadInput, choices, defaults, unknown_key
from qsdm.run.errors import first_line
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


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
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
        parts = getattr(_hint(target, parameter), "of_keys", None)
        if parts is None:
            result[name] = parameter
            continue
        for key, part in inspect.signature(parts).parameters.items():
            if key != "space" or "space" in defaults(target.__name__):
                kind = _hint(parts, part)
                default = inspect.Parameter.empty if key == "space" else part.default
                result[key] = part.replace(annotation=kind, default=default)
    return result


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
        kind = _simple(_hint(target, parameter))
        default = (
            "???" if kind is Any or parameter.default is parameter.empty else parameter.default
        )
        default = str(default) if isinstance(default, Path) else default
        fields.append((name, kind, dataclasses.field(default=default)))
    if trackers:
        fields.append(("wandb", Wandb, dataclasses.field(default=Wandb.disabled)))
        fields.append(("tracker", Tracker, dataclasses.field(default=Tracker.wandb)))
    return fields


def _hint(target: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    names = vars(sys.modules[target.__module__]) if target.__module__ in sys.modules else {}
    # One annotation at a time: others may name classes of packages that are not imported yet.
    stub = type("Stub", (), {"__annotations__": {"value": parameter.annotation}})
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
    return first[0] if first and _hint(function, first[1]) == Sequence[str] else None


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
    kinds = {name: _hint(function, p) for name, p in parameters(function).items()}
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


def keywords(function: Callable[..., Any], cfg: Any) -> dict[str, Any]:
    """Turn a config into keyword arguments.

    Args:
        function: of the command.
        cfg: the composed config, without Hydra's own part.

    Returns:
        Arguments by name.

    Raises:
        BadInput: a key is unknown or missing, or a value is of the wrong type.
    """
    result = values_of(function, cfg)
    for name, parameter in inspect.signature(function).parameters.items():
        parts = getattr(_hint(function, parameter), "of_keys", None)
        if parts is not None:
            keys = inspect.signature(parts).parameters
            result[name] = parts(**{key: result.pop(key) for key in keys if key in result})
    return result


def values_of(function: Callable[..., Any], cfg: Any) -> dict[str, Any]:
    """Turn a config into values of a command's keys (see `parameters`).

    Args:
        function: of the command.
        cfg: the composed config, without Hydra's own part.

    Returns:
        Values by key.

    Raises:
        BadInput: a key is unknown or missing, or a value is of the wrong type.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    taken = parameters(function)
    for key in cfg:
        if key not in taken and key not in OF_TRACKERS:
            raise BadInput(unknown_key(function.__name__, key, list(taken)))
    values: dict[str, Any] = {}
    for name, parameter in taken.items():
        offered = choices().get(name)
        # With model.path= alone, no model was chosen.
        unchosen = offered and OmegaConf.is_config(cfg.get(name)) and "_target_" not in cfg[name]
        if name not in cfg or OmegaConf.is_missing(cfg, name) or unchosen:
            if parameter.default is parameter.empty:
                sign = "" if name in defaults(function.__name__) else "+"
                how = (
                    f"add {sign}{name}=NAME, with a NAME of {', '.join(offered)}"
                    if offered
                    else f"add {name}=VALUE"
                )
                raise BadInput(f"{function.__name__} needs a {name}: {how}")
            continue
        value = cfg[name]
        if OmegaConf.is_config(value):
            check(value, name)
            try:
                value = instantiate(value, _convert_="all")
            except InstantiationException as error:
                cause = error.__cause__ or error
                raise BadInput(f"{name}: {cause}".splitlines()[0]) from error
        check_number(value, name)
        hint = _hint(function, parameter)
        if isinstance(value, str) and (hint is Path or Path in typing.get_args(hint)):
            value = Path(value).expanduser()
        values[name] = value
    return values


def check_number(value: Any, path: str) -> None:
    """Refuse numbers that no argument takes: NaN, infinity, beyond 64 bits, and negative seeds.

    Args:
        value: of any type; only numbers are checked.
        path: of its key, for the message.

    Raises:
        BadInput: it is one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{path}: wanted a finite number (got {value}); null means no limit")
    if abs(value) >= 2**63:
        raise BadInput(f"{path}: wanted a number below 2^63 (got {value:.3g})")
    if re.search(r"(^|[._])seed(_set)?$", path) and value < 0:
        raise BadInput(f"{path}: wanted a seed of 0 or more (got {value})")


def check(node: Any, path: str) -> None:
    """Check a nested value: every ``_target_`` must take the keys beside it, with their types.

    Args:
        node: part of a config.
        path: of its key, for the message.

    Raises:
        BadInput: it does not.
    """
    from hydra.utils import get_object
    from omegaconf import OmegaConf, ValidationError

    if OmegaConf.is_list(node):
        for i, child in enumerate(node):
            check(child, f"{path}[{i}]")
    check_number(node, path)
    if not OmegaConf.is_dict(node):
        return
    own = {str(key) for key in node if not str(key).startswith("_")}
    if (target := node.get("_target_")) is not None:
        try:
            maker = get_object(target)
        except (ImportError, ValueError) as error:
            raise BadInput(
                f"{path}: nothing is called {target!r} ({error})".splitlines()[0]
            ) from error
        fields = schema(maker)
        free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(maker).parameters.values())
        for key in own - {name for name, *_ in fields}:
            if not free:
                raise BadInput(unknown_key(path, key, [name for name, *_ in fields]))
        typed = OmegaConf.structured(
            dataclasses.make_dataclass("Typed", [field for field in fields if field[1] is not Any])
        )
        for key in {key for key in own & set(typed) if not OmegaConf.is_missing(node, key)}:
            try:
                typed[key] = node[key]
            except ValidationError as error:
                raise BadInput(f"{path}.{key}: {first_line(error)}") from error
    for key in own:
        if not OmegaConf.is_missing(node, key):
            check(node[key], f"{path}.{key}")
        elif target is not None:
            raise BadInput(f"{path} needs a {key}: add {path}.{key}=VALUE")
