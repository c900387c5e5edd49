"""Pipelines that start from pictures, or draw videos, built small with random weights, beside those
of `pipelines`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pipelines
import torch
from pipelines import SIZE, WIDTH


def _plain_scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(steps_offset=1, clip_sample=False)


def stable_diffusion(name: str, in_channels: int = 4, **parts: Any) -> Any:
    import diffusers

    tokenizer, text_encoder = pipelines.clip()
    defaults: dict[str, Any] = {
        "vae": pipelines.vae(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": pipelines.unet(cross_attention_dim=WIDTH, in_channels=in_channels),
        "scheduler": _plain_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return getattr(diffusers, name)(**(defaults | parts))


def controlnet() -> Any:
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(
        pipelines.unet(cross_attention_dim=WIDTH), conditioning_embedding_out_channels=(8,) * 4
    )
    for parameter in net.parameters():
        if not parameter.any():  # its last layers begin at zero, which would hide the picture
            torch.nn.init.normal_(parameter)
    return net


def upscale() -> Any:
    """Its VAE has a factor of 4, and its latents the size of the picture."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionUpscalePipeline

    tokenizer, text_encoder = pipelines.clip()
    return StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[8] * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=0.08333,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=pipelines.unet(cross_attention_dim=WIDTH, in_channels=7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(),
        scheduler=_plain_scheduler(),
    )


def latent_upscale() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionLatentUpscalePipeline

    tokenizer, text_encoder = pipelines.clip()
    tokenizer.model_max_length = 24
    return StableDiffusionLatentUpscalePipeline(
        vae=pipelines.vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=pipelines.unet(
            cross_attention_dim=WIDTH, in_channels=8, out_channels=5, time_cond_proj_dim=128 + WIDTH
        ),
        scheduler=EulerDiscreteScheduler(prediction_type="sample"),
    )


def depth2img() -> Any:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    import diffusers

    tokenizer, text_encoder = pipelines.clip()
    return diffusers.StableDiffusionDepth2ImgPipeline(
        vae=pipelines.vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=pipelines.unet(cross_attention_dim=WIDTH, in_channels=5),
        scheduler=_plain_scheduler(),
        depth_estimator=DPTForDepthEstimation(config),
        feature_extractor=DPTImageProcessor(size={"height": 32, "width": 32}),
    )


def refiner() -> Any:
    """The SDXL refiner: one text encoder, and five numbers beside the pooled text."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    tokenizer_2, text_encoder_2 = pipelines.clip(projected=True)
    return StableDiffusionXLImg2ImgPipeline(
        vae=pipelines.vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        unet=pipelines.unet(
            cross_attention_dim=WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )


def like(name: str, base: Callable[[], Any], **parts: Any) -> Any:
    """A pipeline of another class of the same parts."""
    import diffusers

    return getattr(diffusers, name).from_pipe(base(), **parts)


def stable_diffusion_3_inpaint() -> Any:
    """The pipeline takes 16 latent channels and no other number."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    base = pipelines.stable_diffusion_3()
    vae = {k: v for k, v in base.vae.config.items() if not k.startswith("_")}
    config = {k: v for k, v in base.transformer.config.items() if not k.startswith("_")}
    return like(
        f"{SD}3InpaintPipeline",
        lambda: base,
        vae=AutoencoderKL(**vae | {"latent_channels": 16}),
        transformer=SD3Transformer2DModel(**config | {"in_channels": 16, "out_channels": 16}),
    )


def flux(name: str, in_channels: int = 16) -> Any:
    import diffusers

    base = pipelines.flux()
    config = {k: v for k, v in base.transformer.config.items() if not k.startswith("_")}
    config |= {"in_channels": in_channels, "out_channels": 16}
    parts = dict(base.components) | {"transformer": diffusers.FluxTransformer2DModel(**config)}
    parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    return getattr(diffusers, name)(**parts)


def _wan_parts() -> dict[str, Any]:
    import diffusers

    tokenizer, text_encoder = pipelines.t5()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1] * 4,
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ),
        "boundary_ratio": 0.875,
    }


def wan_transformer(in_channels: int = 16) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=2 * WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def wan() -> Any:
    """Wan 2.2: one transformer for the first steps, another for the last."""
    from diffusers import WanPipeline

    return WanPipeline(
        transformer=wan_transformer(), transformer_2=wan_transformer(), **_wan_parts()
    )


def wan_image_to_video() -> Any:
    from diffusers import WanImageToVideoPipeline

    return WanImageToVideoPipeline(
        transformer=wan_transformer(36), transformer_2=wan_transformer(36), **_wan_parts()
    )


def stable_video_diffusion() -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(
            block_out_channels=[32] * 4,
            down_block_types=["DownEncoderBlock2D"] * 4,
            layers_per_block=1,
            latent_channels=4,
        ),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=224,  # to which the pipeline resizes
                patch_size=32,
            )
        ),
        unet=UNetSpatioTemporalConditionModel(
            sample_size=SIZE,
            in_channels=8,
            out_channels=4,
            down_block_types=["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
            up_block_types=["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
            block_out_channels=[32, 64],
            num_attention_heads=[2, 4],
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            num_frames=3,
        ),
        scheduler=EulerDiscreteScheduler(
            prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002,
            sigma_max=700, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


SD = "StableDiffusion"
BUILDERS: dict[str, Callable[[], Any]] = {
    f"{SD}InpaintPipeline": lambda: stable_diffusion(f"{SD}InpaintPipeline", 9),
    f"{SD}Img2ImgPipeline": lambda: stable_diffusion(f"{SD}Img2ImgPipeline"),
    f"{SD}InstructPix2PixPipeline": lambda: stable_diffusion(f"{SD}InstructPix2PixPipeline", 8),
    f"{SD}ControlNetPipeline": lambda: stable_diffusion(
        f"{SD}ControlNetPipeline", controlnet=controlnet()
    ),
    f"{SD}ControlNetImg2ImgPipeline": lambda: stable_diffusion(
        f"{SD}ControlNetImg2ImgPipeline", controlnet=controlnet()
    ),
    f"{SD}ControlNetInpaintPipeline": lambda: stable_diffusion(
        f"{SD}ControlNetInpaintPipeline", controlnet=controlnet()
    ),
    f"{SD}UpscalePipeline": upscale,
    f"{SD}LatentUpscalePipeline": latent_upscale,
    f"{SD}Depth2ImgPipeline": depth2img,
    f"{SD}XLImg2ImgPipeline": refiner,
    f"{SD}XLInpaintPipeline": lambda: like(f"{SD}XLInpaintPipeline", pipelines.stable_diffusion_xl),
    f"{SD}3Img2ImgPipeline": lambda: like(f"{SD}3Img2ImgPipeline", pipelines.stable_diffusion_3),
    f"{SD}3InpaintPipeline": stable_diffusion_3_inpaint,
    "FluxFillPipeline": lambda: flux("FluxFillPipeline", 16 + 16 + 4 * 64),
    "FluxControlPipeline": lambda: flux("FluxControlPipeline", 32),
    "FluxImg2ImgPipeline": lambda: flux("FluxImg2ImgPipeline"),
    "FluxInpaintPipeline": lambda: flux("FluxInpaintPipeline"),
    "FluxKontextPipeline": lambda: flux("FluxKontextPipeline"),
    "WanPipeline": wan,
    "WanImageToVideoPipeline": wan_image_to_video,
    "StableVideoDiffusionPipeline": stable_video_diffusion,
}

FLUX = {"max_sequence_length": 24}
VIDEO = {"max_sequence_length": 24, "num_frames": 9}
CALLS: dict[str, dict[str, Any]] = {
    f"{SD}3Img2ImgPipeline": {"max_sequence_length": 24},
    f"{SD}3InpaintPipeline": {"max_sequence_length": 24},
    f"{SD}UpscalePipeline": {"noise_level": 20},
    "FluxFillPipeline": FLUX,
    "FluxControlPipeline": FLUX,
    "FluxImg2ImgPipeline": FLUX,
    "FluxInpaintPipeline": FLUX,
    "FluxKontextPipeline": FLUX | {"_auto_resize": False},
    "WanPipeline": VIDEO,
    "WanImageToVideoPipeline": VIDEO,
    "StableVideoDiffusionPipeline": {"num_frames": 3, "decode_chunk_size": 1},
}
