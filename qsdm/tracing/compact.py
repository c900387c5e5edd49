"""The compact graph of a recording: weights, attention, norms, and wherever data of different sources meet.

Views, casts, activations and constants vanish: an op that carries the data of one kept node only stands for that node.
So ``x * gelu(gate)`` of one Linear collapses into it, while SwiGLU of two Linears stays a ``mul``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from qsdm.graph import Graph, Node, Op, Weight, sorted_graph
from qsdm.tracing.record import Call, Operand, Recording
from qsdm.tracing.roles import assign_roles
from qsdm.tracing.sketch import Draft, Sketch

QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
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
    """The graph of a denoiser.

    Args:
        exclude: regular expression of module paths whose weights get no decision.
        tied: regular expressions; parameters whose names match one of them with the same groups share one decision.
    """
    sketch = draft(recording, module, exclude)
    _drop_plumbing(sketch)
    _name_merges(sketch)
    _fuse_modulation(sketch)
    _tie(sketch, tied)
    _split_concatenated(sketch)
    assign_roles(sketch)
    return _finish(sketch, module, name)


def draft(recording: Recording, module: nn.Module, exclude: str | None = None) -> Sketch:
    """Decide which calls are kept, and which kept node's data every other call carries."""
    modules = dict(module.named_modules())
    called = set(recording.frames.values())
    excluded = re.compile(exclude) if exclude else None
    norm_call = _norm_calls(recording, modules)
    last_of = {
        frame: i for i, frame in norm_call.items()
    }  # a norm module's calls become one node, at the last of them
    sketch = Sketch()
    carried: dict[int, int] = {}  # call => the kept node whose data it carries
    pending: dict[int, dict[int, list[Operand]]] = {}  # norm module call => what went in so far
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
                carried[i] = next(
                    iter(gathered)
                )  # until the norm is done its parts carry what went in
            if last_of[frame] != i or not gathered:
                continue
            incoming = gathered
        node = _keep(
            call,
            incoming,
            modules,
            called,
            excluded,
            recording.frames[frame] if frame is not None else None,
        )
        if node is None:
            if incoming:
                carried[i] = next(iter(incoming))
            continue
        node.place = (i, 0)
        sketch.add(i, node)
        carried[i] = i
        for source, operands in incoming.items():
            sketch.connect(source, i, operands)
    return sketch


def _norm_calls(recording: Recording, modules: dict[str, nn.Module]) -> dict[int, int]:
    """Call => the call of a norm module without weights of its own that it is part of."""
    leaf = {
        frame
        for frame, path in recording.frames.items()
        if path
        and "norm" in type(modules[path]).__name__.lower()
        and not any(isinstance(m, QUANTIZABLE) for m in modules[path].modules())
    }
    found = {}
    for i, call in enumerate(recording.calls):
        if (frame := next((frame for frame in call.frames if frame in leaf), None)) is not None:
            found[i] = frame
    return found


def _keep(
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
    at = f"{call.module}." if call.module else ""
    matrices = [name for name, shape in call.parameters if len(shape) >= 2]
    if (
        matrices
        and call.kind in (*_OF_PARAMETER, "matmul")
        and (incoming or call.kind != "embedding")
    ):
        layer = call.kind in ("linear", "conv")
        parameter = (
            matrices[-1] if layer else matrices[0]
        )  # a layer may be fed with a parameter: learned queries
        owner, _, leaf = parameter.rpartition(".")
        own = (
            layer
            and leaf == "weight"
            and isinstance(modules.get(owner), QUANTIZABLE)
            and owner in called
        )
        op = _OF_PARAMETER.get(call.kind, Op.PARAM_MATMUL)
        if call.kind == "linear" and not own:
            op = Op.PARAM_MATMUL  # a bare parameter: no module that could be swapped
        weight = None
        if own and not (excluded and excluded.search(owner)):
            weight = Weight(owner, parameter, tuple(modules[owner].get_parameter("weight").shape))
        return Draft(
            owner if own else f"{at}{op}",
            op,
            call,
            owner if own else call.module,
            weight,
            call.macs,
        )
    if call.kind == "sdpa":
        return Draft(f"{at}sdpa", Op.SDPA, call, call.module, macs=call.macs)
    if call.kind == "norm" and incoming:
        return Draft(f"{at}norm", Op.NORM, call, call.module)
    if len(incoming) >= 2 or (call.kind == "matmul" and sum(map(len, incoming.values())) >= 2):
        op = _MERGE.get(call.kind, Op.MIX)
        return Draft(f"{at}{op}", op, call, call.module, macs=call.macs)
    return None


def _drop_plumbing(sketch: Sketch) -> None:
    """Remove what neither feeds nor follows any weight: masks and positions."""
    weights = [number for number, node in sketch.nodes.items() if node.has_parameter]
    touched = sketch.reach(weights, forward=True) | sketch.reach(weights, forward=False)
    for number in [
        n for n, node in sketch.nodes.items() if n not in touched and node.op != Op.OUTPUT
    ]:
        sketch.remove(number)


def _name_merges(sketch: Sketch) -> None:
    """A merge with a broadcast operand is a condition's: ``mul`` becomes ``gate``, ``add`` becomes ``add_cond``."""
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
    """norm(x) * (1 + scale) + shift becomes one ``modulate`` node; the norm goes with it if nothing else reads it."""
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
                        _replace_condition(sketch.nodes[target], shifted, scaled)
                    sketch.remove(shifted)
            node.conditions = conditions
            _rename(node, Op.MODULATE)
        readers = list(sketch.out[number])
        if readers and all(sketch.nodes[reader].op == Op.MODULATE for reader in readers):
            for source, operands in list(sketch.into[number].items()):
                for reader in readers:
                    sketch.connect(source, reader, operands)
            sketch.remove(number)


def _replace_condition(node: Draft, old: int, new: int) -> None:
    if old in node.conditions:
        node.conditions = (node.conditions - {old}) | {new}


def _tie(sketch: Sketch, patterns: Sequence[str]) -> None:
    """Parameters that match a pattern with the same groups become one weight, named after the first of them."""
    for text in patterns:
        pattern = re.compile(text)
        groups: dict[tuple, list[Draft]] = {}
        for node in sketch.nodes.values():
            if node.weight is not None and (match := pattern.search(node.weight.parameter)):
                groups.setdefault(match.groups(), []).append(node)
        if not groups:
            raise ValueError(
                f"no quantized parameter matches the tied pattern {text!r}: correct it in the model's YAML"
            )
        for nodes in groups.values():
            weights = list(dict.fromkeys(node.weight for node in nodes if node.weight is not None))
            if len({weight.shape for weight in weights}) > 1:
                raise ValueError(
                    f"tied pattern {text!r} joins weights of different shapes "
                    f"({weights[0].shape} and {weights[1].shape}): give it a group that tells them apart"
                )
            first = weights[0]
            shared = Weight(
                first.name,
                first.parameter,
                first.shape,
                ties=tuple(weight.parameter for weight in weights[1:]),
            )
            for node in nodes:
                node.weight = shared


def _split_concatenated(sketch: Sketch) -> None:
    """A weight fed by a concatenation of input features becomes one node per slice, and an ``add`` of the results."""
    for number in [n for n, node in sketch.nodes.items() if node.weight is not None]:
        node = sketch.nodes[number]
        sizes = _slice_sizes(sketch, number)
        if not sizes or node.weight is None:
            continue
        whole = node.weight
        total = sketch.new_number()
        sketch.add(
            total,
            Draft(
                f"{node.name}.add",
                Op.ADD,
                node.call,
                node.module,
                place=(node.place[0], len(sizes)),
            ),
        )
        start = 0
        for k, size in enumerate(sizes):
            shape = (whole.shape[0], size, *whole.shape[2:])
            weight = Weight(f"{whole.name}#{k}", whole.parameter, shape, start, whole.ties)
            part = sketch.new_number()
            macs = node.macs * size // whole.shape[1]
            sketch.add(
                part,
                Draft(
                    weight.name, node.op, node.call, node.module, weight, macs, (node.place[0], k)
                ),
            )
            for source, operands in sketch.into[number].items():
                sketch.connect(source, part, operands)
            sketch.connect(part, total, [Operand(number, str(k), node.call.shape)])
            start += size
        for target, operands in sketch.out[number].items():
            sketch.connect(total, target, operands)
            _replace_condition(sketch.nodes[target], number, total)
        sketch.remove(number)


def _slice_sizes(sketch: Sketch, number: int) -> list[int]:
    """Input features per operand of the concatenation that feeds a weight, perhaps through norms; empty without one."""
    node = sketch.nodes[number]
    assert node.weight is not None
    if len(sketch.into[number]) != 1:
        return []
    (source,) = sketch.into[number]
    while sketch.nodes[source].op == Op.NORM and len(sketch.into[source]) == 1:
        (source,) = sketch.into[source]
    concat = sketch.nodes[source].call
    fan_in = node.weight.shape[1]
    dim = concat.concat_dim
    if sketch.nodes[source].op != Op.CONCAT or dim is None or concat.shape[dim] != fan_in:
        return []
    given = next(
        (operand.shape for operands in sketch.into[number].values() for operand in operands), ()
    )
    features = 1 if node.op == Op.CONV else len(given) - 1
    if len(given) == len(concat.shape) and dim != features:
        return []
    by_role = {
        operand.role: operand.shape for operand in concat.operands if len(operand.shape) > dim
    }
    sizes = [shape[dim] for shape in by_role.values()]
    return sizes if len(sizes) > 1 and sum(sizes) == fan_in else []


def labels(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Module path => (stage, block).

    Stage: the outermost part, a child of the denoiser or an item of its lists. Block: the innermost list item that has
    two or more weights, or such an item of a Sequential with four or more; else the stage.
    """
    modules = dict(module.named_modules())
    weights: Counter[str] = Counter()
    for path, child in modules.items():
        if isinstance(child, QUANTIZABLE):
            parts = path.split(".")
            weights.update(".".join(parts[:i]) for i in range(1, len(parts)))

    def is_block(path: str) -> bool:
        parent = modules.get(path.rpartition(".")[0])
        if isinstance(modules[path], (*_CONTAINERS, nn.Sequential)):
            return False
        return weights[path] >= (
            2
            if isinstance(parent, _CONTAINERS)
            else 4
            if isinstance(parent, nn.Sequential)
            else 10**9
        )

    found = {"": ("", "")}
    for path in modules:
        if path:
            parts = path.split(".")
            stage = ".".join(parts[:2]) if isinstance(modules[parts[0]], _CONTAINERS) else parts[0]
            blocks = [
                prefix for i in range(1, len(parts) + 1) if is_block(prefix := ".".join(parts[:i]))
            ]
            found[path] = (stage, blocks[-1] if blocks else stage)
    return found


def _finish(sketch: Sketch, module: nn.Module, name: str) -> Graph:
    where = labels(module)
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
        stage, block = where[node.module]
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
