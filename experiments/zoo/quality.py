"""How good is a pipeline of the zoo? Fréchet distances, recognized captions, and a grid.

    python experiments/zoo/quality.py --name emoji_unet

It writes quality.json and grid.png to qsdm/zoo/emoji_unet/. fd_lite0 compares 2,500 pictures with
the reference pictures (fold "b" of the emoji set): generated ones, others that went through the
autoencoder, and, as the floor, other real ones (fold "a"). The judge is a CLIP trained with another
seed that no generator used. Top-1 is the share of pictures whose own caption it ranks first among
all captions of its style.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from architectures import ARCHITECTURES, model_of
from PIL import Image
from training import emoji_set, to_tensor

from qsdm.denoisers import Model, load_pipeline, weights_digest
from qsdm.metrics import frechet, lite0

NUM = 2500


def autoencoded(folder: Path, images: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3], through the autoencoder's mean and back."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32).eval()
    pixels, batches = to_tensor(images), []
    with torch.inference_mode():
        for i in range(0, len(pixels), 128):
            decoded = vae.decode(vae.encode(pixels[i : i + 128]).latent_dist.mean).sample
            batches.append(
                (decoded.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            )
    return np.concatenate(batches)


def generated(model: Model, captions: list[str], seed: int) -> np.ndarray:
    """uint8 [N, 32, 32, 3], through the pipeline as a user calls it."""
    pipeline = load_pipeline(model)
    batches = []
    for i in range(0, len(captions), 64):
        chunk = captions[i : i + 64]
        generators = [
            torch.Generator().manual_seed(seed * 1_000_003 + i + k) for k in range(len(chunk))
        ]
        pictures = pipeline(
            chunk,
            num_inference_steps=model.steps,
            guidance_scale=model.guidance,
            generator=generators,
            height=32,
            width=32,
            output_type="np",
            **model.call,
        ).images
        batches.append((pictures * 255).round().astype(np.uint8))
    return np.concatenate(batches)


def top1(judge: Path, pictures: np.ndarray, rows: list[dict], everything: list[dict]) -> float:
    """Share of pictures whose own caption scores best among all captions of its style, held-out
    ones included.
    """
    from transformers import CLIPModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained(judge, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(judge)
    captions = [row["caption"] for row in everything]
    with torch.inference_mode():
        text = []
        for i in range(0, len(captions), 512):
            tokens = tokenizer(
                captions[i : i + 512],
                padding="max_length",
                truncation=True,
                max_length=tokenizer.model_max_length,
                return_tensors="pt",
            )
            out = clip.get_text_features(**tokens)
            text.append(getattr(out, "pooler_output", out))
        out = clip.get_image_features(to_tensor(pictures))
        scores = (
            getattr(out, "pooler_output", out)
            @ torch.nn.functional.normalize(torch.cat(text), dim=-1).T
        )
    styles = np.array([row["style"] for row in everything])
    right = 0
    for row, score in zip(rows, scores.numpy(), strict=True):
        among = np.flatnonzero(styles == row["style"])
        right += captions[among[score[among].argmax()]] == row["caption"]
    return right / len(rows)


def grid(images: np.ndarray, columns: int) -> Image.Image:
    rows = len(images) // columns
    tiled = (
        images[: rows * columns]
        .reshape(rows, columns, 32, 32, 3)
        .swapaxes(1, 2)
        .reshape(rows * 32, columns * 32, 3)
    )
    return Image.fromarray(tiled).resize((columns * 64, rows * 64), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, default=Path("store/zoo"), help="where the emoji set lies"
    )
    parser.add_argument(
        "--zoo", type=Path, default=Path("qsdm/zoo"), help="where the pipelines lie"
    )
    parser.add_argument("--name", choices=ARCHITECTURES, default="emoji_unet")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument(
        "--num",
        type=int,
        default=NUM,
        help="pictures; figures of different counts are not comparable",
    )
    parser.add_argument(
        "--dry", action="store_true", help="only print: to choose steps and guidance"
    )
    args = parser.parse_args()
    images, rows = emoji_set(args.store)
    rng = np.random.default_rng(0)
    fold_a = rng.permutation(np.flatnonzero([row["fold"] == "a" for row in rows]))[: args.num]
    home = args.zoo / args.name
    reference = frechet.read_reference(home / "reference.safetensors", lite0.NUM_FEATURES)

    def distance(pictures: np.ndarray) -> float:
        return round(frechet.frechet(frechet.Gaussian.of(lite0.features(pictures)), reference), 2)

    shipped = model_of(args.name, args.zoo, steps=args.steps, guidance=args.guidance)
    report: dict = {
        "weights": weights_digest(shipped),
        "num_images": len(fold_a),
        "steps": args.steps,
        "guidance": args.guidance,
    }
    chosen = [rows[i] for i in fold_a]
    pictures = generated(shipped, [row["caption"] for row in chosen], 0)
    if args.dry:
        print(
            f"steps {args.steps}, guidance {args.guidance}: fd_lite0 {distance(pictures)} "
            f"with {len(pictures)} pictures"
        )
        return
    report["fd_lite0"] = {
        "floor": distance(images[fold_a]),
        "autoencoder": distance(autoencoded(home / "pipeline" / "vae", images[fold_a])),
        "generated": distance(pictures),
    }
    judge = args.zoo / "judge"
    if judge.exists():
        held_out = np.array([row["held_out"] for row in chosen])
        report["top1"] = {}
        for name, shown in (("real", images[fold_a]), ("generated", pictures)):
            for split, mask in (("training", ~held_out), ("held_out", held_out)):
                picked = [row for row, keep in zip(chosen, mask, strict=True) if keep]
                report["top1"][f"{name}_{split}"] = round(top1(judge, shown[mask], picked, rows), 4)
        report["top1"]["chance"] = round(4 / len(rows), 5)
    (home / "quality.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    grid(pictures[:128], 16).save(home / "grid.png")


if __name__ == "__main__":
    main()
