"""Peak activation memory of a forward, without computing or allocating its tensors.

In the fake forward, tensors have shapes, dtypes and sized storages, but no data. As for an
allocator, a storage counts from the call that creates it until its last tensor is dropped.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qsdm.tracing.calls import TraceError


def peak_bytes(module: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Measure the peak size of the tensors that one forward creates.

    Weights, inputs and the kernels' own scratch memory do not count.

    Args:
        module: a skeleton (see `qsdm.tracing.skeleton`).
        inputs: arguments of its forward by name.

    Returns:
        Bytes.

    Raises:
        TraceError: the forward does not run without values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    arguments = tree_map(
        lambda value: fake.from_tensor(value) if isinstance(value, Tensor) else value, dict(inputs)
    )
    live = _Live([*module.parameters(), *module.buffers(), *tree_leaves(arguments)])
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_off, logger.disabled = logger.disabled, True  # it logs the traceback of what is raised
    try:
        with torch.no_grad(), fake, live:
            module(**arguments)
    except Exception as error:
        raise TraceError(
            f"{type(module).__name__} does not run without values ({type(error).__name__}): "
            "its activations are unknown"
        ) from error
    finally:
        logger.disabled = was_off
    return live.peak_bytes


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that calls create, apart from those of ``existing``."""

    def __init__(self, existing: list[Any]) -> None:
        super().__init__()
        self.peak_bytes = self._live_bytes = 0
        self._counted = {
            value.untyped_storage()._cdata for value in existing if isinstance(value, Tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted:
            return
        self._counted.add(key)
        self._live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self._live_bytes -= size
