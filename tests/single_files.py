"""Small checkpoints in the layout of Stable Diffusion's authors: the inverse of diffusers'
conversion, by names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def unet_name(name: str, layers: int, attentive: set[int]) -> str:
    """The original name of a parameter of UNet2DConditionModel.

    Args:
        name: in diffusers.
        layers: per block.
        attentive: up blocks with attention.
    """
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    match = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)",
        name,
    )
    assert match is not None, name
    side, block, part, index, rest = match.groups()
    i = int(index)
    inside = rest
    if part == "resnets":
        layer, _, kind = rest.rpartition(".")
        inside = f"{RESNET[layer]}.{kind}"
    if side is None:
        return f"middle_block.{ {'attentions': 1}.get(part, 2 * i) }.{inside}"
    b = int(block)
    if part == "downsamplers":
        return f"input_blocks.{(b + 1) * (layers + 1)}.0.op.{kind}"
    if part == "upsamplers":
        return f"output_blocks.{b * (layers + 1) + layers}.{2 if b in attentive else 1}.conv.{kind}"
    number = 1 + b * (layers + 1) + i if side == "down" else b * (layers + 1) + i
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{number}.{int(part == 'attentions')}.{inside}"


def vae_name(name: str, blocks: int) -> str:
    """Of a parameter of AutoencoderKL, by its original name."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def original(pipeline: Any, unet_only: bool = False) -> dict[str, Any]:
    """All tensors of a StableDiffusionPipeline by their original names."""
    unet, vae = pipeline.unet, pipeline.vae
    attentive = {
        b for b, kind in enumerate(unet.config.up_block_types) if kind.startswith("CrossAttn")
    }
    tensors = {
        "model.diffusion_model."
        + unet_name(name, unet.config.layers_per_block, attentive): tensor.clone()
        for name, tensor in unet.state_dict().items()
    }
    if unet_only:
        return tensors
    for name, tensor in vae.state_dict().items():
        if "mid_block.attentions" in name and tensor.dim() == 2:  # they were convolutions
            tensor = tensor[:, :, None, None]
        full = "first_stage_model." + vae_name(name, len(vae.config.block_out_channels))
        tensors[full] = tensor.clone()
    for name, tensor in pipeline.text_encoder.state_dict().items():
        inside = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors[f"cond_stage_model.transformer.{inside}"] = tensor.clone()
    return tensors


def configs(pipeline_folder: Path, folder: Path) -> Path:
    """A copy of a pipeline's folder without any weights."""
    import shutil

    return Path(
        shutil.copytree(
            pipeline_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")
        )
    )


def equal(first: Any, other: Any) -> bool:
    """Whether two modules hold the same values under the same names."""
    import torch

    a, b = first.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def widened(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """With what published checkpoints carry beside: a copy of averaged weights, and buffers of
    training.
    """
    import torch

    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    return {**tensors, **averaged, "betas": torch.zeros(10), "global_step": torch.zeros(1)}
