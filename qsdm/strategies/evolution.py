"""Evolutionary search by NSGA-II, with operators for configurations and no duplicates.

With a third objective, NSGA-III keeps the population spread: crowding distances tell little of a
surface, reference directions do.

References:
    A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II (Deb et al., 2002).

    An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based Nondominated
    Sorting Approach, Part I (Deb and Jain, 2014): NSGA-III.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsdm.strategies import Problem


@dataclass(frozen=True, slots=True)
class Evolution:
    """Options of the evolutionary search.

    Attributes:
        population: number of configurations that survive a generation, at least 4.
        offspring: number of configurations per `ask`.
        crossover: probability that a child has two parents, in [0, 1].
        mutation: largest share of a child's weights that change, in (0, 1]. The share is drawn for
            each child from a log-uniform distribution; at least one weight changes.
    """

    population: int = 100
    offspring: int = 100
    crossover: float = 0.9
    mutation: float = 0.1

    def __post_init__(self) -> None:
        if self.population < 4 or self.offspring < 1:
            raise ValueError(
                f"evolution needs a population of at least 4 and at least 1 offspring "
                f"(got {self.population} and {self.offspring})"
            )
        if not (0 <= self.crossover <= 1 and 0 < self.mutation <= 1):
            raise ValueError(
                f"crossover must be in [0, 1] and mutation in (0, 1] "
                f"(got {self.crossover} and {self.mutation})"
            )

    def start(
        self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator
    ) -> EvolutionSearch:
        """Begin a search (see `StrategyOptions.start`)."""
        return EvolutionSearch(self, problem, seeds, rng)


class EvolutionSearch:
    """One run of NSGA-II, or of NSGA-III if there are more than two objectives.

    The first `ask` returns the seeds, and random configurations up to the size of the population.

    Args:
        options: of the search.
        problem: the space as arrays.
        seeds: int64 [S, W], good configurations to start from; S may be 0.
        rng: source of randomness.
    """

    def __init__(
        self, options: Evolution, problem: Problem, seeds: np.ndarray, rng: np.random.Generator
    ) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.util.ref_dirs import get_reference_directions

        num_objectives = 2 if problem.harm is None else 1 + len(problem.harm)
        self._problem = PymooProblem(
            n_var=len(problem.num_options),
            n_obj=num_objectives,
            xl=0,
            xu=problem.num_options - 1,
            vtype=int,
            requires_kwargs=False,
        )
        random = problem.sample(rng, max(0, options.population - len(seeds)))
        first = np.unique(np.concatenate([seeds, random]), axis=0)
        crossover, mutation, duplicates = _operators(options, problem, rng)
        settings: dict[str, Any] = {
            "pop_size": options.population,
            "n_offsprings": options.offspring,
            "sampling": first,
            "crossover": crossover,
            "mutation": mutation,
            "eliminate_duplicates": duplicates,
        }
        if num_objectives == 2:
            self._algorithm = NSGA2(**settings)
        else:
            directions = get_reference_directions(
                "das-dennis", num_objectives, n_partitions=_partitions(options.population)
            )
            self._algorithm = NSGA3(directions, **settings)
        self._algorithm.setup(
            self._problem,
            termination=("n_gen", 10**9),
            seed=int(rng.integers(2**31)),
            verbose=False,
        )
        self._asked: Any = None

    def ask(self) -> np.ndarray:
        """Propose a generation (see `Strategy.ask`)."""
        self._asked = self._algorithm.ask()
        return np.asarray(self._asked.get("X"), dtype=np.int64)

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Receive the values of the last `ask` (see `Strategy.tell`).

        Args:
            genes: int64 [B, W], as `ask` returned them.
            values: float64 [B, K], to be minimized.

        Raises:
            ValueError: the genes are not those of the last `ask`.
        """
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        if self._asked is None or not np.array_equal(genes, self._asked.get("X")):
            raise ValueError("tell needs the configurations of the last ask, in the same order")
        Evaluator().eval(StaticProblem(self._problem, F=values), self._asked)
        self._algorithm.tell(infills=self._asked)
        self._asked = None


def _partitions(population: int) -> int:
    """Divisions of the simplex's edges that give at most as many directions of three objectives."""
    divisions = 1
    while (divisions + 2) * (divisions + 3) // 2 <= population:
        divisions += 1
    return divisions


def _operators(
    options: Evolution, problem: Problem, rng: np.random.Generator
) -> tuple[Any, Any, Any]:
    from pymoo.core.crossover import Crossover
    from pymoo.core.duplicate import DuplicateElimination
    from pymoo.core.mutation import Mutation

    class Mix(Crossover):
        """Half of the pairs exchange single weights, and half exchange a contiguous run.

        Weights that are neighbors in the graph act together.
        """

        def __init__(self) -> None:
            super().__init__(n_parents=2, n_offsprings=2, prob=options.crossover)

        def _do(self, _: Any, x: np.ndarray, **__: Any) -> np.ndarray:  # x: [2, pairs, W]
            _, pairs, num = x.shape
            ends = np.sort(rng.integers(num + 1, size=(pairs, 2)), axis=1)
            index = np.arange(num)
            run = (index >= ends[:, :1]) & (index < ends[:, 1:])
            swap = np.where(rng.random((pairs, 1)) < 0.5, run, rng.random((pairs, num)) < 0.5)
            return np.stack([np.where(swap, x[1], x[0]), np.where(swap, x[0], x[1])])

    class Redraw(Mutation):
        """Some weights draw another of their options, uniformly at random."""

        def _do(self, _: Any, x: np.ndarray, **__: Any) -> np.ndarray:  # x: [B, W]
            batch, num = x.shape
            low, high = np.log(1 / num), np.log(max(options.mutation, 1 / num))
            rate = np.exp(rng.uniform(low, high, size=(batch, 1)))
            hit = rng.random((batch, num)) < rate
            hit[np.arange(batch), rng.integers(num, size=batch)] = True
            others = np.maximum(problem.num_options - 1, 1)
            shifted = (x + 1 + rng.integers(others, size=(batch, num))) % problem.num_options
            return np.where(hit, shifted, x)

    class SameBytes(DuplicateElimination):
        """Detects equal configurations by hash."""

        def _do(self, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
            seen = (
                set()
                if other is None
                else {row.tobytes() for row in np.asarray(other.get("X"), dtype=np.int64)}
            )
            for i, row in enumerate(np.asarray(pop.get("X"), dtype=np.int64)):
                key = row.tobytes()
                is_duplicate[i] |= key in seen
                seen.add(key)
            return is_duplicate

    return Mix(), Redraw(prob=1.0), SameBytes()
