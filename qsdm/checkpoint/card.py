"""The model card of a checkpoint: what it is, its size and quality, how to load it, limitations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm.graph import Graph, subgraph
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, cost

if TYPE_CHECKING:
    from qsdm.denoisers import Model
    from qsdm.measurement.memory import Memory

NAME = "README.md"
MOST_NAMED = 8  # layers whose inputs have bits of their own; more are counted
MARK = (
    "<!-- Written by qsdm.realize, which writes it anew: "
    "remove this line to keep your own text. -->"
)

SPEED = """\
Weight-only quantization reduces the size of the file and the memory of the weights. It does not by
itself make inference faster: the layers of this checkpoint expand each weight before they use it,
and the metrics above were measured by fake quantization, which computes in the original precision.
Faster inference needs formats for which the hardware has matrix kernels: low-bit weights and
activations (W8A8 in int8 or fp8), or int4 weights that fused kernels dequantize inside the product
(Marlin, tinygemm). qsdm runs none of these."""


def is_kept(folder: Path) -> bool:
    """Whether a directory has a card that its user wrote or edited.

    Args:
        folder: the checkpoint's directory.
    """
    path = folder / NAME
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def by_diffusers(qconfig: QuantConfig) -> list[str]:
    """How else a packed part is loaded, unless it is of transformers.

    Args:
        qconfig: of the checkpoint.
    """
    return [
        "or by diffusers, which learns qsdm's format from an import:",
        "",
        "```python",
        "import qsdm.checkpoint",
        "from diffusers import DiffusionPipeline",
        "",
        'pipeline = DiffusionPipeline.from_pretrained("DIRECTORY")',
        *["qsdm.checkpoint.follow_steps(pipeline)  # its weights change with the steps"]
        * bool(qconfig.steps),
        "```",
        "",
    ]


def card(
    model: Model,
    graph: Graph,
    protocol: Protocol,
    outcome: Outcome,
    full: Outcome,
    before: Memory,
    after: Mapping[str, int],
) -> str:
    """The model card in Markdown.

    Args:
        model: the pipeline that was quantized.
        graph: of its denoiser.
        protocol: of both outcomes.
        outcome: of the checkpoint's configuration.
        full: of full precision.
        before: sizes of the pipeline that was quantized.
        after: bytes of the checkpoint's components by name.
    """
    qconfig, bits = outcome.qconfig, model.full_bits
    published = re.fullmatch(r"[\w.-]+/[\w.-]+", model.path) and model.directory is None
    head = ["---", "library_name: diffusers", "tags: [qsdm, quantized]"]
    head += [f"base_model: {model.path}"] * bool(published) + ["---", "", MARK, ""]
    source = f"`{model.path}`" if published else f"the pipeline `{model.name}`"
    avg_bits = cost.avg_bits(graph, qconfig, bits)
    alone = model.denoisers if len(model.denoisers) == 1 else ()
    named = ["denoiser" if one in alone else one for one in model.components]
    whole = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    about = [
        *(
            (name, described(one, graph, qconfig))
            for name, one in zip(named, model.parts, strict=True)
        ),
        ("average bits", f"{avg_bits:.4f} of {bits}, overhead included"),
        (
            "quantizable weights",
            f"{cost.size_bytes(graph, qconfig, bits):,} bytes, "
            f"{graph.num_values * bits // 8:,} in full precision",
        ),
        *parts(graph, qconfig, bits),
        ("configuration", f"`{qconfig.digest}`"),
    ]
    return "\n".join(
        [
            *head,
            f"# {model.name}, its {whole} at {avg_bits:.2f} bits per weight",
            "",
            f"Made by qsdm from {source}: each weight of its {whole} is quantized by a "
            f"method of its own and packed; everything else is in {bits} bits.",
            "",
            *table(("", ""), about),
            "",
            "## Bytes",
            "",
            *table(("component", "before", "here"), sizes(model, before, after)),
            "",
            *activations(model, graph, outcome, before),
            "",
            "## Measured",
            "",
            f"{outcome.num_images} pictures of {protocol.resolution_px} px, {protocol.steps} "
            f"steps, guidance {protocol.guidance:g}, seed set {protocol.seed_set}, the denoiser "
            f"computing in {protocol.dtype}. Metrics of another number of pictures are not "
            "comparable.",
            "",
            *table(("metric", "here", "95 % interval", "full precision"), measured(outcome, full)),
            "",
            "## Load",
            "",
            "```python",
            "from qsdm.checkpoint import load_quantized",
            "",
            'pipeline = load_quantized("DIRECTORY")',
            "```",
            "",
            *([] if any(n.startswith("text_encoder") for n in named) else by_diffusers(qconfig)),
            "## Speed",
            "",
            SPEED,
            "",
        ]
    )


def described(model: Model, graph: Graph, qconfig: QuantConfig) -> str:
    """Describe a part: its class, and of several that share a budget, its own share.

    Args:
        model: of the part.
        graph: of all parts.
        qconfig: the configuration.
    """
    text = f"{model.denoiser} (`{model.component}`)"
    if model.name == graph.denoiser:
        return text
    own, methods = subgraph(graph, model.component, graph.denoiser), qconfig.part(model.component)
    bits, size = (f(own, methods, model.full_bits) for f in (cost.avg_bits, cost.size_bytes))
    return f"{text}, {bits:.4f} bits, {size:,} bytes"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table.

    Args:
        head: names of the columns.
        rows: cells.

    Returns:
        Its lines.
    """
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def parts(graph: Graph, qconfig: QuantConfig, full_bits: int) -> list[tuple[str, str]]:
    """Describe methods and activations, of each bin of steps if there are any.

    Args:
        graph: of the denoiser.
        qconfig: its configuration.
        full_bits: bits of full precision.

    Returns:
        Rows of a table.
    """
    if not qconfig.steps:
        rounded = [("activations", rounding(qconfig))] if qconfig.rounds_activations else []
        return [("methods", methods(qconfig)), *rounded]
    named = [(f"steps {one}", one.qconfig) for one in qconfig.steps]
    if len(qconfig.parts) > len(named):
        named.append(("steps elsewhere", qconfig.elsewhere))
    return [(name, _part(graph, part, full_bits)) for name, part in named] + [
        (
            "what steps mean",
            "parts of the sampler's steps, from 0 (noise) to 1 (the picture), whatever their "
            "number; each method that a weight has is stored once",
        )
    ]


def _part(graph: Graph, part: QuantConfig, full_bits: int) -> str:
    if part.is_full:
        return "full precision"
    bits = f"{cost.avg_bits(graph, part, full_bits):.4f} bits"
    rounded = rounding(part) if part.rounds_activations else ""
    return "; ".join(text for text in (bits, methods(part), rounded) if text)


def methods(qconfig: QuantConfig) -> str:
    """How many weights have each method, the most frequent first.

    Args:
        qconfig: without bins of steps.
    """
    counts: dict[str, int] = {}
    for method in qconfig.methods.values():
        counts[str(method)] = counts.get(str(method), 0) + 1
    return ", ".join(
        f"{count} {name}"
        for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def rounding(qconfig: QuantConfig) -> str:
    """Say how a configuration rounds activations.

    Args:
        qconfig: that rounds some.
    """
    own = [f"`{name}` {bits}" for name, bits in qconfig.inputs.items()]
    if len(own) > MOST_NAMED:
        counts = Counter(qconfig.inputs.values())
        own = [f"{counts[bits]} of them {bits}" for bits in sorted(counts, reverse=True)]
    inputs = "" if not own else f"inputs of single layers in bits: {', '.join(own)}"
    if qconfig.activations is None:
        return inputs
    whole = (
        f"the inputs of all layers in {qconfig.activations} bits, each token in a range of its "
        "own; probabilities of attention in 8"
    )
    return f"{whole}; {inputs}" if inputs else whole


def sizes(model: Model, before: Memory, after: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Sizes of the components, the denoiser first.

    Args:
        model: the pipeline.
        before: its sizes.
        after: bytes of the checkpoint's components by name.

    Returns:
        Rows of name, bytes before and bytes after.
    """
    names = sorted(after, key=lambda name: (name not in model.components, name))
    rows = [
        (f"`{n}`", f"{before.components[n]:,}" if n in before.components else "-", f"{after[n]:,}")
        for n in names
    ]
    total = sum(before.components.values())
    return [
        *rows,
        ("together", f"{total:,}" if before.components else "-", f"{sum(after.values()):,}"),
    ]


def activations(model: Model, graph: Graph, outcome: Outcome, before: Memory) -> list[str]:
    """The memory that a forward pass needs beside the stored weights.

    Args:
        model: the pipeline.
        graph: of its denoiser.
        outcome: of the configuration.
        before: sizes of the pipeline.

    Returns:
        Sentences.
    """
    compute = 16 if model.dtype in ("bfloat16", "float16") else 32
    peak = cost.peak_bytes(graph, outcome.qconfig, model.full_bits, compute)
    expanded = peak - cost.size_bytes(graph, outcome.qconfig, model.full_bits)
    lines = [f"One weight is expanded at a time: {expanded:,} bytes at most, in {model.dtype}."]
    if before.activation_bytes is None:
        return [*lines, "The size of the activations is not known."]
    return [
        *lines,
        f"Activations in {model.dtype} take about {before.activation_bytes:,} bytes per picture, "
        "and twice that where guidance doubles the batch.",
    ]


def measured(outcome: Outcome, full: Outcome) -> list[tuple[str, str, str, str]]:
    """The metrics of a configuration beside those of full precision.

    Args:
        outcome: of the configuration.
        full: of full precision.

    Returns:
        Rows of name, value, 95 % interval and value in full precision.
    """
    rows = []
    for name, value in outcome.metrics.items():
        interval, other = outcome.interval(name), full.metrics.get(name)
        between = "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
        rows.append(
            (
                name,
                "-" if value is None else f"{value:.4f}",
                between,
                "-" if other is None else f"{other:.4f}",
            )
        )
    return rows
