"""Linear, Conv and Embedding layers with packed weights: the permanent form of a configuration.

A layer keeps codes, scales and codebooks in their stored types, whatever `module.to(dtype)` says;
that only decides the type to which its weight is decoded, anew at each use. A weight whose input
channels have several methods (a split skip connection) is several `PackedWeight`, side by side
along the input channels. A layer whose weight changes with the sampler's steps holds the parts of
all its versions, each once, and computes with one version at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qsdm.qconfig import QuantMethod
from qsdm.quant.decoding import decode, layout
from qsdm.quant.methods import METHODS
from qsdm.quant.quantized import Quantized


class PackedWeight(nn.Module):
    """One quantized weight, with the buffers ``codes`` and those of its method.

    Args:
        method: any method.
        shape: of the weight, ``[out, in, *kernel]``.
        device: of the buffers, which are not initialized.
    """

    codes: torch.Tensor

    def __init__(
        self, method: QuantMethod, shape: tuple[int, ...], device: torch.device | str = "meta"
    ) -> None:
        super().__init__()
        self.method, self.shape = method, shape
        for part, (dtype, size) in layout(method, shape).items():
            self.register_buffer(part, torch.empty(size, dtype=dtype, device=device))

    @staticmethod
    def of(quantized: Quantized) -> PackedWeight:
        """A packed weight that shares the tensors of a quantized one.

        Args:
            quantized: by any method.
        """
        packed = PackedWeight(quantized.method, quantized.shape)
        packed._buffers.update(quantized.parts)
        return packed

    def forward(self, dtype: torch.dtype) -> torch.Tensor:
        """The values of the weight.

        Args:
            dtype: any floating type.

        Returns:
            ``[out, in, *kernel]`` on the device of the codes.
        """
        others = [
            tensor
            for part, tensor in self._buffers.items()
            if part != "codes" and tensor is not None
        ]
        return decode(self.codes, others, str(self.method), list(self.shape), dtype)

    def rows(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The values of some rows; the others are not decoded if each row is stored by itself.

        Args:
            numbers: of the rows, integers of any shape.
            dtype: any floating type.

        Returns:
            ``[*numbers.shape, in, *kernel]`` on the device of the codes.
        """
        num_rows, *others = self.shape
        tensors = {part: t for part, t in self._buffers.items() if t is not None}
        codes, wanted = tensors.pop("codes"), numbers.flatten()
        shared = METHODS[self.method.name].per_tensor
        if len(codes) % num_rows or not (
            shared or all(len(tensor) == num_rows for tensor in tensors.values())
        ):
            return self(dtype)[numbers]
        own = [tensor if shared else tensor[wanted] for tensor in tensors.values()]
        codes = codes.view(num_rows, -1)[wanted].flatten()
        values = decode(codes, own, str(self.method), [len(wanted), *others], dtype)
        return values.view(*numbers.shape, *others)

    def _apply(
        self,
        fn: Callable[[torch.Tensor], torch.Tensor],
        recurse: bool = True,  # noqa: ARG002, a keyword of torch
    ) -> PackedWeight:
        """Move to another device; types stay."""
        for part, tensor in self._buffers.items():
            if tensor is not None:
                moved = fn(tensor)
                self._buffers[part] = (
                    moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
                )
        return self

    def extra_repr(self) -> str:
        return f"{self.method}, {'x'.join(map(str, self.shape))}"


class Decoded(torch.Tensor):
    """The values of a packed weight, read-only: what is written into them would be lost."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        first = next(iter((*args, *(kwargs or {}).values())), None)
        if isinstance(first, cls) and (
            func.__name__ in _WRITING or re.fullmatch(r"[a-z].*[^_]_", func.__name__)
        ):
            raise RuntimeError(_READ_ONLY)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @property
    def data(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    @data.setter
    def data(self, _value: torch.Tensor) -> None:
        raise RuntimeError(_READ_ONLY)


_READ_ONLY = (
    "a packed weight cannot be written to, so an adapter cannot be merged into it: keep the "
    "adapter unfused, or merge it into qsdm.checkpoint.dequantized(denoiser)"
)
_NO_VALUES = (
    "a packed weight takes no other values: load them into qsdm.checkpoint.dequantized(denoiser)"
)
_WRITING = {  # beside the names that end in _
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
}


class PackedLayer(nn.Module):
    """Base of the packed layers, beside the class of torch that each replaces."""

    packed: nn.ModuleList
    versions: tuple[tuple[int, ...], ...]  # numbers of the parts that make up each version
    version: int  # in force
    like: torch.Tensor  # empty; the weight is decoded to its type and device

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A plain layer if options are given, as peft creates layers of the class it adapts."""
        if not (args or kwargs):
            return super().__new__(cls)
        return next(plain for plain, packed in PACKED.items() if packed is cls)(*args, **kwargs)

    @classmethod
    def of(
        cls,
        layer: Any,
        parts: Iterable[PackedWeight],
        versions: tuple[tuple[int, ...], ...] = (),
    ) -> Any:
        """Replace the weight of a layer.

        Args:
            layer: of torch's class; its bias, hooks and options are taken over.
            parts: the packed weight, in parts along the input channels, of all versions.
            versions: numbers of the parts of each version, in order of their input channels; none
                for the one that all parts make up.

        Returns:
            A layer of this class.
        """
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        registries = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
        packed.__dict__.update(
            {key: value for key, value in vars(layer).items() if key not in registries}
        )
        others = {name: p for name, p in layer._parameters.items() if name != "weight"}
        packed._parameters.update(others)
        # Before the parts, as diffusers takes the type of a module from its first floating buffer.
        device = "cpu" if layer.weight.is_meta else layer.weight.device
        like = torch.empty(0, dtype=layer.weight.dtype, device=device)
        packed.register_buffer("like", like, persistent=False)
        packed.packed = nn.ModuleList(parts)
        packed.versions = versions or (tuple(range(len(packed.packed))),)
        packed.version = 0
        return packed

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type to which the weight is decoded; it follows ``.to(dtype)``."""
        return self.like.dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.like = self.like.to(dtype)

    @property
    def is_stepped(self) -> bool:
        """Whether the weight has several versions, for several bins of steps."""
        return len(self.versions) > 1

    def decoded(self) -> torch.Tensor:
        """The values of the version in force, ``[out, in, *kernel]`` in `compute_dtype`."""
        parts = [self.packed[number] for number in self.versions[self.version]]
        values = [part(self.compute_dtype) for part in parts]
        return values[0] if len(values) == 1 else torch.cat(values, 1)

    @property
    def weight(self) -> torch.Tensor:
        """The values of the weight, read-only."""
        return self.decoded().as_subclass(Decoded)

    def plain(self, weight: nn.Parameter) -> nn.Module:
        """The inverse of `of`.

        Args:
            weight: values, ``[out, in, *kernel]``.

        Returns:
            A layer of torch's class.
        """
        kind = next(plain for plain, packed in PACKED.items() if packed is type(self))
        layer = kind.__new__(kind)
        nn.Module.__init__(layer)
        own = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
        own |= {"versions", "version"}
        layer.__dict__.update({key: value for key, value in vars(self).items() if key not in own})
        layer._parameters.update({"weight": weight, **self._parameters})
        return layer

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load packed parts, and refuse a plain weight, which torch would ignore unless strict."""
        if f"{prefix}weight" in state_dict:
            error_msgs.append(f"{prefix}weight: {_NO_VALUES}")
        else:
            super()._load_from_state_dict(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc,override]
    """A packed `torch.nn.Linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.decoded(), self.bias)


class PackedConv1d(PackedLayer, nn.Conv1d):  # type: ignore[misc,override]
    """A packed `torch.nn.Conv1d`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.decoded(), self.bias)


class PackedConv2d(PackedLayer, nn.Conv2d):  # type: ignore[misc,override]
    """A packed `torch.nn.Conv2d`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.decoded(), self.bias)


class PackedConv3d(PackedLayer, nn.Conv3d):  # type: ignore[misc,override]
    """A packed `torch.nn.Conv3d`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.decoded(), self.bias)


class PackedEmbedding(PackedLayer, nn.Embedding):  # type: ignore[misc,override]
    """A packed `torch.nn.Embedding`, of which only the rows that are looked up are decoded."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        (number,) = self.versions[self.version]  # a table is never split along its columns
        table: Any = self.packed[number]
        return table.rows(input, self.compute_dtype)


PACKED: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
    nn.Conv3d: PackedConv3d,
    nn.Embedding: PackedEmbedding,
}
