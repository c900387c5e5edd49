"""The pipelines of published models, built small with random weights: the classes are diffusers'
own, the parts few and narrow. All have a VAE of factor 8, latents of 8x8, and pictures of 64 px.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny import build_tiny_tokenizer

from qsdm.denoisers import Model, discover

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

WIDTH = 16  # of text embeddings
SIZE = 8  # of latents
RESOLUTION_PX = 64


def build_model(name: str, folder: Path, **fields: Any) -> Model:
    """The pipeline of class ``name``, saved to ``folder`` and found there, as ``+model=any`` finds
    it.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        BUILDERS[name]().save_pretrained(folder)
    options: dict[str, Any] = {
        "resolution_px": RESOLUTION_PX,
        "steps": 2,
        "guidance": 2.0,
        "call": CALLS.get(name, {}),
    }
    return discover(str(folder), name, **(options | fields))


# ---- parts


def vae(**config: Any) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8] * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION_PX,
        mid_block_add_attention=False,
        **config,
    )


def clip(max_length: int = 24, projected: bool = False) -> tuple[Any, Any]:
    """A tokenizer and a text encoder, with or without a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = build_tiny_tokenizer(max_length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,  # SDXL and SD3 take the last but one
        num_attention_heads=2,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5(max_length: int = 24) -> tuple[Any, Any]:
    """A tokenizer of letters and a text encoder."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,"),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=2 * WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
    )
    return tokenizer, T5EncoderModel(config)


def bert() -> tuple[Any, Any]:
    """A tokenizer of letters and a text encoder."""
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ",",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=77)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=WIDTH,
    )
    return tokenizer, BertModel(config)


def unet(**config: Any) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        **config,
    )


# ---- pipelines


def stable_diffusion() -> DiffusionPipeline:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer, text_encoder = clip()
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=WIDTH),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> DiffusionPipeline:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer, text_encoder = clip()
    tokenizer_2, text_encoder_2 = clip(projected=True)
    ids = 8  # channels of each of the six numbers beside the pooled text
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=ids,
            projection_class_embeddings_input_dim=6 * ids + WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def pixart(pipeline: str, **config: Any) -> DiffusionPipeline:
    import diffusers

    tokenizer, text_encoder = t5()
    return getattr(diffusers, pipeline)(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=SIZE,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=2 * WIDTH,
            **config,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def hunyuan() -> DiffusionPipeline:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    tokenizer, text_encoder = bert()
    tokenizer_2, text_encoder_2 = t5(max_length=256)
    return HunyuanDiTPipeline(
        vae=vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=HunyuanDiT2DModel(
            sample_size=SIZE,
            in_channels=4,
            patch_size=2,
            num_layers=4,  # the long skips need a second half
            num_attention_heads=2,
            attention_head_dim=8,
            hidden_size=16,
            cross_attention_dim=WIDTH,
            cross_attention_dim_t5=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            text_len=77,
            text_len_t5=256,
            activation_fn="gelu-approximate",
        ),
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def dit() -> DiffusionPipeline:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            sample_size=SIZE,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        ),
        vae=vae(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )


def stable_diffusion_3() -> DiffusionPipeline:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer, text_encoder = clip(projected=True)
    tokenizer_2, text_encoder_2 = clip(projected=True)
    tokenizer_3, text_encoder_3 = t5()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIZE,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=SIZE,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.0609),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def flux() -> DiffusionPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, text_encoder = clip()
    tokenizer_2, text_encoder_2 = t5()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1159),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=16,  # four latent channels of 2x2 patches
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "PixArtAlphaPipeline": lambda: pixart("PixArtAlphaPipeline"),
    "PixArtSigmaPipeline": lambda: pixart(
        "PixArtSigmaPipeline", interpolation_scale=2, use_additional_conditions=False
    ),
    "HunyuanDiTPipeline": hunyuan,
    "DiTPipeline": dit,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
}

PIXART = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24}
CALLS: dict[str, dict[str, Any]] = {
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
    "HunyuanDiTPipeline": {"use_resolution_binning": False},
    "StableDiffusion3Pipeline": {"max_sequence_length": 24},
    "FluxPipeline": {"max_sequence_length": 24},
}
