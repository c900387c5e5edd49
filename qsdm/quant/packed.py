"""Linear and Conv layers that hold packed weights: the permanent form of a configuration.

A layer keeps codes, scales and codebooks in the types they are stored in, whatever `module.to(dtype)` says; that only
decides in which type its weight is decoded, anew at each use. A weight whose input channels have several methods (a
split skip connection) is several `PackedWeight`, side by side along the input channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels
from qsdm.quant.fitting import dequantize, layout, table
from qsdm.quant.full import dtype_of
from qsdm.quant.quantized import Quantized


class PackedWeight(nn.Module):
    """One quantized weight; buffers ``codes`` and what else its method stores.

    Args:
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
        made = PackedWeight(quantized.method, quantized.shape)
        made._buffers.update(quantized.parts)
        return made

    def forward(self, dtype: torch.dtype) -> torch.Tensor:
        """Values ``[out, in, *kernel]``."""
        others = [
            tensor
            for part, tensor in self._buffers.items()
            if part != "codes" and tensor is not None
        ]
        return decode(self.codes, others, str(self.method), list(self.shape), dtype)

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> PackedWeight:
        """Moves to another device; keeps the types."""
        for part, tensor in self._buffers.items():
            if tensor is not None:
                moved = fn(tensor)
                self._buffers[part] = (
                    moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
                )
        return self

    def extra_repr(self) -> str:
        return f"{self.method}, {'x'.join(map(str, self.shape))}"


@torch.library.custom_op("qsdm::decode", mutates_args=())
def decode(
    codes: torch.Tensor,
    others: list[torch.Tensor],
    method: str,
    shape: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Values of a quantized weight, of ``shape`` and in ``dtype``.

    Args:
        others: what the method stores beside the codes, in the order of `layout`.
    """
    parsed = QuantMethod.parse(method)
    names = [part for part in layout(parsed, tuple(shape)) if part != "codes"]
    quantized = Quantized(parsed, tuple(shape), codes, dict(zip(names, others, strict=True)))
    if codes.device.type == "cpu":
        return dequantize(quantized).to(dtype)
    if parsed.is_full:
        return codes.view(dtype_of(parsed.bits)).view(shape).to(dtype, copy=True)
    rows, fan_in = shape[0], math.prod(shape[1:])
    values = kernels.lookup(
        codes, table(quantized), parsed.bits, rows, fan_in, parsed.group_size or fan_in, dtype
    )
    return values.view(shape)


@decode.register_fake
def _(codes, others, method, shape, dtype):
    return codes.new_empty(shape, dtype=dtype)


class Decoded(torch.Tensor):
    """The values of a packed weight, for reading: what is written into them would be lost, so writing is refused."""

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
    def data(self, value: torch.Tensor) -> None:
        raise RuntimeError(_READ_ONLY)


_READ_ONLY = (
    "a packed weight cannot be written to, an adapter cannot be merged into it: keep the adapter unfused, "
    "or merge it into qsdm.checkpoint.dequantized(denoiser)"
)
_NO_VALUES = (
    "a packed weight takes no other values: load them into qsdm.checkpoint.dequantized(denoiser)"
)
_WRITING = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
}  # beside the names that end in _


class PackedLayer(nn.Module):
    """What the packed layers share; beside the class of torch whose place they take."""

    packed: nn.ModuleList
    like: torch.Tensor  # empty; of the type and on the device that the weight is decoded to

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """With a layer's options, as peft makes layers of the class that it adapts: a plain layer."""
        if not (args or kwargs):
            return super().__new__(cls)
        return next(plain for plain, packed in PACKED.items() if packed is cls)(*args, **kwargs)

    @classmethod
    def of(cls, layer: Any, parts: Iterable[PackedWeight]) -> Any:
        """``layer`` with its weight in ``parts``, along the input channels; bias, hooks and options are taken over."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        own = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
        made.__dict__.update({key: value for key, value in vars(layer).items() if key not in own})
        made.register_parameter("bias", layer.bias)
        # Before the parts: diffusers takes the first floating buffer of a module for its type.
        device = "cpu" if layer.weight.is_meta else layer.weight.device
        like = torch.empty(0, dtype=layer.weight.dtype, device=device)
        made.register_buffer("like", like, persistent=False)
        made.packed = nn.ModuleList(parts)
        return made

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which the weight is decoded; it follows ``.to(dtype)``, as the weight of a plain layer would."""
        return self.like.dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.like = self.like.to(dtype)

    def decoded(self) -> torch.Tensor:
        values = [part(self.compute_dtype) for part in self.packed]
        return values[0] if len(values) == 1 else torch.cat(values, 1)

    @property
    def weight(self) -> torch.Tensor:
        return self.decoded().as_subclass(Decoded)

    def plain(self, weight: nn.Parameter) -> nn.Module:
        """The inverse of `of`: the layer of torch, with ``weight``."""
        kind = next(plain for plain, packed in PACKED.items() if packed is type(self))
        made = kind.__new__(kind)
        nn.Module.__init__(made)
        own = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
        made.__dict__.update({key: value for key, value in vars(self).items() if key not in own})
        made._parameters.update(weight=weight, bias=self._parameters["bias"])
        return made

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
        """Takes packed parts. Values of a plain layer would be ignored, without a word unless strict."""
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
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.decoded(), self.bias)


class PackedConv1d(PackedLayer, nn.Conv1d):  # type: ignore[misc,override]
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.decoded(), self.bias)


class PackedConv2d(PackedLayer, nn.Conv2d):  # type: ignore[misc,override]
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.decoded(), self.bias)


class PackedConv3d(PackedLayer, nn.Conv3d):  # type: ignore[misc,override]
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.decoded(), self.bias)


PACKED: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
    nn.Conv3d: PackedConv3d,
}
