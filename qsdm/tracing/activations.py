"""How many bytes the tensors of a forward take at once, found without computing or allocating them.

In the fake forward tensors have shapes, types and storages of a size, but no data. A storage counts from the call that
makes it until the last tensor on it is dropped, as an allocator sees it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qsdm.tracing.record import TraceError


def peak_bytes(module: nn.Module, inputs: Mapping[str, Any]) -> int:
    """The most bytes that tensors made by one forward take at once, without weights, inputs and kernels' own scratch.

    Args:
        module: a skeleton (see `qsdm.tracing.skeleton`).
        inputs: arguments of its forward by name.

    Raises:
        TraceError: the forward does not run without values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    given = tree_map(
        lambda value: fake.from_tensor(value) if isinstance(value, Tensor) else value, dict(inputs)
    )
    live = _Live([*module.parameters(), *module.buffers(), *tree_leaves(given)])
    try:
        with torch.no_grad(), fake, live:
            module(**given)
    except Exception as error:
        raise TraceError(
            f"{type(module).__name__} does not run without values ({type(error).__name__}): its activations are unknown"
        ) from error
    return live.peak_bytes


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that calls make."""

    def __init__(self, given: list[Any]) -> None:
        super().__init__()
        self.peak_bytes = self._now = 0
        self._known = {
            value.untyped_storage()._cdata for value in given if isinstance(value, Tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak_bytes = max(self.peak_bytes, self._now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
