"""Our own form, the JSON of every command, which `schema` describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import SCHEMAS, QuantConfig, activations
from qsdm.quant.methods import METHODS
from qsdm.recipes import Loader, Read, RecipeError, Written, check


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration, for programs that write or check one.

    Returns:
        A schema of draft 2020-12, which allows exactly the methods of `METHODS`.
    """
    names = (f"{name}-({'|'.join(map(str, METHODS[name].bits))})" for name in METHODS)
    weights = (
        "Method by weight: the module's path, with #k for the k-th part of a weight that is split "
        "by its inputs. Weights that are not named keep full precision."
    )
    bits = f"a({'|'.join(map(str, activations.WIDTHS))})"
    of_all = (
        "Bits of the inputs of all layers, each token in a range of its own; attention's "
        "probabilities get 8. Null or left out: they are not rounded."
    )
    in_bins = (
        "Bins of the sampler's steps, as fractions from 0 to 1, in which these methods and "
        "activations apply instead of those above; without any, full precision. They do not "
        "overlap."
    )
    whole: dict[str, Any] = {
        "methods": {
            "description": weights,
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": {
                "description": "NAME-BITS, or NAME-BITS+aBITS or aBITS for the layer's input.",
                "type": "string",
                "pattern": f"^(({'|'.join(names)})([+]{bits})?|{bits})$",
            },
        },
        "activations": {"description": of_all, "enum": [None, *activations.WIDTHS]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:qsdm:qconfig:1",
        "title": "qsdm configuration",
        "description": "A quantization method for every weight of a denoiser.",
        "type": "object",
        "required": ["schema", "denoiser", "methods"],
        "additionalProperties": False,
        "properties": {
            "schema": {"enum": list(SCHEMAS)},
            "denoiser": {
                "description": "Name of the traced model.",
                "type": "string",
                "minLength": 1,
            },
            **whole,
            "steps": {
                "description": in_bins,
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["from", "to"],
                    "additionalProperties": False,
                    "properties": {
                        "from": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                        "to": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                        **whole,
                    },
                },
            },
        },
    }


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
