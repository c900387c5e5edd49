"""Embedding tables that get a method: the rows of those in which an input is looked up."""

from __future__ import annotations

import dataclasses

from torch import nn

from qsdm.graph import Graph, Node, Op, Role, Weight


def with_tables(graph: Graph, module: nn.Module) -> Graph:
    """Give the embedding tables of a graph a weight: each row is an output channel.

    Tables of positions have none, as no input is looked up in them and they are small; nor have
    subclasses of torch's Embedding, which do more than look up.

    Args:
        graph: of the module.
        module: that was traced, with or without its weights.

    Returns:
        The same graph with more weights.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    modules = dict(module.named_modules(remove_duplicate=False))

    def named(node: Node) -> Node:
        path, at, time = node.name.partition("@")
        path = path.removesuffix(f".{Op.EMBEDDING}")
        table = modules.get(path)
        if node.op != Op.EMBEDDING or type(table) is not nn.Embedding:
            return node
        weight = Weight(path, names[id(table.weight)], tuple(table.weight.shape))
        return dataclasses.replace(
            node, name=f"{path}{at}{time}", role=Role.EMBED_IN, weight=weight
        )

    return Graph(graph.denoiser, tuple(map(named, graph.nodes)), graph.edges)
