"""Skip lists: names of modules that keep full precision, in quantization configs of diffusers and transformers.

An entry holds for a parameter whose name contains it, followed by a dot: ``proj_out`` for ``proj_out.weight`` and for
all that lies in a module called so, but also for ``x_proj_out.weight``.

References:
    huggingface/diffusers: src/diffusers/quantizers/torchao/torchao_quantizer.py, ``check_if_quantized_param``;
        bitsandbytes/utils.py, ``_replace_with_bnb_linear`` (the same on module paths);
        quantization_config.py for the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantMethod
from qsdm.recipes import Decision, Layer, Read, RecipeError, affine, assemble, idle, strings

KEYS = ("modules_to_not_convert", "llm_int8_skip_modules")
LINEAR_ONLY = {
    "bitsandbytes",
    "torchao",
    "quanto",
    "quanto_quantize",
    "gguf",
}  # backends that leave Conv layers alone


def read(graph: Graph, data: Mapping[str, Any] | list[str], default: QuantMethod) -> Read:
    """A list of names, or a quantization config with one; all other weights get the config's method, or ``default``.

    Raises:
        RecipeError: it holds no list of names, or a type that nothing here is near to.
    """
    config = {"modules_to_not_convert": data} if isinstance(data, list) else data
    skipped = [entry for key in KEYS for entry in strings(config, key)]
    backend = str(config.get("quant_method", ""))
    method, difference = method_of(config, backend, default)
    matched = set[str]()

    def decide(name: str, layer: Layer) -> Decision:
        hits = [entry for entry in skipped if f"{entry}." in name or entry == name]
        matched.update(hits)
        if hits:
            return None, []
        if backend in LINEAR_ONLY and not layer.is_linear:
            return None, [f"a Conv, which diffusers' {backend} backend leaves at full precision"]
        return method, [difference] if difference else []

    found = assemble(graph, decide)
    return Read(found.qconfig, found.notes + idle(skipped, matched))


def method_of(
    config: Mapping[str, Any], backend: str, default: QuantMethod
) -> tuple[QuantMethod, str]:
    """The method of a quantization config, and in what it differs.

    Raises:
        RecipeError: unknown type.
    """
    if backend == "bitsandbytes":
        if config.get("load_in_8bit") or config.get("_load_in_8bit"):
            return (
                affine(8),
                "int8 is taken as uaq-8: bitsandbytes' is symmetric and keeps outlying inputs in 16 bits",
            )
        if (kind := config.get("bnb_4bit_quant_type", "fp4")) == "nf4":
            double = config.get("bnb_4bit_use_double_quant")
            return QuantMethod(
                "nf4_g64", 4
            ), "" if double else "nf4 is taken as nf4_g64-4, with 8-bit scales"
        if kind == "fp4":
            return QuantMethod(
                "nf4_g64", 4
            ), "fp4 is taken as nf4_g64-4: also 16 fixed levels, but others"
        raise RecipeError(f"wanted a bnb_4bit_quant_type of nf4 or fp4 (got {kind!r})")
    if backend.startswith("quanto"):
        known = {"int8": affine(8), "int4": affine(4, 128), "int2": affine(2, 128)}
        known["float8"] = QuantMethod("fp8_e4m3", 8)
        if (kind := config.get("weights_dtype", "int8")) not in known:
            raise RecipeError(f"wanted a weights_dtype of {', '.join(known)} (got {kind!r})")
        return known[
            kind
        ], f"quanto's {kind} is taken as {known[kind]}, whose scales are found otherwise"
    return default, f"{backend}'s own type is not read: they get {default}" if backend else ""
