"""The zoo's denoisers and pipelines: three architectures, one autoencoder and one text encoder.

    emoji_unet      UNet2DConditionModel: convolutions, attention and cross-attention
    emoji_pixart    PixArtTransformer2DModel: adaLN-single, cross-attention
    emoji_mmdit     SD3Transformer2DModel: joint attention over text and picture

All draw 8x8x4 latents; the transformers divide them into 16 patches of 2x2. Each denoiser has at
most 4 M parameters, which is 8 MB with 16 bits.

References:
    PixArt-α: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis
        (Chen et al., 2023).
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
        figure 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qsdm.denoisers import Model
from qsdm.run.conf import CONF

MAX_LENGTH = 24  # tokens of a caption
TEXT_WIDTH = 128  # of the text encoder's states


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one denoiser of the zoo is made, conditioned and shipped.

    Attributes:
        denoiser: a new one, with random weights.
        pipeline: (folder of an autoencoder, folder of a tokenizer, folder of a text encoder,
            denoiser) => pipeline.
        conditions: (pipeline, captions) => arguments of the denoiser's forward, a row per caption.
        constants: further arguments of the denoiser's forward.
    """

    denoiser: Callable[[], nn.Module]
    pipeline: Callable[[Path, Path, Path, nn.Module], Any]
    conditions: Callable[[Any, list[str]], dict[str, Tensor]]
    constants: dict[str, Any] = field(default_factory=dict)


def unet() -> nn.Module:
    """3.9 M parameters: two resolutions, 8 and 4 latents wide, cross-attention at both."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(80, 112),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        norm_num_groups=8,
        time_embedding_dim=256,
    )


def pixart() -> nn.Module:
    """3.6 M parameters: 8 blocks of width 160."""
    from diffusers import PixArtTransformer2DModel

    denoiser = PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,  # no learned variance
        num_layers=8,
        num_attention_heads=5,
        attention_head_dim=32,
        cross_attention_dim=160,
        caption_channels=TEXT_WIDTH,
    )
    nn.init.zeros_(
        denoiser.proj_out.weight
    )  # DiT (Peebles & Xie, 2023), section 3.2: the first prediction is zero
    return denoiser


def mmdit() -> nn.Module:
    """3.5 M parameters: 6 blocks of width 128 in both streams."""
    from diffusers import SD3Transformer2DModel

    denoiser = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        caption_projection_dim=128,
        pos_embed_max_size=4,
    )
    nn.init.zeros_(denoiser.proj_out.weight)
    return denoiser


def solver() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1
    )


def autoencoder(folder: Path, **changed: Any) -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float16)
    vae.register_to_config(**changed)
    return vae


def text_parts(tokenizer: Path, encoder: Path) -> tuple[Any, Any]:
    from transformers import CLIPTextModel, CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tokenizer), CLIPTextModel.from_pretrained(
        encoder, dtype=torch.float16
    )


def stable_diffusion(vae: Path, tokenizer: Path, encoder: Path, denoiser: nn.Module) -> Any:
    from diffusers import StableDiffusionPipeline

    words, text = text_parts(tokenizer, encoder)
    return StableDiffusionPipeline(
        tokenizer=words,
        text_encoder=text,
        vae=autoencoder(vae),
        unet=denoiser,
        scheduler=solver(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart_alpha(vae: Path, tokenizer: Path, encoder: Path, denoiser: nn.Module) -> Any:
    """The pipeline takes any text encoder whose first output is states; published: a T5."""
    from diffusers import PixArtAlphaPipeline

    words, text = text_parts(tokenizer, encoder)
    return PixArtAlphaPipeline(
        tokenizer=words,
        text_encoder=text,
        vae=autoencoder(vae),
        transformer=denoiser,
        scheduler=solver(),
    )


def stable_diffusion_3(vae: Path, tokenizer: Path, encoder: Path, denoiser: nn.Module) -> Any:
    """Two text encoders, both copies of the only one, whose pooled states pass through an
    identity; no T5.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    words, text = text_parts(tokenizer, encoder)
    text.config.projection_dim = TEXT_WIDTH
    projected = CLIPTextModelWithProjection(text.config).half().eval()
    projected.text_model.load_state_dict(text.state_dict())
    nn.init.eye_(projected.text_projection.weight)
    return StableDiffusion3Pipeline(
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=None,
        text_encoder=projected,
        text_encoder_2=projected,
        text_encoder_3=None,
        vae=autoencoder(vae, shift_factor=0.0),
        transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def sd_conditions(pipeline: Any, captions: list[str]) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipeline.encode_prompt(captions, "cpu", 1, False)[0]}


def pixart_conditions(pipeline: Any, captions: list[str]) -> dict[str, Tensor]:
    states, mask, *_ = pipeline.encode_prompt(
        captions,
        do_classifier_free_guidance=False,
        clean_caption=False,
        max_sequence_length=MAX_LENGTH,
    )
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def sd3_conditions(pipeline: Any, captions: list[str]) -> dict[str, Tensor]:
    states, _, pooled, _ = pipeline.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


ARCHITECTURES = {
    "emoji_unet": Architecture(unet, stable_diffusion, sd_conditions),
    "emoji_pixart": Architecture(
        pixart,
        pixart_alpha,
        pixart_conditions,
        constants={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "emoji_mmdit": Architecture(mmdit, stable_diffusion_3, sd3_conditions),
}


def model_of(name: str, zoo: Path, **changed: Any) -> Model:
    """The pipeline in ``zoo``, as ``conf/model`` describes it but for what is ``changed``."""
    import yaml

    entry = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    fields = {key: value for key, value in entry.items() if key not in ("_target_", "defaults")}
    return Model(**fields | {"path": str(zoo / name / "pipeline")} | changed)


def parts(store: Path, zoo: Path) -> tuple[Path, Path, Path]:
    """Folders of autoencoder, tokenizer and text encoder: those trained here, else those of the
    shipped emoji_unet.
    """
    if (store / "vae").exists() and (store / "clip").exists():
        return store / "vae", store / "clip", store / "clip"
    shipped = zoo / "emoji_unet" / "pipeline"
    return shipped / "vae", shipped / "tokenizer", shipped / "text_encoder"
