"""A graph that can still be changed: what `compact` works on before it becomes a `qsdm.graph.Graph`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from qsdm.graph import Op, Role, Weight
from qsdm.tracing.record import Call, Operand


@dataclass(slots=True)
class Draft:
    """A node in the making.

    Attributes:
        call: the recorded call it stands for.
        module: path of the module it belongs to.
        place: in the order of execution.
        conditions: predecessors whose data is broadcast over this node's output: gates, shifts, scales.
    """

    name: str
    op: Op
    call: Call
    module: str
    weight: Weight | None = None
    macs: int = 0
    place: tuple[int, int] = (0, 0)
    conditions: set[int] = field(default_factory=set)
    role: Role = Role.NONE

    @property
    def has_parameter(self) -> bool:
        return self.op in (Op.LINEAR, Op.CONV, Op.EMBEDDING, Op.PARAM_MATMUL, Op.MHA)


class Sketch:
    """Drafts by number, with edges that remember as which operands the data came."""

    def __init__(self) -> None:
        self.nodes: dict[int, Draft] = {}
        self.into: dict[int, dict[int, list[Operand]]] = {}
        self.out: dict[int, dict[int, list[Operand]]] = {}

    def add(self, number: int, draft: Draft) -> None:
        self.nodes[number], self.into[number], self.out[number] = draft, {}, {}

    def connect(self, source: int, target: int, operands: Iterable[Operand]) -> None:
        if source != target:
            edge = self.into[target].setdefault(source, [])
            edge.extend(operands)
            self.out[source][target] = edge

    def remove(self, number: int) -> None:
        for source in self.into.pop(number):
            del self.out[source][number]
        for target in self.out.pop(number):
            del self.into[target][number]
        del self.nodes[number]

    def new_number(self) -> int:
        return max(self.nodes) + 1

    def reach(self, start: Iterable[int], forward: bool) -> set[int]:
        """All nodes on paths from (or to) the nodes of ``start``, these included."""
        neighbours = self.out if forward else self.into
        seen = set(start)
        todo = list(seen)
        while todo:
            for other in neighbours[todo.pop()]:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    def order(self) -> list[int]:
        """Topological order, by place where there is a choice."""
        waiting = {number: len(sources) for number, sources in self.into.items()}
        ready = [(self.nodes[n].place, n) for n, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            order.append(number := heapq.heappop(ready)[1])
            for target in self.out[number]:
                waiting[target] -= 1
                if waiting[target] == 0:
                    heapq.heappush(ready, (self.nodes[target].place, target))
        assert len(order) == len(self.nodes), "a forward pass has no cycle"
        return order

    def depths(self) -> dict[int, float]:
        """Longest path from an input, relative to the longest of all."""
        depth: dict[int, int] = {}
        for number in self.order():
            depth[number] = 1 + max((depth[source] for source in self.into[number]), default=-1)
        longest = max(depth.values(), default=0) or 1
        return {number: value / longest for number, value in depth.items()}

    def broadcast(self, source: int, target: int) -> bool:
        """Whether all that ``target`` takes from ``source`` is smaller than its output."""
        size = math.prod(self.nodes[target].call.shape)
        return all(math.prod(operand.shape) < size for operand in self.into[target][source])
