"""What the README, the docs and the docstrings show is run as a reader would."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import operator
import re
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

IN_ORDER = [
    "qsdm.open",
    "qsdm.calibrate.calibrate",
    "qsdm.workspace.Workspace",
    "qsdm.measure.measure",
    "qsdm.train.train",
    "qsdm.attribute.attribute",
    "qsdm.search.search",
    "qsdm.realize.realize",
    "qsdm.why.why",
]
"""What the docstrings of the Python entry show; each reads what those before it have written."""


def docstring_examples() -> list[str]:
    """The other docstrings with examples, as `MODULE:NAME`, without importing any module."""
    examples = []
    for path in sorted((ROOT / "qsdm").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>>" not in text:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(text)
        owners = [
            ("", tree),
            *((f"{c.name}.", c) for c in tree.body if isinstance(c, ast.ClassDef)),
        ]
        if ">>>" in (ast.get_docstring(tree) or ""):
            examples.append(f"{module}:")
        examples += [
            f"{module}:{prefix}{node.name}"
            for prefix, owner in owners
            for node in owner.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and ">>>" in (ast.get_docstring(node) or "")
        ]
    return [where for where in examples if where.replace(":", ".") not in IN_ORDER]


@pytest.mark.parametrize("where", docstring_examples())
def test_an_example_in_a_docstring_shows_what_it_says(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module_name, _, name = where.partition(":")
    module = importlib.import_module(module_name)
    documented = operator.attrgetter(name)(module) if name else module
    finder = doctest.DocTestFinder(recurse=False)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    (example,) = finder.find(documented, where, module, globs={})
    result = runner.run(example, out=report.append)
    assert result.attempted, "nothing was run"
    assert not result.failed, "".join(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [code for _, code in EXAMPLES], ids=[page.name for page, _ in EXAMPLES]
)
def test_an_example_runs(
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out, "an example prints what it shows"


def examples_of(name: str) -> list[doctest.Example]:
    module, _, member = name.rpartition(".")
    documented = getattr(importlib.import_module(module), member)
    return doctest.DocTestParser().get_examples(inspect.getdoc(documented) or "")


@pytest.mark.slow
@pytest.mark.soak
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
