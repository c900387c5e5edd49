"""Who may import whom: the table of the house's layers, kept by a walk over the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qsdm"

GROUND = {"text", "graph", "qconfig", "outcome", "prompts", "store"}
MACHINERY = {"tracing", "quant", "denoisers", "metrics", "strategies", "recipes"}
JOINS = {"engine", "measurement", "checkpoint", "predictor"}
COMMANDS = {
    "trace",
    "calibrate",
    "probe",
    "measure",
    "train",
    "attribute",
    "search",
    "realize",
    "recipe",
    "compare",
    "why",
    "dashboard",
}

ALLOWED: dict[str, set[str]] = (
    dict.fromkeys(GROUND | MACHINERY, GROUND)
    | {"engine": GROUND}
    | {"measurement": GROUND | MACHINERY | {"engine"}}
    | {"checkpoint": GROUND | MACHINERY | {"measurement"}}
    # METHODS needs neither torch nor numba: configurations and recipes are read by its names.
    | {"qconfig": GROUND | {"quant"}, "recipes": GROUND | {"quant"}}
    | {"predictor": GROUND | {"measurement"}, "report": GROUND | {"measurement"}}
    | {"sensitivity": GROUND | {"measurement", "predictor"}}
    | {"run": {"store", "text"}}
    | {"workspace": GROUND | MACHINERY | JOINS | {"run"}}
    | {
        name: GROUND | MACHINERY | JOINS | {"sensitivity", "report", "run", "workspace", "probing"}
        for name in COMMANDS
    }
    # Kinds of `probe`.
    | {"probing": GROUND | MACHINERY | JOINS}
    # Words of `recipe`, which reads what it is given with the command's functions.
    | {"shelf": GROUND | MACHINERY | JOINS | {"sensitivity", "report", "workspace", "recipe"}}
    | {
        "__main__": GROUND | MACHINERY | JOINS | COMMANDS | {"sensitivity", "run", "workspace"},
        "__init__": {"workspace"},
    }
)
"""What each module or folder may import of qsdm, anywhere in its files, itself apart."""

DOORS = {
    "hydra": {"run"},
    "omegaconf": {"run"},
    "wandb": {"run"},
    "wandb_workspaces": {"run"},
    "mlflow": {"run"},
    "trackio": {"run"},
    "diffusers": {"denoisers", "tracing", "checkpoint"},
    "torch_geometric": {"predictor"},
    "captum": {"sensitivity"},
    "networkx": {"graph"},
    "pymoo": {"strategies"},
}
"""Each outside library has one door (measurement asks diffusers for a pipeline's sampler)."""

HEAVY = {
    "diffusers",
    "transformers",
    "captum",
    "wandb",
    "wandb_workspaces",
    "mlflow",
    "trackio",
    "hydra",
    "pymoo",
    "matplotlib",
    "pandas",
    "torch_geometric",
}
"""Imported inside the functions that use them."""


def files() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "zoo" not in path.relative_to(PACKAGE).parts
    ]


def part_of(path: Path) -> str:
    """The module or folder of qsdm that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Dotted names that a file imports, and whether that happens when the file is imported."""
    return list(imports_in(tree(path), at_once=True))


def imports_in(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, at_once
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import"
        assert node.module is not None
        for alias in node.names:
            yield f"{node.module}.{alias.name}", at_once
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        at_once = False
    elif isinstance(node, ast.If) and at_once:
        test = ast.unparse(node.test)
        later = "TYPE_CHECKING" in test or "__main__" in test
        for statement in node.body:
            yield from imports_in(statement, not later)
        for statement in node.orelse:
            yield from imports_in(statement, True)
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from imports_in(child, at_once)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    part = part_of(path)
    for name, at_once in imports(path):
        top, _, rest = name.partition(".")
        if top == "qsdm":
            other = rest.split(".")[0] if rest else ""
            if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists():
                assert other in ALLOWED[part] | {part, ""}, f"{part} may not import qsdm.{other}"
        if top in DOORS:
            assert part in DOORS[top], (
                f"{part} may not import {top}: its door is {', '.join(sorted(DOORS[top]))}"
            )
        if top in HEAVY and not (
            (top == "torch_geometric" and part == "predictor")
            or (
                top == "diffusers" and path.parent.name == "checkpoint" and path.stem == "quantizer"
            )
        ):
            assert not at_once, (
                f"{path.name} imports {top} when it is imported: "
                "move that into the function that uses it"
            )
        if top == "torch":
            assert part not in {"strategies", "recipes"}, f"{part} needs no torch"
            if part in GROUND | COMMANDS | {"run", "denoisers", "__main__", "report"}:
                assert not at_once, (
                    f"{path.name} imports torch when it is imported: --help must be fast"
                )
        assert top not in {"pickle", "dill", "joblib"}, (
            f"{path.name} imports {top}: artifacts are never pickles"
        )


def dotted(node: ast.expr) -> str:
    """Of a name, or of an attribute of one."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in files()} <= set(ALLOWED)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_evaluated_or_unpickled(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in {"eval", "exec", "torch.load", "pickle.load", "pickle.loads"}, (
                f"{path.name}: {called}"
            )


def test_the_ground_needs_only_numpy() -> None:
    import sys

    for path in files():
        if part_of(path) in GROUND:
            for name, at_once in imports(path):
                top = name.partition(".")[0]
                assert not at_once or top in sys.stdlib_module_names | {"numpy", "qsdm"}, (
                    f"{path.name} imports {name}"
                )


MOST_PARAMETERS = 5


@pytest.mark.parametrize(
    "path", [path for path in files() if part_of(path) == "measurement"], ids=lambda path: path.name
)
def test_functions_of_measurement_take_few_parameters(path: Path) -> None:
    """More of them want to be an object; the fields of a dataclass are none."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names = [name for name in names if name not in ("self", "cls")]
            assert len(names) <= MOST_PARAMETERS, f"{path.name}:{node.lineno} takes {names}"
