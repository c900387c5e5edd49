"""Which embeddings a batch of configurations needs: each is computed once, as one row.

An embedding after m hops depends on the methods of the weights up to m hops before its node, and on
nothing else. Configurations that agree there share it. Of 256 random configurations of SDXL, a
tenth of the embeddings after one hop and a third of those after two are distinct, of 2,500 a
seventieth and a fifteenth; configurations that differ in a few weights share nearly all of them.

A node from which the hops that are left reach no weight has no row, also in training: it changes no
prediction, and batch statistics are those of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from qsdm.predictor.encode import Encoding

ROWS = 2**18  # at a time, all kept: more are shared by more configurations, and take more memory
WIDE = 2**23  # at a time where few are kept at once: 0.8 GiB of SDXL's


@dataclass(frozen=True, slots=True, eq=False)
class Hop:
    """How the rows of one hop follow from those of the hop before.

    Attributes:
        own: int64 [R], the row before of the same node.
        starts: int64 [R + 1], index in ``sources`` at which each row's edges start.
        sources: int64 [E], the row before at the source of each edge, sorted by target.
        counts: int64 [R], number of nodes of the batch that share the row.
    """

    own: np.ndarray
    starts: np.ndarray
    sources: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a batch of B configurations.

    Attributes:
        first: int64 [2, R], node and configuration of each row before the first hop.
        hops: how the rows of each of H hops follow from those before.
        units: int64 [W, B] of each of H + 1 hops, row of each weight's embedding.
        last: int64 [R''], those of the last hop's rows that are a weight's embedding.
        contributions: int64 [W, B], index in ``last`` of each weight's last embedding.
    """

    first: np.ndarray
    hops: Sequence[Hop]
    units: Sequence[np.ndarray]
    last: np.ndarray
    contributions: np.ndarray


class Wiring:
    """The graph of an encoding, as far as it decides which rows a batch needs.

    Args:
        encoding: of the space.
        hops: number of layers, H.

    Attributes:
        node_weight: int64 [N], index of the node's weight; W for a node without one.
        weight_node: int64 [W], the first node of each weight.
        chunk: number of configurations that are best evaluated at a time if all hops are kept.
        wide: the same if only labels are wanted.
    """

    def __init__(self, encoding: Encoding, hops: int) -> None:
        num_nodes, num_weights = len(encoding.static), encoding.num_weights
        self.node_weight = encoding.node_weight
        self.chunk, self.wide = (max(16, rows // num_nodes) for rows in (ROWS, WIDE))
        self.weight_node = np.array(
            [int((encoding.node_weight == w).argmax()) for w in range(num_weights)], dtype=np.int64
        )
        sources, targets = encoding.edges
        self._sources = np.ascontiguousarray(sources)
        self._starts = np.searchsorted(targets, np.arange(num_nodes + 1))
        at_weights = np.zeros(num_nodes, dtype=bool)
        at_weights[self.weight_node] = True
        self._needed = [at_weights]
        for _ in range(hops):
            before = np.zeros(num_nodes, dtype=bool)
            before[sources[self._needed[0][targets]]] = True
            self._needed.insert(0, before)

    def shared(self, columns: np.ndarray) -> Rows:
        """Find the distinct rows of one-hot configurations.

        Args:
            columns: int64 [B, W], column of each decision's method.

        Returns:
            The rows.
        """
        nothing = np.zeros((len(columns), 1), dtype=np.int64)  # at nodes without a weight
        decisions = np.concatenate([columns, nothing], axis=1)[:, self.node_weight].T
        loops = np.arange(len(self.node_weight) + 1), np.arange(len(self.node_weight))
        rows, first, _, _, _ = _share(np.ascontiguousarray(decisions), *loops, self._needed[0])
        return self._unrolled(rows, first)

    def separate(self, num: int) -> Rows:
        """List the rows of configurations that share nothing.

        Args:
            num: number of configurations, B.

        Returns:
            The rows; before the first hop, all of them, by node and configuration.
        """
        num_nodes = len(self.node_weight)
        rows = np.arange(num_nodes * num).reshape(num_nodes, num)
        first = np.stack([rows.ravel() // max(num, 1), rows.ravel() % max(num, 1)])
        return self._unrolled(rows, first)

    def _unrolled(self, rows: np.ndarray, first: np.ndarray) -> Rows:
        hops, units = [], [rows[self.weight_node]]
        for mask in self._needed[1:]:
            before = rows
            rows, new, starts, sources, counts = _share(before, self._starts, self._sources, mask)
            hops.append(Hop(before[new[0], new[1]], starts, sources, counts))
            units.append(rows[self.weight_node])
        contributes = np.zeros(rows.max(initial=-1) + 1, dtype=np.int64)
        contributes[units[-1]] = 1
        positions = contributes.cumsum() - 1
        return Rows(first, hops, units, np.flatnonzero(contributes), positions[units[-1]])


@numba.njit(cache=True, nogil=True)
def _share(
    before: np.ndarray, starts: np.ndarray, sources: np.ndarray, mask: np.ndarray
) -> tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray
]:  # pragma: no cover (compiled)
    """Number the distinct rows of a hop, by node.

    Args:
        before: int64 [N, B], row of each node in each configuration before the hop.
        starts: int64 [N + 1], index in ``sources`` at which each node's edges start.
        sources: int64 [E], source of each edge, sorted by target.
        mask: bool [N], the nodes that count.

    Returns:
        ``rows`` int64 [N, B], -1 where masked; node and configuration of each row, int64 [2, R];
        and the row's edges and count, see `Hop`.
    """
    num_nodes, num_batch = before.shape
    rows = np.full((num_nodes, num_batch), -1, np.int64)
    first = np.empty((2, num_nodes * num_batch), np.int64)
    counts = np.zeros(num_nodes * num_batch, np.int64)
    size = 4
    while size < 2 * num_batch:
        size *= 2
    num, num_edges = 0, 0
    for n in range(num_nodes):
        if not mask[n]:
            continue
        slots = np.full(size, -1, np.int64)  # an open hash table of this node's rows
        for b in range(num_batch):
            key = np.uint64(0)
            for e in range(starts[n], starts[n + 1]):
                key = (key ^ np.uint64(before[sources[e], b])) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            slot = np.int64(key & np.uint64(size - 1))
            while True:
                row = slots[slot]
                if row < 0:
                    row = slots[slot] = num
                    first[0, num], first[1, num] = n, b
                    num += 1
                    num_edges += starts[n + 1] - starts[n]
                    break
                same = True
                for e in range(starts[n], starts[n + 1]):
                    if before[sources[e], b] != before[sources[e], first[1, row]]:
                        same = False
                        break
                if same:
                    break
                slot = (slot + 1) & (size - 1)
            rows[n, b] = row
            counts[row] += 1
    new_starts = np.empty(num + 1, np.int64)
    new_sources = np.empty(num_edges, np.int64)
    edge = 0
    for row in range(num):
        new_starts[row] = edge
        n, b = first[0, row], first[1, row]
        for e in range(starts[n], starts[n + 1]):
            new_sources[edge] = before[sources[e], b]
            edge += 1
    new_starts[num] = edge
    return rows, first[:, :num].copy(), new_starts, new_sources, counts[:num].copy()
