"""Probe each weight: quantize it alone and see what that does.

    python -m qsdm.probe +model=emoji_unet
    python -m qsdm.probe +model=emoji_unet 'methods=[uaq-3,uaq-2]' num_images=64
    python -m qsdm.probe +model=emoji_unet fidelity=drawn num_images=16    # distance of pictures
    python -m qsdm.probe +model=emoji_unet fidelity=forward num_images=16  # draws no picture
    python -m qsdm.probe +model=sdxl metrics=clip max_probes=200           # groups of weights first
    python -m qsdm.probe +model=emoji_unet pairs=8 num_images=256          # two weights at a time
    python -m qsdm.probe +model=emoji_unet pairs=4 pairs_of=blocks num_images=256
    python -m qsdm.probe +model=emoji_unet activations=6 num_images=128    # inputs, role by role
    python -m qsdm.probe +model=emoji_unet plan=true price_per_hour=2.5    # only time and price

Probes predict any configuration without a label, and `qsdm.train` learns from labels what they
missed. They are outcomes like any other: what the same protocol has measured before is skipped, so
a killed run continues where it stopped. Three fidelities, the cheapest first:

- ``forward``: the denoiser's output on recorded inputs, at a few time steps; no picture is drawn
- ``drawn``: distance of pictures to those of full precision with the same noise (LPIPS, features,
  pixels; what the model's metrics offer)
- ``full``: all metrics, the objective's among them; needs more pictures

Of a model of more than ``max_probes`` weights, groups (by stage, role and block) are probed, and
only the most harmful ones are opened.

With ``activations``, weights keep full precision, and the inputs of the layers of one role after
the other are rounded to so many bits: the table tells which inputs cannot bear them, beside the
layers whose inputs have the largest outliers.

With ``pairs``, the trained predictor names pairs of weights or of blocks that may do more or less
harm together than alone, and pictures of both and of each tell whether they do (see
`qsdm.predictor.interactions`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qsdm import run, text
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.outcome import SIGNIFICANT_Z, EvaluationError, Objective, Outcome
from qsdm.predictor.probes import DISTANCES, PAIRS, STAGE, harm_of
from qsdm.qconfig import QuantConfig, QuantMethod, Space
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.measurement.groups import Group
    from qsdm.measurement.session import Session
    from qsdm.metrics import Metric
    from qsdm.outcome import Protocol
    from qsdm.predictor.interactions import Candidate

FIDELITIES = ("forward", "drawn", "full")
CHUNK = 8  # configurations per task of forwards


def probe(
    workspace: Workspace,
    objective: Objective,
    methods: Sequence[str] = ("uaq-3",),
    fidelity: str = "full",
    num_images: int = 32,
    num_steps: int = 3,
    max_probes: int = 200,
    pairs: int = 0,
    pairs_of: str = "weights",
    pairs_by: str = "difference",
    activations: int | None = None,
    seed_set: int = 0,
    batch_size: int = 16,
    engine: Engine = Local(),  # noqa: B008 (a frozen value)
    plan: bool = False,
    price_per_hour: float | None = None,
    log: Log = ignore,
) -> list[Outcome]:
    """Quantize each weight alone, and store what that does.

    Args:
        workspace: model, space and store.
        objective: whose loss is harm; it chooses which groups are opened.
        methods: each weight is probed under each of them, or its substitute where one is not on
            offer.
        fidelity: ``forward``, ``drawn`` or ``full``.
        num_images: drawings of each probe.
        num_steps: time steps at which ``forward`` compares outputs.
        max_probes: number above which groups of weights are probed together.
        pairs: instead of all weights, probe this many pairs under the first method, and both parts
            of each alone.
        pairs_of: ``weights`` or ``blocks``.
        pairs_by: ``difference``, by the predicted excess where all else keeps full precision, or
            ``shapley``, by its average over what else is quantized (needs ``qsdm[shapley]``).
        activations: instead of weights, round the inputs of the layers of each role to this many
            bits, 2 to 8.
        seed_set: which starting noise; labels of the same seed set have the same one.
        batch_size: pictures at a time; halved where memory does not suffice.
        engine: where workers run.
        plan: only print what is missing and how long it takes.
        price_per_hour: of one worker, in any currency; for the plan.
        log: receives the metrics of every probe.

    Returns:
        The outcomes of the probes, or of the pairs; with ``plan`` those that were measured before.

    Raises:
        StoreError: the model is not traced or not calibrated, or the store cannot be written; for
            pairs, no predictor was trained.
        EvaluationError: a probe has no outcome.
        ValueError: a value is out of range, or an optional package is missing.
    """
    from qsdm.denoisers import prompts_of
    from qsdm.measurement.groups import next_groups
    from qsdm.measurement.inputs import by_role
    from qsdm.measurement.protocol import protocol_of
    from qsdm.measurement.session import open_session
    from qsdm.predictor.interactions import blocks, candidates
    from qsdm.report.tracked import track

    require(1, MANY, num_steps=num_steps, max_probes=max_probes, batch_size=batch_size)
    require(2, MANY, num_images=num_images)
    require(0, MANY, pairs=pairs)
    require(0, price_per_hour=price_per_hour)
    require(2, 8, activations=activations)
    if fidelity not in FIDELITIES:
        raise ValueError(f"fidelity must be one of {', '.join(FIDELITIES)} (got {fidelity!r})")
    chosen = [QuantMethod.parse(method) for method in methods]
    if not chosen:
        raise ValueError("methods must name at least one method, as [uaq-3]")
    space = workspace.space
    grouped = len(space.graph.weights) > max_probes
    if grouped and len(chosen) > 1:
        raise ValueError(
            f"groups of weights are probed under one method (got {len(chosen)}): give one, "
            f"or max_probes={len(space.graph.weights)}"
        )
    if fidelity != "full":
        nearness = nearness_of(workspace.model.metrics) if fidelity == "drawn" else {}
        workspace = replace(workspace, model=replace(workspace.model, metrics=nearness))
    if pairs and fidelity != "full":
        raise ValueError(
            f"pairs are measured by the objective (got fidelity={fidelity}): distances of pictures "
            "do not add up; give fidelity=full"
        )
    if pairs_of not in ("weights", "blocks"):
        raise ValueError(f"pairs_of must be weights or blocks (got {pairs_of!r})")
    roles: dict[str, QuantConfig] = {}
    if activations is not None:
        if pairs:
            raise ValueError(
                f"activations are probed role by role, not in pairs (got pairs={pairs}): give one "
                "of both"
            )
        roles = {
            role: QuantConfig(space.graph.denoiser, {}, None, dict.fromkeys(names, activations))
            for role, names in by_role(space.graph).items()
        }
    proposed: list[Candidate] = []
    if pairs:
        groups = blocks(space.graph) if pairs_of == "blocks" else None
        predictor = workspace.predictor(objective)
        proposed = candidates(predictor, space.uniform(chosen[0]), pairs, groups, pairs_by)
    harm: dict[Group, float] = {}
    outcomes: list[Outcome] = []
    with open_session(workspace, Serial() if plan else engine, batch_size) as ready:
        if fidelity == "full":
            protocol = ready.protocol(seed_set, num_images)
        else:  # needs no metrics of the model
            protocol = protocol_of(ready.model, prompts_of(ready.model), seed_set, num_images)
        steps = num_steps if fidelity == "forward" else None
        if roles:
            qconfigs = list(roles.values())
            tell_plan(ready, qconfigs, protocol, steps, engine.num_workers, price_per_hour)
            if not plan:
                found, full = measured(ready, qconfigs, protocol, steps, log)
                measure = objective if fidelity == "full" else distance_in(found[0].metrics)
                print_roles(roles, [harm_of(outcome, full, measure) for outcome in found])
                print_outliers(ready, protocol, num_steps)
            before = {o.qconfig.digest: o for o in ready.store.outcomes(protocol)}
            return [before[q.digest] for q in qconfigs if q.digest in before]
        if proposed:
            both = [together(space, sum(pair.groups, ()), chosen[0]) for pair in proposed]
            parts = [group for pair in proposed for group in pair.groups]
            alone = [together(space, part, chosen[0]) for part in dict.fromkeys(parts)]
            tell_plan(ready, [*alone, *both], protocol, None, engine.num_workers, price_per_hour)
            if not plan:
                measured(ready, alone, protocol, None, log)
                ready.measure(both, protocol, PAIRS, log)
                print_pairs(ready.store.outcomes(protocol), objective, proposed)
            before = {o.qconfig.digest: o for o in ready.store.outcomes(protocol)}
            return [before[q.digest] for q in both if q.digest in before]
        while groups := next_groups(space.graph, max_probes, harm):
            qconfigs = [together(space, group, method) for method in chosen for group in groups]
            tell_plan(ready, qconfigs, protocol, steps, engine.num_workers, price_per_hour)
            if plan:
                if grouped:
                    print(f"and up to {max_probes - len(groups)} parts of the most harmful groups")
                before = {o.qconfig.digest: o for o in ready.store.outcomes(protocol)}
                return [before[q.digest] for q in qconfigs if q.digest in before]
            found, full = measured(ready, qconfigs, protocol, steps, log)
            outcomes += found
            measure = objective if fidelity == "full" else distance_in(found[0].metrics)
            harm |= {
                group: harm_of(outcome, full, measure)[0]
                for group, outcome in zip(groups, found, strict=False)  # under the first method
            }
            if not grouped:
                break
    print_harm(harm)
    track(log, "probe", workspace.store, workspace.space_name, workspace.model.full_bits)
    return outcomes


def print_roles(roles: Mapping[str, QuantConfig], harms: Sequence[tuple[float, float]]) -> None:
    """Print what rounding the inputs of each role does, the most harmful first.

    Args:
        roles: the configurations by role.
        harms: of each, with their paired standard errors.
    """
    rows = [
        [
            role,
            str(len(qconfig.inputs)),
            f"{harm:+.4g} ± {error:.2g}",
            "no harm seen" if harm <= SIGNIFICANT_Z * error else "suffers",
        ]
        for (role, qconfig), (harm, error) in sorted(
            zip(roles.items(), harms, strict=True), key=lambda pair: -pair[1][0]
        )
    ]
    print(text.table(["inputs of", "weights", "harm", ""], rows, are_texts=True))


def print_outliers(ready: Session, protocol: Protocol, num_steps: int, rows: int = 8) -> None:
    """Record inputs, and print the layers with the largest outliers.

    Args:
        ready: the running session.
        protocol: of the drawings.
        num_steps: time steps whose inputs are recorded.
        rows: number of lines.

    Raises:
        EvaluationError: the inputs cannot be recorded.
    """
    from qsdm.engine import Failure
    from qsdm.measurement.inputs import InputsTask

    [(_, ratios)] = ready.pool.map([InputsTask(protocol, num_steps)])
    if isinstance(ratios, Failure):
        raise EvaluationError(f"the inputs of layers cannot be recorded: {ratios.reason}")
    pairs = zip(ready.space.graph.weights, ratios.tolist(), strict=True)
    finite = [(ratio, weight.name) for weight, ratio in pairs if math.isfinite(ratio)]
    print("layers whose input has the largest outliers, over its standard deviation:")
    for ratio, name in sorted(finite, reverse=True)[:rows]:
        print(f"{ratio:>12.1f}  {name}")


def print_pairs(
    outcomes: Sequence[Outcome], objective: Objective, proposed: Sequence[Candidate]
) -> None:
    """Print measured pairs, the greatest excess first.

    Args:
        outcomes: of one protocol.
        objective: whose loss is harm.
        proposed: the pairs that were proposed, with their predicted excess.
    """
    from qsdm.predictor.interactions import interactions_of

    predicted = {frozenset(pair.groups): pair.excess for pair in proposed}
    rows = []
    for one in interactions_of(outcomes, objective):
        if (excess := predicted.get(frozenset(one.groups))) is not None:
            verdict = "more" if one.excess > 0 else "less"
            rows.append(
                [
                    " + ".join(map(called, one.groups)),
                    *one.harms,
                    one.joint,
                    f"{one.excess:+.1f} ± {one.standard_error:.1f}",
                    f"{excess:+.1f}",
                    verdict if one.is_confirmed else "not told apart from the sum",
                ]
            )
    heads = [PAIRS, "harm", "harm", "of both", "beyond the sum", "predicted", "together"]
    print(text.table(heads, rows, ".1f"))


def together(space: Space, group: Group, method: QuantMethod) -> QuantConfig:
    """Quantize a group of weights; all others keep full precision.

    Args:
        space: of the weights.
        group: their names.
        method: for each of them, or its substitute where it is not on offer.

    Returns:
        The configuration.

    Raises:
        OutsideSpace: no method of these bits is on offer.
    """
    uniform = space.uniform(method).methods
    return QuantConfig(space.graph.denoiser, {name: uniform[name] for name in group})


def nearness_of(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Select metrics that compare each picture with that of full precision.

    Args:
        metrics: of the model, by name.

    Returns:
        Those of them that compare; PSNR if there is none.
    """
    from qsdm.metrics.fidelity import Psnr

    found = {name: metric for name, metric in metrics.items() if name in DISTANCES}
    return found or {"psnr": Psnr()}


def distance_in(metrics: Mapping[str, float | None]) -> str:
    """Name the best distance to full precision among metrics.

    Args:
        metrics: of a probe.

    Raises:
        EvaluationError: there is none.
    """
    for name in DISTANCES:
        if metrics.get(name) is not None:
            return name
    raise EvaluationError(f"a probe has no distance to full precision (got {', '.join(metrics)})")


def tell_plan(
    ready: Session,
    qconfigs: Sequence[QuantConfig],
    protocol: Protocol,
    steps: int | None,
    num_workers: int | None,
    price_per_hour: float | None,
) -> None:
    """Print what is going to be drawn, or how many forwards are going to be run.

    Args:
        ready: the running session.
        qconfigs: the probes.
        protocol: of their pictures.
        steps: time steps of forwards; None if pictures are drawn.
        num_workers: of the engine.
        price_per_hour: of one worker.
    """
    from qsdm.measurement.plan import History, plan_of
    from qsdm.measurement.session import full_name

    if steps is not None:
        missing = missing_forwards(ready, qconfigs, protocol, steps)
        print(
            f"plan: {len(missing):,} probes x {steps} time steps = {len(missing) * steps:,} "
            f"forwards of {protocol.num_images} drawings; no picture",
            flush=True,
        )
        return
    history = History(ready.store.outcomes(), ready.store.protocols())
    has_full = ready.store.path(full_name(protocol)).exists()
    full = QuantConfig(ready.model.name, {})
    planned = plan_of(history, [full, *qconfigs], protocol, ready.versions, has_full)
    planned = replace(planned, num_workers=num_workers, price_per_hour=price_per_hour)
    print(planned, flush=True)


def measured(
    ready: Session,
    qconfigs: Sequence[QuantConfig],
    protocol: Protocol,
    steps: int | None,
    log: Log,
) -> tuple[list[Outcome], Outcome | None]:
    """Measure probes, or read those that were measured before.

    Args:
        ready: the running session.
        qconfigs: the probes.
        protocol: of their pictures.
        steps: time steps of forwards; None if pictures are drawn.
        log: receives the metrics of every probe.

    Returns:
        Their outcomes in order, and that of full precision; None for forwards.

    Raises:
        EvaluationError: a probe has no outcome.
    """
    if steps is None:
        full = QuantConfig(ready.model.name, {})
        done = ready.measure([full, *qconfigs], protocol, STAGE, log=log)
        return [done.of(qconfig) for qconfig in qconfigs], done.of(full)
    return run_forwards(ready, qconfigs, protocol, steps, log), None


def missing_forwards(
    ready: Session, qconfigs: Sequence[QuantConfig], protocol: Protocol, steps: int
) -> list[QuantConfig]:
    """List probes whose outputs were not compared yet.

    Args:
        ready: the running session.
        qconfigs: the probes.
        protocol: of their drawings.
        steps: time steps.
    """
    from qsdm.measurement.forward import METRIC, version

    known = {
        outcome.qconfig.digest
        for outcome in ready.store.outcomes(protocol)
        if not outcome.lacks({METRIC: version(steps)})
    }
    return [qconfig for qconfig in qconfigs if qconfig.digest not in known]


def run_forwards(
    ready: Session, qconfigs: Sequence[QuantConfig], protocol: Protocol, steps: int, log: Log
) -> list[Outcome]:
    """Compare outputs, and store each probe as soon as a worker returns it.

    Args:
        ready: the running session.
        qconfigs: the probes.
        protocol: of their drawings.
        steps: time steps.
        log: receives the errors.

    Returns:
        The outcomes, in order.

    Raises:
        EvaluationError: a probe's output is not finite.
    """
    from tqdm import tqdm

    from qsdm.engine import Failure
    from qsdm.measurement.forward import METRIC, ForwardTask, outcome_of
    from qsdm.store.outcomes import OutcomeDatabase

    missing = missing_forwards(ready, qconfigs, protocol, steps)
    if missing:
        database = OutcomeDatabase(ready.store.path("outcomes.sqlite"))
        tasks = [
            ForwardTask(tuple(missing[i : i + CHUNK]), protocol, steps)
            for i in range(0, len(missing), CHUNK)
        ]
        with tqdm(desc=STAGE, total=len(missing), disable=None, unit="probe") as bar:
            for i, result in ready.pool.map(tasks):
                if isinstance(result, Failure):
                    raise EvaluationError(f"a probe has no outcome: {result.reason}")
                for qconfig, errors in zip(tasks[i].qconfigs, result, strict=True):
                    outcome = outcome_of(qconfig, protocol, errors, steps, STAGE)
                    database.add(outcome, protocol)
                    log({f"{STAGE}/{METRIC}": outcome.metrics[METRIC]})
                    bar.update()
    by_digest = {outcome.qconfig.digest: outcome for outcome in ready.store.outcomes(protocol)}
    return [by_digest[qconfig.digest] for qconfig in qconfigs]


def print_harm(harm: Mapping[Group, float], rows: int = 12) -> None:
    """Print the most harmful probes.

    Args:
        harm: by group of weights.
        rows: number of lines.
    """
    ordered = sorted(harm.items(), key=lambda pair: -pair[1])
    print(f"{len(ordered)} probes; the most harmful of them:")
    for group, loss in ordered[:rows]:
        print(f"{loss:>12.4g}  {called(group)}")


def called(group: Group) -> str:
    """Name a group of weights.

    Args:
        group: their names.
    """
    return group[0] + (f" and {len(group) - 1} more" if len(group) > 1 else "")


if __name__ == "__main__":
    run.main(probe)
