"""Skip lists: modules that keep full precision, in configs of diffusers and transformers.

Each of diffusers' backends follows another rule for the same key, ``modules_to_not_convert``
(`RULES`). An entry protects a parameter such as ``blocks.0.attn.to_q.weight`` if it is

=============  ===================================================================================
torchao        the parameter's name, or any part of it before a dot: ``to_q``, ``attn``, ``n.to_q``
quanto         the layer's own name: ``to_q``. Containers and full paths protect nothing
bitsandbytes   the layer's own name, its full path, or any part of its path before a dot: ``attn``
gguf           one of the parts between the dots: ``to_q``, ``attn``
=============  ===================================================================================

The backends follow the same rules for ``_keep_in_fp32_modules`` of the denoiser's class, which adds
to every list. A list without a config does not say which engine it is for: unless ``rules=ENGINE``
names one, torchao's rule counts, and Conv layers get the default method as well.

References:
    huggingface/diffusers 0.42.1: src/diffusers/quantizers/torchao/torchao_quantizer.py,
        ``check_if_quantized_param``; quanto/utils.py, ``_replace_with_quanto_layers``;
        bitsandbytes/utils.py, ``_replace_with_bnb_linear``; gguf/gguf_quantizer.py,
        ``create_quantized_param``; quantization_config.py for the keys.
    huggingface/optimum-quanto 0.2.7: optimum/quanto/nn/qmodule.py, ``QModuleMixin``, for the
        groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantMethod
from qsdm.quant.nf4 import NF4_G64
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
    """Whether an entry makes diffusers' torchao backend leave a parameter alone.

    Args:
        entry: of the list.
        parameter: its name.
    """
    return entry == parameter or f"{entry}." in parameter


def quanto_skips(entry: str, parameter: str) -> bool:
    """Whether its quanto backend does.

    Args:
        entry: of the list.
        parameter: its name.
    """
    return entry == parameter.removesuffix(".weight").rpartition(".")[2]


def bitsandbytes_skips(entry: str, parameter: str) -> bool:
    """Whether its bitsandbytes backend does.

    Args:
        entry: of the list.
        parameter: its name.
    """
    path = parameter.removesuffix(".weight")
    return entry in (path, path.rpartition(".")[2]) or f"{entry}." in path


def gguf_skips(entry: str, parameter: str) -> bool:
    """Whether its GGUF backend does, whose only list is ``_keep_in_fp32_modules``.

    Args:
        entry: of the list.
        parameter: its name.
    """
    return entry in parameter.split(".")


RULES: dict[Engine, Callable[[str, str], bool]] = {
    Engine.torchao: torchao_skips,
    Engine.quanto: quanto_skips,
    Engine.bitsandbytes: bitsandbytes_skips,
    Engine.gguf: gguf_skips,
}
"""(entry, parameter) => whether the layer keeps full precision. All quantize Linear layers only."""


def read(
    graph: Graph,
    data: Mapping[str, Any] | list[str],
    default: QuantMethod,
    loader: Loader | None = None,
    engine: Engine | None = None,
) -> Read:
    """Read a list of names, or a quantization config with one.

    Args:
        graph: of the denoiser.
        data: the list, or the config.
        default: for all other weights, unless the config names a method.
        loader: of the denoiser's class, whose ``keep`` joins the list of an engine; None if the
            class is unknown.
        engine: whose rule counts; None for a list without an engine.

    Returns:
        The configuration, with notes about what is not carried over exactly.

    Raises:
        RecipeError: there is no list of names, a type has no method near it, or all names belong to
            another denoiser.

    Example:
        >>> import torch
        >>> from qsdm.qconfig import QuantMethod
        >>> from qsdm.recipes import skip_list
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> graph = trace(mlp, {"input": torch.zeros(1, 64)}, "mlp")
        >>> skip_list.read(graph, ["0"], QuantMethod.parse("uaq-4")).qconfig.methods
        {'1': QuantMethod(name='uaq', bits=4, inputs=16)}
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
            "no engine is named: names are compared as torchao does and Conv layers are quantized "
            f"too; rules={'|'.join(RULES)} follows one",
        )
    return Read(result.qconfig, notes)


def kept_by(
    entries: tuple[str, ...], skips: Callable[[str, str], bool], parameter: str
) -> str | None:
    """Find the entry that keeps a parameter at full precision.

    Args:
        entries: of the list.
        skips: a rule of `RULES`.
        parameter: its name.

    Returns:
        The first such entry; None if there is none.
    """
    return next((entry for entry in entries if skips(entry, parameter)), None)


def method_of(
    config: Mapping[str, Any], engine: Engine | None, default: QuantMethod
) -> Callable[[Layer], Decision]:
    """Find out how a config quantizes layers.

    Args:
        config: of the engine.
        engine: that reads it; None for a list without an engine.
        default: method if the config names none.

    Returns:
        Function from a layer to a method and how it differs.

    Raises:
        RecipeError: the config's type is unknown.
    """
    if engine is Engine.bitsandbytes:
        decision = bitsandbytes_method(config)
        return lambda _layer: decision
    if config.get("quant_method") == MODELOPT:
        return modelopt_method(config)
    if engine is Engine.quanto and any(config.get(key) for key in QUANTO_KEYS):
        return quanto_method(config)
    return lambda _layer: (default, [])


def bitsandbytes_method(config: Mapping[str, Any]) -> Decision:
    """Choose the method nearest to the 8-bit or 4-bit type of a bitsandbytes config.

    Args:
        config: of bitsandbytes.

    Returns:
        The method, and how it differs.

    Raises:
        RecipeError: the 4-bit type is unknown.
    """
    given = {
        bits: [
            flag
            for key in (f"load_in_{bits}bit", f"_load_in_{bits}bit")
            if (flag := config.get(key)) is not None
        ]
        for bits in (4, 8)
    }
    if wrong := [flag for flags in given.values() for flag in flags if not isinstance(flag, bool)]:
        raise RecipeError(
            f"wanted true or false as load_in_4bit or load_in_8bit (got {wrong[0]!r})"
        )
    four, eight = (any(flags) for flags in given.values())
    if four and eight:
        raise RecipeError("load_in_4bit and load_in_8bit are both true: keep one of them")
    if not (four or eight) and all(given.values()):
        raise RecipeError(
            "bitsandbytes quantizes nothing by this config: set load_in_4bit or load_in_8bit"
        )
    if eight:
        return affine(8), [
            "int8 is taken as uaq-8: bitsandbytes' is symmetric and keeps outlying inputs "
            "in 16 bits"
        ]
    method = QuantMethod(NF4_G64.name, 4)
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
    """Choose the method nearest to one of quanto's four types.

    int4 and int2 have groups, whose size depends on the layer.

    Args:
        config: of quanto.

    Returns:
        Function from a layer to a method and how it differs.

    Raises:
        RecipeError: the type is unknown.
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
        if config.get("activations") or config.get("activations_dtype"):
            differs.append("activations are quantized too there")
        return method, [text, *differs]

    return decide


MODELOPT = "modelopt"
MODELOPT_TYPES = ("FP8", "INT8", "INT4", "NF4", "NVFP4")


def modelopt_method(config: Mapping[str, Any]) -> Callable[[Layer], Decision]:
    """Choose the method nearest to the type of diffusers' NVIDIAModelOptConfig.

    Args:
        config: of modelopt.

    Returns:
        Function from a layer to a method and how it differs.

    Raises:
        RecipeError: the type is unknown; diffusers would take FP8 for it.
    """
    kind = config.get("quant_type")
    weights, _, activations = kind.partition("_") if isinstance(kind, str) else ("", "", "")
    if weights not in MODELOPT_TYPES:
        raise RecipeError(f"wanted a quant_type of {', '.join(MODELOPT_TYPES)} (got {kind!r})")
    block = config.get("block_quantize")
    if block is not None and (not isinstance(block, int) or isinstance(block, bool) or block < 1):
        raise RecipeError(f"wanted a positive whole number as block_quantize (got {block!r})")
    in_blocks = block is not None and config.get("channel_quantize") is not None
    whole = f"a scale per {'channel' if config.get('channel_quantize') is not None else 'tensor'}"
    method = {
        "FP8": QuantMethod("fp8_e4m3", 8),
        "NF4": QuantMethod(NF4_G64.name, 4),
        "INT8": affine(8, block if in_blocks else None),
    }.get(weights, affine(4, block if in_blocks else None))
    differs = [f"modelopt's {weights} is taken as {method}", f"blocks of {block} there"]
    differs = [differs[0], differs[1] if in_blocks else f"{whole} there"]
    if activations or config.get("weight_only") is False:
        differs.append("activations are quantized too there")

    def decide(layer: Layer) -> Decision:
        if not layer.is_linear and config.get("disable_conv_quantization"):
            return None, ["a Conv, which disable_conv_quantization leaves at full precision"]
        return method, differs

    return decide


def quanto_group(inputs: int) -> int | None:
    """Compute the group size of quanto's int4 and int2.

    It starts at 128 and decreases in steps of 32 until it divides the number of inputs. There are
    no groups for up to 128 inputs, or if not even 32 divides their number.

    Args:
        inputs: of the layer, 1 or more.

    Returns:
        Number of inputs that share a scale; None for the whole row.
    """
    if inputs <= 128:
        return None
    return next((size for size in (128, 96, 64, 32) if inputs % size == 0), None)
