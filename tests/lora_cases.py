"""For each LoRA loader of diffusers a tiny denoiser, packed or not, and inputs of its forward."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qsdm.checkpoint import load_quantized, save_denoiser
from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.tracing import inputs, repair, skeleton

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
ONE = {"num_layers": 1}
ROPE = {"axes_dims_rope": (4, 4, 8)}
ROPE4 = {"axes_dims_rope": (4, 4, 4, 4)}


@dataclass(frozen=True, slots=True)
class LoraCase:
    """One loader.

    Attributes:
        pipeline: a class of diffusers that loads LoRAs with it.
        denoiser: class of its denoiser.
        config: makes it tiny.
        inputs: overrides of the built inputs, as `qsdm.tracing.inputs.build` takes them.
        component: attribute of the pipeline that holds the denoiser.
    """

    pipeline: str
    denoiser: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    component: str = "transformer"


UNET = {
    "sample_size": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
WAN = (
    HEADS
    | ONE
    | {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "in_channels": 4, "out_channels": 4}
)

CASES: dict[str, LoraCase] = {
    "StableDiffusionLoraLoaderMixin": LoraCase(
        "StableDiffusionPipeline", "UNet2DConditionModel", UNET, component="unet"
    ),
    "StableDiffusionXLLoraLoaderMixin": LoraCase(
        "StableDiffusionXLPipeline", "UNet2DConditionModel", UNET | XL, component="unet"
    ),
    "SD3LoraLoaderMixin": LoraCase(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        HEADS
        | {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
    ),
    "AuraFlowLoraLoaderMixin": LoraCase(
        "AuraFlowPipeline",
        "AuraFlowTransformer2DModel",
        HEADS
        | {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
    ),
    "FluxLoraLoaderMixin": LoraCase(
        "FluxPipeline",
        "FluxTransformer2DModel",
        HEADS
        | ONE
        | ROPE
        | {
            "in_channels": 16,
            "num_single_layers": 1,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "guidance_embeds": True,
        },
    ),
    "AmusedLoraLoaderMixin": LoraCase(
        "AmusedPipeline",
        "UVit2DModel",
        {
            "hidden_size": 32,
            "cond_embed_dim": 16,
            "micro_cond_encode_dim": 8,
            "micro_cond_embed_dim": 40,
            "encoder_hidden_size": 16,
            "vocab_size": 40,
            "codebook_size": 32,
            "in_channels": 32,
            "block_out_channels": 32,
            "num_res_blocks": 1,
            "block_num_heads": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "sample_size": 8,
        },
        {
            "input_ids": {"shape": [1, 8, 8], "dtype": "int64", "value": 3},
            "encoder_hidden_states": [1, 8, 16],
            "pooled_text_emb": [1, 16],
            "micro_conds": [1, 5],
        },
    ),
    "CogVideoXLoraLoaderMixin": LoraCase(
        "CogVideoXPipeline",
        "CogVideoXTransformer3DModel",
        HEADS
        | ONE
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 8,
        },
    ),
    "Mochi1LoraLoaderMixin": LoraCase(
        "MochiPipeline",
        "MochiTransformer3DModel",
        HEADS
        | {
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": 8,
        },
    ),
    "LTXVideoLoraLoaderMixin": LoraCase(
        "LTXPipeline",
        "LTXVideoTransformer3DModel",
        HEADS
        | ONE
        | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 16},
    ),
    "LTX2LoraLoaderMixin": LoraCase(
        "LTX2Pipeline",
        "LTX2VideoTransformer3DModel",
        HEADS
        | ONE
        | {
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "audio_in_channels": 8,
            "audio_out_channels": 8,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "caption_channels": 16,
        },
        {
            "hidden_states": [1, 32, 8],
            "audio_hidden_states": [1, 8, 8],
            "encoder_hidden_states": [1, 8, 16],
            "audio_encoder_hidden_states": [1, 8, 16],
            "num_frames": 2,
            "height": 4,
            "width": 4,
            "audio_num_frames": 8,
        },
    ),
    "SanaLoraLoaderMixin": LoraCase(
        "SanaPipeline",
        "SanaTransformer2DModel",
        HEADS
        | ONE
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 8,
        },
    ),
    "HeliosLoraLoaderMixin": LoraCase(
        "HeliosPipeline",
        "HeliosTransformer3DModel",
        WAN | {"in_channels": 16, "out_channels": 16, "rope_dim": (8, 4, 4)},
    ),
    "HunyuanVideoLoraLoaderMixin": LoraCase(
        "HunyuanVideoPipeline",
        "HunyuanVideoTransformer3DModel",
        HEADS
        | ONE
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
    "Lumina2LoraLoaderMixin": LoraCase(
        "Lumina2Pipeline",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 4, 4),
            "axes_lens": (300, 64, 64),
            "cap_feat_dim": 16,
        },
    ),
    "KandinskyLoraLoaderMixin": LoraCase(
        "Kandinsky5T2VPipeline",
        "Kandinsky5Transformer3DModel",
        {
            "in_text_dim": 16,
            "in_text_dim2": 16,
            "time_dim": 16,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (4, 6, 6),
        },
        {"encoder_hidden_states": [1, 64, 16], "pooled_projections": [1, 16]},
    ),
    "WanLoraLoaderMixin": LoraCase("WanPipeline", "WanTransformer3DModel", WAN),
    "SkyReelsV2LoraLoaderMixin": LoraCase(
        "SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel", WAN
    ),
    "CogView4LoraLoaderMixin": LoraCase(
        "CogView4Pipeline",
        "CogView4Transformer2DModel",
        HEADS
        | ONE
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
    ),
    "HiDreamImageLoraLoaderMixin": LoraCase(
        "HiDreamImagePipeline",
        "HiDreamImageTransformer2DModel",
        HEADS
        | ONE
        | {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": 1,
            "caption_channels": [16, 16],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (8, 4, 4),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        {
            "encoder_hidden_states_t5": [1, 8, 16],
            "encoder_hidden_states_llama3": [2, 1, 8, 16],
            "pooled_embeds": [1, 16],
            "hidden_states": [1, 4, 8, 8],
        },
    ),
    "QwenImageLoraLoaderMixin": LoraCase(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        HEADS | ONE | ROPE | {"in_channels": 16, "out_channels": 4, "joint_attention_dim": 16},
    ),
    "Krea2LoraLoaderMixin": LoraCase(
        "Krea2Pipeline",
        "Krea2Transformer2DModel",
        HEADS
        | ONE
        | ROPE
        | {
            "in_channels": 16,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 32,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 32,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
        },
    ),
    "ZImageLoraLoaderMixin": LoraCase(
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [4, 6, 6],
            "axes_lens": [512, 64, 64],
        },
    ),
    "AnimaLoraLoaderMixin": LoraCase(
        "AnimaModularPipeline",
        "CosmosTransformer3DModel",
        HEADS
        | ONE
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "adaln_lora_dim": 8,
            "max_size": (16, 64, 64),
            "concat_padding_mask": False,
        },
    ),
    "Flux2LoraLoaderMixin": LoraCase(
        "Flux2Pipeline",
        "Flux2Transformer2DModel",
        HEADS
        | ONE
        | ROPE4
        | {
            "in_channels": 16,
            "num_single_layers": 1,
            "joint_attention_dim": 16,
            "timestep_guidance_channels": 16,
        },
    ),
    "Flux3LoraLoaderMixin": LoraCase(
        "Flux3ModularPipeline",
        "Flux3Transformer2DModel",
        HEADS
        | ONE
        | ROPE4
        | {
            "in_channels": 16,
            "cond_in_channels": 16,
            "num_single_layers": 1,
            "joint_attention_dim": 16,
            "timestep_channels": 16,
        },
    ),
    "BriaFibo2LoraLoaderMixin": LoraCase(
        "BriaFibo2Pipeline",
        "BriaFibo2Transformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "cap_feat_dim": 16,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 8,
            "max_num_gist_tokens": 8,
            "gist_min_text_len": 8,
            "gist_max_text_len": 16,
            "gist_step": 4,
            "axes_dims": (4, 6, 6),
            "axes_lens": (256, 32, 32),
        },
        {"hidden_states": [1, 4, 8, 8], "encoder_hidden_states": [1, 2, 8, 16]},
    ),
    "Ideogram4LoraLoaderMixin": LoraCase(
        "Ideogram4Pipeline",
        "Ideogram4Transformer2DModel",
        HEADS
        | ONE
        | {
            "in_channels": 16,
            "intermediate_size": 32,
            "adaln_dim": 16,
            "llm_features_dim": 16,
            "mrope_section": (4, 2, 2),
        },
    ),
    "ErnieImageLoraLoaderMixin": LoraCase(
        "ErnieImagePipeline",
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 1,
            "ffn_hidden_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
    "CosmosLoraLoaderMixin": LoraCase(
        "Cosmos2_5_PredictBasePipeline",
        "CosmosTransformer3DModel",
        HEADS
        | ONE
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "adaln_lora_dim": 8,
            "max_size": (16, 64, 64),
            "concat_padding_mask": False,
        },
    ),
    "AceStepLoraLoaderMixin": LoraCase(
        "AceStepPipeline",
        "AceStepTransformer1DModel",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "encoder_hidden_size": 16,
        },
        {
            "hidden_states": [1, 16, 8],
            "context_latents": [1, 16, 16],
            "encoder_hidden_states": [1, 8, 16],
        },
    ),
    "MiniMaxH3LoraLoaderMixin": LoraCase(
        "MiniMaxH3ModularPipeline",
        "MiniMaxH3Transformer3DModel",
        HEADS
        | ONE
        | {
            "hidden_size": 32,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 8,
            "text_dim": 16,
            "freq_dim": 16,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        {
            "hidden_states": [1, 64, 16],
            "audio_hidden_states": [1, 16, 8],
            "encoder_hidden_states": [1, 16, 16],
        },
    ),
    "RFD4ProteinaLoraLoaderMixin": LoraCase(
        "RFD4ProteinaPipeline",
        "RFD4ProteinaTransformer",
        {
            "nlayers": 2,
            "token_dim": 32,
            "nheads": 2,
            "dim_cond": 16,
            "pair_repr_dim": 16,
            "latent_dim": 8,
            "t_emb_dim": 16,
            "tri_mult_c": 16,
            "feats_seq": ("xt_bb_ca", "xt_local_latents"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
            "feats_pair_repr": ("xt_bb_ca_pair_dists",),
            "feats_pair_cond": ("time_emb_bb_ca", "time_emb_local_latents"),
        },
        {
            "bb_ca": [1, 8, 3],
            "local_latents": [1, 8, 8],
            "bb_ca_time": {"shape": [1], "value": 0.5},
            "local_latents_time": {"shape": [1], "value": 0.5},
            "padding_mask": {"shape": [1, 8], "dtype": "bool", "value": True},
            "conditioning.is_in_context_conditioning": {"shape": [1, 8], "dtype": "bool"},
            "conditioning.supports_local_latent": {"shape": [1, 8], "dtype": "bool", "value": True},
        },
    ),
}


def tiny(loader: str, **config: Any) -> nn.Module:
    """The denoiser of ``CASES[loader]`` with random weights."""
    import diffusers

    case = CASES[loader]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(diffusers, case.denoiser)(**copy.deepcopy({**case.config, **config})).eval()


def packed(denoiser: nn.Module, folder: Path) -> Any:
    """``denoiser`` with all Linear and Conv layers at 4 bits, saved to ``folder`` and loaded."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = {name: layer for name, layer in denoiser.named_modules() if type(layer) in kinds}
    weights = [Weight(n, f"{n}.weight", tuple(layer.weight.shape)) for n, layer in layers.items()]
    graph = Graph("tiny", tuple(Node(w.name, Op.LINEAR, weight=w) for w in weights), ())
    qconfig = QuantConfig("tiny", dict.fromkeys(layers, QuantMethod("uaq", 4)))
    save_denoiser(denoiser, graph, qconfig, folder)
    return load_quantized(folder)


def arguments(loader: str, denoiser: nn.Module) -> dict[str, Any]:
    """Of one forward of ``denoiser``, which is plain; random where they are floats of two axes or
    more.
    """
    overrides = {**inputs.overrides_of(type(denoiser)), **CASES[loader].inputs}
    built = repair.find(skeleton.of(denoiser), overrides, lambda _recording: 1.0).arguments
    generator = torch.Generator().manual_seed(0)

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(filled, value))
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point() and value.ndim > 1:
            return torch.randn(value.shape, generator=generator)
        return value.contiguous()

    return filled({key: skeleton.real(value) for key, value in built.items()})
