"""The notebooks run on a store, and define no logic of their own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fabricated_store import NAME, fabricate

FOLDER = Path(__file__).parents[1] / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_of(path: Path) -> list[str]:
    import nbformat

    book = nbformat.read(path, as_version=4)
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    return [
        "\n".join(line for line in source.splitlines() if not line.startswith("%"))
        for source in sources
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("store")).root


def test_there_are_three() -> None:
    assert [path.stem for path in BOOKS] == ["1_graph", "2_sensitivity", "3_front"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_notebook_defines_nothing_and_holds_no_output(path: Path) -> None:
    import nbformat

    forbidden = (
        ast.FunctionDef,
        ast.Lambda,
        ast.ClassDef,
        ast.For,
        ast.While,
        ast.If,
        ast.comprehension,
    )
    for source in code_of(path):
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, forbidden)]
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("QSDM_STORE", str(store))
    monkeypatch.setenv("QSDM_MODEL", NAME)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book,
        timeout=200,
        startup_timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    drawn = [
        output for cell in book.cells for output in cell.get("outputs", []) if "data" in output
    ]
    assert any("image/png" in output["data"] for output in drawn)
    assert len(drawn) == len(code_of(path)) - 1  # every cell but the first shows something
