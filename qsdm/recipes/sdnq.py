"""SDNQ: one dtype for a model, and other settings for modules by name.

What decides about a parameter, in this order: ``modules_to_not_convert``; kinds and sizes of layers
that are left alone; then the dtype of ``modules_dtype_dict``, else that of ``modules_quant_config``
(the first entry that matches), else that of the config. The keys of ``modules_dtype_dict`` are
dtypes or minimum widths (``minimum_6bit``): the first list that matches decides, unless its minimum
width is already met; then the search continues. An entry matches a parameter if it is the
parameter's name, one of the parts of the name, or its beginning (``.proj_out``). An entry with
``*`` is a regular expression that must match at the beginning of the name, in which ``.*`` is a dot
and anything, and any other ``*`` is anything.

Without a ``u``, N bits have 2^N - 1 levels (int2: three), symmetric about zero.

The writer gives the arguments of ``SDNQConfig`` as JSON. SDNQ has codebooks too, and fits them with
Lloyd's algorithm.

References:
    Disty0/sdnq 0.2.8: src/sdnq/utils.py, ``check_param_name_in``, ``get_quant_kwargs``,
        ``get_minimum_dtype``, ``check_quant_is_allowed``; src/sdnq/quantizer.py, ``SDNQConfig``,
        ``sdnq_quantize_layer_weight``; src/sdnq/common.py, ``dtype_dict``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
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
    decisions,
    holding,
    idle,
    refuse_activations,
    require_overlap,
    sentences,
    strings,
)

_FULL = {"float32", "fp32", "bfloat16", "bf16", "float16", "fp16"}
_INTEGER = re.compile(r"(u?)int(\d+)")
_FLOAT = re.compile(r"(?:u?fp(\d+)|float(\d+)_e\d+m\d+\w*)")
_LEAST = re.compile(r"(?:minimum)?[-_]?(u?)(?:int)?(\d+)[-_]?(?:bits?)?")
_AUTO, _ROW, _TENSOR = 0, -1, -2  # group_size

KEYS = {
    "modules_dtype_dict", "modules_quant_config", "modules_to_not_use_matmul", "sdnq_version",
    "add_skip_keys", "quantized_matmul_dtype", "use_quantized_matmul", "use_svd", "svd_rank",
    "use_codebook", "quant_conv",
}  # fmt: skip
"""Any of these identifies a config of SDNQ that has no ``quant_method``."""

_UNIFORM = Holding(
    "uint", "uniform: minimum and maximum are taken there, without our search of the range"
)
_LLOYD = "codebooks: fitted by 24 steps of Lloyd's algorithm there, to a local optimum"
HOLDS: dict[str, Holding] = {
    "fp": Holding("plain"),
    **dict.fromkeys(UNIFORM, _UNIFORM),
    **dict.fromkeys(CODEBOOK_PER_ROW, Holding("codebook per row", _LLOYD)),
    **dict.fromkeys(CODEBOOK_PER_TENSOR, Holding("codebook per tensor", _LLOYD)),
    NF4_G64.name: Holding(
        "uint",
        "nf4: SDNQ has no table of fixed levels, uint4 in groups of 64 is taken",
        substitute=True,
    ),
    "fp8_e4m3": Holding("float8_e4m3fn"),
}
"""What SDNQ has for each method."""


def holds(method: QuantMethod) -> Holding:
    """Look up a method in `HOLDS`.

    Args:
        method: to be written.

    Raises:
        RecipeError: the table has no such method.
    """
    return holding("SDNQ", HOLDS, method)


def can_hold(_layer: Layer, method: QuantMethod) -> bool:
    """Tell whether SDNQ stores values of the method's kind at the method's bits.

    Args:
        _layer: that is quantized; SDNQ holds every shape.
        method: of it.
    """
    return method.name in HOLDS and not HOLDS[method.name].substitute


def read(
    graph: Graph, data: Mapping[str, Any], default: QuantMethod, loader: Loader | None = None
) -> Read:
    """Read an SDNQ config, written by hand or saved with a checkpoint.

    Args:
        graph: of the denoiser.
        data: of the JSON file.
        default: for weights without a dtype.
        loader: of the denoiser's class, whose ``keep`` joins the skip list unless
            ``add_skip_keys`` is false; None if the class is unknown.

    Returns:
        The configuration, with notes about what is not carried over exactly.

    Raises:
        RecipeError: a key holds a value of the wrong type, a dtype is unknown, or all names belong
            to another denoiser.
    """
    skipped = strings(data, "modules_to_not_convert")
    dtypes, settings = _mapping(data, "modules_dtype_dict"), _mapping(data, "modules_quant_config")
    by_dtype = {dtype: strings(dtypes, dtype) for dtype in dtypes}
    entries = [*skipped, *settings, *(entry for names in by_dtype.values() for entry in names)]
    least_values = _number(data, "minimum_allowed_numel", 16384)
    least_channels = _number(data, "minimum_allowed_channel_size", 32)
    added = data.get("add_skip_keys", True)
    keep = loader.keep if loader is not None and added else ()
    matched = set[str]()

    def first(name: str, patterns: Iterable[str]) -> str | None:
        hits = [entry for entry in patterns if matches(entry, name)]
        matched.update(hits)
        return hits[0] if hits else None

    def decide(name: str, layer: Layer) -> Decision:
        skip, own = first(name, skipped), first(name, settings)
        listed = [key for key, names in by_dtype.items() if first(name, names) is not None]
        if skip is not None:
            return None, []
        if loader is not None and any(matches(entry, name) for entry in keep):
            return None, [f"in _keep_in_fp32_modules of {loader.denoiser}, which SDNQ skips"]
        if not layer.is_linear and not data.get("quant_conv"):
            return None, ["a Conv, which SDNQ leaves at full precision without quant_conv"]
        if math.prod(layer.shape) < least_values or layer.shape[1] < least_channels:
            return None, [
                f"of fewer than {least_values} values or {least_channels} inputs, "
                "which SDNQ leaves alone"
            ]
        options = dict(data) | (_mapping(settings, own) if own is not None else {})
        base = str(options.get("weights_dtype", f"uint{default.bits}"))
        dtypes_of_lists = (dtype_for(base, key) for key in listed)
        dtype = next((dtype for dtype in dtypes_of_lists if dtype is not None), base)
        if dtype == base and "weights_dtype" not in options:
            return default, []
        return method_of(dtype, options, layer)

    result = assemble(graph, decide)
    require_overlap(graph, entries, matched)
    notes = result.notes + idle(entries, matched)
    if added:
        notes += (
            "SDNQ adds names of its own for some models unless add_skip_keys is false: "
            "give the saved config",
        )
    return Read(result.qconfig, notes)


def matches(entry: str, name: str) -> bool:
    """Whether an entry of a list matches a parameter.

    Args:
        entry: of the list.
        name: of the parameter.

    Raises:
        RecipeError: an entry with ``*`` is not a regular expression.
    """
    if entry.startswith("."):
        return name.startswith(entry[1:])
    if entry == name or entry in name.split("."):
        return True
    if "*" not in entry:
        return False
    *pieces, last = entry.split("*")
    literal = [piece[:-1] + r"\." if piece.endswith(".") else piece for piece in pieces]
    try:
        return re.match(".*".join([*literal, last]), name) is not None
    except re.error as error:
        raise RecipeError(
            f"the pattern {entry!r} is not a regular expression, as SDNQ expects: {error}"
        ) from error


def dtype_for(dtype: str, key: str) -> str | None:
    """Apply a key of ``modules_dtype_dict`` to a dtype.

    Args:
        dtype: that the parameter has without the key.
        key: a dtype or a minimum width.

    Returns:
        The new dtype; None if the old one already has the minimum width.

    Raises:
        RecipeError: the key is neither.
    """
    low = key.lower()
    if not (low.startswith("minimum") or low.endswith(("bit", "bits"))):
        return low
    match = _LEAST.fullmatch(low)
    if match is None:
        raise RecipeError(
            f"wanted a dtype or a minimum width such as minimum_6bit in modules_dtype_dict "
            f"(got {key!r})"
        )
    bits = int(match[2])
    if _width(dtype) >= bits:
        return None
    return f"uint{bits}" if match[1] or bits <= 4 else f"int{bits}"


def _width(dtype: str) -> int:
    """Bits of a dtype.

    Raises:
        RecipeError: SDNQ has no such dtype.
    """
    if dtype in _FULL:
        return 32 if dtype.endswith("32") else 16
    integer, floating = _INTEGER.fullmatch(dtype), _FLOAT.fullmatch(dtype)
    if not integer and not floating:
        raise RecipeError(
            f"wanted a dtype of SDNQ such as uint4, int8, float8_e4m3fn or bf16 (got {dtype!r})"
        )
    return int(integer[2]) if integer else int(floating[1] or floating[2]) if floating else 0


def method_of(dtype: str, options: Mapping[str, Any], layer: Layer) -> Decision:
    """Choose the method nearest to a dtype.

    Args:
        dtype: of SDNQ.
        options: ``group_size``, ``use_codebook``, ``use_svd``, ``use_hadamard``,
            ``use_dynamic_quantization``.
        layer: that gets it.

    Returns:
        The method, and how it differs.

    Raises:
        RecipeError: the dtype is unknown or has one bit.
    """
    bits, integer = _width(dtype), _INTEGER.fullmatch(dtype)
    if bits > 8:
        return None, [] if dtype in _FULL else [f"{dtype} is taken as full precision"]
    if bits < 2:
        raise RecipeError(f"wanted 2 to 8 bits, for which qsdm has methods (got {dtype!r})")
    size = group_of(layer, _number(options, "group_size", _AUTO), bits, options)
    differences = [
        f"without its {key[4:]}" for key in ("use_svd", "use_hadamard") if options.get(key)
    ]
    if options.get("use_dynamic_quantization"):
        differences.append("more bits there where dynamic_loss_threshold is exceeded")
    if not layer.is_linear and size != _TENSOR:
        differences.append("a Conv, with scales or codebooks per kernel position there")
    if options.get("use_codebook"):
        method = QuantMethod("kmeans_a" if size == _TENSOR else "kmeans_c", bits)
        if size > 0:
            differences.append("a codebook per group of inputs there")
        return method, differences
    if dtype in {"float8_e4m3fn", "fp8"}:
        if size != _ROW:
            differences.append("scales not per channel there")
        return QuantMethod("fp8_e4m3", 8), differences
    method = affine(bits, size if size > 0 else None)
    kind = ", floating point there" if integer is None else ""
    if integer is not None and not integer[1]:
        kind = f", symmetric there with {2**bits - 1} levels"
    differences += [
        f"{dtype} is taken as {method}{kind}",
        "minimum and maximum are taken there, the best range here",
    ]
    if size == _TENSOR:
        differences.append("a scale per tensor there, per channel here")
    if size > 0 and size != method.group_size:
        differences.append(f"groups of {size} there, of {method.group_size} here")
    return method, differences


def group_of(layer: Layer, size: int, bits: int, options: Mapping[str, Any]) -> int:
    """Compute SDNQ's group size for a layer.

    Args:
        layer: whose row the size must divide.
        size: ``group_size`` of the config: 0 for SDNQ's choice, -1 for a row, -2 for a tensor.
        bits: of the dtype.
        options: ``use_codebook`` and ``use_svd``, on which SDNQ's choice depends.

    Returns:
        Number of inputs that share a scale, or -1 or -2.

    Raises:
        RecipeError: the size is less than -2.
    """
    if size < _TENSOR:
        raise RecipeError(f"wanted a group_size of -2, -1, 0 or more (got {size})")
    if size < 0:
        return size
    if size == _AUTO:
        size = 2 ** (
            1
            + bits
            + layer.is_linear
            + bool(options.get("use_svd"))
            + 3 * bool(options.get("use_codebook"))
        )
    channels = layer.shape[1]
    groups = next((n for n in range(channels // size, 1, -1) if channels % n == 0), 1)
    return channels // groups if groups > 1 else _ROW


def write(graph: Graph, qconfig: QuantConfig, _loader: Loader | None = None) -> Written:
    """Write the arguments of ``SDNQConfig``.

    Args:
        graph: of the denoiser.
        qconfig: one of this graph.
        _loader: ignored: without ``add_skip_keys``, SDNQ only keeps what the list names.

    Returns:
        The JSON, with notes about what it cannot express.

    Raises:
        RecipeError: the configuration belongs to another graph or rounds activations, or `HOLDS`
            lacks a method.

    Example:
        >>> import torch
        >>> from qsdm.qconfig import QuantConfig, QuantMethod
        >>> from qsdm.recipes import sdnq
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> graph = trace(mlp, {"input": torch.zeros(1, 64)}, "mlp")
        >>> qconfig = QuantConfig("mlp", {"0": QuantMethod.parse("uaq_g64-4")})
        >>> "uint4" in sdnq.write(graph, qconfig).text
        True
    """
    refuse_activations("sdnq", qconfig)
    counts, full, settings = NoteCounts(), list[str](), dict[str, dict[str, Any]]()
    for name, layer, method in decisions(graph, qconfig, counts):
        if method is None:
            full.append(name)
            continue
        setting, limits = setting_of(method, layer)
        settings[name] = setting
        counts.update(limits)
    data = {
        "quant_method": "sdnq",
        "weights_dtype": "uint4",
        "group_size": _ROW,
        "quant_conv": True,
        "add_skip_keys": False,
        "minimum_allowed_numel": 0,
        "minimum_allowed_channel_size": 0,
        "modules_to_not_convert": full,
        "modules_quant_config": settings,
    }
    usage = (
        'quantization_config=SDNQConfig(**json.load(open("FILE"))) in from_pretrained, '
        "with sdnq 0.2.8 or newer"
    )
    return Written(json.dumps(data, indent=1) + "\n", ".sdnq.json", sentences(counts), usage)


def setting_of(method: QuantMethod, layer: Layer) -> tuple[dict[str, Any], list[str]]:
    """Choose the settings of a module.

    Args:
        method: to be written.
        layer: that gets it.

    Returns:
        The settings, and sentences about what they cannot express.

    Raises:
        RecipeError: `HOLDS` lacks the method.
    """
    kind, limit = holds(method).kind, holds(method).limit
    limits = [limit] if limit else []
    setting: dict[str, Any] = {
        "weights_dtype": f"uint{method.bits}",
        "group_size": method.group_size or _ROW,
    }
    if kind == "float8_e4m3fn":
        setting["weights_dtype"] = kind
    elif kind.startswith("codebook"):
        per_tensor = kind == "codebook per tensor"
        setting |= {"use_codebook": True, "group_size": _TENSOR if per_tensor else _ROW}
    size = group_of(layer, method.group_size, method.bits, {}) if method.group_size else _ROW
    if method.group_size and size != method.group_size:
        limits.append(
            f"groups of {method.group_size} become groups that divide the row of {layer.shape[1]}"
        )
    if not layer.is_linear and kind != "codebook per tensor":
        limits.append(
            "a Conv: there every kernel position of a channel has scales or a codebook of its own"
        )
    return setting, limits


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"wanted a mapping under {key!r} (got {value!r})")
    return dict(value)


def _number(data: Mapping[str, Any], key: str, default: int) -> int:
    value = data.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RecipeError(f"wanted a whole number under {key!r} (got {value!r})")
    return value
