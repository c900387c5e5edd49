"""The mutable graph that `compact` works on before it becomes a `qsdm.graph.Graph`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from qsdm.graph import Op, Role, Weight, topological_order
from qsdm.tracing.calls import Call, Operand


@dataclass(slots=True)
class Draft:
    """A node of a `Sketch`.

    Attributes:
        name: as in `qsdm.graph.Node`, but not yet unique.
        op: what it computes.
        call: the recorded call that it stands for.
        module: path of the module that it belongs to.
        weight: its weight, if it has one that is quantized.
        macs: multiply-accumulates at batch size 1.
        position: in the order of execution: number of the call, then of the slice.
        conditions: predecessors whose data is broadcast over this node's output: gates, shifts and
            scales.
        role: what the weight is for.
    """

    name: str
    op: Op
    call: Call
    module: str
    weight: Weight | None = None
    macs: int = 0
    position: tuple[int, int] = (0, 0)
    conditions: set[int] = field(default_factory=set)
    role: Role = Role.NONE

    @property
    def has_parameter(self) -> bool:
        """Whether the node computes with a parameter."""
        return self.op in (Op.LINEAR, Op.CONV, Op.EMBEDDING, Op.PARAM_MATMUL, Op.MHA)

    def replace_condition(self, old: int, new: int) -> None:
        """Let one node take the place of another among the conditions.

        Args:
            old: number of a node, which need not be a condition.
            new: number of the node that replaces it.
        """
        if old in self.conditions:
            self.conditions = (self.conditions - {old}) | {new}


class Sketch:
    """Drafts by number, with edges that list the operands through which the data passes.

    Attributes:
        nodes: drafts by number.
        into: number of a node => its sources, with the operands of each edge.
        out: number of a node => its targets, with the operands of each edge.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, Draft] = {}
        self.into: dict[int, dict[int, list[Operand]]] = {}
        self.out: dict[int, dict[int, list[Operand]]] = {}

    def add(self, number: int, draft: Draft) -> None:
        """Add a node without edges."""
        self.nodes[number], self.into[number], self.out[number] = draft, {}, {}

    def connect(self, source: int, target: int, operands: Iterable[Operand]) -> None:
        """Add operands to the edge from ``source`` to ``target``; a loop is ignored."""
        if source != target:
            edge = self.into[target].setdefault(source, [])
            edge.extend(operands)
            self.out[source][target] = edge

    def remove(self, number: int) -> None:
        """Remove a node and its edges."""
        for source in self.into.pop(number):
            del self.out[source][number]
        for target in self.out.pop(number):
            del self.into[target][number]
        del self.nodes[number]

    def new_number(self) -> int:
        """A number that no node has."""
        return max(self.nodes) + 1

    def reach(self, start: Iterable[int], forward: bool) -> set[int]:
        """The nodes that can be reached from ``start`` (or that reach it), ``start`` included."""
        neighbors = self.out if forward else self.into
        seen = set(start)
        todo = list(seen)
        while todo:
            for other in neighbors[todo.pop()]:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    def order(self) -> list[int]:
        """Topological order; where there is a choice, by position."""
        return topological_order(self.into, key=lambda number: self.nodes[number].position)

    def depths(self) -> dict[int, float]:
        """Longest path from an input to each node, relative to the longest of all, in [0, 1]."""
        depth: dict[int, int] = {}
        for number in self.order():
            depth[number] = 1 + max((depth[source] for source in self.into[number]), default=-1)
        longest = max(depth.values(), default=0) or 1
        return {number: value / longest for number, value in depth.items()}

    def broadcast(self, source: int, target: int) -> bool:
        """Whether everything that ``target`` takes from ``source`` is smaller than its output."""
        size = math.prod(self.nodes[target].call.shape)
        return all(math.prod(operand.shape) < size for operand in self.into[target][source])
