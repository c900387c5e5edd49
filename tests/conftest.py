"""The tiny pipeline of `tiny` as fixtures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from tiny import build_tiny_model
from toy_unet import Explained, Toy, explain, make_toy

from qsdm.denoisers import Model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Tensors of tests are tiny: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """pytest-randomly shuffles the tests; it shall not seed the global generators before each one
    too, which would hide that a test draws from them without a seed."""
    if hasattr(config.option, "randomly_reset_seed"):
        config.option.randomly_reset_seed = False


# How long an example takes says how busy the machine is.
settings.register_profile("qsdm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qsdm")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers for each test, whatever ran before."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """8x8x4 latents, 16 px pictures, 2 steps, 65 thousand parameters, on disk; its metrics are
    fd_lite0 and psnr.
    """
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_model: Model) -> DiffusionPipeline:
    """The pipeline of `tiny_model` in float32. Tests that change it must restore it."""
    from qsdm.denoisers import load_pipeline

    return load_pipeline(tiny_model)


@pytest.fixture(scope="session")
def toy() -> Toy:
    """27 weights."""
    return make_toy(levels=2, repeats=1)


@pytest.fixture(scope="session")
def explained(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    """The toy's store after `attribute`."""
    return explain(tmp_path_factory.mktemp("explained"), toy)
