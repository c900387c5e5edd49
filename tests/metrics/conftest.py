from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qsdm.store import ZOO


@pytest.fixture(scope="session")
def emoji() -> np.ndarray:
    """Pictures of the shipped U-Net, uint8 [128, 32, 32, 3], from its grid at twice the size."""
    grid = np.asarray(Image.open(ZOO / "emoji_unet" / "grid.png").convert("RGB"))[::2, ::2]
    return np.ascontiguousarray(
        grid.reshape(8, 32, 16, 32, 3).swapaxes(1, 2).reshape(128, 32, 32, 3)
    )
