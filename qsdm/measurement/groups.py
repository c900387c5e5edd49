"""Which groups of a graph's weights are probed together, and which of them are opened.

Each weight is probed alone where a model has few of them. Where it has many, groups are probed:
first those of a coarse partition, then the parts of the most harmful ones, as many as can be
afforded. A group that does no harm as a whole needs no look inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qsdm.graph import Graph

Group = tuple[str, ...]
"""Names of weights that are quantized together."""


def partitions(graph: Graph) -> list[list[Group]]:
    """Partition the weights of a graph, from coarse to fine.

    Args:
        graph: of a denoiser.

    Returns:
        The groups by stage, by stage and role, by block, by block and role, and each weight alone;
        a partition that is no finer than the one before is left out.
    """
    nodes = [graph.node_of(weight.name) for weight in graph.weights]
    keys: list[Callable[[int], tuple[str, ...]]] = [
        lambda i: (nodes[i].stage,),
        lambda i: (nodes[i].stage, str(nodes[i].role)),
        lambda i: (nodes[i].stage, nodes[i].block, str(nodes[i].role)),
        lambda i: (nodes[i].stage, nodes[i].block, str(nodes[i].role), graph.weights[i].name),
    ]
    found: list[list[Group]] = []
    for key in keys:
        members: dict[tuple[str, ...], list[str]] = {}
        for i, weight in enumerate(graph.weights):
            members.setdefault(key(i), []).append(weight.name)
        groups = [tuple(names) for names in members.values()]
        if not found or len(groups) > len(found[-1]):
            found.append(groups)
    return found


def next_groups(graph: Graph, most: int, harm: Mapping[Group, float]) -> list[Group]:
    """Choose which groups of weights to probe next.

    Args:
        graph: of a denoiser.
        most: number of probes that can be afforded in all.
        harm: of each group that was probed so far.

    Returns:
        Groups that were not probed yet: at first all weights, each alone, if that many can be
        afforded, else the finest partition that takes half of the probes; then the parts of the
        most harmful groups, with half of the probes that are left. Empty if no group is left that
        could be opened.

    Raises:
        ValueError: not even the coarsest partition can be afforded.
    """
    levels = partitions(graph)
    if not harm:
        if len(levels[-1]) <= most:
            return levels[-1]
        fitting = [groups for groups in levels if len(groups) <= most // 2]
        first = fitting[-1] if fitting else levels[0]
        if len(first) > most:
            raise ValueError(
                f"the {len(graph.weights)} weights of {graph.denoiser!r} have {len(first)} groups: "
                f"give max_probes={len(first)} or more (got {most})"
            )
        return first
    left = most - len(harm)
    chosen: list[Group] = []
    for group in sorted(harm, key=harm.__getitem__, reverse=True):
        inside = parts_of(levels, group)
        if not inside or any(part in harm for part in inside):
            continue  # one weight, or opened before
        if len(chosen) + len(inside) <= max(left // 2, len(inside)) and (
            len(chosen) + len(inside) <= left
        ):
            chosen += inside
        elif chosen:
            break
    return chosen


def parts_of(levels: Sequence[Sequence[Group]], group: Group) -> list[Group]:
    """The coarsest partition of a group that is finer than the group itself.

    Args:
        levels: partitions of all weights, from coarse to fine.
        group: one of their groups.

    Returns:
        Its parts; empty for a single weight.
    """
    members = set(group)
    for groups in levels:
        inside = [part for part in groups if members.issuperset(part)]
        if len(inside) > 1:
            return inside
    return []
