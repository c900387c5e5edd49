from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.nn.conv import GATv2Conv
from toy_unet import Toy

from qsdm.graph import sorted_graph
from qsdm.predictor.encode import Encoding, encode
from qsdm.predictor.fast import Fast
from qsdm.predictor.gnn import Gnn, StaticGATv2Conv
from qsdm.qconfig import Space


@pytest.fixture
def gnn(encoding: Encoding) -> Gnn:
    """With batch statistics, contributions and an additive part unlike those of the start."""
    torch.manual_seed(0)
    made = Gnn(encoding, width=32, hops=3)
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


def test_static_convolution_is_gatv2_of_each_graph(encoding: Encoding) -> None:
    """A batch gives what PyG's own forward gives graph by graph."""
    torch.manual_seed(0)
    ours = StaticGATv2Conv(8, 12, add_self_loops=False)
    theirs = GATv2Conv(8, 12, add_self_loops=False)
    theirs.load_state_dict(ours.state_dict())
    edges = torch.from_numpy(encoding.edges)
    x = torch.randn(len(encoding.static), 5, 8)
    out = ours(x, edges)
    for b in range(5):
        torch.testing.assert_close(out[:, b], theirs(x[:, b], edges))


def test_gradients_are_those_of_gatv2(encoding: Encoding) -> None:
    """Of the input and of every parameter, in double precision."""
    torch.manual_seed(0)
    ours = StaticGATv2Conv(8, 12, add_self_loops=False).double()
    theirs = GATv2Conv(8, 12, add_self_loops=False).double()
    theirs.load_state_dict(ours.state_dict())
    edges = torch.from_numpy(encoding.edges)
    x = torch.randn(len(encoding.static), 3, 8, dtype=torch.float64)
    weights = torch.randn(len(x), 3, 12, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    (ours(inputs[0], edges) * weights).sum().backward()
    sum((theirs(inputs[1][:, b], edges) * weights[:, b]).sum() for b in range(3)).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for (name, parameter), expected in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


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
    twin = Gnn(encode(space, toy.table), width=32, hops=3)
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


def test_fast_answers_equal_those_of_the_network(encoding: Encoding, gnn: Gnn) -> None:
    genes = random_genes(encoding, 21)
    with torch.no_grad():
        slow = gnn(torch.from_numpy(encoding.one_hot(genes))).value.numpy()
    np.testing.assert_allclose(Fast(gnn)(encoding.columns_of(genes)), slow, rtol=1e-4, atol=1e-4)
    assert Fast(gnn)(encoding.columns_of(genes[:0])).shape == (0,)


def test_gradients_reach_every_parameter(encoding: Encoding, gnn: Gnn) -> None:
    out = gnn.train()(random_one_hot(encoding, 16))
    (out.value.square().sum() + out.norms.sum()).backward()
    lost = [n for n, p in gnn.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before batch normalisation and one added to all scores of a softmax change nothing.
    assert [name for name in lost if not name.startswith("convs")] == []
