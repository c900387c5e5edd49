"""A tiny text-to-image pipeline with random weights, for tests of everything that draws pictures or
reads weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsdm.denoisers import Model

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CAPTIONS = [
    "a red house",
    "two small fish",
    "the moon",
    "a cat, asleep",
    "green tea",
    "an old key",
    "rain",
    "a paper boat",
]


def build_tiny_model(folder: Path, seed: int = 0) -> Model:
    import torch
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from qsdm.metrics.fidelity import Psnr
    from qsdm.metrics.frechet import FrechetLite0, write_reference

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tiny_tokenizer(max_length=24)
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=[8, 16],
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        ids = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            **ids,
        )
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder / "pipeline")
    (folder / "prompts.json").write_text(json.dumps(CAPTIONS))
    reference = folder / "reference.safetensors"
    write_reference(reference, np.random.default_rng(seed).normal(size=(200, 112)))
    return Model(
        name="tiny",
        path=str(folder / "pipeline"),
        denoiser="UNet2DConditionModel",
        component="unet",
        resolution_px=16,
        steps=2,
        guidance=2.0,
        full_bits=16,
        num_params=sum(p.numel() for p in unet.parameters()),
        config={key: value for key, value in unet.config.items() if not key.startswith("_")},
        prompts=str(folder / "prompts.json"),
        metrics={"fd_lite0": FrechetLite0(str(reference)), "psnr": Psnr()},
    )


def build_tiny_tokenizer(max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer of bytes."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [
        "<|startoftext|>",
        "<|endoftext|>",
        *alphabet,
        *(f"{symbol}</w>" for symbol in alphabet),
    ]
    return CLIPTokenizer(
        vocab={symbol: i for i, symbol in enumerate(symbols)},
        merges=[],
        model_max_length=max_length,
    )
