"""Our own form: the JSON that every command reads and writes. ``qconfig.schema.json`` beside this file describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantConfig
from qsdm.recipes import Loader, Read, RecipeError, Written, check

SCHEMA_FILE = Path(__file__).parent / "qconfig.schema.json"


def read(graph: Graph, data: Mapping[str, Any]) -> Read:
    """Raises RecipeError if ``data`` is no configuration of this graph."""
    try:
        qconfig = QuantConfig.from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"this is no configuration: {error}") from error
    check(graph, qconfig)
    return Read(qconfig, ())


def write(graph: Graph, qconfig: QuantConfig, loader: Loader | None = None) -> Written:
    """The configuration as it is; no ``loader`` changes that."""
    check(graph, qconfig)
    usage = f"python -m qsdm.measure +model={graph.denoiser} configs=FILE"
    return Written(json.dumps(qconfig.to_json(), indent=1) + "\n", ".json", (), usage)
