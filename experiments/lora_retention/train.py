"""Train a small LoRA that makes a pipeline of the zoo draw without color.

    python experiments/zoo/data.py                                    # the emoji set
    python experiments/lora_retention/train.py --name emoji_unet

It sees one style of the emoji set, in gray, under the captions that the pipeline knows in color:
"grinning face, twemoji". The denoiser's own weights stay as they are. The adapter is written in
diffusers' format to ``adapters/NAME.safetensors``, in 16 bits.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from qsdm.denoisers import load_pipeline
from qsdm.run.conf import load

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "zoo"))

from denoiser import conditions_of, flow_loss, latents_of  # noqa: E402
from training import batches, emoji_set  # noqa: E402

STYLE = "twemoji"
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
"""Attention and feed-forward layers, as trainers of LoRAs choose them."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601


def gray(images: np.ndarray) -> np.ndarray:
    """Pictures without color, uint8 [N, H, W, 3]."""
    return (images @ LUMINANCE).round().astype(np.uint8)[..., None].repeat(3, axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=("emoji_unet", "emoji_mmdit"), default="emoji_unet")
    parser.add_argument("--store", type=Path, default=Path("store/zoo"), help="of the emoji set")
    parser.add_argument("--out", type=Path, default=HERE / "adapters")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)

    images, rows = emoji_set(args.store)
    chosen = [i for i, r in enumerate(rows) if r["style"] == STYLE and not r["held_out"]]
    model = load("model", args.name)
    pipeline = load_pipeline(model)
    denoiser = getattr(pipeline, model.component)
    latents = latents_of(pipeline.vae, gray(images[chosen]))
    conditions = conditions_of(args.name, pipeline, [rows[i]["caption"] for i in chosen])
    empty = conditions_of(args.name, pipeline, [""])
    denoiser.requires_grad_(False)
    denoiser.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=LAYERS))
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    print(f"{len(chosen)} pictures, {sum(p.numel() for p in trained):,} parameters", flush=True)

    def velocity_of(mixed: Tensor, time: Tensor, context: dict[str, Tensor]) -> Tensor:
        (velocity,) = denoiser(mixed, timestep=time, **context, return_dict=False)
        return velocity

    loss_of = flow_loss(velocity_of, latents, conditions, empty)
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0)
    rng, began, mean = np.random.default_rng(0), time.monotonic(), None
    drawn = batches(np.arange(len(chosen)), args.batch, rng)
    for step, batch in zip(range(args.steps), drawn, strict=False):
        for group in optimizer.param_groups:  # warmed up, then falling to nothing
            group["lr"] = args.lr * min((step + 1) / 20, (args.steps - step) / args.steps * 1.5, 1)
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % 25 == 0:
            pace = (time.monotonic() - began) / (step + 1)
            print(f"step {step + 1}/{args.steps}  loss {mean:.4f}  {pace:.2f} s/step", flush=True)

    weights = {k: v.half() for k, v in get_peft_model_state_dict(denoiser).items()}
    args.out.mkdir(parents=True, exist_ok=True)
    type(pipeline).save_lora_weights(
        args.out,
        **{f"{model.component}_lora_layers": weights},
        weight_name=f"{args.name}.safetensors",
    )
    print(args.out / f"{args.name}.safetensors")


if __name__ == "__main__":
    main()
