"""Load the checkpoint in a process that knows nothing else, and draw a picture.

python experiments/full_size_flux/draw.py FOLDER [EDGE STEPS]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from qsdm.checkpoint import load_quantized

NUM_TOKENS = 64  # of the caption; FLUX pads to 512


def main(folder: Path, edge: int = 256, steps: int = 2) -> None:
    """Draw into the folder.

    Args:
        folder: of the experiment.
        edge: of the picture, in px.
        steps: of the sampler.
    """
    began = time.perf_counter()
    pipeline = load_quantized(folder / "checkpoint")
    loaded = time.perf_counter()
    (image,) = pipeline(
        "a red fox in the snow",
        height=edge,
        width=edge,
        num_inference_steps=steps,
        max_sequence_length=NUM_TOKENS,
        generator=torch.Generator().manual_seed(0),
    ).images
    drawn = time.perf_counter()
    image.save(folder / "picture.png")
    print(
        f"loaded in {loaded - began:.0f} s; {edge} x {edge} px in {steps} steps drawn in "
        f"{drawn - loaded:.0f} s; deviation {np.asarray(image).std():.1f} levels"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
