"""Local search: swaps of two weights' methods within the bytes of each point of the greedy path.

For an additive model the greedy path is as good as the exact optimum of each size. What a swap can
still gain is what the model's interactions do: one weight gets a better method, another one pays
for it. Of each point's swaps, those come first that cost least by single changes.

References:
    Multiple-choice knapsack: Knapsack Problems (Kellerer, Pferschy and Pisinger, 2004), section
    11.2: the greedy solution of the linear relaxation, and exchanges that improve it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from qsdm.strategies import Problem
from qsdm.strategies.greedy import mixes, path, spread
from qsdm.text import require

LISTED = 400  # swaps of a point that are kept in order
PAIRED = 300  # changes that gain most, and that pay least, per byte: swaps are made of these


@dataclass(frozen=True, slots=True)
class Swaps:
    """Options of the local search.

    Attributes:
        points: of the greedy paths that are improved.
        batch: number of configurations per `ask`.
    """

    points: int = 200
    batch: int = 100

    def __post_init__(self) -> None:
        require(1, points=self.points, batch=self.batch)

    def start(
        self,
        problem: Problem,
        seeds: np.ndarray,
        rng: np.random.Generator,  # noqa: ARG002, an argument of the contract
    ) -> SwapSearch:
        """Begin a search; nothing is random (see `StrategyOptions.start`)."""
        return SwapSearch(self, problem, seeds)


@dataclass(slots=True, eq=False)
class Incumbent:
    """The best configuration of one size and one mix of objectives.

    Attributes:
        genes: int64 [W].
        limit: the most bytes that it may have.
        mix: index of the mix.
        score: mixed value, infinite before it is known.
        swaps: int64 [S, 4], weight and option of both changes, most promising first; the second
            pair repeats the first if one weight changes alone. None: not listed yet.
        next: first of them that was not proposed.
    """

    genes: np.ndarray
    limit: int
    mix: int
    score: float = np.inf
    swaps: np.ndarray | None = None
    next: int = 0

    def take(self, genes: np.ndarray, score: float) -> None:
        """Replace the configuration by a better one."""
        self.genes, self.score, self.swaps, self.next = genes, score, None, 0


class SwapSearch:
    """Proposes its seeds and points, then swaps.

    Args:
        options: of the search.
        problem: the space as arrays, with the harm of single changes (without, their errors).
        seeds: int64 [S, W], good configurations to start from; S may be 0.
    """

    def __init__(self, options: Swaps, problem: Problem, seeds: np.ndarray) -> None:
        self._options, self._problem = options, problem
        harm = problem.error[None] if problem.harm is None else problem.harm
        self._mixes = mixes(problem, harm)
        self._harms = [
            np.tensordot(mix, np.where(np.isfinite(harm), harm, 0), 1) for mix in self._mixes
        ]
        self._incumbents: list[Incumbent] = []
        num = max(options.points // len(self._mixes), 2)
        for index, total in enumerate(self._harms):
            walked = path(problem, total)
            walked = walked[problem.size_of(walked) <= problem.max_bytes]
            chosen = spread(walked, num)
            limits = problem.size_of(chosen)
            if len(chosen) and np.isfinite(problem.max_bytes):
                limits[0] = int(problem.max_bytes)  # the path descends from the largest
            self._incumbents += [
                Incumbent(genes, int(limit), index)
                for genes, limit in zip(chosen, limits, strict=True)
            ]
        points = [one.genes[None] for one in self._incumbents]
        self._queue = np.unique(np.concatenate([seeds, *points]), axis=0)
        self._turn = itertools.cycle(range(max(len(self._incumbents), 1)))

    def ask(self) -> np.ndarray:
        """Propose configurations (see `Strategy.ask`)."""
        batch = self._options.batch
        if len(self._queue):
            asked, self._queue = self._queue[:batch], self._queue[batch:]
            return asked
        return self._propose(batch)

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Take what is better than an incumbent of its size (see `Strategy.tell`)."""
        sizes = self._problem.size_of(genes)
        parts = np.delete(values, 1, axis=1)
        scores = [parts @ mix for mix in self._mixes]
        for one in self._incumbents:
            score = np.where(sizes <= one.limit, scores[one.mix], np.inf)
            best = int(score.argmin())
            if score[best] < one.score:
                if np.array_equal(genes[best], one.genes):
                    one.score = float(score[best])
                else:
                    one.take(genes[best], float(score[best]))

    def _propose(self, batch: int) -> np.ndarray:
        """The next swaps of the incumbents in turn."""
        proposed: dict[bytes, np.ndarray] = {}
        each = max(1, batch // max(len(self._incumbents), 1))
        idle = 0
        while len(proposed) < batch and idle < len(self._incumbents):
            one = self._incumbents[next(self._turn)]
            if one.swaps is None:
                one.swaps = self._listed(one)
            taken = one.swaps[one.next : one.next + each]
            one.next += len(taken)
            idle = 0 if len(taken) else idle + 1
            for first, a, second, b in taken:
                genes = one.genes.copy()
                genes[first] = a
                genes[second] = b
                proposed[genes.tobytes()] = genes
        if not proposed:
            return np.empty((0, len(self._problem.num_options)), dtype=np.int64)
        return np.stack(list(proposed.values()))[:batch]

    def _listed(self, one: Incumbent) -> np.ndarray:
        """Swaps of an incumbent within its bytes, by what single changes say of them."""
        problem, harm = self._problem, self._harms[one.mix]
        rows = np.arange(len(one.genes))
        offered = np.arange(harm.shape[1]) < problem.num_options[:, None]
        slack = one.limit - int(problem.size_of(one.genes[None])[0])
        loss = harm - harm[rows, one.genes][:, None]
        grows = problem.size_bytes - problem.size_bytes[rows, one.genes][:, None]
        other = offered & (np.arange(harm.shape[1]) != one.genes[:, None])
        # One change alone, and pairs: the first gains quality, the second pays with bytes.
        alone = np.argwhere(other & (grows <= slack))
        per_byte = loss / np.maximum(np.abs(grows), 1)
        up, down = (
            changes[np.argsort(per_byte[tuple(changes.T)], kind="stable")[:PAIRED]]
            for changes in (np.argwhere(other & (loss < 0)), np.argwhere(other & (grows < 0)))
        )
        gain, pay = loss[tuple(up.T)], loss[tuple(down.T)]
        total = gain[:, None] + pay[None]
        more = grows[tuple(up.T)][:, None] + grows[tuple(down.T)][None]
        total[(more > slack) | (up[:, :1] == down[None, :, 0])] = np.inf
        flat = total.ravel()
        best = (
            np.argpartition(flat, LISTED)[:LISTED] if len(flat) > LISTED else np.arange(len(flat))
        )
        best = best[np.isfinite(flat[best])]
        i, j = np.unravel_index(best, total.shape)
        pairs = np.concatenate([up[i], down[j]], axis=1)
        swaps = np.concatenate([np.concatenate([alone, alone], axis=1), pairs])
        expected = np.concatenate([loss[tuple(alone.T)], total[i, j]])
        return swaps[np.argsort(expected, kind="stable")[:LISTED]]
