from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch_geometric.nn.conv import GATv2Conv
from toy_unet import Toy

from qsdm.graph import sorted_graph
from qsdm.predictor import inference
from qsdm.predictor.encode import Encoding, encode
from qsdm.predictor.gnn import Gnn
from qsdm.predictor.inference import Inference
from qsdm.qconfig import Space


@pytest.fixture
def gnn(encoding: Encoding) -> Gnn:
    """With batch statistics, contributions and an additive part unlike those of the start."""
    torch.manual_seed(0)
    made = Gnn(encoding, width=32, hops=3, forms=2)
    torch.nn.init.normal_(made.contribution[-1].weight)
    made.additive.normal_()
    made(random_one_hot(encoding, 32))
    return made.eval()


def random_genes(encoding: Encoding, num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.integers(0, len(offered), num) for offered in encoding.space.options], axis=1
    )


def random_one_hot(encoding: Encoding, num: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(encoding.one_hot(random_genes(encoding, num, seed)))


def counted(encoding: Encoding, hops: int) -> list[np.ndarray]:
    """After each hop the nodes from which the hops that are left reach a weight, bool [N]."""
    sources, targets = encoding.edges
    masks = [encoding.node_weight < encoding.num_weights]
    while len(masks) < hops:
        before = np.zeros_like(masks[0])
        before[sources[masks[0][targets]]] = True
        masks.insert(0, before)
    return masks


def reference(gnn: Gnn, encoding: Encoding, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and norms by PyG's own message passing, graph by graph, and torch's normalization.

    Only nodes from which a weight is reached within the hops that are left are normalized.
    """
    edges, node_weight = torch.from_numpy(encoding.edges), torch.from_numpy(encoding.node_weight)
    table = torch.einsum("bwm,wmf->bwf", x, gnn.embed_decision(gnn.decisions))
    table = torch.cat([table, torch.zeros_like(table[:, :1])], dim=1)
    h = torch.relu(gnn.embed_static(gnn.static) + table[:, node_weight])  # [B, N, C]
    hops, counting = [h], counted(encoding, len(gnn.convs))
    for i, (parameters, norm) in enumerate(zip(gnn.convs, gnn.norms, strict=True)):
        conv = GATv2Conv(gnn.width, gnn.width, add_self_loops=False)
        assert {n: p.shape for n, p in conv.named_parameters()} == {
            n: p.shape for n, p in parameters.named_parameters()
        }
        new = torch.stack(
            [functional_call(conv, dict(parameters.named_parameters()), (g, edges)) for g in h]
        )
        some = new[:, counting[i]]
        new = torch.zeros_like(new)
        new[:, counting[i]] = torch.relu(norm(some.flatten(0, 1)).view_as(some))
        h = new + h if i > 0 else new
        hops.append(h)
    units = torch.stack(hops)[:, :, torch.from_numpy(gnn.wiring.weight_node)]
    learned = gnn.contribution(units[-1]).mean(dim=(1, 2)) * x.shape[1] ** 0.5
    amplitude = torch.einsum("bwm,jwm->jbw", x, gnn.amplitude)
    closed = torch.einsum("bwm,wm->b", x, gnn.additive) + gnn.offset
    closed = closed + torch.einsum("jbv,jvw,jbw->b", amplitude, gnn.pairs, amplitude)
    return closed + gnn.share * learned, units.mean(dim=2).abs().sum(dim=-1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_values_and_gradients_are_those_of_pygs_layers(
    shared: bool, training: bool, encoding: Encoding, gnn: Gnn
) -> None:
    """Of every parameter and statistic, in double precision, whether or not rows are shared."""
    ours = gnn.double().train(training)
    for norm in ours.norms:
        torch.nn.init.normal_(norm.bias, std=0.3)
    ours.pairs.normal_()
    ours.amplitude.uniform_()
    theirs = copy.deepcopy(ours)
    columns = torch.from_numpy(encoding.columns_of(random_genes(encoding, 12, seed=3)))
    columns[6:] = columns[:6]
    columns[6:, :4] = columns[:6, 1:5]
    x = torch.from_numpy(encoding.hot(columns.numpy())).double()
    if shared:
        rows = ours.wiring.shared(columns.numpy())
        assert len(rows.hops[0].own) < 0.8 * 12 * len(encoding.static)
        masks = counted(encoding, ours.hops)
        assert not masks[-1].all()
        assert [hop.counts.sum() for hop in rows.hops] == [12 * mask.sum() for mask in masks]
        out = ours.at(columns, rows)
    else:
        out = ours(x)
    value, norms = reference(theirs, encoding, x)
    torch.testing.assert_close(out.value, value)
    torch.testing.assert_close(out.norms, norms)
    torch.manual_seed(1)
    weights = torch.randn(12, dtype=torch.float64), torch.randn(norms.shape, dtype=torch.float64)
    for v, n in ((out.value, out.norms), (value, norms)):
        ((v * weights[0]).sum() + (n * weights[1]).sum()).backward()
    for (name, parameter), expected in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        if parameter.grad is None:  # before a batch normalization it changes nothing
            assert name.endswith("bias")
            assert not training or expected.grad.abs().max() < 1e-9
        else:
            torch.testing.assert_close(parameter.grad, expected.grad, msg=name)
    for (name, buffer), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(buffer, expected, msg=name)


@pytest.mark.parametrize("pairs", [True, False])
def test_labels_alone_are_those_of_pygs_layers(
    pairs: bool, encoding: Encoding, gnn: Gnn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of rows, and in memory that holds the embeddings of other configurations."""
    monkeypatch.setattr(inference, "BLOCK", 50)
    if pairs:
        gnn.pairs.normal_()
        gnn.amplitude.uniform_()
    alone = Inference()
    for num, seed in ((40, 1), (12, 2), (60, 3)):
        columns = torch.from_numpy(encoding.columns_of(random_genes(encoding, num, seed)))
        rows = gnn.wiring.shared(columns.numpy())
        assert len(rows.hops[-1].own) > 50
        values = alone.of(gnn, columns, rows)
        expected, _ = reference(gnn, encoding, torch.from_numpy(encoding.hot(columns.numpy())))
        torch.testing.assert_close(values, expected.detach(), rtol=1e-5, atol=1e-5)
    nobody = columns[:0]
    assert alone.of(gnn, nobody, gnn.wiring.shared(nobody.numpy())).shape == (0,)


def test_the_gradient_of_relaxed_configurations(encoding: Encoding, gnn: Gnn) -> None:
    """That of integrated gradients, between configurations."""
    gnn = gnn.double()
    x = torch.rand(3, *encoding.allowed.shape, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    gnn(inputs[0]).value.square().sum().backward()
    reference(gnn, encoding, inputs[1])[0].square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_configurations_of_a_batch_do_not_see_each_other(encoding: Encoding, gnn: Gnn) -> None:
    x = random_one_hot(encoding, 6)
    together = gnn(x).value
    torch.testing.assert_close(together, torch.cat([gnn(row[None]).value for row in x]))


def test_the_order_of_nodes_does_not_matter(toy: Toy, encoding: Encoding, gnn: Gnn) -> None:
    graph = toy.space.graph
    order = np.random.default_rng(1).permutation(len(graph.nodes))
    place = np.argsort(order)
    other = sorted_graph(
        graph.denoiser,
        [graph.nodes[i] for i in order],
        [(int(place[a]), int(place[b])) for a, b in graph.edges],
    )
    assert [w.name for w in other.weights] != [w.name for w in graph.weights]
    moved = [[w.name for w in graph.weights].index(weight.name) for weight in other.weights]
    space = Space(other, tuple(toy.space.options[i] for i in moved))
    twin = Gnn(encode(space, toy.table), width=32, hops=3, forms=2)
    twin.load_state_dict(gnn.state_dict() | {"additive": gnn.additive[moved]})
    x = random_one_hot(encoding, 4)
    torch.testing.assert_close(twin.eval()(x[:, moved]).value, gnn(x).value, rtol=1e-4, atol=1e-4)


def test_hop_0_knows_the_weight_alone_and_later_hops_what_feeds_it(
    encoding: Encoding, gnn: Gnn
) -> None:
    genes = random_genes(encoding, 1)
    changed = genes.copy()
    changed[0, 0] = (genes[0, 0] + 1) % len(encoding.space.options[0])
    with torch.no_grad():
        a, b = (gnn(torch.from_numpy(encoding.one_hot(g))).nodes[..., 0] for g in (genes, changed))
    differs = ~torch.isclose(a, b, rtol=1e-6, atol=1e-6)
    assert differs[0].nonzero().flatten().tolist() == [0]
    assert differs[1:].sum(dim=1).max() > 1


def test_configurations_share_the_rows_on_which_they_agree(encoding: Encoding, gnn: Gnn) -> None:
    genes = random_genes(encoding, 21)
    genes[1:] = genes[0]
    first = encoding.columns_of(genes)
    same = gnn.wiring.shared(first)
    assert all((hop.counts == 21).all() for hop in same.hops)
    changed = encoding.columns_of(genes)
    changed[7, 0] = (changed[7, 0] + 1) % len(encoding.methods)
    other = gnn.wiring.shared(changed)
    extra = [len(b.own) - len(a.own) for a, b in zip(same.hops, other.hops, strict=True)]
    assert 0 < extra[0] < len(encoding.static) / 2
    together = gnn.at(torch.from_numpy(changed), other).value
    alone = gnn(torch.from_numpy(encoding.hot(changed))).value
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    nobody = gnn.at(torch.from_numpy(changed[:0]), gnn.wiring.shared(changed[:0])).value
    assert nobody.shape == (0,)


def test_gradients_reach_every_parameter(encoding: Encoding, gnn: Gnn) -> None:
    out = gnn.train()(random_one_hot(encoding, 16))
    (out.value.square().sum() + out.norms.sum()).backward()
    lost = [n for n, p in gnn.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before batch normalisation and one added to all scores of a softmax change nothing.
    assert [name for name in lost if not name.startswith("convs")] == []
