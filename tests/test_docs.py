"""What the README and the docs show is run as a reader would."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qsdm
from qsdm.trace import trace

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    (page, code)
    for page in PAGES
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=lambda value: getattr(value, "name", ""))
def test_an_example_runs(page: Path, code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, "an example prints what it shows"


IN_ORDER = [
    "qsdm.open",
    "qsdm.calibrate.calibrate",
    "qsdm.workspace.Workspace",
    "qsdm.measure.measure",
    "qsdm.train.train",
    "qsdm.attribute.attribute",
    "qsdm.search.search",
    "qsdm.realize.realize",
]
"""What the docstrings of the Python entry show; each reads what those before it have written."""


def examples_of(name: str) -> list[doctest.Example]:
    module, _, member = name.rpartition(".")
    documented = getattr(importlib.import_module(module), member)
    return doctest.DocTestParser().get_examples(inspect.getdoc(documented) or "")


@pytest.mark.slow
def test_examples_of_docstrings_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As doctest runs them, but for what commands print."""
    monkeypatch.chdir(tmp_path)
    values: list[object] = []
    monkeypatch.setattr(sys, "displayhook", values.append)
    trace(qsdm.open("emoji_unet"), page=False)
    for name in IN_ORDER:
        names: dict[str, object] = {}
        for example in examples_of(name):
            values.clear()
            exec(compile(example.source, name, "single"), names)
            if example.want:
                assert [repr(value) for value in values] == [example.want.strip()], name


@pytest.mark.parametrize("name", IN_ORDER)
def test_every_entry_point_has_a_short_example(name: str) -> None:
    examples = examples_of(name)
    assert 3 <= len(examples) <= 9
    assert examples[-1].want, "it shows what comes out"


def test_the_readme_is_read_in_a_minute() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(example.strip().splitlines()) <= 8


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
