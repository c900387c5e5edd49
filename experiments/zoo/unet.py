"""Train the denoiser of emoji_unet in the latents of the zoo's autoencoder, on the captions of its CLIP.

    python experiments/zoo/unet.py                     # => store/zoo/emoji_unet.safetensors
    python experiments/zoo/unet.py --steps 20000       # train on, from there or else from the shipped pipeline

Flow matching with logit-normal times: Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser
et al., 2024), section 3.1. The denoiser predicts the velocity noise - latent; its time is 1000 sigma.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from training import arguments, emoji_set, fit, save, to_tensor


def unet():
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
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        norm_num_groups=8,
        time_embedding_dim=256,
    )


def latents_of(folder: Path, images: np.ndarray) -> torch.Tensor:
    """float32 [N, 4, 8, 8] of unit deviation."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = to_tensor(images)
    with torch.inference_mode():
        means = [vae.encode(pixels[i : i + 256]).latent_dist.mean for i in range(0, len(pixels), 256)]
    return torch.cat(means).mul(vae.config.scaling_factor).clone()


def embeddings_of(tokenizer_at: Path, encoder_at: Path, captions: list[str]) -> torch.Tensor:
    """float32 [N, L, 128], the states that the pipeline gives its denoiser."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_at)
    encoder = CLIPTextModel.from_pretrained(encoder_at, dtype=torch.float32).eval()
    found = []
    for i in range(0, len(captions), 256):
        tokens = tokenizer(
            captions[i : i + 256],
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            found.append(encoder(tokens.input_ids).last_hidden_state)
    return torch.cat(found).clone()


def main() -> None:
    parser = arguments(__doc__, steps=7000, batch=64, lr=1e-3, ema=0.999)
    parser.add_argument("--zoo", type=Path, default=Path("qsdm/zoo"), help="where the shipped pipelines lie")
    args = parser.parse_args()
    images, rows = emoji_set(args.store)
    checkpoint, shipped = args.store / "emoji_unet.safetensors", args.zoo / "emoji_unet"
    parts = {"vae": args.store / "vae", "tokenizer": args.store / "clip", "text_encoder": args.store / "clip"}
    if not checkpoint.exists() and (shipped / "training.json").exists():
        print(f"going on from {shipped}")
        parts = {part: shipped / "pipeline" / part for part in parts}
        step = json.loads((shipped / "training.json").read_text())["steps"]
        save(checkpoint, load_file(shipped / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"), step)
    latents = latents_of(parts["vae"], images)
    captions = [row["caption"] for row in rows]
    states = embeddings_of(parts["tokenizer"], parts["text_encoder"], captions)
    empty = embeddings_of(parts["tokenizer"], parts["text_encoder"], [""])[0]
    torch.manual_seed(args.seed)
    denoiser = unet()
    print(f"{sum(p.numel() for p in denoiser.parameters()):,} parameters")

    def loss_of(batch: np.ndarray) -> torch.Tensor:
        x, context = latents[batch], states[batch].clone()
        context[torch.rand(len(x)) < 0.1] = empty  # classifier-free guidance (Ho & Salimans, 2022)
        sigma = torch.sigmoid(torch.randn(len(x)))
        noise = torch.randn_like(x)
        mixed = torch.lerp(x, noise, sigma[:, None, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            velocity = denoiser(mixed, 1000 * sigma, encoder_hidden_states=context).sample
        return F.mse_loss(velocity.float(), noise - x)

    train = np.flatnonzero([not row["held_out"] for row in rows])
    fit(denoiser, loss_of, train, checkpoint, args)


if __name__ == "__main__":
    main()
