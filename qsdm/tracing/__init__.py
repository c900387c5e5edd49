"""Tracing: turn any diffusers denoiser into a `Graph`, with no model-specific code and no weights.

- ``skeleton``: a copy of the module that takes no memory
- ``entry``: the method that draws with it: ``decode`` of a VAE, ``forward`` of all others
- ``inputs``: arguments for one forward, captured from the pipeline or built from its signature
- ``repair``: built inputs, corrected according to the errors that the forward raises
- ``lazy``: torch functions, run for their shapes only
- ``record``: every torch call of the forward, with the origin of its operands (``calls``)
- ``compact``: the calls that matter, as a `Graph`; ``sketch``, ``roles``, ``blocks`` and
  ``decisions`` are parts of it
- ``activations``: peak memory of a forward
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from qsdm.graph import Graph, Op
from qsdm.tracing import inputs, repair, skeleton
from qsdm.tracing.blocks import QUANTIZABLE
from qsdm.tracing.calls import Recording, TraceError
from qsdm.tracing.compact import compact
from qsdm.tracing.entry import as_forward
from qsdm.tracing.record import record

__all__ = ["TraceError", "trace", "trace_unaided", "uncovered"]


def trace(
    module: nn.Module,
    inputs: Mapping[str, Any],
    name: str,
    exclude: str | None = None,
    tied: Sequence[str] = (),
) -> Graph:
    """Trace a denoiser into a graph.

    The forward runs on a skeleton of ``module``; ``module`` itself is neither run nor changed.

    Args:
        module: the denoiser, with or without real weights, on any device.
        inputs: arguments of its forward by name, batch size 1 (see `qsdm.tracing.inputs`).
        name: the denoiser's name, stored in the graph.
        exclude: regular expression; weights of modules whose paths match it are not quantized.
        tied: regular expressions; parameters whose names match the same expression with the same
            groups hold equal values.

    Returns:
        The graph, topologically sorted.

    Raises:
        TraceError: the module is quantized, wrapped or offloaded, fails on these inputs, or uses no
            weight.

    Example:
        >>> import torch
        >>> from qsdm.tracing import trace
        >>> mlp = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 32), torch.nn.SiLU(), torch.nn.Linear(32, 8)
        ... )
        >>> graph = trace(mlp, {"input": torch.zeros(1, 8)}, "mlp")
        >>> [(weight.name, weight.shape) for weight in graph.weights]
        [('0', (32, 8)), ('2', (8, 32))]
    """
    check(module)
    twin = as_forward(skeleton.of(module))
    graph = compact(record(twin, skeleton.real(dict(inputs))), twin, name, exclude, tied)
    if not graph.weights:
        raise TraceError(
            f"{type(module).__name__} calls no Linear or Conv: there is nothing in it to quantize"
        )
    return graph


def trace_unaided(
    module: nn.Module,
    overrides: Mapping[str, Any],
    name: str,
    exclude: str | None = None,
    tied: Sequence[str] = (),
) -> tuple[Graph, str]:
    """Trace a denoiser with built inputs, and repair those on which its forward does not run.

    Args:
        module: the denoiser, with or without real weights, on any device.
        overrides: replacements for built inputs (see `qsdm.tracing.inputs.build`).
        name: the denoiser's name, stored in the graph.
        exclude: regular expression; weights of modules whose paths match it are not quantized.
        tied: regular expressions of parameters that hold equal values (see `trace`).

    Returns:
        The graph, and where its inputs came from: ``built``; ``overrides`` (built, with the
        overrides that qsdm ships for the class); or ``repaired:`` followed by the repairs.

    Raises:
        TraceError: the module cannot be traced, or no inputs were found on which it runs.
    """
    class_overrides = inputs.overrides_of(type(module))
    check(module)
    first_error, graph = None, None
    try:
        graph = trace(module, inputs.build(module, overrides), name, exclude, tied)
        if class_overrides or not uncovered(module, graph):
            return graph, "overrides" if class_overrides else "built"
    except TraceError as error:
        first_error = error
    twin = skeleton.of(module)

    def coverage(recording: Recording) -> float:
        num_uncovered = len(uncovered(twin, compact(recording, twin, name)))
        return 1 - num_uncovered / max(1, len(list(_owners(twin))))

    try:
        solution = repair.find(twin, {**class_overrides, **overrides}, coverage)
    except TraceError as error:
        raise first_error or error from None
    if graph is not None and not solution.repairs:
        return graph, "built"
    graph = trace(module, solution.arguments, name, exclude, tied)
    return graph, f"repaired: {', '.join(solution.repairs)}"


def check(module: nn.Module) -> None:
    """Check that a module holds the plain weights that were published.

    Args:
        module: the denoiser.

    Raises:
        TraceError: it is not a module, or it is quantized, wrapped in adapters or offloaded.
    """
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
                f"{kind} is wrapped in adapters (at {path!r}): "
                "call fuse_lora() and unload_lora_weights() first"
            )
        if hasattr(child, "_hf_hook"):
            raise TraceError(
                f"{kind} is offloaded by accelerate (at {path or 'its root'!r}): "
                "load it without enable_*_offload()"
            )
        weight, layer = child._parameters.get("weight"), type(child).__name__
        if weight is not None and ("Linear" in layer or "Conv" in layer):
            plain = type(weight) in (nn.Parameter, Tensor) and type(weight.data) is Tensor
            if not (plain and weight.is_floating_point()):
                raise TraceError(
                    f"{kind} is already quantized ({layer} at {path!r}): load the published weights"
                )


def uncovered(module: nn.Module, graph: Graph) -> list[str]:
    """Find the Linear and Conv modules whose weights no node of the graph uses.

    Args:
        module: the denoiser that was traced.
        graph: its graph.

    Returns:
        Module paths.
    """
    called = {
        node.name.partition("@")[0].partition("#")[0]
        for node in graph.nodes
        if node.op in (Op.LINEAR, Op.CONV)
    }
    owners = list(_owners(module))
    # A shared parameter counts under all its names.
    used = {id(child.weight) for path, child in owners if path in called}
    return [path for path, child in owners if id(child.weight) not in used]


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return (
        (path, child) for path, child in module.named_modules() if isinstance(child, QUANTIZABLE)
    )
