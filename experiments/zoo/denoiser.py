"""Train a denoiser of the zoo in the latents of its autoencoder, on the captions of its CLIP.

    python experiments/zoo/denoiser.py --name emoji_pixart
    python experiments/zoo/denoiser.py --name emoji_unet --steps 20000

It writes store/zoo/NAME.safetensors, and continues from there or from the shipped pipeline. The
denoiser predicts the velocity noise - latent; its time is 1000 sigma.

References:
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
        section 3.1: flow matching with logit-normal times.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from architectures import ARCHITECTURES, parts
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from training import arguments, emoji_set, fit, halved, save, to_tensor


def latents_of(vae: Any, images: np.ndarray) -> Tensor:
    """float32 [N, 4, 8, 8] of unit deviation."""
    pixels = to_tensor(images)
    with torch.inference_mode():
        means = [
            vae.encode(pixels[i : i + 256]).latent_dist.mean for i in range(0, len(pixels), 256)
        ]
    return torch.cat(means).mul(vae.config.scaling_factor).clone()


def conditions_of(name: str, pipeline: Any, captions: list[str]) -> dict[str, Tensor]:
    """Arguments of the denoiser by name, float32 [N, ...]: what the pipeline gives it for these
    captions.
    """
    with torch.inference_mode():
        batches = [
            ARCHITECTURES[name].conditions(pipeline, captions[i : i + 256])
            for i in range(0, len(captions), 256)
        ]
    return {key: torch.cat([part[key] for part in batches]).float().clone() for key in batches[0]}


def flow_loss(
    velocity_of: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor],
    latents: Tensor,
    conditions: dict[str, Tensor],
    empty: dict[str, Tensor],
) -> Callable[[np.ndarray], Tensor]:
    """The loss of a batch, given as indices: squared error of the velocity at random times.

    ``velocity_of`` gets noisy latents, their times and the denoiser's other arguments. A tenth of
    the captions is empty, for classifier-free guidance (Ho & Salimans, 2022).
    """

    def loss_of(batch: np.ndarray) -> Tensor:
        x = latents[batch]
        unconditional = torch.rand(len(x)) < 0.1
        context = {key: value[batch].clone() for key, value in conditions.items()}
        for key, value in context.items():
            value[unconditional] = empty[key][0]
        sigma = torch.sigmoid(torch.randn(len(x)))
        noise = torch.randn_like(x)
        mixed = torch.lerp(x, noise, sigma[:, None, None, None])
        return F.mse_loss(velocity_of(mixed, 1000 * sigma, context), noise - x)

    return loss_of


def main() -> None:
    parser = arguments(__doc__, steps=7000, batch=64, lr=1e-3, ema=0.999)
    parser.add_argument("--name", choices=ARCHITECTURES, default="emoji_unet")
    args = parser.parse_args()
    images, rows = emoji_set(args.store)
    checkpoint, shipped = args.store / f"{args.name}.safetensors", args.zoo / args.name
    if not checkpoint.exists() and (shipped / "training.json").exists():
        print(f"going on from {shipped}")
        step = json.loads((shipped / "training.json").read_text())["steps"]
        (weights,) = (shipped / "pipeline").glob("[ut]*/diffusion_pytorch_model.safetensors")
        save(checkpoint, load_file(weights), step)
    torch.manual_seed(args.seed)
    architecture = ARCHITECTURES[args.name]
    denoiser = architecture.denoiser()
    pipeline = architecture.pipeline(*parts(args.store, args.zoo), denoiser)
    pipeline.vae.float(), pipeline.text_encoder.float()
    latents = latents_of(pipeline.vae, images)
    conditions = conditions_of(args.name, pipeline, [row["caption"] for row in rows])
    empty = conditions_of(args.name, pipeline, [""])
    print(f"{sum(p.numel() for p in denoiser.parameters()):,} parameters", flush=True)

    def velocity_of(mixed: Tensor, time: Tensor, context: dict[str, Tensor]) -> Tensor:
        with halved():
            (velocity,) = denoiser(
                mixed, timestep=time, **context, **architecture.constants, return_dict=False
            )
        return velocity.float()

    loss_of = flow_loss(velocity_of, latents, conditions, empty)
    train = np.flatnonzero([not row["held_out"] for row in rows])
    fit(denoiser, loss_of, train, checkpoint, args)


if __name__ == "__main__":
    main()
