"""Trace a denoiser: its computational graph, from the model's code alone, without its weights.

    python -m qsdm.trace +model=sdxl
    python -m qsdm.trace +model=any model.path=DIRECTORY_OF_A_PIPELINE

Writes graph.json into the store.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from qsdm import denoisers, run
from qsdm.denoisers import Model
from qsdm.graph import Graph
from qsdm.log import Log, ignore
from qsdm.store import Store, write_json

if TYPE_CHECKING:
    from torch import nn


def trace(model: Model, store: Path = Path("store"), log: Log = ignore) -> Graph:
    """The graph of a model's denoiser; also written to the store.

    Raises:
        ModelError: neither a config nor a directory says what the denoiser is.
        TraceError: it cannot be traced; the message says why.
    """
    from qsdm import tracing

    began = perf_counter()
    module, inputs, origin = prepare(model)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    if model.num_params is not None and num_params != model.num_params:
        raise denoisers.ModelError(
            f"{model.name}: the denoiser has {num_params:,} parameters, not {model.num_params:,}: its config or num_params in the YAML is wrong"
        )
    graph = tracing.trace(module, inputs, model.name, model.exclude, model.tied)
    seconds = perf_counter() - began
    missing = tracing.uncovered(module, graph)
    target = Store(store, model.name)
    write_json(target.path("graph.json"), graph.to_json())
    figures = summary(graph, model, module, missing)
    log({f"trace/{name}": value for name, value in figures.items()} | {"trace/seconds": seconds})
    _print(graph, figures, missing, origin, seconds, target.path("graph.json"))
    return graph


def prepare(model: Model) -> tuple[nn.Module, dict[str, Any], str]:
    """The denoiser's skeleton, arguments for its forward, and where these come from."""
    from qsdm.tracing import inputs, skeleton

    module = skeleton.build(denoisers.denoiser_class(model), denoisers.denoiser_config(model))
    if model.directory is not None and not model.inputs and denoisers.has_text_encoder(model):
        pipeline = denoisers.load_pipeline(model, **{model.component: module})
        return (
            module,
            inputs.capture(pipeline, model.component, **denoisers.first_call(pipeline, model)),
            type(pipeline).__name__,
        )
    return module, inputs.build(module, model.inputs), "signature and config"


def summary(graph: Graph, model: Model, module: nn.Module, missing: list[str]) -> dict[str, float]:
    """Figures of a graph: weights, bytes, multiply-accumulates, coverage."""
    from qsdm.tracing import QUANTIZABLE

    owners = [child for child in module.modules() if isinstance(child, QUANTIZABLE)]
    matrices = {id(p): p.numel() for p in module.parameters() if p.dim() >= 2}
    return {
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "weights": len(graph.weights),
        "size_bytes": graph.num_values * model.full_bits // 8,
        "giga_macs": sum(node.macs for node in graph.nodes) / 1e9,
        "coverage": 1 - len(missing) / max(1, len(owners)),
        "share_of_parameters": graph.num_values / max(1, sum(matrices.values())),
        "dead": sum(node.dead for node in graph.nodes if node.weight is not None),
    }


def _print(
    graph: Graph, figures: dict[str, float], missing: list[str], origin: str, seconds: float, path: Path
) -> None:
    roles = Counter(str(node.role) for node in graph.nodes if node.weight is not None)
    print(f"{graph.denoiser}: {figures['nodes']} nodes, {figures['edges']} edges, {seconds:.1f} s (inputs: {origin})")
    print(
        f"  weights      {figures['weights']:>8}   {figures['size_bytes']:,} bytes, {figures['share_of_parameters']:.1%} of all matrices"
    )
    print(
        f"  coverage     {figures['coverage']:>8.1%}   of Linear and Conv modules"
        + (f"; {figures['dead']} reach no output" if figures["dead"] else "")
    )
    print(f"  GMAC         {figures['giga_macs']:>8.1f}   at batch 1")
    print("  roles        " + ", ".join(f"{role} {count}" for role, count in roles.most_common()))
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        print(f"  never called {shown}: an input for them is missing (model.inputs), or their layers are fused")
    print(f"  {path}")


if __name__ == "__main__":
    run.main(trace)
