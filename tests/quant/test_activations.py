from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qsdm.quant.activations import fake_quantize, quantized_activations


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.conv, self.fused = nn.Conv2d(3, 16, 3, padding=1), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v))
        return self.out((q @ k.transpose(1, 2) * 0.25).softmax(-1) @ v)


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_every_token_has_its_own_range() -> None:
    x = (
        torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1, 1e3, 7, 0])[:, None]
    )
    y = fake_quantize(x, 6)
    step = (x.amax(-1) - x.amin(-1)) / 63
    assert ((y - x).abs() <= 1.001 * step[..., None]).all()
    assert all(row.unique().numel() <= 64 for row in y.view(-1, 40))


def test_pictures_have_a_range_per_channel(pictures: torch.Tensor) -> None:
    scaled = pictures * torch.tensor([1e-3, 1, 1e3])[:, None, None]
    assert torch.allclose(fake_quantize(scaled, 8)[:, 0], fake_quantize(scaled[:, :1], 8)[:, 0])
    assert (fake_quantize(scaled, 8) - scaled)[:, 0].abs().max() < 1e-4


def test_probabilities_stay_between_zero_and_one() -> None:
    p = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    q = fake_quantize(p, 8, from_zero=True)
    assert q.min() >= 0
    assert torch.equal(q.amax(-1), p.amax(-1)) or (q.amax(-1) - p.amax(-1)).abs().max() < 1e-6
    assert ((q - p).abs() <= p.amax(-1, keepdim=True) / 255).all()


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_error_falls_with_bits_and_the_module_is_left_as_it_was(
    fused: bool, pictures: torch.Tensor
) -> None:
    module = Attention(fused)
    full = module(pictures)
    errors = []
    for bits in (4, 6, 8):
        with quantized_activations(module, bits):
            errors.append(float((module(pictures) - full).square().mean()))
    assert errors[0] > errors[1] > errors[2] > 0
    assert torch.equal(module(pictures), full)


def test_attention_in_steps_is_attention(pictures: torch.Tensor) -> None:
    with quantized_activations(Attention(True), 8):
        one = Attention(True)
    with quantized_activations(one, 8):
        fused = one(pictures)
    other = Attention(False)
    with quantized_activations(other, 8):
        assert torch.allclose(fused, other(pictures), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_masks_are_honoured(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    mask = None if causal else torch.rand(7, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    if mask is not None:
        mask |= torch.eye(7, dtype=torch.bool)
    full = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    with quantized_activations(nn.Identity(), 8):
        rounded = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    assert 0 < (rounded - full).abs().max() < 0.05


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 8 bits"), quantized_activations(nn.Identity(), 1):
        pass
