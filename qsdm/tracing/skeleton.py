"""Skeletons: denoisers whose parameters are expanded zeros of stride 0, and so take no memory.

Buffers keep their values, because positions and frequencies decide shapes and indices.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def build(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """Build the skeleton of ``cls(**config)`` without ever allocating its weights.

    Args:
        cls: class of the denoiser.
        config: its arguments; keys that begin with an underscore are ignored.

    Returns:
        The skeleton, on the CPU in float32 and in evaluation mode.

    Raises:
        ValueError: the class does not take this config.
    """
    options = {key: _plain(value) for key, value in config.items() if not key.startswith("_")}
    kind = getattr(cls, "config_class", None)  # of transformers, which take one object
    with torch.device("meta"):
        try:
            module = cls(**options) if kind is None else cls(kind(**options))
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"{cls.__name__} does not take this config ({error}): "
                "compare it with the class's arguments"
            ) from error
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                child._parameters[name] = _weightless(parameter)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = real(buffer)
        for name, value in list(vars(child).items()):
            if name.startswith("_") or isinstance(value, nn.Module):
                continue
            if _holds_meta(value):
                setattr(child, name, real(value))
    return module.eval().requires_grad_(False)


def of(module: nn.Module) -> nn.Module:
    """Copy a loaded module without its weights.

    Args:
        module: on any device and in any dtype; it is not changed.

    Returns:
        The skeleton, on the CPU in float32 and in evaluation mode.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = _weightless(parameter)
    for buffer in module.buffers():
        memo[id(buffer)] = real(buffer)
    return copy.deepcopy(module, memo).eval().requires_grad_(False)


def _plain(value: Any) -> Any:
    """Plain lists instead of tuples and of the list types of YAML parsers."""
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _weightless(parameter: Tensor) -> nn.Parameter:
    dtype = torch.float32 if parameter.is_floating_point() else parameter.dtype
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(parameter.shape), requires_grad=False)


def _holds_meta(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.device.type == "meta"
    if isinstance(value, list | tuple):
        return any(map(_holds_meta, value))
    return isinstance(value, dict) and any(map(_holds_meta, value.values()))


def real(value: Any) -> Any:
    """Move tensors to the CPU and half-precision floats to float32, the dtype of every skeleton.

    Args:
        value: a tensor or a container; anything else is returned as it is.

    Returns:
        The same structure; tensors on the meta device become zeros.
    """
    if isinstance(value, Tensor):
        dtype = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
        if value.device.type == "meta":
            return torch.zeros((), dtype=dtype).expand(value.shape)
        return value.detach().to("cpu", dtype)
    if isinstance(value, dict):
        return {key: real(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(real(entry) for entry in value)
    return value
