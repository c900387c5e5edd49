"""Captions with pictures, masks and control pictures, as ``prompts=edit`` reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_edits(folder: Path, num: int = 4, size_px: int = 64, seed: int = 0) -> Path:
    """Pictures and control pictures of four random colors, masks of the left half, and captions."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    mask = np.zeros((size_px, size_px), np.uint8)
    mask[:, : size_px // 2] = 255
    for i in range(num):
        for ending in ("", ".control"):
            colors = rng.integers(0, 2, (2, 2, 3), dtype=np.uint8) * 255
            whole = colors.repeat(size_px // 2, axis=0).repeat(size_px // 2, axis=1)
            Image.fromarray(whole).save(folder / f"{i}{ending}.png")
        Image.fromarray(mask).save(folder / f"{i}.mask.png")
        (folder / f"{i}.txt").write_text(f"a cat, number {i}\n")
    return folder
