"""Values of a config, checked against the signatures of what takes them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from qsdm.run.conf import BadInput, choices, defaults, unknown_key
from qsdm.run.errors import first_line
from qsdm.run.keys import OF_TRACKERS, hint_of, parameters, schema


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
        parts = getattr(hint_of(function, parameter), "of_keys", None)
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
            if unchosen or parameter.default is parameter.empty:
                sign = "" if name in defaults(function.__name__) else "+"
                how = (
                    f"add {sign}{name}=NAME, with a NAME of {', '.join(offered)}"
                    if offered
                    else f"add {name}=VALUE"
                )
                article = "" if name.endswith("s") else "a "
                raise BadInput(f"{function.__name__} needs {article}{name}: {how}")
            continue
        value, hint = cfg[name], hint_of(function, parameter)
        if isinstance(value, str) and Sequence in origins(hint) and str not in origins(hint):
            value = OmegaConf.create([value])  # a text for a list of one, as methods=uaq-3
        check_shape(value, hint, name)
        if OmegaConf.is_config(value):
            check(value, name)
            try:
                value = instantiate(value, _convert_="all")
            except InstantiationException as error:
                cause = error.__cause__ or error
                raise BadInput(f"{name}: {cause}".splitlines()[0]) from error
        check_number(value, name)
        if isinstance(value, str) and Path in origins(hint):
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
        hint = "; null means no limit" if value > 0 else ""
        raise BadInput(f"{path}: wanted a finite number (got {value}){hint}")
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
        hints = {name: hint_of(maker, of) for name, of in parameters(maker).items()}
        for key in own - {name for name, *_ in fields}:
            if not free:
                raise BadInput(unknown_key(path, key, [name for name, *_ in fields]))
        typed = OmegaConf.structured(
            dataclasses.make_dataclass("Typed", [field for field in fields if field[1] is not Any])
        )
        for key in {key for key in own & set(typed) if not OmegaConf.is_missing(node, key)}:
            try:
                typed[key] = node[key]
                node[key] = typed[key]  # name=3 is a text
            except ValidationError as error:
                if OmegaConf.is_list(node[key]):
                    raise BadInput(
                        f"{path}.{key}: wanted one value (got the list {list(node[key])})"
                    ) from error
                raise BadInput(f"{path}.{key}: {first_line(error)}") from error
    for key in own:
        if not OmegaConf.is_missing(node, key):
            if target is not None:
                check_shape(node[key], hints.get(key, Any), f"{path}.{key}")
            check(node[key], f"{path}.{key}")
        elif target is not None:
            raise BadInput(f"{path} needs a {key}: add {path}.{key}=VALUE")


def check_shape(value: Any, hint: Any, path: str) -> None:
    """Refuse a single value where a list is wanted, and all such mistakes that a type rules out.

    Args:
        value: part of a config.
        hint: type of the parameter that takes it. What a class of ours takes must have a
            ``_target_``; unknown types take anything.
        path: of its key, for the message.

    Raises:
        BadInput: the type takes no such value.
    """
    from omegaconf import OmegaConf

    wanted = []
    for origin in origins(hint):
        if origin is Any or not isinstance(origin, type):
            return
        if origin is types.NoneType:
            fits = value is None
        elif issubclass(origin, str | int | float | Path | Enum):
            fits = value is not None and not OmegaConf.is_config(value)
            wanted.append("a single value")
        elif issubclass(origin, Mapping):
            fits = OmegaConf.is_dict(value)
            wanted.append("names with values, as {a: 1, b: 2}")
        elif issubclass(origin, Sequence):
            fits = OmegaConf.is_list(value)
            wanted.append("a list, as [a, b]")
        else:
            fits = OmegaConf.is_dict(value) and "_target_" in value
            group = path.rpartition(".")[2]
            offered = choices().get(group)
            wanted.append(f"{group}=NAME, one of {', '.join(offered)}" if offered else "a _target_")
        if fits:
            return
    raise BadInput(f"{path}: wanted {' or '.join(wanted)} (got {value})")


def origins(hint: Any) -> list[Any]:
    """Take a type apart: ``Sequence[str] | None`` are `Sequence` and `types.NoneType`."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return [typing.get_origin(kind) or kind for kind in kinds]
