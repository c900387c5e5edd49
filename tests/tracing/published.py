"""Denoisers of conf/model and their graphs, each made once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from qsdm.denoisers import Model
from qsdm.graph import Graph

CONF = Path(__file__).parents[2] / "conf"


def names() -> list[str]:
    """All models with a published config."""
    found = {
        path.stem: yaml.safe_load(path.read_text())
        for path in sorted((CONF / "model").glob("*.yaml"))
    }
    return [name for name, entry in found.items() if "config" in entry]


def model(name: str) -> Model:
    entry = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    return Model(
        **{key: value for key, value in entry.items() if key not in ("_target_", "defaults")}
    )


@cache
def traced(name: str) -> tuple[Graph, tuple[str, ...]]:
    """Graph, and the paths of Linear and Conv modules that it does not cover."""
    from qsdm import tracing
    from qsdm.trace import prepare

    described = model(name)
    module, inputs, _ = prepare(described)
    graph = tracing.trace(module, inputs, name, described.exclude, described.tied)
    return graph, tuple(tracing.uncovered(module, graph))
