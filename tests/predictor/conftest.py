from __future__ import annotations

import pytest
from toy_unet import Toy, make_toy

from qsdm.predictor.encode import Encoding, encode


@pytest.fixture(scope="session")
def toy() -> Toy:
    """27 weights."""
    return make_toy(levels=2, repeats=1)


@pytest.fixture(scope="session")
def encoding(toy: Toy) -> Encoding:
    return encode(toy.space, toy.table)
