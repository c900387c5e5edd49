"""torch.export sees the same flow from weight to weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qsdm import tracing
from qsdm.denoisers import denoiser_class
from qsdm.graph import Graph, merge_splits
from qsdm.tracing import inputs, skeleton
from tests.tracing.published import model

# Published configs, cut in depth and width
SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "layers_per_block": 1,
}
SMALL_DIT = {"sample_size": 8, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8}
REDUCED: dict[str, dict[str, Any]] = {
    "sd15": SMALL_UNET,
    "sdxl": SMALL_UNET
    | {
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 176,
    },
    "pixart_alpha": SMALL_DIT | {"cross_attention_dim": 16, "caption_channels": 24},
    "dit": SMALL_DIT | {"num_embeds_ada_norm": 10},
    "sd35_medium": SMALL_DIT
    | {
        "joint_attention_dim": 24,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 8,
        "dual_attention_layers": [0],
    },
}


def pairs_of_export(module: nn.Module, arguments: dict[str, Any]) -> set[tuple[str, str]]:
    """(weight, next weight) of torch.export's graph."""
    program = torch.export.export(module, (), arguments, strict=False)
    parameters = program.graph_signature.inputs_to_parameters
    weights = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith(("aten.linear", "aten.conv")):
            weights[node] = parameters[node.args[1].name].removesuffix(".weight")
    pairs = set()
    for start, name in weights.items():
        seen, todo = set(), list(start.users)
        while todo:
            node = todo.pop()
            if node in weights:
                pairs.add((name, weights[node]))
            elif node not in seen:
                seen.add(node)
                todo += node.users
    return pairs


def pairs_of_graph(graph: Graph) -> set[tuple[str, str]]:
    graph = merge_splits(graph, "$^")
    after: dict[int, list[int]] = {}
    for a, b in graph.edges:
        after.setdefault(a, []).append(b)
    pairs = set()
    for start, node in enumerate(graph.nodes):
        if node.weight is None:
            continue
        seen, todo = set(), list(after.get(start, ()))
        while todo:
            i = todo.pop()
            if (weight := graph.nodes[i].weight) is not None:
                pairs.add((node.weight.name, weight.name))
            elif i not in seen:
                seen.add(i)
                todo += after.get(i, ())
    return pairs


def compare(name: str, changes: dict[str, Any]) -> None:
    described = model(name)
    module = skeleton.build(denoiser_class(described), {**described.config, **changes})
    arguments = inputs.build(module, None if changes else described.inputs)
    expected = pairs_of_export(module, arguments)
    assert expected
    assert pairs_of_graph(tracing.trace(module, arguments, name)) == expected


@pytest.mark.parametrize("name", ["sdxl", "pixart_alpha", "sd35_medium"])
def test_flow_between_weights_is_that_of_export(name: str) -> None:
    compare(name, REDUCED[name])


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("name", REDUCED)
def test_flow_between_weights_is_that_of_export_at_full_size(name: str) -> None:
    compare(name, {})
