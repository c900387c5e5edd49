"""Load the checkpoint in a process that knows nothing else, and draw.

python experiments/full_size_sdxl/draw.py FOLDER EDGE STEPS CAPTION ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from qsdm.checkpoint import load_quantized


def main(folder: Path, edge: int, steps: int, captions: list[str]) -> None:
    """Draw one picture per caption into the folder.

    Args:
        folder: of the experiment.
        edge: of the pictures, in px.
        steps: of the sampler.
        captions: of the pictures.
    """
    pipeline = load_quantized(folder / "store" / "sdxl" / "checkpoint")
    seeds = [torch.Generator().manual_seed(i) for i in range(len(captions))]
    images = pipeline(
        captions, height=edge, width=edge, num_inference_steps=steps, generator=seeds
    ).images
    for i, image in enumerate(images):
        image.save(folder / f"picture-{i}.png")
    print(f"{len(images)} pictures of {images[0].width} x {images[0].height} px")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
