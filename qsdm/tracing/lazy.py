"""Run torch functions for the shapes of their results, without computing large float tensors.

Shapes of large results come from the meta device; the results themselves are uninitialized memory
that is never touched. Integers, booleans and small floats are computed as usual, so that
``.item()``, masks and indices in a denoiser's forward work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LARGE = 4096  # values; a float tensor with more is not computed
IN_PLACE = frozenset(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "and", "or")
) | {"__setitem__"}


def tensors(value: Any, role: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over all tensors in nested containers.

    Args:
        value: a tensor, a container or a diffusers output; anything else holds no tensors.
        role: path of ``value``, a prefix of the yielded paths.

    Yields:
        Dotted path and tensor, for example ``added_cond_kwargs.time_ids``.
    """
    if isinstance(value, Tensor):
        yield role, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors(entry, f"{role}.{key}" if role else str(key))
    elif isinstance(value, list | tuple | set):
        for i, entry in enumerate(value):
            yield from tensors(entry, f"{role}.{i}" if role else str(i))
    elif (
        type(value).__module__.startswith("diffusers")
        and hasattr(value, "__dict__")
        and not isinstance(value, torch.nn.Module)
    ):
        yield from tensors(vars(value), role)


def replace(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """Copy nested containers with every tensor converted and every device replaced by meta.

    Args:
        value: a tensor, a device or a container; anything else is returned as it is.
        convert: maps a tensor to its replacement.

    Returns:
        The copy.
    """
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, list | tuple):
        entries = [replace(entry, convert) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, dict):
        return {key: replace(entry, convert) for key, entry in value.items()}
    return value


def writes(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a torch function writes to its first argument.

    Args:
        name: the function's name.
        kwargs: keyword arguments of the call.

    Returns:
        True for in-place functions.
    """
    return (
        name in IN_PLACE
        or (name.endswith("_") and not name.endswith("__"))
        or kwargs.get("inplace") is True
    )


def is_large(tensor: Tensor) -> bool:
    """Tell whether a tensor is a floating-point tensor of more than `LARGE` values.

    Args:
        tensor: of any shape.

    Returns:
        True if it should not be computed.
    """
    return tensor.numel() > LARGE and (tensor.is_floating_point() or tensor.is_complex())


def call(
    func: Callable,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    weights: Callable[[Tensor], bool],
) -> Any:
    """Call a torch function for the shapes of its result.

    Args:
        func: the function.
        name: its name.
        args: its positional arguments.
        kwargs: its keyword arguments.
        weights: tells whether a tensor is a parameter; its values are never read.

    Returns:
        What ``func(*args, **kwargs)`` returns, with large tensors left uninitialized.
    """
    if name == "topk" and (routed := _every_expert(args, kwargs)) is not None:
        return routed
    operands = [tensor for _, tensor in tensors((args, kwargs))]
    if not any(is_large(tensor) or (tensor.dim() >= 2 and weights(tensor)) for tensor in operands):
        return func(*args, **kwargs)
    metas: dict[int, Tensor] = {}
    originals: dict[int, Tensor] = {}

    def to_meta(tensor: Tensor) -> Tensor:
        if id(tensor) not in metas:
            meta = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            metas[id(tensor)], originals[id(meta)] = meta, tensor
        return metas[id(tensor)]

    try:
        result = func(*replace(args, to_meta), **replace(kwargs, to_meta))
    except NotImplementedError:
        return func(*args, **kwargs)
    except (RuntimeError, ValueError) as error:
        message = str(error).lower()
        if "meta" in message or "fake" in message:  # no shape rule for this function: compute it
            return func(*args, **kwargs)
        raise
    if writes(name, kwargs):
        return None if name == "__setitem__" else args[0]
    results = [tensor for _, tensor in tensors(result)]
    if len(results) == 1 and id(results[0]) in originals:
        return originals[id(results[0])]  # nothing to do: func returned its argument
    stored = {meta.untyped_storage()._cdata for meta in metas.values()}
    if any(tensor.untyped_storage()._cdata in stored for tensor in results):
        return func(*args, **kwargs)  # a view costs nothing and keeps its storage
    return _real_results(result)


def _real_results(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "meta":
            return value
        make = torch.empty if is_large(value) else torch.zeros
        return make(value.shape, dtype=value.dtype, device="cpu")
    if isinstance(value, list | tuple):
        entries = [_real_results(entry) for entry in value]
        return (
            type(value)(entries)
            if type(value) in (list, tuple) or not hasattr(value, "_fields")
            else type(value)(*entries)
        )
    return value


def _every_expert(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A router's ``topk`` that picks every expert in turn, so that each one's weights are used."""
    scores = args[0]
    k = args[1] if len(args) > 1 else kwargs.get("k")
    dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
    if not isinstance(k, int) or scores.dim() < 2 or dim not in (-1, scores.dim() - 1):
        return None
    rows, experts = math.prod(scores.shape[:-1]), scores.shape[-1]
    index = (torch.arange(rows)[:, None] * k + torch.arange(k)) % experts
    return torch.return_types.topk(
        (
            torch.zeros(*scores.shape[:-1], k, dtype=scores.dtype),
            index.reshape(*scores.shape[:-1], k),
        )
    )
