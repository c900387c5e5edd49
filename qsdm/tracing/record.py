"""Record a denoiser's forward: one `Call` per torch function, with the origin of its operands.

A ``TorchFunctionMode`` sees functions as they are written (``F.linear``, ``torch.cat``, ``x * y``);
hooks tell which module calls them.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from qsdm.tracing import lazy
from qsdm.tracing.calls import KIND_OF, Call, Failure, Operand, Recording

# Questions about a tensor, not computations with it
_QUERIES = frozenset(
    """
    is_floating_point is_complex size dim numel stride item tolist is_contiguous requires_grad_
    data_ptr element_size untyped_storage storage_offset get_device is_inference
    __len__ __bool__ __int__ __float__ __format__ __repr__
    """.split()  # noqa: SIM905
)
# Properties of a tensor that are tensors of the same data
_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_SDPA_ROLES = ("q", "k", "v", "mask")
_SDPA_NAMES = {"query": "q", "key": "k", "value": "v", "attn_mask": "mask"}


def record(module: nn.Module, inputs: Mapping[str, Any]) -> Recording:
    """Run the forward of a skeleton once, for its shapes.

    Args:
        module: a skeleton (see `qsdm.tracing.skeleton`).
        inputs: arguments of its forward by name.

    Returns:
        All calls of the forward.

    Raises:
        TraceError: the forward fails; the message names the call that failed.
    """
    recording, failure = attempt(module, inputs)
    if failure is not None:
        raise failure.to_error(module, inputs) from failure.error
    assert recording is not None
    return recording


def attempt(
    module: nn.Module, inputs: Mapping[str, Any]
) -> tuple[Recording | None, Failure | None]:
    """Run the forward of a skeleton once, and return a failure instead of raising it.

    Args:
        module: a skeleton (see `qsdm.tracing.skeleton`).
        inputs: arguments of its forward by name.

    Returns:
        The recording and None, or None and the failure.
    """
    recorder = Recorder(module)
    with torch.no_grad(), torch.device("cpu"), _plain_attention(), recorder.hooked():
        arguments = list(lazy.tensors(inputs))
        only_ids = not any(tensor.is_floating_point() for _, tensor in arguments)
        for i, (name, tensor) in enumerate(arguments):
            # The first of nothing but integers is a text encoder's data, whatever it is called.
            recorder.add_input(name, tensor, i == 0 and only_ids)
        try:
            with recorder:
                result = module(**inputs)
        except Exception as error:
            function, path, args, kwargs = recorder.failed_call or ("", "", (), {})
            return None, Failure(error, function, path, args, kwargs, recorder.inputs_of)
    recorder.add_output(result)
    return Recording(recorder.calls, recorder.frames), None


class Recorder(TorchFunctionMode):
    """The mode and the hooks behind `record`.

    Args:
        module: a skeleton (see `qsdm.tracing.skeleton`).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[Call] = []
        self.frames: dict[int, str] = {}
        # Function, module and arguments of the first call that failed
        self.failed_call: tuple[str, str, Any, Mapping[str, Any]] | None = None
        self._names = {
            id(p): name
            for name, p in reversed(list(module.named_parameters(remove_duplicate=False)))
        }
        self._stack: list[int] = []
        # Weak keys, because ids of tensors are reused as soon as the forward frees them
        self._source = WeakTensorKeyDictionary()
        self._derived = WeakTensorKeyDictionary()  # tensor => parameters it is a view or cast of
        # Storage => the last call that wrote to it, perhaps through a view
        self._writer_of: dict[StorageWeakRef, int] = {}

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook every module for the length of the block, to know whose forward runs."""
        handles = []
        for path, module in self.module.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(path)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable:
        def hook(*_: Any) -> None:
            self.frames[len(self.frames)] = path
            self._stack.append(len(self.frames) - 1)

        return hook

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def inputs_of(self, tensor: Tensor, past_weights: bool = False) -> list[str]:
        """Find the inputs that reach a tensor.

        Args:
            tensor: a tensor of the forward.
            past_weights: also follow data through weights, not only through embedding tables.

        Returns:
            Paths of the inputs, sorted.
        """
        waiting, seen, paths = [operand.source for operand in self._operands("", tensor)], set(), []
        while waiting:
            if (i := waiting.pop()) in seen:
                continue
            seen.add(i)
            call = self.calls[i]
            if call.kind == "input":
                paths.append(call.function)
            elif (
                past_weights
                or call.kind == "embedding"
                or not any(len(shape) >= 2 for _, shape in call.parameters)
            ):
                waiting += [operand.source for operand in call.operands]
        return sorted(paths)

    def add_input(self, name: str, tensor: Tensor, is_data: bool = False) -> None:
        """Record an input, ``name`` being its path, before the forward runs."""
        self._source[tensor] = len(self.calls)
        plumbing = not is_data and is_plumbing(name, tensor)
        self.calls.append(Call("input", name, "", shape=tuple(tensor.shape), plumbing=plumbing))

    def add_output(self, result: Any) -> None:
        """Record the forward's result after it has run."""
        if hasattr(result, "to_tuple"):
            result = result.to_tuple()
        call = Call("output", "output", "")
        for role, tensor in lazy.tensors(result):
            call.operands += self._operands(role, tensor)
            call.shape = call.shape or tuple(tensor.shape)
        self.calls.append(call)

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__", "__delete__"):
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            if name not in _PROPERTIES:
                return func(*args, **kwargs)
        if name in _QUERIES:
            return func(*args, **kwargs)
        try:
            result = lazy.call(func, name, args, kwargs, lambda tensor: id(tensor) in self._names)
        except Exception:
            path = self.frames[self._stack[-1]] if self._stack else ""
            self.failed_call = self.failed_call or (name, path, args, kwargs)
            raise
        self._record(name, args, kwargs, result)
        return result

    def _record(self, name: str, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        results = [tensor for _, tensor in lazy.tensors(result)]
        operands = _arguments(name, args, kwargs)
        if lazy.writes(name, kwargs) and args and isinstance(args[0], Tensor):
            results = [args[0]]
        elif not results or all(any(out is tensor for _, tensor in operands) for out in results):
            return  # nothing was computed: .to() of the same dtype, dropout in evaluation mode
        kind = KIND_OF.get(name, "other")
        call = Call(
            kind, name, self.frames[self._stack[-1]] if self._stack else "", tuple(self._stack)
        )
        for role, tensor in operands:
            call.parameters += [
                (parameter, tuple(tensor.shape)) for parameter in self._parameters(tensor)
            ]
            call.operands += self._operands(role, tensor)
        call.shape = tuple(results[0].shape)
        call.macs = _macs(kind, operands, results[0])
        if kind == "concat" and name != "stack":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            call.concat_dim = dim % max(1, results[0].dim()) if isinstance(dim, int) else None
        for tensor in results:
            self._source[tensor] = len(self.calls)
            if call.parameters and not call.operands and kind not in ("linear", "conv"):
                self._derived[tensor] = tuple(dict.fromkeys(name for name, _ in call.parameters))
        if lazy.writes(name, kwargs) and results:
            # Wrapped tensors inside vmap have no storage.
            with contextlib.suppress(NotImplementedError, RuntimeError):
                self._writer_of[StorageWeakRef(results[0].untyped_storage())] = len(self.calls)
        self.calls.append(call)

    def _parameters(self, tensor: Tensor) -> tuple[str, ...]:
        if id(tensor) in self._names:
            return (self._names[id(tensor)],)
        return self._derived.get(tensor, ())

    def _operands(self, role: str, tensor: Tensor) -> list[Operand]:
        if id(tensor) in self._names or tensor in self._derived:
            return []
        sources = [self._source[tensor]] if tensor in self._source else []
        if self._writer_of:
            with contextlib.suppress(NotImplementedError, RuntimeError):
                writer = self._writer_of.get(StorageWeakRef(tensor.untyped_storage()))
                if writer is not None and (not sources or writer > sources[0]):
                    sources.append(writer)
        return [Operand(source, role, tuple(tensor.shape)) for source in sources]


_PLUMBING = re.compile(
    r"(^|_|\.)(ids|masks?|rotary|rope|freqs|cis|positions?|coords|ind(ices|exes)|shapes?|sizes?|lens"
    r"|pos_embeds?)(_|\.|$)"
)


def is_plumbing(name: str, tensor: Tensor) -> bool:
    """Tell whether an input holds positions, masks or sizes rather than data or conditioning.

    Args:
        name: its path.
        tensor: its value.

    Returns:
        True for positions, masks and sizes.
    """
    if _PLUMBING.search(name):
        return True
    return not tensor.is_floating_point() and not re.search("label|time", name)


def _arguments(name: str, args: Any, kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Role and tensor of every operand; the roles of attention are q, k, v and mask."""
    if KIND_OF.get(name) != "sdpa":
        return list(lazy.tensors(args)) + list(lazy.tensors(kwargs))
    named = dict(zip(_SDPA_ROLES, args, strict=False)) | {
        _SDPA_NAMES.get(key, key): value for key, value in kwargs.items()
    }
    return [(role, named[role]) for role in _SDPA_ROLES if isinstance(named.get(role), Tensor)]


def _macs(kind: str, arguments: Sequence[tuple[str, Tensor]], result: Tensor) -> int:
    """Multiply-accumulates of a call."""
    operands = [tensor for _, tensor in arguments]
    if kind == "linear":
        return result.numel() * operands[1].shape[-1]
    if kind == "conv":
        return result.numel() * math.prod(operands[1].shape[1:])
    if kind == "conv_transpose":
        return operands[0].numel() * math.prod(operands[1].shape[1:])
    if kind == "sdpa":
        q, k, v = operands[:3]
        return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    if kind == "matmul" and len(operands) >= 2:
        inner = operands[-2] if len(operands) > 2 else operands[0]  # baddbmm(bias, a, b)
        return result.numel() * inner.shape[-1]
    return 0


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Replace flex_attention, which compiles itself and cannot run inside a mode."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, enable_gqa=query.shape[1] != key.shape[1]
        )

    def no_mask(*_: Any, **__: Any) -> None:
        return None

    originals = []
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.models") or name == "torch.nn.attention.flex_attention":
            for key, stand_in in (("flex_attention", attention), ("create_block_mask", no_mask)):
                if callable(original := vars(module).get(key)):
                    originals.append((module, key, original))
                    setattr(module, key, stand_in)
    try:
        yield
    finally:
        for module, key, original in originals:
            setattr(module, key, original)
