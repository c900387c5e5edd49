"""Roles of weights, derived from where their data comes from and goes to, not from names."""

from __future__ import annotations

from qsdm.graph import Op, Role
from qsdm.tracing.sketch import Draft, Sketch

# What may lie between a projection and its attention
_PASSING = (Op.NORM, Op.CONCAT, Op.MIX, Op.SELECT)
_ATTENTION = {
    frozenset("q"): Role.ATTN_Q,
    frozenset("k"): Role.ATTN_K,
    frozenset("v"): Role.ATTN_V,
    frozenset("qk"): Role.ATTN_QK,
    frozenset("kv"): Role.ATTN_KV,
}


def assign_roles(sketch: Sketch) -> None:
    """Set the role of every node that has a weight.

    Args:
        sketch: its nodes are changed in place.
    """
    for number, node in sketch.nodes.items():
        if node.weight is not None:
            node.role = _role(sketch, number, node)


def _role(sketch: Sketch, number: int, node: Draft) -> Role:
    if attention := _attention(sketch, number):
        return attention
    readers = _readers(sketch, number)
    sources = _sources(sketch, number)
    ops = {sketch.nodes[source].op for source in sources}
    read_by = {sketch.nodes[reader].op for reader in readers}
    conditioned = [
        reader for reader in readers if _joined(sketch, number) & sketch.nodes[reader].conditions
    ]
    if conditioned and len(conditioned) == len(readers):
        return Role.ADALN if read_by & {Op.MODULATE, Op.GATE} else Role.COND_PROJ
    if len(node.call.shape) <= 2:  # one vector per picture: conditioning
        return Role.COND_IN if Op.INPUT in ops else Role.COND_MLP
    if ops & {Op.SDPA, Op.MATMUL, Op.MHA}:
        return Role.ATTN_FF_OUT if Op.LINEAR in ops and Op.CONCAT in ops else Role.ATTN_OUT
    if node.op == Op.CONV:
        return (
            Role.CONV_IN
            if Op.INPUT in ops
            else Role.CONV_OUT
            if Op.OUTPUT in read_by
            else Role.CONV
        )
    if Op.OUTPUT in read_by:
        return Role.PROJ_OUT
    if Op.INPUT in ops:
        return Role.EMBED_IN
    assert node.weight is not None
    if "#" in node.weight.name:
        return Role.SKIP_PROJ
    rows, columns = node.weight.shape[:2]
    after_weight = bool(ops & {Op.LINEAR, Op.CONV, Op.EMBEDDING})
    if after_weight and rows < columns:
        return Role.FF_OUT
    if rows > columns and read_by & {Op.LINEAR, Op.CONV, Op.CONCAT, Op.MUL}:
        return Role.FF_IN
    return Role.FF_OUT if after_weight or Op.MUL in ops else Role.LINEAR


def _attention(sketch: Sketch, number: int) -> Role | None:
    """Role of a weight whose result becomes an operand of an attention; None for any other.

    Only norms, concatenations, mixes and selections may lie between the two.
    """
    reached: set[str] = set()
    multiplied = False
    seen, todo = {number}, [number]
    while todo:
        source = todo.pop()
        for target, operands in sketch.out[source].items():
            op = sketch.nodes[target].op
            if op == Op.SDPA:
                reached |= {operand.role for operand in operands} & set("qkv")
            elif op == Op.MATMUL:
                multiplied = True
            elif target not in seen and (
                op in _PASSING
                or (sketch.nodes[target].name.endswith(".add") and "#" in sketch.nodes[source].name)
            ):
                seen.add(target)
                todo.append(target)
    if reached:
        return _ATTENTION.get(frozenset(reached), Role.ATTN_QKV)
    return Role.ATTN_MM if multiplied else None


def _joined(sketch: Sketch, number: int) -> set[int]:
    """The node itself and, for a slice, the sum of the slices."""
    weight = sketch.nodes[number].weight
    return {number, *sketch.out[number]} if weight is not None and "#" in weight.name else {number}


def _readers(sketch: Sketch, number: int) -> list[int]:
    """The nodes that read the weight's result; for a slice, those that read the sum."""
    weight = sketch.nodes[number].weight
    if weight is not None and "#" in weight.name:
        (total,) = sketch.out[number]
        return list(sketch.out[total])
    return list(sketch.out[number])


def _sources(sketch: Sketch, number: int) -> set[int]:
    """The nearest producers of a node's input.

    The search passes through norms, concatenations and selections, which are included.
    """
    sources: set[int] = set()
    todo = list(sketch.into[number])
    while todo:
        source = todo.pop()
        if source not in sources:
            sources.add(source)
            if sketch.nodes[source].op in (Op.CONCAT, Op.NORM, Op.SELECT):
                todo += sketch.into[source]
    return sources
