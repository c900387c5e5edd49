"""Trace a denoiser: its computational graph, from the model's code alone, without its weights.

    python -m qsdm.trace +model=sdxl
    python -m qsdm.trace +model=any path=DIRECTORY_OR_HUB_ID
    python -m qsdm.trace +model=emoji_unet model.component=text_encoder   # or vae
    python -m qsdm.trace +model=emoji_unet 'model.component=[unet,text_encoder,vae]'  # one budget
    python -m qsdm.trace +model=emoji_unet model.component=text_encoder embeddings=true
    python -m qsdm.trace +model=flux export=[graphml,pyg]

Writes graph.json and graph.html, an interactive page, into the store. Once calibrate has run, the
page can color the weights by their errors.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from time import process_time
from typing import TYPE_CHECKING, Any

from qsdm import denoisers, run, text
from qsdm.denoisers import Model, conditioning
from qsdm.graph import Graph, Op, union
from qsdm.qconfig import QuantConfig, QuantMethod, cost
from qsdm.report import graph_page
from qsdm.report.tracked import track
from qsdm.run.errors import first_line
from qsdm.store import Store
from qsdm.store.files import write_text
from qsdm.store.schemas import GRAPH
from qsdm.text import Log, ignore
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from torch import nn

UNIFORM = ("uaq-4", "uaq-3", "kmeans_c-4", "kmeans_a-4")
"""Methods whose costs are shown below those of full precision."""

EXPORTS = ("graphml", "pyg")
UNAIDED = "signature and config"  # where inputs come from without a pipeline
MOST_PATHS = 5  # of modules that share a reason; a reader needs an example, not all of them


@takes_workspace("model", "store")
def trace(
    workspace: Workspace,
    page: bool = True,
    export: Sequence[str] = (),
    embeddings: bool = False,
    log: Log = ignore,
) -> Graph:
    """Trace a model's denoiser, and write the graph to the store.

    Args:
        workspace: the model and the store; a space is of no use yet.
        page: also write graph.html.
        export: further formats, graphml or pyg or [graphml,pyg]: graph.graphml for Gephi, yEd,
            Cytoscape; graph.pyg.safetensors for `qsdm.predictor.pyg.read_pyg`.
        embeddings: whether the tables of text encoders, in which tokens are looked up, get methods
            like all other weights, row by row; by default they keep full precision.
        log: takes what is logged.

    Returns:
        The graph.

    Raises:
        ModelError: neither a config nor a directory says what the denoiser is.
        TraceError: it cannot be traced; the message says why.
        ValueError: an unknown format is to be exported, or embeddings are asked for where no part
            has any that could get a method.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import qsdm
        >>> from qsdm.trace import trace
        >>> with TemporaryDirectory() as folder:
        ...     graph = trace(qsdm.open("emoji_unet", store=folder))  # doctest: +ELLIPSIS
        emoji_unet
          graph...
        >>> len(graph.weights)
        127
    """
    from qsdm import tracing

    model = workspace.model
    for part in model.parts:  # their imports take longer than the trace, which is timed
        denoisers.denoiser_class(part)
    forms = [export] if isinstance(export, str) else list(export)
    for form in forms:
        if form not in EXPORTS:
            raise ValueError(f"export takes {' or '.join(EXPORTS)} (got {form!r})")
    began = process_time()
    traced = [traced_part(part) for part in model.parts]
    if embeddings:
        traced = with_embeddings(model, traced)
    seconds = process_time() - began
    if len(traced) == 1:
        ((module, graph, origin),) = traced
    else:
        module, graph, origin = together(model, traced)
    missing = tracing.uncovered(module, graph)
    target = workspace.store
    GRAPH.write(target.path("graph.json"), graph.to_json())
    if page:
        graph_page.write(target.path("graph.html"), graph, calibrated(target, graph))
    if "graphml" in forms:
        write_text(target.path("graph.graphml"), graph.to_graphml())
    if "pyg" in forms:
        from qsdm.predictor.pyg import to_pyg, write_pyg

        write_pyg(target.path("graph.pyg.safetensors"), to_pyg(graph))
    figures = summary(graph, model, module, missing)
    log({f"trace/{name}": value for name, value in figures.items()} | {"trace/seconds": seconds})
    track(log, "trace", target)
    rest = left_out(graph, module, missing)
    _print(graph, figures, rest, origin, seconds, target.path("graph.json"))
    print(costs(graph, model.full_bits))
    for line in passed_over(model):
        print(line)
    return graph


def traced_part(model: Model) -> tuple[nn.Module, Graph, str]:
    """Trace a denoiser, or the part in its place.

    Args:
        model: of one part.

    Returns:
        The part without its weights, its graph, and where the inputs came from.

    Raises:
        ModelError: see `trace`.
        TraceError: see `trace`.
    """
    from qsdm import tracing

    module, inputs, origin = prepare(model)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    if model.num_params is not None and num_params != model.num_params:
        raise denoisers.ModelError(
            f"{model.name}: the denoiser has {num_params:,} parameters, not {model.num_params:,}: "
            "its config or num_params in the YAML is wrong"
        )
    if not origin.startswith(UNAIDED):
        graph = tracing.trace(module, inputs, model.name, model.exclude, model.tied)
        return module, graph, origin
    graph, how = tracing.trace_unaided(module, model.inputs, model.name, model.exclude, model.tied)
    return module, graph, f"{origin}; {how}"


def with_embeddings(
    model: Model, traced: Sequence[tuple[nn.Module, Graph, str]]
) -> list[tuple[nn.Module, Graph, str]]:
    """Give the embedding tables of the parts that are no denoisers a weight.

    Args:
        model: of one or several parts.
        traced: what `traced_part` returns, in their order.

    Returns:
        The same with other graphs.

    Raises:
        ValueError: no part has a table.
    """
    from qsdm.tracing.tables import with_tables

    result = [
        (module, graph if part.denoisers else with_tables(graph, module), origin)
        for part, (module, graph, origin) in zip(model.parts, traced, strict=True)
    ]
    if all(old[1] == new[1] for old, new in zip(traced, result, strict=True)):
        raise ValueError(
            f"embeddings=true is for tables of text encoders in which tokens are looked up (got "
            f"{', '.join(model.components)}, without any): leave it out, or give "
            "model.component=text_encoder"
        )
    return result


def together(
    model: Model, traced: Sequence[tuple[nn.Module, Graph, str]]
) -> tuple[nn.Module, Graph, str]:
    """Join the parts of a pipeline, as they feed one another: encoders, denoisers, decoders.

    Args:
        model: of several parts.
        traced: what `traced_part` returns, in their order.

    Returns:
        The same of all of them.
    """
    from torch import nn

    own = model.denoisers
    before = model.components[: model.components.index(own[0])] if own else ()
    after = model.components[len(before) + len(own) :] if own else ()
    feeds = [(a, b) for a in before for b in own] + [(a, b) for a in own for b in after]
    modules, graphs, origins = zip(*traced, strict=True)
    named = dict(zip(model.components, graphs, strict=True))
    return (
        nn.ModuleDict(dict(zip(model.components, modules, strict=True))),
        union(model.name, named, feeds),
        "; ".join(dict.fromkeys(origins)),
    )


def passed_over(model: Model) -> list[str]:
    """List what a trace of one part of a pipeline leaves out.

    Args:
        model: whose denoiser was traced, or the part in its place.

    Returns:
        One line for each other denoiser of the pipeline, one for its other parts with weights, and
        one if the pipeline's pictures cannot be measured.
    """
    cls, index = denoisers.pipeline_class(model), denoisers.pipeline_index(model)
    others = [name for name in denoisers.denoisers_in(index) if name not in model.components]
    lines = [
        f"{name} is another denoiser of this pipeline: trace it with +model.component={name}"
        for name in others
    ]
    parts = denoisers.parts_in(index).keys() - {*model.components, *others}
    if rest := [name for name in sorted(parts) if name not in model.load]:
        all_of_them = ",".join([*model.components, *rest])
        lines.append(
            f"not traced: {', '.join(rest)} of this pipeline; +model.component={rest[0]} does, and "
            f"model.component=[{all_of_them}] puts all under one budget"
        )
    if cls is None:
        return lines
    reason = conditioning.unavailable(cls, model.call.keys()) or conditioning.not_pictures(cls)
    if reason is not None:
        lines.append(f"{reason}: it can be traced and calibrated, not measured")
    return lines


def calibrated(target: Store, graph: Graph) -> dict[str, dict[str, float]]:
    """Collect the errors of all spaces that were calibrated already, for the page.

    Args:
        target: store of the model.
        graph: of its denoiser.

    Returns:
        Error by method and weight.
    """
    values: dict[str, dict[str, float]] = {}
    for path in sorted(target.path("calibration").glob("*/table.safetensors")):
        from qsdm.quant.calibrated import read_table  # which brings numba: not for a fresh store

        for label, column in graph_page.errors(graph, read_table(path.parent)).items():
            values.setdefault(label, {}).update(column)
    return values


def prepare(model: Model) -> tuple[nn.Module, dict[str, Any], str]:
    """Build the denoiser without its weights, and the inputs of one forward.

    Args:
        model: whose denoiser it is.

    Returns:
        The skeleton, arguments for its forward, and where these come from.
    """
    from qsdm.tracing import inputs, skeleton

    denoisers.existing(model)
    cls = denoisers.denoiser_class(model)
    module = skeleton.build(cls, denoisers.denoiser_config(model))
    if not denoisers.is_denoiser(cls):
        return module, *called(model, module)
    if model.directory is None or model.inputs:
        return module, inputs.build(module, model.inputs), UNAIDED
    if not denoisers.can_be_called(model):
        return module, inputs.build(module, model.inputs), UNAIDED + reason_unaided(model)
    skeletons: dict[str, Any] = {model.component: module} | twins(model)
    pipeline = denoisers.load_pipeline(model, **skeletons)
    kind = type(pipeline).__name__
    try:
        captured = inputs.capture(
            pipeline,
            model.component,
            [name for name in skeletons if name != model.component],
            **denoisers.first_call(pipeline, model),
        )
    except Exception as error:  # whatever a pipeline raises
        reason = f", because {kind} could not be called ({first_line(error)})"
        return module, {}, UNAIDED + reason
    return module, captured, kind


def called(model: Model, module: nn.Module) -> tuple[dict[str, Any], str]:
    """Capture what a pipeline calls a text encoder or a VAE with, its denoisers without weights.

    Args:
        model: of that part.
        module: the part, without its weights.

    Returns:
        Arguments by name, and where these come from.

    Raises:
        TraceError: the pipeline cannot be called here, or does not call the part.
    """
    from qsdm.tracing import TraceError, inputs

    where = f"the {model.component} of {model.name} is traced from a call of its pipeline"
    if not denoisers.can_be_called(model):
        reason = reason_unaided(model).removeprefix(", because ") or "it is not on this machine"
        raise TraceError(f"{where}, which cannot be called: {reason}")
    parts: dict[str, Any] = {model.component: module}
    for name, kind in denoisers.denoisers_in(denoisers.pipeline_index(model)).items():
        parts[name] = weightless(model, name, kind)
    pipeline = denoisers.load_pipeline(model, **parts)
    try:
        call = denoisers.first_call(pipeline, model)
        captured = inputs.capture(pipeline, model.component, **call)
    except Exception as error:  # whatever a pipeline raises
        raise TraceError(f"{where}, which failed: {first_line(error)}") from error
    return captured, type(pipeline).__name__


def twins(model: Model) -> dict[str, nn.Module]:
    """Build the pipeline's other denoisers of the same class without weights: Wan 2.2 has two.

    Args:
        model: whose denoiser is traced.

    Returns:
        Skeletons by name of the component.
    """
    others = denoisers.denoisers_in(denoisers.pipeline_index(model))
    return {
        name: weightless(model, name, kind)
        for name, kind in others.items()
        if kind == model.denoiser and name != model.component
    }


def weightless(model: Model, component: str, kind: str) -> nn.Module:
    """Build a denoiser of a pipeline without its weights.

    Args:
        model: of the pipeline.
        component: that holds the denoiser.
        kind: its class.
    """
    from qsdm.tracing import skeleton

    other = dataclasses.replace(
        model, name=model.zoo.name, component=component, denoiser=kind, config={}
    )
    return skeleton.build(denoisers.denoiser_class(other), denoisers.denoiser_config(other))


def reason_unaided(model: Model) -> str:
    """Explain why the pipeline in the model's directory is not called, if that would surprise.

    Args:
        model: whose denoiser is traced.

    Returns:
        The end of a sentence; empty if there is nothing to explain.
    """
    cls = denoisers.pipeline_class(model)
    reason = conditioning.unavailable(cls, model.call.keys()) if cls is not None else None
    return f", because {reason}" if reason else ""


def summary(graph: Graph, model: Model, module: nn.Module, missing: list[str]) -> dict[str, float]:
    """Compute the figures of a graph: weights, bytes, multiply-accumulates, coverage.

    Args:
        graph: of the denoiser.
        model: whose denoiser it is.
        module: the denoiser without its weights.
        missing: paths of modules without a node.

    Returns:
        Figures by name; shares are in [0, 1].
    """
    from torch import nn

    from qsdm.tracing import QUANTIZABLE

    owners = [child for child in module.modules() if isinstance(child, QUANTIZABLE)]
    matrices = {id(p): p.numel() for p in module.parameters() if p.dim() >= 2}
    layers = [
        child for child in module.modules() if isinstance(child, (*QUANTIZABLE, nn.Embedding))
    ]
    bare = matrices.keys() - {id(p) for child in layers for p in child.parameters(recurse=False)}
    return {
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "weights": len(graph.weights),
        "size_bytes": graph.num_values * model.full_bits // 8,
        "giga_macs": sum(node.macs for node in graph.nodes) / 1e9,
        "coverage": 1 - len(missing) / max(1, len(owners)),
        "share_of_parameters": graph.num_values / max(1, sum(matrices.values())),
        "share_of_bare_parameters": sum(matrices[key] for key in bare)
        / max(1, sum(matrices.values())),
        "dead": sum(node.dead for node in graph.nodes if node.weight is not None),
    }


def left_out(graph: Graph, module: nn.Module, missing: Sequence[str]) -> list[tuple[str, str]]:
    """Explain which layers are in no weight of the graph.

    Args:
        graph: of the module.
        module: that was traced, without its weights.
        missing: paths of its Linear and Conv modules without a node.

    Returns:
        Rows of a heading and a sentence.
    """
    from torch import nn

    from qsdm.tracing.entry import entry

    rows = []
    quantized = {weight.parameter for weight in graph.weights}
    tables = {
        path: child.weight.numel()
        for path, child in module.named_modules()
        if isinstance(child, nn.Embedding) and f"{path}.weight" not in quantized
    }
    if tables:
        num_values = f"{sum(tables.values()):,} values"
        rows.append(("embeddings", f"{listed(list(tables))}: {num_values}, not quantized"))
    parts = module.values() if isinstance(module, nn.ModuleDict) else [module]
    methods = ("the forward" if entry(part) == "forward" else "decoding" for part in parts)
    method = " or ".join(dict.fromkeys(methods))
    return rows + [("not called", reason) for reason in reasons(graph, missing, method)]


def reasons(graph: Graph, missing: Sequence[str], method: str = "the forward") -> list[str]:
    """Explain why modules have no node of their own.

    A module whose sibling calls attention or a product with bare parameters was fused: its
    parameter goes into that call, and its own forward never runs, so there is no module that could
    be swapped.

    Args:
        graph: of the denoiser.
        missing: paths of the modules.
        method: what was traced, in words.

    Returns:
        A line for each reason, with the first of the paths.
    """
    fused = {
        node.name.rpartition(".")[0]: node
        for node in graph.nodes
        if node.op in (Op.MHA, Op.PARAM_MATMUL)
    }
    causes: dict[str, list[str]] = {}
    for path in missing:
        node = fused.get(path.rpartition(".")[0])
        cause = (
            f"fused into {node.name}, left out"
            if node
            else f"an input is missing, or {method} never uses them"
        )
        causes.setdefault(cause, []).append(path)
    return [f"{listed(paths)}: {cause}" for cause, paths in causes.items()]


def listed(paths: Sequence[str]) -> str:
    """The first few of some paths, and how many more there are.

    Args:
        paths: of modules.
    """
    num_more = len(paths) - MOST_PATHS
    return ", ".join(paths[:MOST_PATHS]) + (f" and {num_more} more" if num_more > 0 else "")


def costs(graph: Graph, full_bits: int) -> str:
    """Tabulate what the weights cost in full precision, and with one method for all.

    Args:
        graph: of the denoiser.
        full_bits: bits of full precision.

    Returns:
        Lines for the terminal.
    """
    heads = ("costs", "avg_bits", "bytes", "read a step", "peak", "TBOP")
    columns = (
        cost.avg_bits,
        cost.size_bytes,
        cost.traffic_bytes,
        cost.peak_bytes,
        cost.tera_bops,
    )
    rows = []
    for method in map(QuantMethod.parse, (f"fp-{full_bits}", *UNIFORM)):
        qconfig = QuantConfig(graph.denoiser, {weight.name: method for weight in graph.weights})
        rows.append([method, *(column(graph, qconfig, full_bits) for column in columns)])
    return indent(text.table(heads, rows, ("", ".4f", "", "", "", ",.2f")), "  ")


def _print(
    graph: Graph,
    figures: dict[str, float],
    rest: list[tuple[str, str]],
    origin: str,
    seconds: float,
    path: Path,
) -> None:
    roles = Counter(str(node.role) for node in graph.nodes if node.weight is not None)
    share, dead = figures["share_of_parameters"], figures["dead"]
    rows = [
        (
            "graph",
            f"{figures['nodes']} nodes, {figures['edges']} edges, {seconds:.1f} CPU-s",
        ),
        ("inputs", origin),
        (
            "weights",
            f"{figures['weights']}, {figures['size_bytes']:,} bytes, {share:.1%} of all matrices",
        ),
        (
            "coverage",
            f"{figures['coverage']:.1%} of Linear and Conv modules"
            + f"; {dead} reach no output" * (dead > 0),
        ),
        ("GMAC", f"{figures['giga_macs']:.1f} at batch 1"),
        ("roles", ", ".join(f"{role} {count}" for role, count in roles.most_common())),
    ]
    if (bare := figures["share_of_bare_parameters"]) >= 0.001:
        belong = f"{bare:.1%} of all matrices belong to no Linear or Conv (experts, tables)"
        rows.append(("bare", f"{belong}: left out"))
    print(graph.denoiser)
    for name, value in [*rows, *rest, ("written", path)]:
        print(f"  {name:<12} {value}")


if __name__ == "__main__":
    run.main(trace)
