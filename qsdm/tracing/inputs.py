"""Arguments for one forward of a denoiser, batch size 1.

They are captured from its pipeline, or built from its signature and config. `build` uses what
`vocabulary` says about a parameter's name; a value in the model's YAML file takes precedence.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsdm.tracing.calls import TraceError
from qsdm.tracing.entry import entry, signature
from qsdm.tracing.vocabulary import Shapes, floats, guess, rule_of

_NEVER = re.compile(
    r"controlnet|block_(additional|controls)|_residuals|attention_kwargs|cross_attention_kwargs"
    r"|joint_attention|return_|skip_|cache"
)


class _Captured(BaseException):
    """Ends the pipeline's call; not an `Exception`, so that no pipeline catches it."""


def capture(
    pipeline: Any, component: str, twins: Sequence[str] = (), **call: Any
) -> dict[str, Any]:
    """Capture the arguments of a pipeline's first call of its denoiser, which itself does not run.

    Args:
        pipeline: a diffusers pipeline; it is as before when this returns.
        component: name of the attribute that holds the denoiser, or another part.
        twins: names of the attributes that hold further denoisers of the same class, which take
            turns with it over the sampler's steps. Whichever is called first shows the arguments of
            all.
        call: arguments of the pipeline. They should turn off classifier-free guidance, which
            doubles the batch.

    Returns:
        Arguments of the denoiser's forward by name, or of what draws with it instead (see `entry`).

    Raises:
        TraceError: the pipeline never called the denoiser.
    """
    module = getattr(pipeline, component)
    method, taken = entry(module), signature(module)
    captured: dict[str, Any] = {}

    def called(*args: Any, **kwargs: Any) -> None:
        bound = taken.bind(module, *args, **kwargs).arguments
        for name, value in list(bound.items())[1:]:
            is_rest = taken.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            captured.update(value if is_rest else {name: value})
        raise _Captured

    taking_turns = [module, *(getattr(pipeline, twin) for twin in twins)]
    for each in taking_turns:
        setattr(each, method, called)
    try:
        with torch.no_grad():
            pipeline(**call)
    except _Captured:
        pass
    finally:
        for each in taking_turns:
            delattr(each, method)
    if not captured:
        raise TraceError(
            f"{type(pipeline).__name__} drew a picture without calling its {component}: "
            "name another component"
        )
    if "return_dict" in taken.parameters:
        captured["return_dict"] = False
    return captured


def build(module: nn.Module, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build arguments for ``module.forward`` from its signature, its config and ``overrides``.

    Args:
        module: the denoiser, or a skeleton of it.
        overrides: values by parameter name, dotted inside mappings
            (``added_cond_kwargs.time_ids``). A list of integers is the shape of a float tensor,
            ``{shape: [..], dtype: int64, value: 1}`` describes any other tensor, ``{list: [..]}``
            and ``{repeat: 3, entry: ..}`` a list of such values, ``{value: ..}`` anything else;
            null is None. They take precedence over `overrides_of` the class.

    Returns:
        Arguments by name, in the order of the signature.

    Raises:
        TraceError: the forward names no input, or an override is malformed or names no parameter.
    """
    combined = {**overrides_of(type(module)), **(overrides or {})}
    return build_with_optional(module, combined, Shapes.of(module))[0]


def overrides_of(cls: type[nn.Module]) -> Mapping[str, Any]:
    """Read the overrides that qsdm ships for a class: ``overrides/CLASS.yaml``.

    They exist where neither the signature nor the config says enough about the inputs.

    Args:
        cls: class of the denoiser.

    Returns:
        Overrides as `build` takes them; empty without a file.
    """
    import yaml

    path = Path(__file__).with_name("overrides") / f"{cls.__name__}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def build_with_optional(
    module: nn.Module, overrides: Mapping[str, Any], shapes: Shapes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build arguments for ``module.forward``, and guess the optional ones that are left out.

    Args:
        module: the denoiser, or a skeleton of it.
        overrides: as `build` takes them, those of the class included.
        shapes: sizes of the inputs.

    Returns:
        Arguments by name, and guesses at the optional arguments that are not among them.

    Raises:
        TraceError: the forward names no input, or an override is malformed or names no parameter.
    """
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    if not parameters or parameters[0].kind in (
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise TraceError(
            f"{type(module).__name__}.forward names no input: "
            "it is a wrapper around a denoiser (unwrap it), or not a denoiser"
        )
    named = [p.name for p in parameters]
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in overrides if name.partition(".")[0] not in named and not rest]
    if unknown:
        raise TraceError(
            f"{type(module).__name__}.forward takes no {unknown[0]!r} "
            f"(it takes {', '.join(sorted(named))}): correct model.inputs"
        )
    values = {name: _parse(name, value) for name, value in overrides.items()}
    roots = {name.partition(".")[0] for name in values}
    main = values.get(parameters[0].name)
    if isinstance(main, Tensor):
        shapes = shapes.around(main)
    text = values.get("encoder_hidden_states")
    if isinstance(text, Tensor) and text.dim() == 3:
        shapes = dataclasses.replace(shapes, tokens=text.shape[1])
    inputs: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for i, parameter in enumerate(parameters):
        name, required = parameter.name, parameter.default is inspect.Parameter.empty
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in values:
            continue
        if name == "return_dict":
            inputs["return_dict"] = False
        elif i == 0:
            inputs[name] = shapes.main(parameter)
        elif _NEVER.search(name) and not required:
            continue
        else:
            rule = rule_of(name)
            value = rule(shapes, parameter) if rule is not None else None
            if value is not None or (required and rule is not None):
                inputs[name] = value
            elif name not in roots:
                (inputs if required else optional)[name] = guess(shapes, parameter)
    for name, value in values.items():
        _insert(inputs, name.split("."), value)
    in_order = {name: inputs[name] for name in named if name in inputs}
    return in_order | inputs, optional


def _insert(inputs: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        inputs = inputs.setdefault(key, {})
    inputs[path[-1]] = value


def _parse(name: str, value: Any) -> Any:
    """The argument that an override describes (see `build`)."""
    if isinstance(value, Mapping):
        if set(value) == {"value"}:
            return value["value"]
        if set(value) == {"list"}:
            return [_parse(name, entry) for entry in value["list"]]
        if set(value) == {"repeat", "entry"}:
            return [_parse(name, value["entry"]) for _ in range(value["repeat"])]
        if "shape" in value and set(value) <= {"shape", "dtype", "value"}:
            dtype = getattr(torch, str(value.get("dtype", "float32")), None)
            if isinstance(dtype, torch.dtype):
                return torch.full(tuple(value["shape"]), value.get("value", 0), dtype=dtype)
        raise TraceError(
            f"model.inputs.{name} must be a shape, null, or "
            f"{{shape: [..], dtype: int64, value: 1}} (got {dict(value)})"
        )
    if isinstance(value, list | tuple):
        if not all(isinstance(size, int) and size > 0 for size in value):
            raise TraceError(
                f"model.inputs.{name} must be a shape of positive sizes (got {list(value)})"
            )
        return floats(*value)
    return value
