"""The graph of a small U-Net: what is in it, and laws that hold for every denoiser."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qsdm import tracing
from qsdm.graph import Graph, Op, Role, merge_splits
from qsdm.tracing import inputs, skeleton


@pytest.fixture(scope="module")
def graph(tiny_unet: nn.Module) -> Graph:
    return tracing.trace(tiny_unet, inputs.build(tiny_unet), "tiny")


def by_role(graph: Graph, role: Role) -> list[str]:
    return [node.name for node in graph.nodes if node.role == role]


def test_every_weight_of_the_unet_is_found(tiny_unet: nn.Module, graph: Graph) -> None:
    owners = {
        path: m.weight.numel()
        for path, m in tiny_unet.named_modules()
        if isinstance(m, tracing.QUANTIZABLE)
    }
    found: dict[str, int] = {}
    for weight in graph.weights:
        path = weight.parameter.removesuffix(".weight")
        found[path] = found.get(path, 0) + weight.numel
    assert found == owners
    assert tracing.uncovered(tiny_unet, graph) == []


def test_weight_nodes_are_fully_described(graph: Graph) -> None:
    for node in graph.nodes:
        if node.weight is not None:
            assert node.op in (Op.LINEAR, Op.CONV)
            assert all((node.role, node.stage, node.block, node.activation, node.macs))
            assert 0 < node.depth < 1
            assert not node.dead


def test_roles_follow_the_data_and_agree_with_diffusers_names(graph: Graph) -> None:
    assert by_role(graph, Role.CONV_IN) == ["conv_in"]
    assert by_role(graph, Role.CONV_OUT) == ["conv_out"]
    assert by_role(graph, Role.COND_IN) == ["time_embedding.linear_1"]
    assert by_role(graph, Role.COND_MLP) == ["time_embedding.linear_2"]
    for role, ending in {
        Role.ATTN_Q: ".to_q",
        Role.ATTN_K: ".to_k",
        Role.ATTN_V: ".to_v",
        Role.ATTN_OUT: ".to_out.0",
        Role.FF_IN: ".ff.net.0.proj",
        Role.FF_OUT: ".ff.net.2",
        Role.COND_PROJ: ".time_emb_proj",
    }.items():
        expected = {weight.name for weight in graph.weights if weight.name.endswith(ending)}
        assert set(by_role(graph, role)) == expected
        assert expected


def test_skip_connections_split_the_weights_that_they_feed(
    graph: Graph, tiny_unet: nn.Module
) -> None:
    split = {w.name.partition("#")[0] for w in graph.weights if "#" in w.name}
    assert split == {
        f"up_blocks.{i}.resnets.{j}.{name}"
        for i in (0, 1)
        for j in (0, 1)
        for name in ("conv1", "conv_shortcut")
    }
    for path in split:
        parts = [w for w in graph.weights if w.name.startswith(path + "#")]
        assert [w.name for w in parts] == [f"{path}#0", f"{path}#1"]
        assert parts[1].start == parts[0].shape[1]
        assert sum(w.shape[1] for w in parts) == tiny_unet.get_submodule(path).weight.shape[1]
        after = {
            graph.nodes[b].name
            for a, b in graph.edges
            if graph.nodes[a].name.startswith(path + "#")
        }
        assert after == {f"{path}.add"}


def test_merged_splits_keep_values_and_macs(graph: Graph) -> None:
    merged = merge_splits(graph, "$^")
    assert not any("#" in weight.name for weight in merged.weights)
    assert merged.num_values == graph.num_values
    assert sum(n.macs for n in merged.nodes) == sum(n.macs for n in graph.nodes)


def test_macs_are_those_of_the_definition(graph: Graph) -> None:
    node = graph.node_of("conv_in")
    assert node.macs == 8 * 8 * math.prod(node.weight.shape)
    attention = next(n for n in graph.nodes if n.op == Op.SDPA and "attn1" in n.name)
    heads, tokens, width = attention.activation[1:]
    assert attention.macs == 2 * heads * tokens * tokens * width


def test_tracing_is_repeatable_and_survives_json(tiny_unet: nn.Module, graph: Graph) -> None:
    assert tracing.trace(tiny_unet, inputs.build(tiny_unet), "tiny").digest == graph.digest
    assert Graph.from_json(graph.to_json()).digest == graph.digest


def test_the_module_is_not_touched(tiny_unet: nn.Module) -> None:
    before = {name: value.clone() for name, value in tiny_unet.state_dict().items()}
    tracing.trace(tiny_unet, inputs.build(tiny_unet), "tiny")
    after = tiny_unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_unet.modules())


def test_loaded_model_and_skeleton_of_its_config_give_the_same_graph(
    tiny_unet: nn.Module, graph: Graph
) -> None:
    half = skeleton.of(tiny_unet).half()
    built = skeleton.build(type(tiny_unet), tiny_unet.config)
    assert tracing.trace(half, inputs.build(half), "tiny").digest == graph.digest
    assert tracing.trace(built, inputs.build(built), "tiny").digest == graph.digest


def test_skeleton_weighs_nothing() -> None:
    big = skeleton.build(nn.Linear, {"in_features": 10**6, "out_features": 10**6})
    assert big.weight.untyped_storage().nbytes() == 4


class Twice(nn.Module):
    """One Linear called twice, one shared under two names, one never used, one whose result is
    lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(8, 8)
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.unused = nn.Linear(8, 8)
        self.lost = nn.Linear(8, 8)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        x = self.again(self.again(sample).relu())
        self.lost(x)
        return self.two(self.one(x).relu())


def test_repeated_calls_and_shared_parameters_are_one_decision() -> None:
    module = Twice()
    graph = tracing.trace(module, {"sample": torch.zeros(1, 4, 8)}, "twice")
    assert [n.name for n in graph.nodes if n.weight is not None] == [
        "again",
        "again@1",
        "lost",
        "one",
        "one@1",
    ]
    assert [w.name for w in graph.weights] == ["again", "lost", "one"]
    assert [n.name for n in graph.nodes if n.dead] == ["lost"]
    assert graph.node_of("again").weight == graph.nodes[2].weight
    assert tracing.uncovered(module, graph) == ["unused"]


class InPlace(nn.Module):
    """Writes through a view: the result depends on the Linear only by way of the storage."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        canvas = torch.zeros(1, 4, 8)
        canvas[:, 1:].copy_(self.proj(sample)[:, 1:])
        canvas[:, 0] = sample[:, 0]
        return self.head(canvas)


def test_writes_through_views_are_seen() -> None:
    graph = tracing.trace(InPlace(), {"sample": torch.zeros(1, 4, 8)}, "inplace").to_networkx()
    import networkx

    assert networkx.has_path(graph, "proj", "head")
    assert networkx.has_path(graph, "input.sample", "head")


def test_tied_patterns_join_weights_and_keep_their_bytes() -> None:
    module = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = module

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            for layer in self.layers.values():
                sample = layer(sample).relu()
            return sample

    sample = {"sample": torch.zeros(1, 4, 8)}
    free = tracing.trace(Chain(), sample, "chain")
    tied = tracing.trace(Chain(), sample, "chain", tied=[r"layers\.[ab]\.weight"])
    assert [w.name for w in tied.weights] == ["layers.a", "layers.c"]
    assert tied.weights[0].ties == ("layers.b.weight",)
    assert tied.num_values == free.num_values
    with pytest.raises(ValueError, match="no quantized parameter matches"):
        tracing.trace(Chain(), sample, "chain", tied=["nothing"])


def test_excluded_weights_get_no_decision(tiny_unet: nn.Module, graph: Graph) -> None:
    part = tracing.trace(tiny_unet, inputs.build(tiny_unet), "tiny", exclude="^time_embedding")
    assert {w.name for w in graph.weights} - {w.name for w in part.weights} == {
        "time_embedding.linear_1",
        "time_embedding.linear_2",
    }
    assert "time_embedding.linear_1" in {n.name for n in part.nodes}


class Queries(nn.Module):
    """Learned queries read the sample: the first projection is fed with a parameter, not with an
    input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 8))
        self.norm = nn.LayerNorm(8)
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        q = self.to_q(self.norm(self.queries[None].expand(len(sample), -1, -1)))
        read = nn.functional.scaled_dot_product_attention(q, self.to_k(sample), self.to_v(sample))
        return self.out(read)


def test_a_layer_fed_with_learned_queries_is_a_weight() -> None:
    module = Queries()
    graph = tracing.trace(module, {"sample": torch.zeros(1, 4, 8)}, "queries")
    assert tracing.uncovered(module, graph) == []
    assert [w.name for w in graph.weights] == ["to_q", "to_k", "to_v", "out"]
    assert [str(graph.node_of(name).role) for name in ("to_q", "to_k")] == ["attn_q", "attn_k"]
    assert ("to_q", "sdpa") in {(graph.nodes[a].name, graph.nodes[b].name) for a, b in graph.edges}
    assert graph.node_of("to_q").macs == 3 * 8 * 8


class Experts(nn.Module):
    """Two experts in one bare parameter, which no module could be swapped for."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.experts = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return torch.einsum("btc,eco->bto", self.proj(sample), self.experts)


def test_bare_expert_parameters_are_reported_by_their_share(capsys: pytest.CaptureFixture) -> None:
    from dataclasses import replace

    from qsdm import trace
    from tests.tracing.published import model

    module = Experts()
    graph = tracing.trace(module, {"sample": torch.zeros(1, 4, 8)}, "experts")
    assert [w.name for w in graph.weights] == ["proj"]
    assert [n.name for n in graph.nodes if n.op == Op.PARAM_MATMUL] == ["param_matmul"]
    figures = trace.summary(graph, replace(model("dit"), name="experts"), module, [])
    assert figures["share_of_parameters"] == pytest.approx(1 / 3)
    assert figures["share_of_bare_parameters"] == pytest.approx(2 / 3)
    trace._print(graph, figures, [], "built", 0.0, Path("graph.json"))
    assert "66.7% of all matrices belong to no Linear or Conv" in capsys.readouterr().out
