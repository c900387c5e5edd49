"""Write an SDXL pipeline of full size whose weights are random: bfloat16, 7 GB in safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "bench"))

from random_values import byte_tokenizer, fill  # noqa: E402

CONFIG = ROOT / "conf" / "model" / "sdxl.yaml"
DTYPE = torch.bfloat16
TEXT = {"max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}


def build(folder: Path) -> None:
    """Write the pipeline.

    Args:
        folder: where it goes.
    """
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    rng = np.random.default_rng(0)
    small = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        **TEXT,
    )
    large = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
        projection_dim=1280,
        **TEXT,
    )
    blocks = 4
    with torch.device("meta"):
        unet = UNet2DConditionModel(**yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["config"])
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            sample_size=1024,
            scaling_factor=0.13025,
            force_upcast=True,
        )
        texts = CLIPTextModel(small), CLIPTextModelWithProjection(large)
    pipeline = StableDiffusionXLPipeline(
        vae=fill(vae, DTYPE, rng),
        text_encoder=fill(texts[0], DTYPE, rng),
        text_encoder_2=fill(texts[1], DTYPE, rng),
        tokenizer=byte_tokenizer(),
        tokenizer_2=byte_tokenizer(),
        unet=fill(unet, DTYPE, rng),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
