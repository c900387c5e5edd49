"""Features of a small ImageNet network for small pictures: EfficientNet-Lite0, mean of stage 5.

Pictures are resized to 96 px (bicubic without antialiasing, clamped). Another resize would move a
Fréchet distance by more than most configurations do, so it is fixed here and part of `version`.

References:
    EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019),
        table 1; its Lite0 variant has no squeeze-and-excitation, ReLU6 for swish, and input
        (v - 127) / 128.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).with_name("lite0.safetensors")
INPUT_PX = 96
NUM_FEATURES = 112


class Stage(NamedTuple):
    """One row of the reference's table 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, which may pad one more at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] => [N, C', H / stride, W / stride], rounded up."""
        sides = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, kernel, stride in sides
        )
        if height % 2 or width % 2:  # only here: a padded copy takes as long as a convolution
            x = F.pad(x, [0, width % 2, 0, height % 2])
        padding = (height // 2, width // 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


class InvertedBottleneck(nn.Module):
    """Expand, filter every channel, project, and add the input where the shapes agree.

    Batch normalization is folded into the convolutions.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel: edge of the filters.
        stride: of the filters.
        expansion: channels while filtering, over C.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] => [N, C', H / stride, W / stride], rounded up."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.is_residual else y


class Lite0(nn.Module):
    """The stem and stages 1 to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, STAGES[0].in_channels, 3, 2)
        self.blocks = nn.Sequential(
            *(
                InvertedBottleneck(
                    s.out_channels if i else s.in_channels,
                    s.out_channels,
                    s.kernel,
                    1 if i else s.stride,
                    s.expansion,
                )
                for s in STAGES
                for i in range(s.repeats)
            )
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, H, W], 0 to 255 => mean over the pixels of stage 5, [N, 112]."""
        x = F.relu6(self.stem((pixels - 127) / 128), inplace=True)
        return self.blocks(x).mean((2, 3))


@lru_cache(maxsize=1)
def network() -> Lite0:
    """The network in evaluation mode, with the shipped weights in float32.

    Its kernels are laid out as pictures are, channels last, which saves a quarter of the time.
    """
    with torch.device("meta"):
        lite0 = Lite0()
    lite0.load_state_dict(
        {key: value.float() for key, value in load_file(WEIGHTS).items()}, assign=True
    )
    lite0.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lite0.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def version() -> str:
    """A text that changes with everything that changes the features: resize, layer, weights."""
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]
    return f"stage 5 mean, {INPUT_PX} px bicubic, {digest}"


@torch.inference_mode()
def features(images: np.ndarray, batch_size: int = 8) -> np.ndarray:
    """The features of pictures.

    Args:
        images: uint8 [N, H, W, 3].
        batch_size: pictures at a time; more than 16 leave the second-level cache.

    Returns:
        float32 [N, 112].
    """
    means = np.empty((len(images), NUM_FEATURES), dtype=np.float32)
    for start in range(0, len(images), batch_size):
        pixels = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).float()
        resized = F.interpolate(
            pixels.contiguous(),  # by channel, which resizes in half the time
            size=(INPUT_PX, INPUT_PX),
            mode="bicubic",
            align_corners=False,
            antialias=False,
        )
        by_pixel = resized.clamp_(0, 255).contiguous(memory_format=torch.channels_last)
        means[start : start + batch_size] = network()(by_pixel).numpy()
    return means
