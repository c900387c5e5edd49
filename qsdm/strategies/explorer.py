"""A search on any predictor: baselines, a strategy that starts from them, and the front of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsdm.qconfig import QuantMethod, Space
from qsdm.strategies import Problem, StrategyOptions
from qsdm.strategies.archive import Archive, Goal, Predict, references, sensitivity
from qsdm.strategies.constraints import Infeasible
from qsdm.strategies.front import hypervolume
from qsdm.strategies.greedy import mixes, path, spread
from qsdm.text import Log, ignore, require


@dataclass(slots=True, eq=False)
class Explorer:
    """Searches one after the other, each from the last one's front.

    Attributes:
        problem: the space with sizes and errors of its options.
        strategy: how configurations are proposed.
        goal: budget, limits and further axes.
        evaluations: of the strategy, in each search.
        kappa: number of standard deviations that are subtracted from the predicted mean.
        max_points: of the returned front.
        seed: of the first search; each later one has the next.
        log: receives the progress and the hypervolumes.
        whole: translates genes for the predictor, if the problem is a part of its space.

    Raises:
        ValueError: a value is out of range.
    """

    problem: Problem
    strategy: StrategyOptions
    goal: Goal = dataclasses.field(default_factory=Goal)
    evaluations: int = 10_000
    kappa: float = 0.0
    max_points: int = 200
    seed: int = 0
    log: Log = ignore
    whole: Callable[[np.ndarray], np.ndarray] = lambda genes: genes
    _last: Archive | None = None
    _searches: int = 0

    def __post_init__(self) -> None:
        require(1, evaluations=self.evaluations, max_points=self.max_points)
        require(0, kappa=self.kappa)

    def search(self, predict: Predict) -> dict[str, Any]:
        """Search with a predictor.

        Args:
            predict: predicts the quality of configurations of the whole space.

        Returns:
            What `qsdm.search` writes, apart from names and provenance.

        Raises:
            Infeasible: nothing that the search came by keeps budget and limits.
        """
        from tqdm import tqdm

        problem, max_bytes = self.problem, self.goal.max_bytes
        rng = np.random.default_rng(self.seed + self._searches)
        archive = Archive(problem, lambda genes: predict(self.whole(genes)), self.kappa, self.goal)
        progress = tqdm(total=self.evaluations, desc="search", unit="config", disable=None)

        starts = {
            "uniform": uniform_genes(problem.space),
            "random": problem.sample(rng, min(500, self.evaluations)),
            "greedy_error": spread(path(problem, problem.error), 200),
        }
        values = {name: archive.evaluate(genes) for name, genes in starts.items()}
        harm, limited = np.split(
            sensitivity(archive, references(problem, rng)), [1 + len(self.goal.axes)]
        )
        starts["greedy"] = greedy_paths(problem, harm)
        values["greedy"] = archive.evaluate(starts["greedy"])

        seeds = seeds_of(starts)
        if self._last is not None:
            seeds.append(spread(self._last.front(), 40))
        affordable = np.concatenate([g[problem.size_of(g) <= max_bytes] for g in seeds])
        informed = dataclasses.replace(
            problem,
            harm=harm,
            limited=limited,
            max_bytes=max_bytes,
            aim_bytes=self.goal.aim_bytes,
        )
        search = self.strategy.start(informed, np.unique(affordable, axis=0), rng)
        proposed = [np.empty((0, values["greedy"].shape[1]))]
        scale = np.concatenate(list(values.values()))
        worst, box = scale.max(axis=0), np.ptp(scale, axis=0) + 1e-12
        spent = 0
        while spent < self.evaluations:
            genes = search.ask()
            if not len(genes):
                break
            score = archive.evaluate(genes)
            # What is not allowed is worse than anything else, the more so the farther it is off.
            excess = np.maximum(score[:, 1] - max_bytes, 0) / box[1] + archive.excess(genes)
            over = excess > 0
            proposed.append(score[~over])
            told = np.where(over[:, None], worst + box * (1 + excess[:, None]), score)
            search.tell(genes, told)
            spent += len(genes)
            progress.update(len(genes))
            best = float(-np.concatenate(proposed)[:, 0].min(initial=np.inf))
            self.log({"search/evaluations": spent, "search/best_predicted": best})
        progress.close()

        self._last = archive
        self._searches += 1
        if not archive.allowed.any():
            raise Infeasible(_unmet(archive))
        volume = volumes({"strategy": np.concatenate(proposed), **values}, archive.values)
        self.log({f"search/hypervolume_{name}": value for name, value in volume.items()})
        baselines = {
            name: {"hypervolume": volume[name], "points": archive.points(genes, max_points=100)}
            for name, genes in starts.items()
        }
        return {
            "strategy": _described(self.strategy),
            "seed": self.seed,
            "evaluations": self.evaluations,
            "kappa": self.kappa,
            "axes": list(self.goal.axes),
            "num_evaluations": len(archive.values),
            "points": archive.points(max_points=self.max_points, qconfigs=True),
            "baselines": baselines,
            "hypervolume": volume,
        }

    def candidates(self, predict: Predict) -> np.ndarray:
        """Search, and list what the search came by that keeps budget and limits.

        Args:
            predict: predicts the quality of configurations.

        Returns:
            Genes of the whole space, int64 [B, W].
        """
        self.search(predict)
        assert self._last is not None
        return self.whole(self._last.genes[self._last.allowed])


def search_front(
    predict: Predict, problem: Problem, strategy: StrategyOptions, **options: Any
) -> dict[str, Any]:
    """Search once.

    Args:
        predict: predicts the quality of configurations.
        problem: the space with sizes and errors of its options.
        strategy: how configurations are proposed.
        **options: further fields of `Explorer`.

    Returns:
        What `Explorer.search` returns.

    Raises:
        ValueError: a value is out of range.
        Infeasible: nothing that the search came by keeps budget and limits.
    """
    return Explorer(problem, strategy, **options).search(predict)


def volumes(values: dict[str, np.ndarray], everything: np.ndarray) -> dict[str, float]:
    """Compute the share of the box around all values that each front dominates.

    Args:
        values: float64 [B, K], to be minimized, by name.
        everything: float64 [B, K], whose own front is called ``front``.

    Returns:
        Shares by name.
    """
    low, high = everything.min(axis=0), everything.max(axis=0)
    span = np.maximum(high - low, 1e-12)
    num = everything.shape[1]
    # The reference point lies 1 % outside, so that the ends of a front count as well.
    return {
        name: hypervolume((v - low) / span, np.full(num, 1.01)) / 1.01**num
        for name, v in {"front": everything, **values}.items()
    }


def greedy_paths(problem: Problem, harm: np.ndarray, num: int = 200) -> np.ndarray:
    """Walk the greedy path of the quality, or those of several mixes of quality and fidelity.

    Args:
        problem: the space as arrays.
        harm: float64 [K - 1, W, O], of single changes.
        num: number of configurations of all paths, evenly spaced on each.

    Returns:
        Genes, int64 [B, W].
    """
    harm = np.where(np.isfinite(harm), harm, 0)  # beyond a weight's options
    weights = mixes(problem, harm)
    paths = [
        spread(path(problem, np.tensordot(mix, harm, 1)), max(num // len(weights), 2))
        for mix in weights
    ]
    return paths[0] if len(paths) == 1 else np.unique(np.concatenate(paths), axis=0)


def uniform_genes(space: Space) -> np.ndarray:
    """List the uniform configurations of a space: one per method that is on offer.

    Where a weight lacks a method, one of the same bits takes its place, or else of the nearest.

    Args:
        space: of the configurations.

    Returns:
        Genes, int64 [B, W].
    """

    def nearest(offered: tuple[QuantMethod, ...], method: QuantMethod) -> int:
        order = [
            (
                abs(other.bits - method.bits),
                other.inputs != method.inputs,
                other != method,
                other.name != "kmeans_a",
                i,
            )
            for i, other in enumerate(offered)
        ]
        return min(order)[-1]

    rows = [[nearest(offered, method) for offered in space.options] for method in space.methods]
    return np.unique(np.array(rows, dtype=np.int64), axis=0)


def seeds_of(starts: dict[str, np.ndarray], num: int = 40) -> list[np.ndarray]:
    """Choose what the strategy begins with: all uniform configurations and some of the greedy ones.

    Args:
        starts: genes of the baselines, by name.
        num: number of configurations of the better greedy path; of the other, half as many.

    Returns:
        Genes, int64 [B, W] each.
    """
    return [
        starts["uniform"],
        spread(starts["greedy"], num),
        spread(starts["greedy_error"], num // 2),
    ]


def _unmet(archive: Archive) -> str:
    """Which limit nothing keeps, and what was nearest to it."""
    fits = archive.values[:, 1] <= archive.goal.max_bytes
    for column, metric in enumerate(archive.goal.metrics):
        if (limit := archive.goal.limit.get(metric.name)) is None:
            continue
        values = metric.sign * archive.metrics[fits, column]
        best = metric.sign * float(values.max(initial=-np.inf))
        if metric.sign * (best - limit) < 0:
            kind = "budget" if metric.name == "tera_bops" else "limit"
            return (
                f"{kind}.{metric.name}={limit:g} cannot be met within the budget: the best that is "
                f"predicted there is {best:.4g}; give a larger budget or another limit"
            )
    return "no configuration was found that keeps budget and limits: give larger ones"


def _described(strategy: StrategyOptions) -> dict[str, Any]:
    fields: tuple[dataclasses.Field[Any], ...] = (
        dataclasses.fields(strategy) if dataclasses.is_dataclass(strategy) else ()
    )
    options = {field.name: getattr(strategy, field.name) for field in fields}
    return {"name": type(strategy).__name__.lower(), **options}
