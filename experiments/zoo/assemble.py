"""Assemble a trained pipeline in diffusers' layout, with captions and the Fréchet reference.

    python experiments/zoo/assemble.py --name emoji_pixart

It reads store/zoo/ and writes qsdm/zoo/emoji_pixart/.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from architectures import ARCHITECTURES, parts
from training import emoji_set, resume

from qsdm.metrics import frechet, lite0, networks
from qsdm.metrics.reference import write_features


def write_reference_features(zoo: Path, images: np.ndarray) -> None:
    """Features of real pictures by each network, for the metrics that compare with pictures one by
    one.
    """
    features = {
        "lite0": networks.lite0(images),
        "clip": networks.clip_pictures("zoo", None, images),
    }
    path = zoo / "emoji_unet" / "reference_features.safetensors"
    write_features(
        path, features, {"dataset": "emoji, fold b", "resolution_px": 32, "num_images": len(images)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, default=Path("store/zoo"), help="where data and checkpoints lie"
    )
    parser.add_argument(
        "--zoo", type=Path, default=Path("qsdm/zoo"), help="where the pipeline goes"
    )
    parser.add_argument("--name", choices=ARCHITECTURES, default="emoji_unet")
    args = parser.parse_args()

    images, rows = emoji_set(args.store)
    home = args.zoo / args.name
    denoiser = ARCHITECTURES[args.name].denoiser()
    step = resume(args.store / f"{args.name}.safetensors", denoiser)
    if step == 0:
        raise SystemExit(
            f"no checkpoint in {args.store}: "
            f"run experiments/zoo/denoiser.py --name {args.name} first"
        )
    pipeline = ARCHITECTURES[args.name].pipeline(*parts(args.store, args.zoo), denoiser.half())
    partial = home / "pipeline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    shutil.rmtree(
        home / "pipeline", ignore_errors=True
    )  # only now: its parts may have come from there
    partial.rename(home / "pipeline")
    (home / "training.json").write_text(json.dumps({"steps": step}) + "\n")

    rng = np.random.default_rng(1)
    fold_a = rng.permutation(
        [row["caption"] for row in rows if row["fold"] == "a" and not row["held_out"]]
    )
    (home / "prompts.json").write_text(json.dumps(fold_a.tolist(), indent=0) + "\n")
    fold_b = np.flatnonzero([row["fold"] == "b" for row in rows])
    frechet.write_reference(home / "reference.safetensors", lite0.features(images[fold_b]))
    if args.name == "emoji_unet":  # the same for all three
        some = np.sort(rng.choice(fold_b, 1000, replace=False))
        write_reference_features(args.zoo, images[some])
    if (args.store / "judge" / "model.safetensors").exists():
        shutil.copytree(args.store / "judge", args.zoo / "judge", dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in (home / "pipeline").rglob("*") if path.is_file())
    print(f"{home}: step {step}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
