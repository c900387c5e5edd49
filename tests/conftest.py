"""The tiny pipeline of `tiny` as fixtures."""

from __future__ import annotations

import os

import pytest
from tiny import build_tiny_model
from toy_unet import Toy, make_toy

from qsdm.denoisers import Model

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tensors of tests are tiny: threads would only wait for each other


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """8x8x4 latents, 16 px pictures, 2 steps, 65 thousand parameters, on disk; its metrics are fd_lite0 and psnr."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_model: Model):
    """The pipeline of `tiny_model` in float32. Tests that change it must restore it."""
    from qsdm.denoisers import load_pipeline

    return load_pipeline(tiny_model)


@pytest.fixture(scope="session")
def toy() -> Toy:
    """27 weights."""
    return make_toy(levels=2, repeats=1)
