"""Engines whose workers are not spawned by Python itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def path_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They shall find qsdm, and the modules of these tests."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))
    )
