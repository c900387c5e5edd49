from __future__ import annotations

import pytest
from torch import nn


@pytest.fixture(scope="session")
def tiny_unet() -> nn.Module:
    """A U-Net of two levels with cross-attention in the inner one."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=4,
    )
