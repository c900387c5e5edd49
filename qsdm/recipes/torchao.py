"""torchao: a config for every module by name, ``FqnToConfig``, in the JSON of ``config_from_dict``.

Uniform methods become ``IntxWeightOnlyConfig`` with 2 to 8 bits, asymmetric, per output channel or
in groups; 8-bit floats become ``Float8WeightOnlyConfig``. Modules with full precision get null.

The reader takes one config for all Linear layers, or an ``FqnToConfig``, which names what is
quantized. For a parameter, the first of these decides: its name, its module's name, the first
``re:`` pattern that matches all of its name, or of its module's name, and, for Linear layers,
``_default``. Everything else stays as it is. Inside ``TorchAoConfig``, diffusers quantizes: only
Linear layers, and not those in its skip list.

References:
    pytorch/ao 0.18.0: torchao/core/config.py, ``config_to_dict``, ``config_from_dict``;
        torchao/quantization/quant_api.py, ``FqnToConfig`` (``ModuleFqnToConfig`` in older
        versions), ``quantize_``, ``IntxWeightOnlyConfig``, ``Float8WeightOnlyConfig``.
    huggingface/diffusers 0.42.1: src/diffusers/quantizers/torchao/torchao_quantizer.py,
        ``_resolve_fqn_to_config``, ``check_if_quantized_param``; quantization_config.py,
        ``TorchAoConfig``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.nf4 import NF4_G64
from qsdm.recipes import (
    CODEBOOK_PER_ROW,
    CODEBOOK_PER_TENSOR,
    UNIFORM,
    Decision,
    Holding,
    Layer,
    Loader,
    NoteCounts,
    Read,
    RecipeError,
    Written,
    affine,
    assemble,
    contains,
    decisions,
    holding,
    idle,
    refuse_activations,
    require_overlap,
    sentences,
    strings,
)
from qsdm.recipes.skip_list import kept_by, torchao_skips

_UNIFORM = Holding(
    "intx", "uniform: minimum and maximum are taken there, without our search of the range"
)
_CODEBOOK = Holding(
    "intx",
    "codebooks: no config that loads from JSON has them, a uniform one of the same bits is taken",
    substitute=True,
)
HOLDS: dict[str, Holding] = {
    "fp": Holding("plain"),
    **dict.fromkeys(UNIFORM, _UNIFORM),
    **dict.fromkeys((*CODEBOOK_PER_ROW, *CODEBOOK_PER_TENSOR), _CODEBOOK),
    NF4_G64.name: Holding(
        "intx", "nf4: torchao has no config for it, uniform int4 is taken", substitute=True
    ),
    "fp8_e4m3": Holding("float8"),
}
"""What torchao has for each method, as JSON."""

FQN = ("FqnToConfig", "ModuleFqnToConfig")
_USAGE = (
    'torchao.quantize_(module, torchao.core.config.config_from_dict(json.load(open("FILE"))), '
    "filter_fn=None), or quantization_config=TorchAoConfig(config_from_dict(...)) "
    "in diffusers' from_pretrained"
)


def holds(method: QuantMethod) -> Holding:
    """Look up a method in `HOLDS`.

    Args:
        method: to be written.

    Raises:
        RecipeError: the table has no such method.
    """
    return holding("torchao", HOLDS, method)


def can_hold(layer: Layer, method: QuantMethod) -> bool:
    """Tell whether torchao stores values of the method's kind at the method's bits.

    Args:
        layer: that is quantized.
        method: of it.
    """
    if method.name not in HOLDS or HOLDS[method.name].substitute:
        return False
    return method.is_full or config_of(layer, method)[0] is not None


# ---- reading


def read(
    graph: Graph, data: Mapping[str, Any], default: QuantMethod, loader: Loader | None = None
) -> Read:
    """Read a config from ``config_to_dict``, or a ``TorchAoConfig`` with one.

    Args:
        graph: of the denoiser.
        data: of the JSON file.
        default: for a ``TorchAoConfig`` without a type.
        loader: of the denoiser's class, whose ``keep`` joins the skip list; None if the class is
            unknown.

    Returns:
        The configuration, with notes about what is not carried over exactly.

    Raises:
        RecipeError: it is not such a config, its type is unknown, or all names belong to another
            denoiser.
    """
    wrapped = "_type" not in data
    skipped = strings(data, "modules_to_not_convert") if wrapped else []
    config = _inner(data) if wrapped else data
    keep = loader.keep if loader is not None else ()
    matched = set[str]()
    by_name = _by_name(config) if config is not None and config.get("_type") in FQN else None
    methods = None if by_name is None else {key: _method(value) for key, value in by_name.items()}
    whole = (
        _method(config)
        if config is not None and methods is None
        else (
            default,
            [f"the config names no type of torchao: they get {default}"],
        )
    )

    def decide(name: str, layer: Layer) -> Decision:
        hits = [entry for entry in skipped if torchao_skips(entry, name)]
        matched.update(hits)
        key = resolve(methods, name, layer) if methods is not None else ""
        if key:
            matched.add(key)
        if hits or key is None:
            return None, []
        kept = kept_by(keep, torchao_skips, name)
        if wrapped and kept is not None and loader is not None:
            return None, [
                f"{kept!r} is in _keep_in_fp32_modules of {loader.denoiser}: "
                "diffusers' torchao backend leaves them at full precision without any list"
            ]
        method, differences = whole if methods is None else methods[key]
        if method is None:
            return None, []
        if not layer.is_linear and (wrapped or methods is None):
            return None, ["a Conv, which torchao leaves at full precision unless it is named"]
        return method, differences + _divides(method, layer)

    result = assemble(graph, decide)
    entries = [*skipped, *(by_name or {})]
    about = matched | {entry for entry in skipped if contains(graph, entry)}
    require_overlap(graph, [entry for entry in entries if entry != "_default"], about)
    notes = result.notes + idle(entries, matched)
    return Read(result.qconfig, notes + _kept_notes(graph, result.qconfig, loader, wrapped))


def resolve(by_name: Mapping[str, object], parameter: str, layer: Layer) -> str | None:
    """Find the key of an ``FqnToConfig`` that decides about a parameter.

    Args:
        by_name: the entries.
        parameter: its name.
        layer: that it belongs to.

    Returns:
        The key; None if no key decides.

    Raises:
        RecipeError: a pattern is not a regular expression.
    """
    names = (parameter, parameter.removesuffix(".weight"))
    for name in names:
        if name in by_name:
            return name
    for name in names:
        for key in by_name:
            try:
                if key.startswith("re:") and re.fullmatch(key[3:], name):
                    return key
            except re.error as error:
                raise RecipeError(
                    f"the pattern {key!r} is not a regular expression: {error}"
                ) from error
    return "_default" if "_default" in by_name and layer.is_linear else None


def _inner(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config inside a ``TorchAoConfig``; None if it has none."""
    value = data.get("quant_type")
    if isinstance(value, Mapping) and "default" in value:
        value = value["default"]
    if value in (None, {}):
        return None
    if not isinstance(value, Mapping) or not isinstance(value.get("_type"), str):
        raise RecipeError(
            "wanted a torchao config with _type and _data under quant_type, as from its to_dict "
            f"(got {value!r})"
        )
    return value


def _data_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    data = config.get("_data")
    if not isinstance(data, Mapping):
        raise RecipeError(f"wanted a mapping under _data of {config.get('_type')!r} (got {data!r})")
    return data


def _by_name(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """The entries of an ``FqnToConfig``, which has two names for the same field."""
    data = _data_of(config)
    by_name = data.get("fqn_to_config") or data.get("module_fqn_to_config") or {}
    if not isinstance(by_name, Mapping) or not all(
        value is None or isinstance(value, Mapping) for value in by_name.values()
    ):
        raise RecipeError("wanted a config or null for every name of fqn_to_config")
    return dict(by_name)


def _method(config: Mapping[str, Any] | None) -> tuple[QuantMethod | None, list[str]]:
    """The method nearest to a config, and how it differs.

    Raises:
        RecipeError: no method is near it.
    """
    if config is None:
        return None, []
    kind, data = config.get("_type"), _data_of(config)
    if kind in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"):
        grain = data.get("granularity")
        return _named(kind, affine(8, _size(data.get("group_size"))), None, True, grain)
    if kind == "Int4WeightOnlyConfig":
        return _named(kind, affine(4, _size(data.get("group_size", 128))), data.get("group_size"))
    if kind in ("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig"):
        return _named(kind, QuantMethod("fp8_e4m3", 8))
    if kind in ("IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig"):
        prefix = "" if kind == "IntxWeightOnlyConfig" else "weight_"
        text = _enum(data.get("weight_dtype"), "int8")
        bits = re.fullmatch(r"int([2-8])", text)
        if bits is None:
            raise RecipeError(f"wanted a weight_dtype of int2 to int8 in {kind} (got {text!r})")
        grain = data.get(f"{prefix}granularity")
        group = None
        if isinstance(grain, Mapping) and grain.get("_type") == "PerGroup":
            group = _size(_data_of(grain).get("group_size"))
        symmetric = _enum(data.get(f"{prefix}mapping_type"), "SYMMETRIC") != "ASYMMETRIC"
        return _named(kind, affine(int(bits[1]), group), group, symmetric, grain)
    raise RecipeError(
        "wanted one of torchao's Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, "
        "Float8WeightOnlyConfig, their forms with dynamic activations or an FqnToConfig of them "
        f"(got {kind!r})"
    )


def _named(
    kind: str,
    method: QuantMethod,
    group: object = None,
    symmetric: bool = False,
    grain: object = None,
) -> tuple[QuantMethod, list[str]]:
    differences = []
    # A pair is of activations and weights.
    of_weights = grain[-1] if isinstance(grain, list) and grain else grain
    if isinstance(of_weights, Mapping) and of_weights.get("_type") == "PerTensor":
        differences.append("one scale for the whole weight there, one per output channel here")
    if method.name != "fp8_e4m3":
        how = ", symmetric there" if symmetric else ""
        differences.append(f"{kind} is taken as {method}{how}, with our search of the range")
    if group is not None and group != method.group_size:
        differences.append(f"groups of {group} there, of {method.group_size} here")
    if "Dynamic" in kind:
        differences.append("activations are quantized too there")
    return method, differences


def _size(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"wanted a positive whole number as group_size (got {value!r})")
    return value


def _enum(value: object, default: str) -> str:
    """The text of a dtype or an enum's member."""
    if isinstance(value, Mapping):
        value = value.get("_data")
    return default if value is None else str(value)


def _divides(method: QuantMethod, layer: Layer) -> list[str]:
    size = method.group_size
    if size is None or layer.shape[1] % size == 0:
        return []
    return [f"groups of {size} do not divide the {layer.shape[1]} inputs: torchao fails on it"]


# ---- writing


def write(graph: Graph, qconfig: QuantConfig, loader: Loader | None = None) -> Written:
    """Write an ``FqnToConfig``.

    Args:
        graph: of the denoiser.
        qconfig: one of this graph.
        loader: of the denoiser's class, to report what diffusers would leave alone; None if the
            class is unknown.

    Returns:
        The JSON, with notes about what it cannot express.

    Raises:
        RecipeError: the configuration belongs to another graph or rounds activations, or `HOLDS`
            lacks a method.

    Example:
        >>> import torch
        >>> from qsdm.qconfig import QuantConfig, QuantMethod
        >>> from qsdm.recipes import torchao
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> graph = trace(mlp, {"input": torch.zeros(1, 64)}, "mlp")
        >>> qconfig = QuantConfig("mlp", {"0": QuantMethod.parse("uaq_g64-4")})
        >>> "torch.dtype" in torchao.write(graph, qconfig).text
        True
    """
    refuse_activations("torchao", qconfig)
    counts, configs = NoteCounts(), dict[str, dict[str, Any] | None]()
    for name, layer, method in decisions(graph, qconfig, counts):
        config, limits = (None, []) if method is None else config_of(layer, method)
        configs[name.removesuffix(".weight")] = config
        counts.update(limits)
    text = json.dumps(_typed("FqnToConfig", 1, fqn_to_config=configs), indent=1)
    notes = sentences(counts) + _kept_notes(graph, qconfig, loader, False)
    return Written(text + "\n", ".torchao.json", notes, _USAGE)


def _kept_notes(
    graph: Graph, qconfig: QuantConfig, loader: Loader | None, wrapped: bool
) -> tuple[str, ...]:
    """About weights that torchao quantizes, but not inside diffusers' from_pretrained."""
    if loader is None or wrapped:
        return ()
    weights = {weight.name: weight for weight in graph.weights}
    kept = [
        name
        for name, method in qconfig.methods.items()
        if not method.is_full and kept_by(loader.keep, torchao_skips, weights[name].parameter)
    ]
    counts = NoteCounts(
        {
            f"in _keep_in_fp32_modules of {loader.denoiser}: quantize_ quantizes them, "
            "diffusers' from_pretrained leaves them at full precision": len(kept)
        }
    )
    return sentences(counts) if kept else ()


def config_of(layer: Layer, method: QuantMethod) -> tuple[dict[str, Any] | None, list[str]]:
    """Choose the config nearest to a method.

    Args:
        layer: that gets it.
        method: to be written.

    Returns:
        The config, None for full precision, and sentences about what it cannot express.

    Raises:
        RecipeError: `HOLDS` lacks the method.
    """
    group, limits = method.group_size, list[str]()
    kind, limit = holds(method).kind, holds(method).limit
    if len(layer.shape) not in (2, 4):
        return None, [
            "a Conv over one or three axes: kept at full precision, torchao has no config for it"
        ]
    if layer.shape[1] == 1 and not layer.is_linear:
        return None, [
            "a Conv with one input per channel: kept at full precision, torchao fails on it"
        ]
    if kind == "float8":
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
    limits.append(limit)
    if not layer.is_linear:
        limits.append(
            "a Conv: every kernel position has scales of its own, "
            "and diffusers' TorchAoConfig leaves it out"
        )
    if method.bits < 8:
        limits.append("of fewer than 8 bits, but takes a byte per value there")
    grain = (
        _typed("PerAxis", 1, axis=0) if group is None else _typed("PerGroup", 1, group_size=group)
    )
    mapping = {"_type": "MappingType", "_data": "ASYMMETRIC"}
    config = _typed(
        "IntxWeightOnlyConfig",
        2,
        weight_dtype=_dtype(f"int{method.bits}"),
        granularity=grain,
        mapping_type=mapping,
    )
    return config, limits


def _typed(name: str, version: int, **data: Any) -> dict[str, Any]:
    return {"_type": name, "_version": version, "_data": data}


def _dtype(name: str) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": name}
