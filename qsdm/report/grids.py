"""Pictures in grids, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qsdm.store.files import replace

CELL_PX = 96  # small pictures are shown at least about this large
GAP_PX = 4
LABEL_PX = 150


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] => one, row by row, on white; small ones are enlarged by whole factors."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    cells = enlarged(images)
    height, width = cells.shape[1] + GAP_PX, cells.shape[2] + GAP_PX
    sheet = np.full(
        (math.ceil(len(cells) / columns) * height + GAP_PX, columns * width + GAP_PX, 3),
        255,
        dtype=np.uint8,
    )
    for i, cell in enumerate(cells):
        top, left = i // columns * height + GAP_PX, i % columns * width + GAP_PX
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def strips(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """One row of pictures per label, which stands at its left and may have several lines."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=15)
    made = []
    for label, images in rows.items():
        strip = grid(images, columns=len(images))
        margin = Image.new("RGB", (LABEL_PX, strip.shape[0]), "white")
        ImageDraw.Draw(margin).multiline_text(
            (8, strip.shape[0] / 2), label, fill="black", font=font, anchor="lm", spacing=5
        )
        made.append(np.concatenate([np.asarray(margin), strip], axis=1))
    return np.concatenate(made)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Pictures [N, H, W, 3], each pixel repeated so often that the edge is about `CELL_PX`."""
    factor = max(1, CELL_PX // images.shape[2])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def write(path: Path, image: np.ndarray) -> None:
    """Raises StoreError if it cannot be written."""
    from PIL import Image

    replace(path, lambda partial: Image.fromarray(image).save(partial, "PNG", optimize=True))
