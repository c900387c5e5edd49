"""Search for configurations: the best predicted quality at every size.

    python -m qsdm.search +model=emoji_unet
    python -m qsdm.search +model=emoji_unet strategy=random budget=5000
    python -m qsdm.search +model=emoji_unet max_bits=3.5 kappa=1
    python -m qsdm.search +model=emoji_unet rounds=3 avg_bits=3.5   # measure, learn, search again
    python -m qsdm.search +model=emoji_unet rounds=3 plan=true price_per_hour=2.5

With ``rounds``, each round measures the configurations that promise the largest gain, and the next
search knows what came out (`qsdm.measurement.rounds`). What a round proposes is written to
``search/<space>-rounds.json`` first; a killed search goes on, and a larger ``rounds`` continues.
The networks are not trained again: outcomes of proposals condition their predictions
(`qsdm.predictor.update`), in this search and in every later one.

Writes ``search/<space>.json``::

    schema              qsdm/front/1
    denoiser, space, objective, strategy, seed, budget, kappa, max_bits
    num_evaluations     configurations that the predictor was asked for, baselines included
    points              the front of all of them, by rising bytes:
                        qconfig, predicted, std (of what measuring would give), avg_bits, size_bytes
    baselines           by name: points (predicted, std, avg_bits, size_bytes; its own front) of
                        greedy (predicted sensitivity per byte), greedy_error (weight error per
                        byte), random, uniform
    hypervolume         by name, ``front`` and ``strategy`` (the strategy's own proposals) among
                        them: the share of the box between the best and the worst of all evaluated
                        configurations that the front dominates
    rounds              avg_bits, and front and volume of the labels; by round: proposals with what
                        they measured, optimism, volume and gain with errors, the measured front;
                        null without rounds
    provenance
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import text
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.outcome import Objective
from qsdm.qconfig import Space
from qsdm.store import StoreError
from qsdm.store.provenance import provenance
from qsdm.store.schemas import FRONT, RoundsReport
from qsdm.strategies import Problem, StrategyOptions
from qsdm.strategies.front import front, hypervolume
from qsdm.strategies.greedy import path, spread
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.measurement.labels import Labels
    from qsdm.measurement.rounds import Limits
    from qsdm.measurement.session import Session
    from qsdm.predictor import Predictor
    from qsdm.predictor.update import Updated

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Genes, int64 [B, W] => mean and standard deviation of the quality, float64 [B] each."""


@takes_workspace("model", "space", "objective", "strategy", "store")
def search(
    workspace: Workspace,
    objective: Objective,
    strategy: StrategyOptions,
    max_bits: float | None = None,
    budget: int = 10_000,
    kappa: float = 0.0,
    max_points: int = 200,
    seed: int = 0,
    rounds: int = 0,
    per_round: int = 4,
    avg_bits: float | None = None,
    max_pictures: int | None = None,
    patience: int = 2,
    batch_size: int = 16,
    engine: Engine = Local(),  # noqa: B008 (a frozen value)
    plan: bool = False,
    price_per_hour: float | None = None,
    log: Log = ignore,
) -> dict[str, Any]:
    """Minimize minus the predicted quality and the bytes, and store the front.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        strategy: how configurations are proposed.
        max_bits: average bits above which configurations are of no interest; None for no limit.
        budget: number of configurations that the strategy may have predicted, in all rounds
            together.
        kappa: number of standard deviations that are subtracted from the predicted mean, not
            negative.
        max_points: number of points of the stored front, evenly spaced over it.
        seed: of the random configurations and the strategy.
        rounds: how often to measure what promises most, and to search again; those of earlier runs
            count.
        per_round: configurations that a round measures.
        avg_bits: rounds improve the best configuration of at most this many bits; None: the whole
            front.
        max_pictures: of all rounds together, full precision apart; None for no limit.
        patience: rounds without gain, in a row, after which there are no more.
        batch_size: pictures that are drawn at a time.
        engine: where rounds measure.
        plan: only print what rounds may still draw, how long it takes and what it costs.
        price_per_hour: of one worker, in any currency; for the plan.
        log: receives the progress, the hypervolumes and the reports of rounds.

    Returns:
        What was written; with ``plan`` nothing.

    Raises:
        StoreError: an earlier stage has not run, or for another objective.
        EvaluationError: rounds cannot draw pictures.
        ValueError: a value is out of range, or nothing in the space has at most ``max_bits``.

    Example:
        >>> import qsdm
        >>> from qsdm.outcome import Objective
        >>> from qsdm.search import search
        >>> from qsdm.strategies.random import Random
        >>> quality = Objective({"fd_lite0": -1})
        >>> front = search(qsdm.open("emoji_unet"), quality, Random(), budget=100)
        >>> front["points"][0]["size_bytes"] < front["points"][-1]["size_bytes"]
        True
    """
    from qsdm.measurement.plan import plan_rounds
    from qsdm.measurement.rounds import Journal, Loop, region_of, table
    from qsdm.measurement.session import open_session

    require(1, MANY, max_points=max_points, per_round=per_round, patience=patience)
    require(1, MANY, batch_size=batch_size)
    require(1, max_pictures=max_pictures)
    require(0, MANY, rounds=rounds)
    require(1, budget=budget, max_bits=max_bits, avg_bits=avg_bits)
    require(0, kappa=kappa, price_per_hour=price_per_hour)
    predictor, space = workspace.predictor(objective), workspace.space
    problem = Problem.of(space, workspace.table)
    _max_bytes(problem, avg_bits, "avg_bits")
    explorer = Explorer(
        problem, strategy, max_bits, -(-budget // (rounds + 1)), kappa, max_points, seed, log
    )
    about: dict[str, Any] = {
        "denoiser": workspace.name,
        "space": workspace.space_name,
        "objective": dict(objective.weights),
    }
    report: RoundsReport | None = None
    model: Predict
    if rounds or plan:
        labels, _ = learned_from(workspace, objective)
        limits = limits_of(labels, rounds, per_round, max_pictures, patience)
        journal = Journal(
            workspace.path(f"search/{workspace.space_name}-rounds.json"),
            {**about, "protocol": labels.protocol.digest},
        )
        # A plan starts no workers.
        with open_session(workspace, Serial() if plan else engine, batch_size) as ready:
            require_same_way(ready, labels)
            planned = plan_rounds(ready, labels.protocol, journal.read(), limits)
            planned = replace(
                planned, num_workers=engine.num_workers, price_per_hour=price_per_hour
            )
            print(f"rounds, at most: {planned}", flush=True)
            if plan:
                return {}
            region = region_of(space, problem, labels, avg_bits)
            loop = Loop(
                ready,
                objective,
                labels,
                problem,
                region,
                journal,
                updater(predictor),
                explorer.candidates,
            )
            model, reports = loop.run(limits, log)
        report = loop.report(avg_bits, reports)
        print(table(report))
    else:
        model = predictor_of(predictor, workspace, objective)
    result = explorer.search(model)
    result |= {"budget": budget, "rounds": report, "provenance": provenance()}
    result = {"schema": FRONT.schema, **about, **result}
    FRONT.write(workspace.path(f"search/{workspace.space_name}.json"), result)
    print_front(result)
    return result


def updater(predictor: Predictor) -> Callable[[np.ndarray, np.ndarray], Updated]:
    """Make a function that conditions a predictor, which predicts each configuration only once.

    Args:
        predictor: as it was trained.

    Returns:
        Configurations, int64 [R, W], and what they measured, float64 [R] => the predictor that
        knows.
    """
    from qsdm.predictor.update import Remembered, Updated

    if predictor.posterior is None:
        raise StoreError(
            "the predictor does not tell how sure it is: run python -m qsdm.train again"
        )
    predict, posterior = Remembered(predictor.predict), predictor.posterior
    return lambda genes, values: Updated.of(predict, predictor.encoding, posterior, genes, values)


def predictor_of(predictor: Predictor, workspace: Workspace, objective: Objective) -> Predict:
    """Let a predictor know what was proposed and measured, if there is anything.

    Args:
        predictor: as it was trained.
        workspace: model, space and store.
        objective: that labels measure.

    Returns:
        Predicts configurations.
    """
    from qsdm.measurement.labels import NoLabels

    try:
        _, proposed = learned_from(workspace, objective)
    except NoLabels:  # they were moved away since the predictor was trained
        return predictor.predict
    if proposed is None:
        return predictor.predict
    return updater(predictor)(proposed.genes, proposed.values)


def learned_from(workspace: Workspace, objective: Objective) -> tuple[Labels, Labels | None]:
    """Read the labels that the predictor has learned from, and what was proposed and measured.

    Args:
        workspace: model, space and store.
        objective: that labels measure.

    Returns:
        Labels, and outcomes of proposals that were measured in the same way, if there are any.

    Raises:
        NoLabels: the labels are not there.
    """
    from qsdm.measurement.labels import NoLabels

    report, bank = workspace.report, workspace.bank()
    if (protocol := bank.protocols.get(report["protocol"])) is None:
        raise NoLabels(
            "the predictor has learned from labels of other weights or sampling than the model's "
            f"present ones: run python -m qsdm.train +model={workspace.name} again"
        )
    labels = bank.labels(objective, protocol.seed_set, protocol.num_images)
    return labels, bank.proposed(objective, labels)


def require_same_way(ready: Session, labels: Labels) -> None:
    """Check that pictures are drawn today as those of the labels were.

    Args:
        ready: the running session.
        labels: that the predictor has learned from.

    Raises:
        StoreError: they are not.
    """
    today = ready.protocol(labels.protocol.seed_set, labels.protocol.num_images)
    if today != labels.protocol or not labels.is_current(ready.model):
        raise StoreError(
            "rounds compare with the labels, which were drawn or scored in another way than "
            f"pictures are today: run measure, and then train, +model={ready.model.name} again"
        )


def limits_of(
    labels: Labels, rounds: int, per_round: int, max_pictures: int | None, patience: int
) -> Limits:
    """Turn a budget of pictures into one of configurations.

    Args:
        labels: whose number of pictures each configuration gets.
        rounds: at most.
        per_round: configurations of each.
        max_pictures: of all rounds; None for no limit.
        patience: rounds without gain.

    Returns:
        The limits.

    Raises:
        ValueError: the budget does not pay for one configuration.
    """
    from qsdm.measurement.rounds import Limits

    num_images = labels.protocol.num_images
    if max_pictures is not None and max_pictures < num_images:
        raise ValueError(
            f"max_pictures must pay for one configuration of {num_images} pictures at least "
            f"(got {max_pictures})"
        )
    most = None if max_pictures is None else max_pictures // num_images
    return Limits(rounds, per_round, most, patience)


@dataclass(slots=True, eq=False)
class Explorer:
    """Searches one after the other, each from the last one's front.

    Attributes:
        problem: see `search_front`; so are all others.
        strategy: how configurations are proposed.
        max_bits: of interest.
        budget: of each search.
        kappa: number of standard deviations.
        max_points: of a stored front.
        seed: of the first search; each later one has the next.
        log: receives the progress.
    """

    problem: Problem
    strategy: StrategyOptions
    max_bits: float | None
    budget: int
    kappa: float
    max_points: int
    seed: int
    log: Log
    _last: Archive | None = None
    _searches: int = 0

    def search(self, predict: Predict) -> dict[str, Any]:
        """Search with a predictor.

        Args:
            predict: predicts the quality of configurations.

        Returns:
            What `search_front` returns.
        """
        begin = None if self._last is None else self._last.front()
        self._last, result = explore(
            predict,
            self.problem,
            self.strategy,
            self.max_bits,
            self.budget,
            self.kappa,
            self.max_points,
            self.seed + self._searches,
            self.log,
            begin,
        )
        self._searches += 1
        return result | {"seed": self.seed}

    def candidates(self, predict: Predict) -> np.ndarray:
        """Search, and list all configurations that the search came by.

        Args:
            predict: predicts the quality of configurations.

        Returns:
            Genes, int64 [B, W].
        """
        self.search(predict)
        assert self._last is not None
        return self._last.genes


def search_front(
    predict: Predict,
    problem: Problem,
    strategy: StrategyOptions,
    max_bits: float | None = None,
    budget: int = 10_000,
    kappa: float = 0.0,
    max_points: int = 200,
    seed: int = 0,
    log: Log = ignore,
) -> dict[str, Any]:
    """Search on any predictor.

    Args:
        predict: predicts the quality of configurations.
        problem: the space with sizes and errors of its options.
        strategy: see `search`.
        max_bits: see `search`.
        budget: see `search`.
        kappa: see `search`.
        max_points: see `search`.
        seed: see `search`.
        log: see `search`.

    Returns:
        What `search` writes, apart from names and provenance.

    Raises:
        ValueError: a value is out of range, or nothing in the space has at most ``max_bits``.
    """
    return explore(
        predict, problem, strategy, max_bits, budget, kappa, max_points, seed, log, None
    )[1]


def explore(
    predict: Predict,
    problem: Problem,
    strategy: StrategyOptions,
    max_bits: float | None,
    budget: int,
    kappa: float,
    max_points: int,
    seed: int,
    log: Log,
    begin: np.ndarray | None,
) -> tuple[Archive, dict[str, Any]]:
    """Search on any predictor, from given configurations on.

    Args:
        predict: see `search_front`; so are all others.
        problem: the space with sizes and errors of its options.
        strategy: how configurations are proposed.
        max_bits: of interest.
        budget: of the strategy.
        kappa: number of standard deviations.
        max_points: of the returned front.
        seed: of the random configurations and the strategy.
        log: receives the progress and the hypervolumes.
        begin: genes, int64 [B, W], good configurations of an earlier search; None for none.

    Returns:
        Everything that was evaluated, and what `search_front` returns.

    Raises:
        ValueError: a value is out of range, or nothing in the space has at most ``max_bits``.
    """
    from tqdm import tqdm

    if budget < 1 or max_points < 1:
        raise ValueError(
            f"budget and max_points must be at least 1 (got {budget} and {max_points})"
        )
    if not kappa >= 0:
        raise ValueError(f"kappa must not be negative (got {kappa})")
    max_bytes = _max_bytes(problem, max_bits)
    rng = np.random.default_rng(seed)
    archive = Archive(problem, predict, kappa)
    progress = tqdm(total=budget, desc="search", unit="config", disable=None)

    starts = {
        "uniform": uniform_genes(problem.space),
        "random": problem.sample(rng, min(500, budget)),
        "greedy_error": spread(path(problem, problem.error), 200),
    }
    values = {name: archive.evaluate(genes) for name, genes in starts.items()}
    harm = sensitivity(archive, references(problem, rng))
    starts["greedy"] = spread(path(problem, harm), 200)
    values["greedy"] = archive.evaluate(starts["greedy"])

    seeds = seeds_of(starts) + ([] if begin is None else [spread(begin, 40)])
    affordable = np.concatenate([genes[problem.size_of(genes) <= max_bytes] for genes in seeds])
    search = strategy.start(problem, np.unique(affordable, axis=0), rng)
    proposed = [np.empty((0, 2))]
    scale = np.concatenate(list(values.values()))
    worst, box = scale.max(axis=0), np.ptp(scale, axis=0) + 1e-12
    spent = 0
    while spent < budget:
        genes = search.ask()
        if not len(genes):
            break
        score = archive.evaluate(genes)
        over = score[:, 1] > max_bytes
        proposed.append(score[~over])
        # What is too large is worse than anything else, the more so the larger it is.
        excess = np.where(over, (score[:, 1] - max_bytes) / box[1], 0.0)[:, None]
        search.tell(genes, np.where(over[:, None], worst + box * (1 + excess), score))
        spent += len(genes)
        progress.update(len(genes))
        log(
            {
                "search/evaluations": spent,
                "search/best_predicted": float(-np.concatenate(proposed)[:, 0].min(initial=np.inf)),
            }
        )
    progress.close()

    everything = archive.values
    low, high = everything.min(axis=0), everything.max(axis=0)
    span = np.maximum(high - low, 1e-12)
    areas = {"front": everything, "strategy": np.concatenate(proposed), **values}
    # The reference point lies 1 % outside, so that the ends of a front count as well.
    volume = {
        name: hypervolume((v - low) / span, np.full(2, 1.01)) / 1.01**2 for name, v in areas.items()
    }
    log({f"search/hypervolume_{name}": value for name, value in volume.items()})
    baselines = {
        name: {"hypervolume": volume[name], "points": archive.points(starts[name], max_points=100)}
        for name in starts
    }
    return archive, {
        "strategy": _described(strategy),
        "seed": seed,
        "budget": budget,
        "kappa": kappa,
        "max_bits": max_bits,
        "num_evaluations": len(everything),
        "points": archive.points(max_points=max_points, max_bytes=max_bytes, qconfigs=True),
        "baselines": baselines,
        "hypervolume": volume,
    }


@dataclass(slots=True, eq=False)
class Archive:
    """Every configuration that was predicted, once each.

    Attributes:
        problem: the space with sizes of its options.
        predict: predicts the quality of configurations.
        kappa: number of standard deviations that are subtracted from the predicted mean.
    """

    problem: Problem
    predict: Predict
    kappa: float
    _rows: dict[bytes, int] = field(default_factory=dict)
    _genes: list[np.ndarray] = field(default_factory=list)
    _known: list[tuple[float, float, int]] = field(default_factory=list)  # mean, std, bytes

    @property
    def genes(self) -> np.ndarray:
        """Every configuration, int64 [B, W]."""
        return np.stack(self._genes)

    def front(self) -> np.ndarray:
        """Genes of the front, int64 [B, W], by rising bytes."""
        return self.genes[front(self.values)]

    @property
    def values(self) -> np.ndarray:
        """Values to minimize, float64 [B, 2]: minus the quality, and bytes."""
        mean, std, size = np.array(self._known, dtype=np.float64).reshape(-1, 3).T
        return np.stack([self.kappa * std - mean, size], axis=1)

    def evaluate(self, genes: np.ndarray) -> np.ndarray:
        """Predict configurations that were not predicted before.

        Args:
            genes: int64 [B, W].

        Returns:
            Values to minimize, float64 [B, 2]: minus the quality, and bytes.

        Raises:
            ValueError: a prediction is not finite.
        """
        keys = [row.tobytes() for row in np.ascontiguousarray(genes, dtype=np.int64)]
        new = list({key: i for i, key in enumerate(keys) if key not in self._rows}.values())
        if new:
            mean, std = self.predict(genes[new])
            if not (np.isfinite(mean).all() and np.isfinite(std).all()):
                raise ValueError("the predictor gave a value that is not finite: train it again")
            for i, *known in zip(new, mean, std, self.problem.size_of(genes[new]), strict=True):
                self._rows[keys[i]] = len(self._genes)
                self._genes.append(genes[i])
                self._known.append((float(known[0]), float(known[1]), int(known[2])))
        known_rows = np.array([self._known[self._rows[key]] for key in keys]).reshape(-1, 3)
        return np.stack(
            [self.kappa * known_rows[:, 1] - known_rows[:, 0], known_rows[:, 2]], axis=1
        )

    def points(
        self,
        among: np.ndarray | None = None,
        max_points: int = 200,
        max_bytes: float = np.inf,
        qconfigs: bool = False,
    ) -> list[dict[str, Any]]:
        """List the front of the evaluated configurations, by rising bytes.

        Args:
            among: genes, int64 [B, W], of evaluated configurations; None for all of them.
            max_points: number of points at most, evenly spaced over the front.
            max_bytes: configurations of more are left out.
            qconfigs: whether points contain their configuration.

        Returns:
            predicted, std, avg_bits and size_bytes of each point.
        """
        genes = (
            self._genes
            if among is None
            else [self._genes[self._rows[row.tobytes()]] for row in among]
        )
        rows = np.array([self._rows[row.tobytes()] for row in genes], dtype=np.int64)
        rows = rows[self.values[rows, 1] <= max_bytes]
        best = rows[front(self.values[rows])]
        found = []
        for row in spread(best[:, None], max_points)[:, 0]:
            mean, std, size = self._known[row]
            cost = {
                "avg_bits": 8 * size / self.problem.space.graph.num_values,
                "size_bytes": int(size),
            }
            made = (
                {"qconfig": self.problem.space.decode(self._genes[row]).to_json()}
                if qconfigs
                else {}
            )
            found.append(made | {"predicted": mean, "std": std} | cost)
        return found


def sensitivity(archive: Archive, contexts: np.ndarray) -> np.ndarray:
    """Compute what each option of each weight costs in predicted quality.

    Args:
        archive: predicts.
        contexts: genes, int64 [R, W], of configurations into which the options are placed; costs
            are averaged over them.

    Returns:
        Float64 [W, O]; 0 for a weight's best option, infinite beyond its options.
    """
    problem = archive.problem
    placed = []
    for weight, num in enumerate(problem.num_options):
        genes = np.repeat(contexts, num, axis=0)
        genes[:, weight] = np.tile(np.arange(num), len(contexts))
        placed.append(genes)
    losses = np.split(
        archive.evaluate(np.concatenate(placed))[:, 0],
        np.cumsum([len(genes) for genes in placed])[:-1],
    )
    harm = np.full(problem.size_bytes.shape, np.inf)
    for weight, num in enumerate(problem.num_options):
        loss = losses[weight].reshape(len(contexts), num).mean(axis=0)
        harm[weight, :num] = loss - loss.min()
    return harm


def references(problem: Problem, rng: np.random.Generator, num: int = 4) -> np.ndarray:
    """Draw configurations into which single options are placed, from the smallest to the largest.

    Args:
        problem: the space with sizes of its options.
        rng: source of random numbers.
        num: how many.

    Returns:
        Genes, int64 [num, W].
    """
    drawn = problem.sample(rng, 25 * num)
    order = np.argsort(problem.size_of(drawn), kind="stable")
    return drawn[order[np.linspace(0, len(order) - 1, num + 2)[1:-1].astype(np.int64)]]


def uniform_genes(space: Space) -> np.ndarray:
    """List the uniform configurations of a space: one per method that is on offer.

    Args:
        space: of the configurations.

    Returns:
        Genes, int64 [B, W].
    """
    return np.unique([space.encode(space.uniform(method)) for method in space.methods], axis=0)


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


def print_front(result: dict[str, Any], rows: int = 8) -> None:
    """Print a front and the hypervolumes.

    Args:
        result: what `search` returns.
        rows: number of points that are shown, evenly spaced over the front.
    """
    points = result["points"]
    shown = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, rows).astype(int))]
    keys = ("avg_bits", "size_bytes", "predicted", "std")
    cells = [[point[key] for key in keys] for point in shown]
    heads = ("avg bits", "bytes", "predicted", "std")
    print(text.table(heads, cells, (".3f", "", ".4g", ".3g")))
    print(
        "hypervolume: "
        + ", ".join(f"{name} {value:.4f}" for name, value in result["hypervolume"].items())
    )


def _max_bytes(problem: Problem, max_bits: float | None, key: str = "max_bits") -> float:
    if max_bits is None:
        return np.inf
    offered = np.arange(problem.size_bytes.shape[1]) < problem.num_options[:, None]
    smallest = np.where(offered, problem.size_bytes, np.iinfo(np.int64).max).min(axis=1).sum()
    num_values = problem.space.graph.num_values
    if not max_bits * num_values / 8 >= smallest:
        least = 8 * smallest / num_values
        raise ValueError(
            f"{key}={max_bits:g} is below the smallest configuration of the space, {least:.3f} bits"
        )
    return max_bits * num_values / 8


def _described(strategy: StrategyOptions) -> dict[str, Any]:
    name = {"name": type(strategy).__name__.lower()}
    return name | dataclasses.asdict(strategy) if dataclasses.is_dataclass(strategy) else name  # type: ignore[arg-type]


if __name__ == "__main__":
    from qsdm import run

    run.main(search)
