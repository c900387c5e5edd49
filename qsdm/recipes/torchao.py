"""torchao: a config for every module by its name, ``FqnToConfig``, as the JSON that ``config_from_dict`` reads.

Uniform methods are ``IntxWeightOnlyConfig`` of 2 to 8 bits, asymmetric, per output channel or in groups; 8-bit floats
``Float8WeightOnlyConfig``. Modules that keep full precision are named with null.

References:
    pytorch/ao 0.18.0: torchao/core/config.py, ``config_to_dict``, ``config_from_dict``;
        torchao/quantization/quant_api.py, ``FqnToConfig`` (``ModuleFqnToConfig`` in older versions),
        ``IntxWeightOnlyConfig``, ``Float8WeightOnlyConfig``.
    huggingface/diffusers: src/diffusers/quantizers/torchao/torchao_quantizer.py, ``_resolve_fqn_to_config``.
"""

from __future__ import annotations

import json
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.recipes import Layer, Said, Written, decisions, sentences

_USAGE = (
    'torchao.quantize_(module, torchao.core.config.config_from_dict(json.load(open("FILE"))), filter_fn=None), '
    "or quantization_config=TorchAoConfig(config_from_dict(...)) in diffusers' from_pretrained"
)


def write(graph: Graph, qconfig: QuantConfig) -> Written:
    """An ``FqnToConfig``."""
    said, configs = Said(), dict[str, dict[str, Any] | None]()
    for name, layer, method in decisions(graph, qconfig, said):
        config, limits = (None, []) if method is None else config_of(layer, method)
        configs[name.removesuffix(".weight")] = config
        said.update(limits)
    text = json.dumps(_typed("FqnToConfig", 1, fqn_to_config=configs), indent=1)
    return Written(text + "\n", ".torchao.json", sentences(said), _USAGE)


def config_of(layer: Layer, method: QuantMethod) -> tuple[dict[str, Any] | None, list[str]]:
    """The nearest config, None where there is none, and what it cannot express."""
    group, limits = method.group_size, list[str]()
    if len(layer.shape) not in (2, 4):
        return None, [
            "a Conv over one or three axes: kept at full precision, torchao has no config for it"
        ]
    if layer.shape[1] == 1 and not layer.is_linear:
        return None, [
            "a Conv with one input per channel: kept at full precision, torchao fails on it"
        ]
    if method.name == "fp8_e4m3":
        if not layer.is_linear:
            return None, [
                "8-bit floats in a Conv: kept at full precision, torchao has them for Linear only"
            ]
        return _typed("Float8WeightOnlyConfig", 2, weight_dtype=_dtype("float8_e4m3fn")), []
    if group is not None and layer.shape[1] % group != 0:
        limits.append(
            f"groups of {group} become one scale per channel: a group must divide the inputs"
        )
        group = None
    match method.name:
        case "kmeans_a" | "kmeans_c":
            limits.append(
                "codebooks: no config that loads from JSON has them, a uniform one of the same bits is taken"
            )
        case "nf4_g64":
            limits.append("nf4: torchao has no config for it, uniform int4 is taken")
        case _:
            limits.append(
                "uniform: minimum and maximum are taken there, without our search of the range"
            )
    if not layer.is_linear:
        limits.append(
            "a Conv: every kernel position has scales of its own, and diffusers' TorchAoConfig leaves it out"
        )
    if method.bits < 8:
        limits.append("of fewer than 8 bits, but takes a byte per value there")
    grain = (
        _typed("PerAxis", 1, axis=0) if group is None else _typed("PerGroup", 1, group_size=group)
    )
    kind = {"_type": "MappingType", "_data": "ASYMMETRIC"}
    config = _typed(
        "IntxWeightOnlyConfig",
        2,
        weight_dtype=_dtype(f"int{method.bits}"),
        granularity=grain,
        mapping_type=kind,
    )
    return config, limits


def _typed(name: str, version: int, **data: Any) -> dict[str, Any]:
    return {"_type": name, "_version": version, "_data": data}


def _dtype(name: str) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": name}
