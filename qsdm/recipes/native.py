"""Our own form, the JSON of every command, which ``qconfig.schema.json`` describes."""

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
    """Read a configuration.

    Args:
        graph: of the denoiser.
        data: of the JSON file.

    Returns:
        The configuration, without notes.

    Raises:
        RecipeError: ``data`` is not a configuration of this graph.
    """
    try:
        qconfig = QuantConfig.from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"this is not a configuration: {error}") from error
    check(graph, qconfig)
    return Read(qconfig, ())


def write(graph: Graph, qconfig: QuantConfig, _loader: Loader | None = None) -> Written:
    """Write a configuration as it is.

    Args:
        graph: of the denoiser.
        qconfig: one of this graph.
        _loader: ignored; other formats need it.

    Returns:
        The JSON, without notes.

    Raises:
        RecipeError: the configuration belongs to another graph.

    Example:
        >>> import torch
        >>> from qsdm.qconfig import QuantConfig, QuantMethod
        >>> from qsdm.recipes import native
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> graph = trace(mlp, {"input": torch.zeros(1, 64)}, "mlp")
        >>> qconfig = QuantConfig("mlp", {"0": QuantMethod.parse("uaq_g64-4")})
        >>> native.write(graph, qconfig).text.startswith('{')
        True
    """
    check(graph, qconfig)
    usage = f"python -m qsdm.measure +model={graph.denoiser} configs=FILE"
    return Written(json.dumps(qconfig.to_json(), indent=1) + "\n", ".json", (), usage)
