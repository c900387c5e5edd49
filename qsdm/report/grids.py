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
    """Arrange pictures row by row on white; small ones are enlarged by whole factors.

    Args:
        images: uint8 [N, H, W, 3].
        columns: pictures in a row; by default, about as many as rows.

    Returns:
        One picture, uint8 [H', W', 3].

    Example:
        >>> import numpy as np
        >>> from qsdm.report import grids
        >>> grids.grid(np.zeros((4, 32, 32, 3), dtype=np.uint8)).shape
        (204, 204, 3)
    """
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
    """Arrange pictures in one row for each label, which stands at the left.

    Args:
        rows: uint8 [N, H, W, 3] by label, with equal N; a label may have several lines.

    Returns:
        One picture, uint8 [H', W', 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=15)
    rows_with_labels = []
    for label, images in rows.items():
        strip = grid(images, columns=len(images))
        margin = Image.new("RGB", (LABEL_PX, strip.shape[0]), "white")
        ImageDraw.Draw(margin).multiline_text(
            (8, strip.shape[0] / 2), label, fill="black", font=font, anchor="lm", spacing=5
        )
        rows_with_labels.append(np.concatenate([np.asarray(margin), strip], axis=1))
    return np.concatenate(rows_with_labels)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Repeat each pixel so often that the edge is about `CELL_PX`.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        Uint8 [N, H', W', 3].
    """
    factor = max(1, CELL_PX // images.shape[2])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def thumbnails(images: np.ndarray, edge_px: int = 192) -> np.ndarray:
    """Scale pictures down; small ones stay as they are.

    Args:
        images: uint8 [N, H, W, 3].
        edge_px: of the longer edge, at most.

    Returns:
        Uint8 [N, H', W', 3].
    """
    from PIL import Image

    height, width = images.shape[1:3]
    if (edge := max(height, width)) <= edge_px:
        return images
    size = round(width * edge_px / edge), round(height * edge_px / edge)
    scaled = [Image.fromarray(image).resize(size, Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image) for image in scaled])


def write(path: Path, image: np.ndarray) -> None:
    """Write a picture as PNG.

    Args:
        path: of the file.
        image: uint8 [H, W, 3].

    Raises:
        StoreError: it cannot be written.
    """
    from PIL import Image

    replace(path, lambda partial: Image.fromarray(image).save(partial, "PNG", optimize=True))
