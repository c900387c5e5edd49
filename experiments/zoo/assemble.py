"""Put a trained pipeline together in diffusers' own layout, with its captions and the reference of its Fréchet
distance.

python experiments/zoo/assemble.py        # store/zoo/ => qsdm/zoo/emoji_unet/, qsdm/zoo/judge/
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from training import emoji_set, resume
from unet import unet

from qsdm.metrics import frechet, lite0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("store/zoo"), help="where data and checkpoints lie")
    parser.add_argument("--zoo", type=Path, default=Path("qsdm/zoo"), help="where the pipeline goes")
    args = parser.parse_args()
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    images, rows = emoji_set(args.store)
    home = args.zoo / "emoji_unet"
    denoiser = unet()
    step = resume(args.store / "emoji_unet.safetensors", denoiser)
    pipeline = StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(args.store / "clip"),
        text_encoder=CLIPTextModel.from_pretrained(args.store / "clip", dtype=torch.float16),
        vae=AutoencoderKL.from_pretrained(args.store / "vae", dtype=torch.float16),
        unet=denoiser.half(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(home / "pipeline", ignore_errors=True)
    pipeline.save_pretrained(home / "pipeline")
    (home / "training.json").write_text(json.dumps({"steps": step}) + "\n")

    rng = np.random.default_rng(1)
    fold_a = rng.permutation([row["caption"] for row in rows if row["fold"] == "a" and not row["held_out"]])
    (home / "prompts.json").write_text(json.dumps(fold_a.tolist(), indent=0) + "\n")
    fold_b = np.flatnonzero([row["fold"] == "b" for row in rows])
    frechet.write_reference(home / "reference.safetensors", lite0.features(images[fold_b]))
    if (args.store / "judge" / "model.safetensors").exists():
        shutil.copytree(args.store / "judge", args.zoo / "judge", dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in (home / "pipeline").rglob("*") if path.is_file())
    print(f"{home}: step {step}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
