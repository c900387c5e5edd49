from __future__ import annotations

import pytest
from toy_unet import Toy

from qsdm.predictor.encode import Encoding, encode


@pytest.fixture(scope="session")
def encoding(toy: Toy) -> Encoding:
    return encode(toy.space, toy.table)
