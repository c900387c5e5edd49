"""Dynamic fake quantization of activations: a layer's inputs are rounded, each token in its range.

    [B, T, C]        one range per token (B T rows)
    [B, C, H, W]     one range per picture and channel
    softmax          from zero, as probabilities are not negative

Ranges are computed online, asymmetric, from the smallest to the largest value.

References:
    Qua²SeDiMo (Mills et al., 2025), section 3: W4A8 and W4A6 with online activation quantization.
    ZeroQuant (Yao et al., 2022), section 3.2: token-wise dynamic quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from qsdm.quant import kernels

SOFTMAX_BITS = 8  # of probabilities, whatever the bits of other activations
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fake_quantize(x: torch.Tensor, bits: int, from_zero: bool = False) -> torch.Tensor:
    """Round activations, each row in its own range.

    Args:
        x: of any floating type: [..., C], a row per token; or [B, C, H, W], a row per picture and
            channel. Other types are returned unchanged.
        bits: 2 to 8.
        from_zero: whether ranges begin at zero, with a row per token in any case.

    Returns:
        As ``x``.
    """
    if not x.is_floating_point() or x.numel() == 0:
        return x
    rows = (
        x.flatten(2).flatten(0, 1) if x.ndim == 4 and not from_zero else x.reshape(-1, x.shape[-1])
    )
    return kernels.round_tokens(rows, bits, from_zero).view(x.shape)


class Rounding:
    """Hooks that round the inputs of a module's layers, until they are removed.

    Args:
        module: the denoiser; it is as before once the rounding is removed.
        bits: 2 to 8 by the name of a layer's parameter.
        probabilities: whether attention rounds its probabilities, too. Attention that torch
            computes in one call is computed in steps, as its probabilities are needed.

    Raises:
        ValueError: the module lacks a layer, or it is neither Linear nor Conv; bits are out of
            range.
    """

    def __init__(
        self, module: nn.Module, bits: Mapping[str, int], probabilities: bool = False
    ) -> None:
        layers: dict[nn.Module, int] = {}
        for name, own in bits.items():
            if not 2 <= own <= 8:
                raise ValueError(f"activations have 2 to 8 bits (got {own} for {name!r})")
            layers[_layer_of(module, name)] = own
        self._handles = [
            layer.register_forward_pre_hook(RoundInput(own)) for layer, own in layers.items()
        ]
        if probabilities:
            self._handles += hooks_of(module, Probabilities())

    def remove(self) -> None:
        """Let the layers read their inputs as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _layer_of(module: nn.Module, parameter: str) -> nn.Module:
    try:
        layer = module.get_submodule(parameter.rpartition(".")[0])
    except AttributeError as error:
        raise ValueError(f"the module has no layer of {parameter!r}: trace it again") from error
    if not isinstance(layer, LAYERS):
        raise ValueError(
            f"the input of {parameter!r} cannot be rounded, as its layer is a "
            f"{type(layer).__name__}, neither Linear nor Conv: give its weight a16"
        )
    return layer


@dataclass(frozen=True, slots=True)
class RoundInput:
    """A hook that rounds the first argument of a layer.

    Attributes:
        bits: 2 to 8.
    """

    bits: int

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize(inputs[0], self.bits), *inputs[1:])


@dataclass(frozen=True, slots=True)
class _Enter:
    mode: Probabilities

    def __call__(self, *_: Any) -> None:
        if self.mode.is_on:
            self.mode.depth += 1
            self.mode.__enter__()


@dataclass(frozen=True, slots=True)
class _Exit:
    mode: Probabilities

    def __call__(self, *_: Any) -> None:
        if self.mode.depth:
            self.mode.depth -= 1
            self.mode.__exit__(None, None, None)


def hooks_of(module: nn.Module, mode: Probabilities) -> list[RemovableHandle]:
    """Let a module round its probabilities in each call that begins while a mode is on.

    Args:
        module: the denoiser.
        mode: of its own.

    Returns:
        Handles that remove this.
    """
    return [
        module.register_forward_pre_hook(_Enter(mode)),
        module.register_forward_hook(_Exit(mode), always_call=True),
    ]


def remove_rounding(module: nn.Module) -> None:
    """Remove every hook of a `Rounding`, also from a copy of the module.

    Args:
        module: the denoiser.
    """
    _remove(module, (RoundInput, _Enter, _Exit))


def _remove(module: nn.Module, kinds: tuple[type, ...]) -> None:
    for layer in module.modules():
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, kinds)]:
                del hooks[key]
                layer._forward_hooks_always_called.pop(key, None)


def switch_rounding(module: nn.Module, bits: Mapping[str, int], probabilities: bool) -> None:
    """Let a module's layers round their inputs as one configuration says, not as another did.

    Hooks of the module itself stay, once they are there: it may be switched within a call, of
    whose hooks torch has made a list by then.

    Args:
        module: the denoiser.
        bits: see `Rounding`.
        probabilities: see `Rounding`.

    Raises:
        ValueError: see `Rounding`.
    """
    _remove(module, (RoundInput,))
    Rounding(module, bits)
    hooks = module._forward_pre_hooks.values()
    mode = next((hook.mode for hook in hooks if isinstance(hook, _Enter)), None)
    if probabilities and mode is None:
        hooks_of(module, mode := Probabilities())
    if mode is not None:
        mode.is_on = probabilities


@contextmanager
def quantized_activations(module: nn.Module, bits: int) -> Iterator[None]:
    """Round the inputs of every Linear and Conv layer, and attention probabilities, within a block.

    Args:
        module: the denoiser; it is as before when the block ends.
        bits: of the inputs, 2 to 8.

    Raises:
        ValueError: another number of bits.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"activations have 2 to 8 bits (got {bits})")
    layers = [name for name, layer in module.named_modules() if isinstance(layer, LAYERS)]
    rounding = Rounding(module, {f"{name}.weight".lstrip("."): bits for name in layers})
    try:
        with Probabilities():
            yield
    finally:
        rounding.remove()


class Probabilities(TorchFunctionMode):
    """Within the mode, softmax and attention round their probabilities.

    Attributes:
        is_on: whether the hooks of `hooks_of` enter it.
        depth: how many calls have entered it by those hooks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_on, self.depth = True, 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        out = function(*args, **kwargs) if kwargs else function(*args)
        if function is F.softmax or function is torch.softmax or function is torch.Tensor.softmax:
            return fake_quantize(out, SOFTMAX_BITS, from_zero=True)
        return out


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` in steps, with rounded probabilities."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    # Queries are scaled, as they are smaller than their products with keys.
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    rounded = kernels.round_softmax(scores.flatten(0, -2), SOFTMAX_BITS).view(scores.shape)
    return (F.dropout(rounded, dropout_p) if dropout_p else rounded) @ value
