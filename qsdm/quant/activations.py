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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from qsdm.quant import kernels

SOFTMAX_BITS = 8  # of probabilities, whatever the bits of other activations


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
    return kernels.tokens(rows, bits, from_zero).view(x.shape)


@contextmanager
def quantized_activations(module: nn.Module, bits: int) -> Iterator[None]:
    """Round the inputs of every Linear and Conv layer, and attention probabilities, within a block.

    Attention that torch computes in one call is computed in steps, as its probabilities are needed.

    Args:
        module: the denoiser; it is as before when the block ends.
        bits: of the inputs, 2 to 8.

    Raises:
        ValueError: another number of bits.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"activations have 2 to 8 bits (got {bits})")

    def round_input(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return fake_quantize(inputs[0], bits), *inputs[1:]

    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    handles = [layer.register_forward_pre_hook(round_input) for layer in layers]
    try:
        with _Probabilities():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Probabilities(TorchFunctionMode):
    """Within the mode, softmax and attention round their probabilities."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        out = function(*args, **kwargs)
        if function in (torch.softmax, F.softmax, torch.Tensor.softmax):
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
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    probabilities = fake_quantize(scores.softmax(-1), SOFTMAX_BITS, from_zero=True)
    return F.dropout(probabilities, dropout_p) @ value
