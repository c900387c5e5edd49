"""The benchmark of learning at full size, on a small graph."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from toy_unet import Toy


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "experiments" / "bench" / "full_size.py"
    spec = importlib.util.spec_from_file_location("full_size", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_what_was_planted_is_found_again(bench: ModuleType, toy: Toy, tmp_path: Path) -> None:
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(toy.space.graph.to_json()), encoding="utf-8")
    work = bench.Work(labels=80, predicted=100, budget=150, explained=3, epochs=2)
    figures = bench.run(graph, work)
    assert figures["srcc with the truth"] > 0.8
    assert figures["srcc of harms with the planted ones"] > 0.7
    assert figures["greatest gap"] < 0.1
    assert figures["train CPU s"] > 0
    assert figures["search without predictor CPU s"] < figures["search CPU s"]
