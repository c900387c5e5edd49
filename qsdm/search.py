"""Search for configurations: the best predicted quality at every size.

    python -m qsdm.search +model=emoji_unet
    python -m qsdm.search +model=emoji_unet budget.avg_bits=3.5 limit.lite0_distance=60
    python -m qsdm.search +model=emoji_unet budget.size_bytes=1.2e9 pin.conv_in=uaq-4 forbid=[uaq-3]
    python -m qsdm.search +model=emoji_unet target=torchao feasible=true
    python -m qsdm.search +model=emoji_unet lora=FILE limit.lora_retention=0.9   # after probe
    python -m qsdm.search +model=emoji_unet strategy=random evaluations=5000 kappa=1
    python -m qsdm.search +model=emoji_unet rounds=3 budget.avg_bits=3.5   # measure, learn, search
    python -m qsdm.search +model=emoji_unet rounds=3 plan=true price_per_hour=2.5

The objective may have an axis of fidelity (``objective=balanced``, the default): PSNR to the
full-precision picture of the same noise is maximized beside quality, and the front is a surface.
Limits and this axis are predicted by closed models of the labels' metrics
(`qsdm.predictor.by_metric`). ``limit.lora_retention`` is predicted from the probes of that adapter
(`qsdm.predictor.retention`).

With ``rounds``, each round measures the configurations that promise the largest gain, of quality or
of quality and fidelity together (`qsdm.measurement.worth`), and the next search knows what came out
(`qsdm.measurement.rounds`). What a round proposes is written to
``search/<space>-rounds.json`` first; a killed search goes on, and a larger ``rounds`` continues.
The networks are not trained again: outcomes of proposals condition their predictions
(`qsdm.predictor.update`), in this search and in every later one.

Writes ``search/<space>.json``::

    schema              qsdm/front/1
    denoiser, space, objective, fidelity, strategy, seed, evaluations, kappa
    constraints         budget, limit, pin, forbid, target
    num_evaluations     configurations that the predictor was asked for, baselines included
    axes                metrics that are objectives beside quality and bytes
    points              the front of all that keep the constraints, by rising bytes: qconfig,
                        predicted, std (of what measuring would give), avg_bits, size_bytes, metrics
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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import text
from qsdm.denoisers import require_denoiser
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.outcome import LORA_RETENTION, Objective, require_measured
from qsdm.qconfig import Space
from qsdm.recipes.targets import held_by
from qsdm.store import StoreError
from qsdm.store.provenance import provenance
from qsdm.store.schemas import FRONT, RoundsReport
from qsdm.strategies import Problem, StrategyOptions
from qsdm.strategies.archive import Goal, Metric, OfPart, Predict
from qsdm.strategies.choice import Tradeoff
from qsdm.strategies.constraints import BitOperations, Constraints, Restriction, read_budget
from qsdm.strategies.explorer import Explorer
from qsdm.strategies.feasible import reachable
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.measurement.labels import Labels
    from qsdm.measurement.rounds import Journal, Limits, Loop
    from qsdm.measurement.session import Session
    from qsdm.measurement.worth import Worth
    from qsdm.predictor import Predictor
    from qsdm.predictor.by_metric import MetricModel
    from qsdm.predictor.update import Updated
    from qsdm.strategies.acquisition import Believer


@takes_workspace("model", "space", "objective", "strategy", "store")
def search(
    workspace: Workspace,
    objective: Objective,
    strategy: StrategyOptions,
    budget: Mapping[str, float] | float | None = None,
    limit: Mapping[str, float] | None = None,
    pin: Mapping[str, str] | Sequence[str] | None = None,
    forbid: Sequence[str] = (),
    target: str | None = None,
    lora: Path | None = None,
    feasible: bool = False,
    evaluations: int = 10_000,
    kappa: float = 0.0,
    max_points: int = 200,
    seed: int = 0,
    rounds: int = 0,
    per_round: int = 4,
    max_pictures: int | None = None,
    patience: int = 2,
    batch_size: int = 16,
    engine: Engine = Local(),  # noqa: B008 (a frozen value)
    plan: bool = False,
    price_per_hour: float | None = None,
    max_bits: float | None = None,
    avg_bits: float | None = None,
    log: Log = ignore,
) -> dict[str, Any]:
    """Minimize minus the predicted quality and the bytes, and store the front.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained; its axis of fidelity is minimized, too.
        strategy: how configurations are proposed.
        budget: the most that a configuration may take, as budget.size_bytes=1.2e9 or
            budget.avg_bits=3.5; rounds look for the best one within it. Without one, the whole
            front counts. budget.tera_bops=0.5 limits the bit operations, too.
        limit: the worst allowed predicted value of a metric, as limit.psnr=28.
        pin: method of a weight, or of all that match a pattern, as pin.conv_in=uaq-4.
        forbid: methods that no weight may have, with or without bits, as [uaq-3,kmeans_a].
        target: engine that must hold the result: torchao, gguf, sdnq or qsdm. It gets only methods
            that the engine stores as values of the same kind and bits.
        lora: file of the LoRA that limit.lora_retention is about; probe has measured it.
        feasible: only print what the constraints leave: the reachable bits and bytes.
        evaluations: number of configurations that the strategy may have predicted, in all rounds
            together; greedy ends earlier.
        kappa: number of standard deviations that are subtracted from the predicted mean, not
            negative.
        max_points: number of points of the stored front, evenly spaced over it.
        seed: of the random configurations and the strategy.
        rounds: how often to measure what promises most, and to search again; those of earlier runs
            count.
        per_round: configurations that a round measures.
        max_pictures: of all rounds together, full precision apart; None for no limit.
        patience: rounds without gain, in a row, after which there are no more.
        batch_size: pictures that are drawn at a time.
        engine: where rounds measure.
        plan: only print what rounds may still draw, how long it takes and what it costs.
        price_per_hour: of one worker, in any currency; for the plan.
        max_bits: old spelling of budget.avg_bits.
        avg_bits: bits that rounds aim at, if the front shall not end there; by default the budget.
        log: receives the progress, the hypervolumes and the reports of rounds.

    Returns:
        What was written; with ``plan`` nothing, with ``feasible`` what was printed.

    Raises:
        StoreError: an earlier stage has not run, or for another objective.
        EvaluationError: rounds cannot draw pictures.
        Infeasible: nothing in the space keeps the constraints.
        ValueError: a value is out of range, or a name does not exist.

    Example:
        >>> import qsdm
        >>> from qsdm.outcome import Objective
        >>> from qsdm.search import search
        >>> from qsdm.strategies.random import Random
        >>> emoji, quality = qsdm.open("emoji_unet"), Objective({"fd_lite0": -1})
        >>> front = search(emoji, quality, Random(), {"avg_bits": 3.5}, evaluations=100)
        >>> front["points"][0]["size_bytes"] < front["points"][-1]["size_bytes"]
        True
        >>> max(point["avg_bits"] for point in front["points"]) <= 3.5
        True
    """
    from qsdm.measurement.plan import plan_rounds
    from qsdm.measurement.rounds import table as table_of_rounds
    from qsdm.measurement.session import open_session
    from qsdm.report.tracked import track

    require(1, MANY, max_points=max_points, per_round=per_round, patience=patience)
    require(1, MANY, batch_size=batch_size)
    require(1, max_pictures=max_pictures)
    require(0, MANY, rounds=rounds)
    require(1, evaluations=evaluations, max_bits=max_bits, avg_bits=avg_bits)
    require(0, kappa=kappa, price_per_hour=price_per_hour)
    budget, evaluations = read_budget(budget, evaluations, max_bits=max_bits)
    constraints = Constraints.of(budget, limit, pin, forbid, target, lora)
    if target not in (None, "qsdm"):
        require_denoiser(workspace.model, f"target={target}")
    if feasible:
        return print_reach(workspace, objective, constraints)
    space = workspace.space
    restriction = constraints.restrict(space, held_by(target, space.graph))
    predictor = workspace.predictor(objective)
    whole = Problem.of(space, workspace.table)
    aim = aim_of(constraints, restriction.space, avg_bits)
    goal = goal_of(workspace, objective, constraints, restriction, aim)

    def learn() -> None:  # what rounds have measured tells of limits and axes, too
        explorer.goal = goal_of(workspace, objective, constraints, restriction, aim)

    explorer = Explorer(
        Problem(restriction.space, restriction.errors(whole.error)),
        strategy,
        goal,
        -(-evaluations // (rounds + 1 + bool(rounds and objective.fidelity))),
        kappa,
        max_points,
        seed,
        log,
        restriction.whole,
    )
    report: RoundsReport | None = None
    model: Predict
    if rounds or plan:
        labels, _ = learned_from(workspace, objective)
        limits = limits_of(labels, rounds, per_round, max_pictures, patience)
        # A plan starts no workers.
        with open_session(workspace, Serial() if plan else engine, batch_size) as ready:
            require_same_way(ready, labels)
            journal = journal_of(workspace, objective, labels)
            planned = replace(
                plan_rounds(ready, labels.protocol, journal.read(), limits),
                num_workers=engine.num_workers,
                price_per_hour=price_per_hour,
            )
            print(f"rounds, at most: {planned}", flush=True)
            if plan:
                return {}
            worth = worth_of(workspace, objective, labels, explorer)

            def explore(model: Believer) -> np.ndarray:
                learn()
                return explorer.candidates(model)

            loop = loop_of(ready, workspace, objective, labels, explore, aim, worth)
            model, reports = loop.run(limits, log)
        learn()
        report = loop.report(aim, reports)
        print(table_of_rounds(report, objective.fidelity))
    else:
        model = predictor_of(predictor, workspace, objective)
    front = {
        "schema": FRONT.schema,
        **about_of(workspace, objective),
        **explorer.search(model),
        "fidelity": objective.fidelity,
        "constraints": constraints.to_json(),
        "evaluations": evaluations,
        "seed": seed,
        "rounds": report,
        "provenance": provenance(),
    }
    FRONT.write(workspace.path(f"search/{workspace.space_name}.json"), front)
    print_front(front)
    track(log, "search", workspace.store, workspace.space_name, workspace.model.full_bits)
    return front


def about_of(workspace: Workspace, objective: Objective) -> dict[str, Any]:
    """What a front or a journal is of.

    Args:
        workspace: model and space.
        objective: that is maximized.
    """
    return {
        "denoiser": workspace.name,
        "space": workspace.space_name,
        "objective": dict(objective.weights),
    }


def loop_of(
    ready: Session,
    workspace: Workspace,
    objective: Objective,
    labels: Labels,
    explore: Callable[[Believer], np.ndarray],
    aim: float | None,
    worth: Worth | None,
) -> Loop:
    """Put together what rounds need.

    Args:
        ready: the running session.
        workspace: model, space and store, with the predictor.
        objective: that labels measure.
        labels: that the predictor has learned from.
        explore: gives the configurations that a search with a predictor comes by.
        aim: average bits that count; None for the whole front.
        worth: of configurations, if fidelity counts, too.

    Returns:
        The loop.
    """
    from qsdm.measurement.rounds import Loop, region_of

    space = workspace.space
    whole = Problem.of(space, workspace.table)
    valued = labels
    if worth is not None:
        labels = worth.known(labels)
        valued = worth.of_labels(labels)
    return Loop(
        ready,
        objective,
        labels,
        whole,
        region_of(space, whole, valued, aim),
        journal_of(workspace, objective, labels),
        updater(workspace.predictor(objective)),
        explore,
        worth,
    )


def journal_of(workspace: Workspace, objective: Objective, labels: Labels) -> Journal:
    """Find the file of what rounds have proposed.

    Args:
        workspace: model, space and store.
        objective: that is maximized, with its axis of fidelity.
        labels: that the predictor has learned from.
    """
    from qsdm.measurement.rounds import Journal

    return Journal(
        workspace.path(f"search/{workspace.space_name}-rounds.json"),
        {
            **about_of(workspace, objective),
            "fidelity": objective.fidelity,
            "protocol": labels.protocol.digest,
        },
    )


def worth_of(
    workspace: Workspace, objective: Objective, labels: Labels, explorer: Explorer
) -> Worth | None:
    """Measure the tradeoff that rounds look for, on the front that the trained predictor sees.

    Args:
        workspace: model, space and store, with the predictor.
        objective: that is maximized, with its axis of fidelity.
        labels: that the predictor has learned from.
        explorer: searches; it predicts the fidelity.

    Returns:
        What configurations are worth; None without an axis of fidelity.
    """
    from qsdm.measurement.candidates import enough_of
    from qsdm.measurement.worth import Worth

    if (name := objective.fidelity) is None:
        return None
    points = explorer.search(workspace.predictor(objective).predict)["points"]
    protocol, full_bits = labels.protocol, workspace.space.full_bits
    outcomes = workspace.store.outcomes(protocol)
    tradeoff = Tradeoff.of(
        name,
        1 if workspace.model.metrics[name].larger_is_better else -1,
        np.array([point["predicted"] for point in points]),
        np.array([point["metrics"][name] for point in points]),
        enough_of(objective, outcomes, protocol, full_bits),
    )

    def fidelity() -> Metric:
        parts = [metric for metric in explorer.goal.metrics if isinstance(metric, OfPart)]
        return next(part.metric for part in parts if part.name == name)

    return Worth(tradeoff, fidelity)


def print_reach(
    workspace: Workspace, objective: Objective, constraints: Constraints
) -> dict[str, Any]:
    """Print what the constraints leave: the reachable bits and bytes.

    Args:
        workspace: model, space and store.
        objective: that the predictor was trained for.
        constraints: what a configuration must keep.

    Returns:
        What was printed.
    """
    space = workspace.space
    metrics = limited_metrics(workspace, objective, constraints)
    table = workspace.table if metrics else None
    held = held_by(constraints.target, space.graph)
    result, lines = reachable(space, table, constraints, held, metrics)
    print("\n".join(lines))
    return result


def aim_of(constraints: Constraints, space: Space, avg_bits: float | None) -> float | None:
    """Choose the bits that rounds aim at.

    Args:
        constraints: with the budget.
        space: as the constraints leave it.
        avg_bits: as it was given; None for the budget.

    Returns:
        The smaller of both; None without either.

    Raises:
        Infeasible: nothing in the space has so few bits.
    """
    num_values = space.graph.num_values
    max_bytes = constraints.max_bytes(num_values)
    of_budget = None if np.isinf(max_bytes) else 8 * max_bytes / num_values
    if avg_bits is None:
        return of_budget
    Constraints(avg_bits=avg_bits).require_reachable(space)
    return avg_bits if of_budget is None else min(of_budget, avg_bits)


def goal_of(
    workspace: Workspace,
    objective: Objective,
    constraints: Constraints,
    restriction: Restriction,
    aim: float | None,
) -> Goal:
    """Learn the metrics that limits and the axis of fidelity need.

    Args:
        workspace: model, space and store.
        objective: that the predictor was trained for.
        constraints: what a configuration must keep.
        restriction: the part of the space that they leave.
        aim: average bits at which the tradeoff matters most; None for no such bits.

    Returns:
        What counts beside the predicted quality.
    """
    num_values = workspace.space.graph.num_values
    axes = (objective.fidelity,) if objective.fidelity else ()
    metrics = list(limited_metrics(workspace, objective, constraints, axes))
    limit = dict(constraints.limit)
    if constraints.tera_bops is not None:  # not learned: they are known
        metrics.append(BitOperations.of(workspace.space))
        limit["tera_bops"] = constraints.tera_bops
    return Goal(
        tuple(OfPart(metric, restriction.whole) for metric in metrics),
        axes,
        limit,
        constraints.max_bytes(num_values),
        np.inf if aim is None else aim * num_values / 8,
    )


def limited_metrics(
    workspace: Workspace, objective: Objective, constraints: Constraints, axes: Sequence[str] = ()
) -> list[Metric]:
    """Make models of the metrics that have a limit, and of axes.

    Args:
        workspace: model, space and store.
        objective: that the predictor was trained for.
        constraints: with the limits.
        axes: names of further metrics; one may have a limit, too.

    Returns:
        A model of each.

    Raises:
        ValueError: a metric is not measured, or the labels do not hold it.
        StoreError: there are no labels, or the adapter was not probed.
    """
    from qsdm.predictor.retention import read_retention

    names = [name for name in (*axes, *constraints.limit) if name != LORA_RETENTION]
    metrics: list[Metric] = [*learned_metrics(workspace, objective, names)]
    if constraints.lora is not None:
        metrics.append(read_retention(workspace, constraints.lora).model(workspace.table))
    return metrics


def learned_metrics(
    workspace: Workspace, objective: Objective, names: Iterable[str]
) -> list[MetricModel]:
    """Learn metrics from the predictor's labels, and tell how well they are predicted.

    Args:
        workspace: model, space and store.
        objective: that the predictor was trained for.
        names: of the metrics; a name may come twice.

    Returns:
        A model of each.

    Raises:
        ValueError: a metric is not measured, or the labels do not hold it.
        StoreError: there are no labels.
    """
    from qsdm.predictor.by_metric import metric_model
    from qsdm.predictor.encode import encode

    models: list[MetricModel] = []
    if not (chosen := dict.fromkeys(names)):
        return models
    measured = workspace.model.metrics
    require_measured(chosen, measured)
    labels, _ = learned_from(workspace, objective)
    bank, table = workspace.bank(), workspace.table
    encoding = encode(workspace.space, table)
    for name in chosen:
        larger = measured[name].larger_is_better
        models.append(metric_model(bank, encoding, table, labels, name, larger))
        print(f"{name}: closed model, srcc {models[-1].srcc:.3f} on left-out labels")
    return models


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


if __name__ == "__main__":
    from qsdm import run

    run.main(search)
