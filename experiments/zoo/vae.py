"""Train the zoo's autoencoder between 32-pixel emoji and 8x8x4 latents.

    python experiments/zoo/vae.py

It writes store/zoo/vae/. The loss is L1 + L2 + 1e-6 KL.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022), section
        3.1, without its adversarial and perceptual terms.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from training import arguments, emoji_set, fit, halved, to_tensor


def main() -> None:
    args = arguments(__doc__, steps=2400, batch=32, lr=1e-3, ema=0.995).parse_args()
    from diffusers import AutoencoderKL

    images, rows = emoji_set(args.store)
    pixels = to_tensor(images)
    torch.manual_seed(args.seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[32, 64, 96],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    vae = vae.to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters")

    def loss_of(batch: np.ndarray) -> torch.Tensor:
        x = pixels[batch].to(memory_format=torch.channels_last)
        with halved():
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-6 * kl

    train = np.flatnonzero([not row["held_out"] for row in rows])
    fit(vae, loss_of, train, args.store / "vae.safetensors", args)
    with torch.inference_mode():
        latents = torch.cat(
            [vae.encode(pixels[i : i + 256]).latent_dist.mean for i in range(0, len(pixels), 256)]
        )
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.half().save_pretrained(args.store / "vae")
    print(f"scaling factor {vae.config.scaling_factor:.4f}")


if __name__ == "__main__":
    main()
