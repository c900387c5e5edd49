"""Tensor rules of stable-diffusion.cpp for GGUF files: ``pattern=type`` pairs, separated by commas.

The first pattern that occurs in a tensor's name determines its type. Some tensors keep the file's
precision whatever a rule says: those whose rows are not a whole number of blocks (a Conv's row is
its kernel's width), and some by name.

Names are diffusers', alone or after the prefixes that ``sd-cli -M convert`` puts before them. When
a model is loaded, its tensors are renamed to the original layout before the rules apply, so our
rules are for converting, without ``--convert-name``.

References:
    leejet/stable-diffusion.cpp (commit 97d2990): src/model_loader.cpp,
        ``parse_tensor_type_rules``, ``tensor_should_be_converted``, ``init_from_diffusers_file``;
        src/convert.cpp; examples/common/common.cpp.
    ggml-org/ggml:
        src/ggml-common.h, the blocks of each type.
    huggingface/diffusers 0.42.1: src/diffusers/quantizers/gguf/utils.py,
        ``SUPPORTED_GGUF_QUANT_TYPES``; loaders/single_file_model.py, ``from_single_file``.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

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
)
from qsdm.recipes.skip_list import gguf_skips

PREFIXES = ("", "unet.", "model.diffusion_model.")
_PREFIX = r"^(?:unet\.|model\.diffusion_model\.)?"
KEPT = (
    "img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.", "x_embedder.",
    "t_embedder.", "y_embedder.", "pos_embed", "context_embedder.", "time_embed.", "label_emb.",
    "embedding",
)  # fmt: skip
"""Tensors with one of these in their names are never converted."""

FULL = ("f32", "f16", "bf16")
_NF4 = QuantMethod(NF4_G64.name, 4)
TYPES: dict[str, tuple[QuantMethod, int, str]] = {
    "q4_0": (affine(4, 32), 32, "without a zero point there"),
    "q4_1": (affine(4, 32), 32, ""),
    "q5_0": (affine(5, 32), 32, "without a zero point there"),
    "q5_1": (affine(5, 32), 32, ""),
    "q8_0": (affine(8, 32), 32, "without a zero point there"),
    "q2_K": (affine(2, 32), 256, "in groups of 16 with 4-bit scales there"),
    "q3_K": (affine(3, 32), 256, "in groups of 16 with 6-bit scales and no zero point there"),
    "q4_K": (affine(4, 32), 256, "with 6-bit scales there"),
    "q5_K": (affine(5, 32), 256, "with 6-bit scales there"),
    "q6_K": (affine(6, 32), 256, "in groups of 16 with 8-bit scales and no zero point there"),
    "iq4_nl": (_NF4, 32, "with 16 other fixed levels and groups of 32 there"),
    "iq4_xs": (_NF4, 256, "with 16 other fixed levels and groups of 32 there"),
    "mxfp4": (_NF4, 32, "with the levels of 4-bit floats and groups of 32 there"),
    "nvfp4": (_NF4, 64, "with the levels of 4-bit floats and groups of 16 there"),
    "iq3_s": (affine(3, 32), 256, "with a table of vectors there"),
    "iq3_xxs": (affine(3, 32), 256, "with a table of vectors there"),
    "iq2_s": (affine(2, 32), 256, "with a table of vectors there"),
    "iq2_xs": (affine(2, 32), 256, "with a table of vectors there"),
    "iq2_xxs": (affine(2, 32), 256, "with a table of vectors there"),
    "tq2_0": (affine(2, 32), 256, "with three levels there"),
}
"""Nearest method, number of values in a block, and how the type differs."""

DIFFUSERS_READS = {
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs",
}  # fmt: skip
"""Types that diffusers 0.42.1 loads from a GGUF file."""

_UNIFORM = Holding(
    "uniform", "uniform: GGUF has scales for groups of 16 or 32 values, by its own search"
)
_CODEBOOK = Holding("uniform", "codebooks: GGUF has none, a uniform type is taken", substitute=True)
HOLDS: dict[str, Holding] = {
    "fp": Holding("f16"),
    **dict.fromkeys(UNIFORM, _UNIFORM),
    **dict.fromkeys((*CODEBOOK_PER_ROW, *CODEBOOK_PER_TENSOR), _CODEBOOK),
    NF4_G64.name: Holding(
        "iq4_nl", "nf4 becomes iq4_nl: other fixed levels, in groups of 32", substitute=True
    ),
    "fp8_e4m3": Holding("q8_0", "8-bit floats: GGUF has none, q8_0 is taken", substitute=True),
}
"""What GGUF has for each method: a type, or the uniform type of the same bits."""

_EXACT = {"uaq_g32-4": "q4_1", "uaq_g32-5": "q5_1"}  # 16-bit scale and minimum of 32 values
_LEAST = {2: "q2_K", 3: "q3_K", 4: "q4_K", 5: "q5_K", 6: "q6_K"}  # blocks of 256
_PLAIN = {
    2: "q4_0",
    3: "q4_0",
    4: "q4_0",
    5: "q5_0",
    6: "q8_0",
    7: "q8_0",
    8: "q8_0",
}  # blocks of 32


def holds(method: QuantMethod) -> Holding:
    """Look up a method in `HOLDS`.

    Args:
        method: to be written.

    Raises:
        RecipeError: the table has no such method.
    """
    return holding("GGUF", HOLDS, method)


def can_hold(layer: Layer, method: QuantMethod) -> bool:
    """Tell whether GGUF stores values of the method's kind at the method's bits.

    Args:
        layer: that is quantized; the length of its rows decides which types it can have.
        method: of it.
    """
    if method.name not in HOLDS or HOLDS[method.name].substitute:
        return False
    if method.is_full:
        return True
    kind = nearest(layer, method)
    is_kept = any(kept(name, layer, kind) is not None for name in layer.parameters)
    return not is_kept and TYPES[kind][0].bits == method.bits


def read(graph: Graph, text: str, default: QuantMethod, loader: Loader | None = None) -> Read:
    """Read tensor rules as a configuration.

    Args:
        graph: of the denoiser.
        text: the rules, separated by commas or newlines.
        default: for weights that no rule matches; if GGUF cannot hold it, they keep full precision.
        loader: of the denoiser's class, to report what diffusers loads of such a file; None if the
            class is unknown.

    Returns:
        The configuration, with notes about what is not carried over exactly.

    Raises:
        RecipeError: a rule is not ``pattern=type``, its pattern is not a regular expression, its
            type is unknown, or no rule matches anything.

    Example:
        >>> import torch
        >>> from qsdm.qconfig import QuantMethod
        >>> from qsdm.recipes import gguf
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> graph = trace(mlp, {"input": torch.zeros(1, 64)}, "mlp")
        >>> gguf.read(graph, "^1=q4_1", QuantMethod.parse("fp-16")).qconfig.methods
        {'1': QuantMethod(name='uaq_g32', bits=4, inputs=16)}
    """
    rules = list(parse(text))
    matched = set[str]()

    def decide(name: str, layer: Layer) -> Decision:
        pattern, kind = next((rule for rule in rules if occurs(rule[0], name)), ("", ""))
        if not kind:
            return base(name, layer, default)
        matched.add(pattern)
        if kind in FULL:
            return None, []
        if (why := kept(name, layer, kind)) is not None:
            return None, [f"stable-diffusion.cpp leaves them at full precision: {why}"]
        method, _, difference = TYPES[kind]
        difference = difference or "with another search of the scales there"
        unread = [] if kind in DIFFUSERS_READS else [f"{kind}: diffusers loads no such tensors"]
        return method, [f"{kind} is taken as {method}, {difference}", *unread]

    result = assemble(graph, decide)
    require_overlap(graph, [pattern for pattern, _ in rules], matched)
    notes = result.notes + idle([pattern for pattern, _ in rules], matched)
    kinds = {kind for pattern, kind in rules if pattern in matched}
    return Read(result.qconfig, notes + loading(loader, bool(kinds - set(FULL))))


def base(name: str, layer: Layer, default: QuantMethod) -> Decision:
    """Decide about a weight that no rule matches.

    Args:
        name: of the parameter.
        layer: that it belongs to.
        default: method of such weights.

    Returns:
        The default, or full precision if GGUF cannot hold it.

    Raises:
        RecipeError: GGUF has no type for the default.
    """
    if default.is_full:
        return None, []
    kind, _ = type_of(name, layer, default)
    if kind in FULL:
        why = kept(name, layer, nearest(layer, default))
        return None, [
            f"matched by no rule: GGUF cannot hold {default} in them, "
            f"they keep full precision ({why})"
        ]
    if str(TYPES[kind][0]) == str(default):
        return default, [f"matched by no rule: they get {default}"]
    return default, [
        f"matched by no rule: they get {default}, which GGUF does not have (nearest: {kind})"
    ]


def loading(loader: Loader | None, quantized: bool = True) -> tuple[str, ...]:
    """Say what diffusers cannot load.

    Args:
        loader: of the denoiser's class; None if the class is unknown.
        quantized: whether the file has tensors of a quantized type.

    Returns:
        Sentences; none if it can load everything.
    """
    if loader is None or not quantized:
        return ()
    if not loader.single_file:
        return (f"diffusers cannot load the GGUF file: {loader.denoiser} has no from_single_file",)
    notes = [
        f"diffusers' {loader.denoiser}.from_single_file loads no tensors named "
        "model.diffusion_model.*, as "
        "sd-cli -M convert --diffusion-model names them (Flux and SD3 end in IndexError): "
        "write the names without the prefix, as in the denoiser's state dict"
    ]
    if loader.keep:
        notes.append(
            f"diffusers turns quantized tensors of {', '.join(loader.keep)} back to float32 "
            f"(_keep_in_fp32_modules of {loader.denoiser})"
        )
    return tuple(notes)


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Split the text of rules.

    Args:
        text: the rules, separated by commas or newlines.

    Yields:
        Pattern and type of a rule.

    Raises:
        RecipeError: a rule is malformed.
    """
    rules = [rule.strip() for rule in re.split(r"[,\n]", text) if rule.strip()]
    if not rules:
        raise RecipeError(
            "wanted tensor rules such as 'to_q=q4_0,ff\\.net=q8_0' (got an empty text)"
        )
    for rule in rules:
        pattern, sign, kind = rule.partition("=")
        if not sign or not pattern:
            raise RecipeError(
                "wanted a rule of the form PATTERN=TYPE, without commas in the pattern "
                f"(got {rule!r})"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(
                f"the pattern {pattern!r} is not a regular expression: {error}"
            ) from error
        if kind not in TYPES and kind not in FULL:
            types = {name.lower(): name for name in (*FULL, *TYPES)}
            close = difflib.get_close_matches(kind.lower(), types, 1)
            others = f"there are {', '.join(types.values())}"
            hint = f"did you mean {types[close[0]]!r}?" if close else others
            raise RecipeError(f"qsdm has no method for a type called {kind!r}; {hint}")
        yield pattern, kind


def occurs(pattern: str, name: str) -> bool:
    """Whether a pattern occurs in a parameter's name, alone or after a prefix.

    Differs from stable-diffusion.cpp: a match within a prefix alone does not count, such as ff in
    model.diffusion_model, because the names may have no prefix yet.

    Args:
        pattern: regular expression.
        name: of the parameter, without a prefix.
    """
    for prefix in PREFIXES:
        match = re.search(pattern, prefix + name)
        if match is not None and (match.start() == 0 or match.end() >= len(prefix) - 1):
            return True
    return False


def kept(name: str, layer: Layer, kind: str) -> str | None:
    """Say why a tensor keeps the file's precision although a rule gives it another type.

    Args:
        name: of the parameter.
        layer: that it belongs to.
        kind: the rule's type, a key of `TYPES`.

    Returns:
        The reason; None if it gets the type.
    """
    if not layer.is_linear:
        return "a Conv"
    if layer.shape[1] % TYPES[kind][1] != 0:
        return f"a row of {layer.shape[1]} values, not a multiple of {TYPES[kind][1]}"
    if (part := next((part for part in KEPT if part in name), None)) is not None:
        return f"{part!r} in its name"
    return None


def write(graph: Graph, qconfig: QuantConfig, loader: Loader | None = None) -> Written:
    """Write the rules of all weights on one line.

    Args:
        graph: of the denoiser.
        qconfig: one of this graph.
        loader: of the denoiser's class, to report what diffusers loads of the file; None if the
            class is unknown.

    Returns:
        The rules, with notes about what they cannot express.

    Raises:
        RecipeError: the configuration belongs to another graph or rounds activations, or `HOLDS`
            lacks a method.

    Example:
        >>> import torch
        >>> from qsdm.qconfig import QuantConfig, QuantMethod
        >>> from qsdm.recipes import gguf
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> graph = trace(mlp, {"input": torch.zeros(1, 64)}, "mlp")
        >>> qconfig = QuantConfig("mlp", {"0": QuantMethod.parse("uaq_g64-4")})
        >>> gguf.write(graph, qconfig).suffix
        '.gguf-rules.txt'
    """
    refuse_activations("gguf", qconfig)
    counts, types = NoteCounts(), dict[str, str]()
    for name, layer, method in decisions(graph, qconfig, counts):
        types[name], limits = type_of(name, layer, method)
        counts.update(limits)
        kept_there = [entry for entry in (loader.keep if loader else ()) if gguf_skips(entry, name)]
        if loader is not None and kept_there and types[name] not in FULL:
            counts[
                f"{kept_there[0]!r} is in _keep_in_fp32_modules of {loader.denoiser}: "
                "diffusers turns them back to float32 when it loads the file"
            ] += len(layer.weights)
    text = ",".join(f"{pattern}={kind}" for pattern, kind in rules_of(types))
    usage = (
        "sd-cli -M convert --diffusion-model DENOISER.safetensors -o DENOISER.gguf "
        '--tensor-type-rules "$(cat FILE)", without --convert-name'
    )
    notes = sentences(counts) + loading(loader, not set(types.values()) <= set(FULL))[:1]
    return Written(text + "\n", ".gguf-rules.txt", notes, usage)


def nearest(layer: Layer, method: QuantMethod) -> str:
    """Choose the type nearest to a method, whether or not the layer can have it.

    Args:
        layer: whose row length matters.
        method: to be written.

    Returns:
        A key of `TYPES`, or f16.

    Raises:
        RecipeError: `HOLDS` lacks the method.
    """
    kind = holds(method).kind
    if kind != "uniform":
        return kind
    if (exact := _EXACT.get(str(method))) is not None:
        return exact
    blocks = layer.shape[1] % 256 == 0
    return _LEAST[method.bits] if blocks and method.bits in _LEAST else _PLAIN[method.bits]


def type_of(name: str, layer: Layer, method: QuantMethod | None) -> tuple[str, list[str]]:
    """Choose a tensor's type.

    Args:
        name: of the parameter.
        layer: that it belongs to.
        method: to be written; None for full precision.

    Returns:
        The nearest type, and sentences about what it cannot express.

    Raises:
        RecipeError: `HOLDS` lacks the method.
    """
    if method is None:
        return "f16", ["full precision is f16 there"]
    kind, limit = nearest(layer, method), holds(method).limit
    if str(method) in _EXACT:
        limit = "uniform in groups of 32: without our search of the range"
    if (why := kept(name, layer, kind)) is not None:
        return "f16", [f"stays f16, because stable-diffusion.cpp never quantizes it: {why}"]
    limits = [limit]
    if TYPES[kind][0].bits > method.bits:
        limits.append(
            f"{method.bits} bits become {kind}, there is no nearer type"
            + (" for this row length" if layer.shape[1] % 256 else "")
        )
    return kind, limits


def rules_of(types: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find a small set of rules that gives every tensor its type.

    Layers whose names differ only in numbers share a pattern for their most frequent type; the
    others are named before it. stable-diffusion.cpp compiles every pattern again for every tensor,
    so a rule per tensor would be slow.

    Args:
        types: parameter => type.

    Returns:
        Pattern and type of each rule, in order.
    """
    alike: dict[str, list[str]] = {}
    for name in types:
        shape = r"\.".join(
            r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")
        )
        alike.setdefault(shape, []).append(name)
    rules = []
    for shape, names in alike.items():
        (usual, _), *others = Counter(types[name] for name in names).most_common()
        for kind, _ in others:
            exact = "|".join(re.escape(name) for name in names if types[name] == kind)
            rules.append((f"{_PREFIX}(?:{exact})$", kind))
        rules.append((f"{_PREFIX}{shape}$", usual))
    return rules
