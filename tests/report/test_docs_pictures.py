"""The pictures of the docs are drawn from a store by one script."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from fabricated_store import NAME, fabricate
from PIL import Image

from qsdm.report.results import NotRun

ROOT = Path(__file__).parents[2]


def draw(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    script = ROOT / "experiments" / "docs_pictures.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")


def test_every_picture_of_the_docs_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fabricate(tmp_path / "store").root
    out = tmp_path / "out"
    draw(monkeypatch, "--store", str(root), "--model", NAME, "--out", str(out))
    drawn = {path.name for path in out.iterdir()}
    others = {path.name for path in (ROOT / "docs").glob("*.png")} - drawn
    scripts = "".join(path.read_text() for path in (ROOT / "experiments").glob("*/*.py"))
    assert len(drawn) == 5
    assert all(name in scripts for name in others), "each other picture has a script"
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 50


def test_a_store_without_pictures_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotRun, match=r"qsdm\.realize"):
        draw(monkeypatch, "--store", str(tmp_path), "--model", NAME, "--out", str(tmp_path / "out"))
