"""The paper's choice: of each unit, the setting with the best score.

Units are single weights (``op``) or the weights of a block together (``block``). The label charges
lambda for the bytes; every lambda gives one configuration:

    setting of a unit = arg max over settings of quality - lambda × bytes

On the op level this is the greedy path of the predictor's single changes, point by point. On the
block level all weights of a block have one method, and its quality is predicted together, what the
weights do to each other included.

# Differs from the paper: scores are predicted changes of the label, not norms of hop embeddings;
and lambda takes all values instead of one.

References:
    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025),
    section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qsdm.strategies import Problem
from qsdm.strategies.greedy import Queue, path
from qsdm.text import require

LEVELS = ("op", "block")


@dataclass(frozen=True, slots=True)
class ArgMax:
    """Options of the arg-max.

    Attributes:
        level: op or block.
        contexts: configurations into which a block's settings are placed, and averaged over.
        batch: number of configurations per `ask`.
    """

    level: str = "op"
    contexts: int = 4
    batch: int = 100

    def __post_init__(self) -> None:
        require(1, contexts=self.contexts, batch=self.batch)
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)} (got {self.level!r})")

    def start(
        self,
        problem: Problem,
        seeds: np.ndarray,  # noqa: ARG002, an argument of the contract
        rng: np.random.Generator,
    ) -> Queue:
        """Begin a search; seeds are not used (see `StrategyOptions.start`)."""
        if self.level == "op":
            harm = problem.error if problem.harm is None else problem.harm[0]
            return Queue(self.batch, path(problem, harm))
        blocks = settings_of(problem)
        contexts = problem.sample(rng, self.contexts)
        return BlockSearch(self.batch, placed(blocks, contexts), blocks, len(contexts))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The weights of a block, and what they can be set to together.

    Attributes:
        weights: int64 [N], indices.
        genes: int64 [S, N], of each of S settings.
        size_bytes: int64 [S].
    """

    weights: np.ndarray
    genes: np.ndarray
    size_bytes: np.ndarray


def settings_of(problem: Problem) -> list[Block]:
    """List the blocks of a space with their settings: one method for all weights.

    Args:
        problem: the space as arrays. A weight without the method gets one of the same bits.

    Returns:
        The blocks; a weight that is in none is a block of its own.
    """
    space = problem.space
    members: dict[str, list[int]] = {}
    for i, weight in enumerate(space.graph.weights):
        block = space.graph.node_of(weight.name).block
        members.setdefault(block or f"weight {weight.name}", []).append(i)
    blocks = []
    for weights in members.values():
        rows = set()
        for method in space.methods:
            row = []
            for w in weights:
                offered = space.options[w]
                near = sorted(
                    (abs(o.bits - method.bits), o.inputs != method.inputs, o != method, i)
                    for i, o in enumerate(offered)
                )
                row.append(near[0][-1])
            rows.add(tuple(row))
        genes, index = np.array(sorted(rows), dtype=np.int64), np.array(weights)
        blocks.append(Block(index, genes, problem.size_bytes[index, genes].sum(axis=1)))
    return blocks


def placed(blocks: list[Block], contexts: np.ndarray) -> np.ndarray:
    """Place every setting of every block into configurations.

    Args:
        blocks: of the space.
        contexts: int64 [R, W].

    Returns:
        Int64 [settings × R, W], by block, by setting.
    """
    rows = []
    for block in blocks:
        for genes in block.genes:
            changed = contexts.copy()
            changed[:, block.weights] = genes
            rows.append(changed)
    return np.concatenate(rows)


@dataclass(slots=True, eq=False)
class BlockSearch(Queue):
    """Proposes the settings of blocks; what their values choose comes last.

    Attributes:
        blocks: whose settings are in the queue.
        contexts: number of configurations of each setting.
    """

    blocks: list[Block]
    contexts: int
    _losses: list[np.ndarray] = field(default_factory=list, init=False)

    def ask(self) -> np.ndarray:
        """Propose configurations; none when all were proposed (see `Strategy.ask`)."""
        if not len(self.queue) and self.blocks:
            self.queue, self.blocks = self._chosen(), []
        return Queue.ask(self)  # a class with slots has no super() without arguments

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:  # noqa: ARG002
        """Receive the losses of the settings (see `Strategy.tell`)."""
        self._losses.append(values[:, 0])

    def _chosen(self) -> np.ndarray:
        """The best settings for every lambda."""
        loss = np.concatenate(self._losses).reshape(-1, self.contexts).mean(axis=1)
        ends = np.cumsum([len(block.genes) for block in self.blocks])
        losses = np.split(loss, ends[:-1])
        slopes = [
            (b - a) / (s - t)
            for block, harm in zip(self.blocks, losses, strict=True)
            for a, s in zip(harm, block.size_bytes, strict=True)
            for b, t in zip(harm, block.size_bytes, strict=True)
            if b > a and s > t
        ]
        prices = np.unique(np.quantile(slopes, np.linspace(0, 1, 500))) if slopes else np.zeros(1)
        num = 1 + max(int(block.weights.max()) for block in self.blocks)
        rows = np.empty((len(prices), num), dtype=np.int64)
        for row, price in zip(rows, prices, strict=True):
            for block, harm in zip(self.blocks, losses, strict=True):
                row[block.weights] = block.genes[np.argmin(harm + price * block.size_bytes)]
        return np.unique(rows, axis=0)
