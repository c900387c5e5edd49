"""Skip lists: names of modules that keep full precision, in quantization configs of diffusers and transformers.

The same key, ``modules_to_not_convert``, has another rule in each of diffusers' backends (``RULES``); for a parameter
such as ``blocks.0.attn.to_q.weight`` an entry holds if it is

=============  =====================================================================================
torchao        the parameter's name, or anywhere in it followed by a dot: ``to_q``, ``attn``, ``n.to_q``
quanto         the layer's own name: ``to_q``. Containers and full paths protect nothing
bitsandbytes   the layer's own name, its full path, or anywhere in its path followed by a dot: ``attn``
gguf           one of the parts between the dots: ``to_q``, ``attn``
=============  =====================================================================================

By the same rules the backends compare ``_keep_in_fp32_modules`` of the denoiser's class, which adds to every list.
A list without a config says nothing about an engine: torchao's rule holds for its names, and Conv layers get the
default method as well, unless ``rules=ENGINE`` names one.

References:
    huggingface/diffusers 0.42.1: src/diffusers/quantizers/torchao/torchao_quantizer.py, ``check_if_quantized_param``;
        quanto/utils.py, ``_replace_with_quanto_layers``; bitsandbytes/utils.py, ``_replace_with_bnb_linear``;
        gguf/gguf_quantizer.py, ``create_quantized_param``; quantization_config.py for the keys.
    huggingface/optimum-quanto 0.2.7: optimum/quanto/nn/qmodule.py, ``QModuleMixin``, for the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantMethod
from qsdm.recipes import (
    Decision,
    Layer,
    Loader,
    Read,
    RecipeError,
    affine,
    assemble,
    contains,
    idle,
    require_overlap,
    strings,
)


class Engine(StrEnum):
    """Whose rule a skip list follows."""

    torchao = "torchao"
    quanto = "quanto"
    bitsandbytes = "bitsandbytes"
    gguf = "gguf"


KEYS = ("modules_to_not_convert", "llm_int8_skip_modules")


def torchao_skips(entry: str, parameter: str) -> bool:
    """Whether diffusers' torchao backend leaves a parameter alone for an entry of its list."""
    return entry == parameter or f"{entry}." in parameter


def quanto_skips(entry: str, parameter: str) -> bool:
    """The same of its quanto backend."""
    return entry == parameter.removesuffix(".weight").rpartition(".")[2]


def bitsandbytes_skips(entry: str, parameter: str) -> bool:
    """The same of its bitsandbytes backend."""
    path = parameter.removesuffix(".weight")
    return entry in (path, path.rpartition(".")[2]) or f"{entry}." in path


def gguf_skips(entry: str, parameter: str) -> bool:
    """The same of its GGUF backend, whose list is ``_keep_in_fp32_modules`` alone."""
    return entry in parameter.split(".")


RULES: dict[Engine, Callable[[str, str], bool]] = {
    Engine.torchao: torchao_skips,
    Engine.quanto: quanto_skips,
    Engine.bitsandbytes: bitsandbytes_skips,
    Engine.gguf: gguf_skips,
}
"""(entry, parameter) => whether the layer keeps full precision. All four quantize Linear layers only."""


def read(
    graph: Graph,
    data: Mapping[str, Any] | list[str],
    default: QuantMethod,
    loader: Loader | None = None,
    engine: Engine | None = None,
) -> Read:
    """A list of names, or a quantization config with one; all other weights get the config's method, or ``default``.

    Args:
        graph: of the denoiser.
        data: the list, or the config.
        default: for what has no type of its own.
        loader: of the denoiser's class, whose ``keep`` joins the list of an engine.
        engine: whose rule holds; None for a list that no engine is named for.

    Raises:
        RecipeError: it holds no list of names, a type that nothing here is near to, or only names of another denoiser.
    """
    config = {"modules_to_not_convert": data} if isinstance(data, list) else data
    skipped = [entry for key in KEYS for entry in strings(config, key)]
    skips = RULES[engine or Engine.torchao]
    keep = loader.keep if loader is not None and engine is not None else ()
    pick = method_of(config, engine, default)
    matched = set[str]()

    def decide(name: str, layer: Layer) -> Decision:
        hits = [entry for entry in skipped if skips(entry, name)]
        matched.update(hits)
        if hits:
            return None, []
        if engine is not None and not layer.is_linear:
            return None, [f"a Conv, which diffusers' {engine} backend leaves at full precision"]
        if (kept := kept_by(keep, skips, name)) is not None and loader is not None:
            return None, [
                f"{kept!r} is in _keep_in_fp32_modules of {loader.denoiser}: "
                f"diffusers' {engine} backend leaves them at full precision without any list"
            ]
        return pick(layer)

    result = assemble(graph, decide)
    require_overlap(graph, skipped, {entry for entry in skipped if contains(graph, entry)})
    notes = result.notes + idle(skipped, matched)
    if engine is None:
        notes += (
            "no engine is named: names are compared as torchao does and Conv layers are quantized too; "
            f"rules={'|'.join(RULES)} follows one",
        )
    return Read(result.qconfig, notes)


def kept_by(
    entries: tuple[str, ...], skips: Callable[[str, str], bool], parameter: str
) -> str | None:
    """The first entry that keeps a parameter at full precision, by a rule of `RULES`."""
    return next((entry for entry in entries if skips(entry, parameter)), None)


def method_of(
    config: Mapping[str, Any], engine: Engine | None, default: QuantMethod
) -> Callable[[Layer], Decision]:
    """A config's method for a layer, and in what it differs.

    Raises:
        RecipeError: unknown type.
    """
    if engine is Engine.bitsandbytes:
        decision = bitsandbytes_method(config)
        return lambda layer: decision
    if engine is Engine.quanto and any(config.get(key) for key in QUANTO_KEYS):
        return quanto_method(config)
    return lambda layer: (default, [])


def bitsandbytes_method(config: Mapping[str, Any]) -> Decision:
    """Of its 8-bit and two 4-bit types.

    Raises:
        RecipeError: unknown 4-bit type.
    """
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return affine(8), [
            "int8 is taken as uaq-8: bitsandbytes' is symmetric and keeps outlying inputs in 16 bits"
        ]
    method = QuantMethod("nf4_g64", 4)
    match config.get("bnb_4bit_quant_type", "fp4"):
        case "nf4" if config.get("bnb_4bit_use_double_quant"):
            return method, []
        case "nf4":
            return method, ["nf4 is taken as nf4_g64-4, with 8-bit scales"]
        case "fp4":
            return method, ["fp4 is taken as nf4_g64-4: also 16 fixed levels, but others"]
        case kind:
            raise RecipeError(f"wanted a bnb_4bit_quant_type of nf4 or fp4 (got {kind!r})")


QUANTO_KEYS = ("weights_dtype", "weights")  # of diffusers' config and of transformers'
QUANTO_TYPES = {"int8": 8, "int4": 4, "int2": 2, "float8": 8}


def quanto_method(config: Mapping[str, Any]) -> Callable[[Layer], Decision]:
    """Of its four types; int4 and int2 have groups, whose size depends on the layer.

    Raises:
        RecipeError: unknown type.
    """
    kind = next((config[key] for key in QUANTO_KEYS if config.get(key)), "int8")
    if not isinstance(kind, str) or kind not in QUANTO_TYPES:
        raise RecipeError(f"wanted a weights_dtype of {', '.join(QUANTO_TYPES)} (got {kind!r})")

    def decide(layer: Layer) -> Decision:
        bits = QUANTO_TYPES[kind]
        group = quanto_group(layer.shape[1]) if bits < 8 else None
        method = QuantMethod("fp8_e4m3", 8) if kind == "float8" else affine(bits, group)
        text = f"quanto's {kind} is taken as {method}, whose scales are found otherwise"
        differs = [] if group == method.group_size else [f"groups of {group} there"]
        return method, [text, *differs]

    return decide


def quanto_group(inputs: int) -> int | None:
    """Inputs that share a scale in quanto's int4 and int2, None for all of a row's.

    128 become less in steps of 32 until they divide the inputs; up to 128 inputs, and where not even 32 divide them,
    there are no groups.
    """
    if inputs <= 128:
        return None
    return next((size for size in (128, 96, 64, 32) if inputs % size == 0), None)
