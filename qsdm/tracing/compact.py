"""Reduce a recording to the calls that matter: weights, attention, norms, and merges of data.

Views, casts, activations and constants vanish: a call that only carries the data of one node
becomes part of that node. So ``x * gelu(gate)`` of one Linear collapses into that Linear, while the
SwiGLU of two Linears stays a ``mul``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from qsdm.graph import Graph, Node, Op, Weight, sorted_graph
from qsdm.tracing.blocks import QUANTIZABLE, stages_and_blocks
from qsdm.tracing.calls import Call, Operand, Recording
from qsdm.tracing.decisions import split_concatenated, tie
from qsdm.tracing.roles import assign_roles
from qsdm.tracing.sketch import Draft, Sketch

_MERGE = {
    "add": Op.ADD,
    "mul": Op.MUL,
    "concat": Op.CONCAT,
    "matmul": Op.MATMUL,
    "select": Op.SELECT,
}
_OF_PARAMETER = {
    "linear": Op.LINEAR,
    "conv": Op.CONV,
    "conv_transpose": Op.CONV,
    "embedding": Op.EMBEDDING,
    "mha": Op.MHA,
}


def compact(
    recording: Recording,
    module: nn.Module,
    name: str,
    exclude: str | None = None,
    tied: Sequence[str] = (),
) -> Graph:
    """Build the graph of a denoiser from the recording of its forward.

    Args:
        recording: all calls of one forward.
        module: the skeleton whose forward was recorded.
        name: the denoiser's name, stored in the graph.
        exclude: regular expression; weights of modules whose paths match it get no decision.
        tied: regular expressions; parameters whose names match the same expression with the same
            groups share one decision.

    Returns:
        The graph, topologically sorted.

    Raises:
        ValueError: a tied pattern matches no parameter, or parameters of different shapes.
    """
    sketch = draft(recording, module, exclude)
    _drop_plumbing(sketch)
    _name_merges(sketch)
    _fuse_modulation(sketch)
    tie(sketch, tied)
    split_concatenated(sketch)
    assign_roles(sketch)
    return _finish(sketch, module, name)


def draft(recording: Recording, module: nn.Module, exclude: str | None = None) -> Sketch:
    """Decide which calls become nodes, and which node's data every other call carries.

    Args:
        recording: all calls of one forward.
        module: the skeleton whose forward was recorded.
        exclude: regular expression; weights of modules whose paths match it get no decision.

    Returns:
        The sketch, with masks and positions, and with names that repeat.
    """
    modules = dict(module.named_modules())
    called = set(recording.frames.values())
    excluded = re.compile(exclude) if exclude else None
    norm_call = _norm_calls(recording, modules)
    # The calls of a norm module become one node, at the last of them.
    last_of = {frame: i for i, frame in norm_call.items()}
    sketch = Sketch()
    carried: dict[int, int] = {}  # call => the node whose data it carries
    pending: dict[int, dict[int, list[Operand]]] = {}  # norm module's call => its operands so far
    for i, call in enumerate(recording.calls):
        incoming: dict[int, list[Operand]] = {}
        for operand in call.operands:
            if (source := carried.get(operand.source)) is not None:
                incoming.setdefault(source, []).append(operand)
        if (frame := norm_call.get(i)) is not None:
            gathered = pending.setdefault(frame, {})
            for source, operands in incoming.items():
                gathered.setdefault(source, []).extend(operands)
            if gathered:
                carried[i] = next(iter(gathered))  # until the norm's last call
            if last_of[frame] != i or not gathered:
                continue
            incoming = gathered
        norm = recording.frames[frame] if frame is not None else None
        node = _node_of(call, incoming, modules, called, excluded, norm)
        if node is None:
            if incoming:
                carried[i] = next(iter(incoming))
            continue
        node.position = (i, 0)
        sketch.add(i, node)
        carried[i] = i
        for source, operands in incoming.items():
            sketch.connect(source, i, operands)
    return sketch


def _norm_calls(recording: Recording, modules: dict[str, nn.Module]) -> dict[int, int]:
    """Call => the norm module's call that it belongs to, for norms without Linear or Conv."""
    leaf = {
        frame
        for frame, path in recording.frames.items()
        if path
        and "norm" in type(modules[path]).__name__.lower()
        and not any(isinstance(m, QUANTIZABLE) for m in modules[path].modules())
    }
    frames = {}
    for i, call in enumerate(recording.calls):
        if (frame := next((frame for frame in call.frames if frame in leaf), None)) is not None:
            frames[i] = frame
    return frames


def _node_of(
    call: Call,
    incoming: dict[int, list[Operand]],
    modules: dict[str, nn.Module],
    called: set[str],
    excluded: re.Pattern | None,
    norm: str | None,
) -> Draft | None:
    """The node that a call becomes, if any."""
    if call.kind == "input":
        return None if call.plumbing else Draft(f"input.{call.function}", Op.INPUT, call, "")
    if call.kind == "output":
        return Draft("output", Op.OUTPUT, call, "")
    if norm is not None:
        return Draft(norm, Op.NORM, call, norm)
    prefix = f"{call.module}." if call.module else ""
    matrices = [name for name, shape in call.parameters if len(shape) >= 2]
    if (
        matrices
        and call.kind in (*_OF_PARAMETER, "matmul")
        and (incoming or call.kind != "embedding")
    ):
        layer = call.kind in ("linear", "conv")
        # The input of a layer may be a parameter too, such as learned queries.
        parameter = matrices[-1] if layer else matrices[0]
        owner, _, leaf = parameter.rpartition(".")
        own = (
            layer
            and leaf == "weight"
            and isinstance(modules.get(owner), QUANTIZABLE)
            and owner in called
        )
        op = _OF_PARAMETER.get(call.kind, Op.PARAM_MATMUL)
        if call.kind == "linear" and not own:
            op = Op.PARAM_MATMUL  # a bare parameter: there is no module to replace
        weight = None
        if own and not (excluded and excluded.search(owner)):
            weight = Weight(owner, parameter, tuple(modules[owner].get_parameter("weight").shape))
        return Draft(
            owner if own else f"{prefix}{op}",
            op,
            call,
            owner if own else call.module,
            weight,
            call.macs,
        )
    if call.kind == "sdpa":
        return Draft(f"{prefix}sdpa", Op.SDPA, call, call.module, macs=call.macs)
    if call.kind == "norm" and incoming:
        return Draft(f"{prefix}norm", Op.NORM, call, call.module)
    if len(incoming) >= 2 or (call.kind == "matmul" and sum(map(len, incoming.values())) >= 2):
        op = _MERGE.get(call.kind, Op.MIX)
        return Draft(f"{prefix}{op}", op, call, call.module, macs=call.macs)
    return None


def _drop_plumbing(sketch: Sketch) -> None:
    """Remove nodes that neither feed nor follow a weight: masks and positions."""
    weights = [number for number, node in sketch.nodes.items() if node.has_parameter]
    touched = sketch.reach(weights, forward=True) | sketch.reach(weights, forward=False)
    plumbing = [n for n, node in sketch.nodes.items() if n not in touched and node.op != Op.OUTPUT]
    for number in plumbing:
        sketch.remove(number)


def _name_merges(sketch: Sketch) -> None:
    """Rename merges with a broadcast operand, which apply a condition.

    ``mul`` becomes ``gate``, and ``add`` becomes ``add_cond``.
    """
    for number, node in sketch.nodes.items():
        if node.op in (Op.ADD, Op.MUL):
            node.conditions = {
                source for source in sketch.into[number] if sketch.broadcast(source, number)
            }
            if node.conditions and len(node.conditions) < len(sketch.into[number]):
                _rename(node, Op.GATE if node.op == Op.MUL else Op.ADD_COND)
            else:
                node.conditions = set()


def _rename(node: Draft, op: Op) -> None:
    node.op = op
    node.name = f"{node.module}.{op}" if node.module else str(op)


def _fuse_modulation(sketch: Sketch) -> None:
    """Fuse ``norm(x) * (1 + scale) + shift`` into one ``modulate`` node.

    The norm becomes part of it if nothing else reads the norm.
    """
    for number in [n for n, node in sketch.nodes.items() if node.op == Op.NORM]:
        for scaled in list(sketch.out[number]):
            node = sketch.nodes.get(scaled)
            if node is None or node.op not in (Op.GATE, Op.MUL) or len(sketch.into[scaled]) != 2:
                continue
            condition = next(source for source in sketch.into[scaled] if source != number)
            per_token = node.op == Op.MUL and sketch.nodes[condition].op in (Op.LINEAR, Op.CONV)
            if not (node.conditions == {condition} or per_token):
                continue
            conditions = {condition}
            if len(sketch.out[scaled]) == 1:
                (shifted,) = sketch.out[scaled]
                shift = set(sketch.into[shifted]) - {scaled}
                after = sketch.nodes[shifted]
                if (after.op == Op.ADD_COND and shift == after.conditions) or (
                    after.op == Op.ADD and shift == conditions
                ):
                    conditions |= shift
                    for source in shift:
                        sketch.connect(source, scaled, sketch.into[shifted][source])
                    for target, operands in list(sketch.out[shifted].items()):
                        sketch.connect(scaled, target, operands)
                        sketch.nodes[target].replace_condition(shifted, scaled)
                    sketch.remove(shifted)
            node.conditions = conditions
            _rename(node, Op.MODULATE)
        readers = list(sketch.out[number])
        if readers and all(sketch.nodes[reader].op == Op.MODULATE for reader in readers):
            for source, operands in list(sketch.into[number].items()):
                for reader in readers:
                    sketch.connect(source, reader, operands)
            sketch.remove(number)


def _finish(sketch: Sketch, module: nn.Module, name: str) -> Graph:
    parts_of = stages_and_blocks(module)
    depths = sketch.depths()
    outputs = [number for number, node in sketch.nodes.items() if node.op == Op.OUTPUT]
    alive = sketch.reach(outputs, forward=False)
    times: Counter[str] = Counter()
    nodes: list[Node] = []
    index: dict[int, int] = {}
    for number in sketch.order():
        node = sketch.nodes[number]
        unique = f"{node.name}@{times[node.name]}" if times[node.name] else node.name
        times[node.name] += 1
        stage, block = parts_of[node.module]
        index[number] = len(nodes)
        nodes.append(
            Node(
                unique,
                node.op,
                node.role,
                stage,
                block,
                node.weight,
                node.call.shape,
                node.macs,
                round(depths[number], 6),
                number not in alive,
            )
        )
    edges = [
        (index[source], index[target])
        for target, sources in sketch.into.items()
        for source in sources
    ]
    return sorted_graph(name, nodes, edges)
