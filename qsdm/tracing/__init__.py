"""nn.Module -> Graph: any diffusers denoiser, without a line of code for it and without its weights.

skeleton   a module that weighs nothing
inputs     arguments for one forward: captured from the pipeline, or built from signature and config
repair     built inputs mended by what the forward complains of
lazy       torch functions run for their shapes
record     every torch call of the forward, with where its operands come from
compact    the calls that matter, as a `Graph`; roles, sketch: parts of it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from qsdm.graph import Graph, Op
from qsdm.tracing import inputs, repair, skeleton
from qsdm.tracing.compact import QUANTIZABLE, compact
from qsdm.tracing.record import Recording, TraceError, record

__all__ = ["TraceError", "trace", "trace_unaided", "uncovered"]


def trace(
    module: nn.Module,
    inputs: Mapping[str, Any],
    name: str,
    exclude: str | None = None,
    tied: Sequence[str] = (),
) -> Graph:
    """The graph of a denoiser; ``module`` is neither run nor changed, a skeleton of it is.

    Args:
        module: with or without real weights, on any device.
        inputs: arguments of its forward by name, batch 1 (see `qsdm.tracing.inputs`).
        name: of the denoiser.
        exclude: regular expression of module paths whose weights are not quantized.
        tied: regular expressions; parameters whose names match one of them with the same groups hold equal values.

    Raises:
        TraceError: the module is quantized, wrapped or offloaded, fails on these inputs, or uses no weight.
    """
    check(module)
    twin = skeleton.of(module)
    graph = compact(record(twin, skeleton.real(dict(inputs))), twin, name, exclude, tied)
    if not graph.weights:
        raise TraceError(
            f"{type(module).__name__} calls no Linear or Conv: this is no denoiser that can be quantized"
        )
    return graph


def trace_unaided(
    module: nn.Module,
    overrides: Mapping[str, Any],
    name: str,
    exclude: str | None = None,
    tied: Sequence[str] = (),
) -> tuple[Graph, str]:
    """As `trace`, with inputs that are built, and mended where the forward does not run on them.

    Args:
        overrides: of the built inputs (see `qsdm.tracing.inputs.build`).

    Returns:
        The graph, and how its inputs were found: ``built``, ``overrides`` (built, with those that qsdm has for the
        class), or ``repaired: `` and what was mended.
    """
    known = inputs.overrides_of(type(module))
    check(module)
    first_error, graph = None, None
    try:
        graph = trace(module, inputs.build(module, overrides), name, exclude, tied)
        if known or not uncovered(module, graph):
            return graph, "overrides" if known else "built"
    except TraceError as error:
        first_error = error
    twin = skeleton.of(module)

    def coverage(recording: Recording) -> float:
        return 1 - len(uncovered(twin, compact(recording, twin, name))) / max(
            1, len(list(_owners(twin)))
        )

    try:
        found = repair.find(twin, {**known, **overrides}, coverage)
    except TraceError as error:
        raise first_error or error from None
    if graph is not None and not found.repairs:
        return graph, "built"
    return trace(
        module, found.arguments, name, exclude, tied
    ), f"repaired: {', '.join(found.repairs)}"


def check(module: nn.Module) -> None:
    """Raises TraceError if the module's weights are not the plain ones that were published."""
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise TraceError(f"wanted a torch.nn.Module, a denoiser (got {kind})")
    config = getattr(module, "config", None)
    if getattr(module, "hf_quantizer", None) is not None or (
        isinstance(config, Mapping) and config.get("quantization_config")
    ):
        raise TraceError(f"{kind} is already quantized: load it without quantization_config")
    for path, child in module.named_modules():
        if hasattr(child, "lora_A") or hasattr(child, "base_layer"):
            raise TraceError(
                f"{kind} is wrapped in adapters (at {path!r}): call fuse_lora() and unload_lora_weights() first"
            )
        if hasattr(child, "_hf_hook"):
            raise TraceError(
                f"{kind} is offloaded by accelerate (at {path or 'its root'!r}): load it without enable_*_offload()"
            )
        weight, layer = child._parameters.get("weight"), type(child).__name__
        if weight is not None and ("Linear" in layer or "Conv" in layer):
            plain = type(weight) in (nn.Parameter, Tensor) and type(weight.data) is Tensor
            if not (plain and weight.is_floating_point()):
                raise TraceError(
                    f"{kind} is already quantized ({layer} at {path!r}): load the published weights"
                )


def uncovered(module: nn.Module, graph: Graph) -> list[str]:
    """Paths of Linear and Conv modules whose weight no node of the graph uses."""
    called = {
        node.name.partition("@")[0].partition("#")[0]
        for node in graph.nodes
        if node.op in (Op.LINEAR, Op.CONV)
    }
    owners = list(_owners(module))
    used = {
        id(child.weight) for path, child in owners if path in called
    }  # a shared parameter counts under all its names
    return [path for path, child in owners if id(child.weight) not in used]


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return (
        (path, child) for path, child in module.named_modules() if isinstance(child, QUANTIZABLE)
    )
