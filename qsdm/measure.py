"""Random configurations generate real pictures, which are scored.

    python -m qsdm.measure +model=emoji_unet num_configs=80
    python -m qsdm.measure +model=emoji_unet configs=FILE          # these instead of random ones
    python -m qsdm.measure +model=emoji_unet seed_set=1            # the same configurations with other noise
    python -m qsdm.measure +model=emoji_unet alone=uaq-3           # each weight alone, all others in full precision
    python -m qsdm.measure +model=emoji_unet num_configs=60 seed=1 test=true    # to judge predictors, never to train
    python -m qsdm.measure +model=emoji_unet plan=true price_per_hour=2.5       # how long, how much; nothing is drawn

What the same protocol has measured before is skipped, so a killed run goes on where it was. Picture i of all
configurations has the same caption and starting noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import run
from qsdm.bounds import MANY, require
from qsdm.cost import avg_bits
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.log import Log, ignore
from qsdm.outcome import EvaluationError, Outcome
from qsdm.qconfig import QuantConfig, Space
from qsdm.store import StoreError
from qsdm.store.files import read_json
from qsdm.workspace import Workspace, takes_workspace

_GOLDEN = (5**0.5 - 1) / 2

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.measurement.session import Session
    from qsdm.outcome import Protocol


@takes_workspace("model", "space", "store", "num_configs")
def measure(
    workspace: Workspace,
    num_configs: int = 80,
    configs: Path | None = None,
    alone: str | None = None,
    test: bool = False,
    num_images: int = 256,
    seed_set: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    shard: int = 1024,
    engine: Engine = Local(),  # noqa: B008 (a frozen value)
    plan: bool = False,
    price_per_hour: float | None = None,
    log: Log = ignore,
) -> list[Outcome]:
    """Outcomes of random configurations, or of those in a file, and of full precision.

    Args:
        workspace: model, space and store.
        num_configs: random configurations that the protocol shall have outcomes of.
        configs: JSON with a configuration, a list of them, or what `search` wrote.
        alone: a method, such as uaq-3: measure each weight with it while all others keep full precision, instead of
            random configurations.
        test: store the outcomes as a test set, on which `train` reports and never trains; take another seed than that
            of the labels.
        num_images: per configuration.
        seed_set: which starting noise; pictures of two seed sets have nothing in common but the captions.
        seed: of the random configurations; the first ones of two runs with the same seed are the same.
        batch_size: pictures at a time; halved where memory does not suffice. On CPUs 16 are drawn faster than 64: more
            leave the caches.
        shard: pictures per task: a configuration of more is drawn by several workers, and a killed run goes on within
            it.
        plan: print what is missing, how long it takes and what the pipeline weighs, and stop.
        price_per_hour: of one worker, in any currency; for the plan.

    Returns:
        The outcomes of the configurations in their order, without those that were set aside; of a plan, those that are
        there already.

    Raises:
        StoreError: the model is not traced or not calibrated, or the store cannot be written.
        EvaluationError: no configuration has an outcome.
        ValueError: a value is out of range.
    """
    from qsdm.measurement.session import open_session

    require(1, MANY, num_configs=num_configs, batch_size=batch_size, shard=shard)
    require(2, MANY, num_images=num_images)
    require(0, price_per_hour=price_per_hour)
    given = None if configs is None else read_configs(configs)
    # A plan starts no workers.
    with open_session(workspace, Serial() if plan else engine, batch_size, shard=shard) as ready:
        if given is not None:
            chosen = given
        elif alone is not None:
            chosen = one_by_one(ready.space, alone)
        else:
            chosen = sample(ready.space, num_configs, seed)
        protocol = ready.protocol(seed_set, num_images)
        full = QuantConfig(workspace.name, {})
        tell_plan(ready, [full, *chosen], protocol, engine, price_per_hour, plan)
        if plan:
            known = {outcome.qconfig.digest: outcome for outcome in ready.store.outcomes(protocol)}
            return [known[qconfig.digest] for qconfig in chosen if qconfig.digest in known]
        measured = ready.measure([full, *chosen], protocol, "test" if test else "measure", log=log)
    outcomes = [
        measured.outcomes[qconfig.digest]
        for qconfig in chosen
        if qconfig.digest in measured.outcomes
    ]
    if not outcomes:
        raise EvaluationError(
            f"no configuration has an outcome: {next(iter(measured.failures.values()))}"
        )
    rows = [(outcome.qconfig.digest[:12], outcome) for outcome in outcomes]
    if full.digest in measured.outcomes:
        rows.insert(0, ("fp", measured.outcomes[full.digest]))
    print(table(ready.space, rows))
    if alone is None and len(outcomes) >= 10:
        print(
            histogram(
                [avg_bits(ready.space.graph, o.qconfig, ready.space.full_bits) for o in outcomes]
            )
        )
    if measured.failures:
        named = ", ".join(digest[:12] for digest in measured.failures)
        print(
            f"{len(measured.failures)} configurations were set aside and have no outcome: {named}"
        )
    return outcomes


def tell_plan(
    ready: Session,
    wanted: Sequence[QuantConfig],
    protocol: Protocol,
    engine: Engine,
    price: float | None,
    whole: bool,
) -> None:
    """Print what is going to be drawn, and what the pipeline weighs.

    Args:
        price: see `measure`.
        whole: also if nothing is missing.
    """
    from qsdm.measurement import memory
    from qsdm.measurement.plan import plan_of
    from qsdm.measurement.session import full_name

    has_full = ready.store.path(full_name(protocol)).exists()
    outcomes, protocols = ready.store.outcomes(), ready.store.protocols()
    plan = plan_of(
        wanted, protocol, outcomes, protocols, has_full, ready.versions, engine.num_workers, price
    )
    print(plan, flush=True)
    if whole or plan.num_pictures:
        weighed = [qconfig for qconfig in wanted if qconfig.methods]
        print(
            memory.memory_of(ready.model, ready.space.graph, weighed).line(ready.batch_size),
            flush=True,
        )


def sample(space: Space, num_configs: int, seed: int) -> list[QuantConfig]:
    """Distinct random configurations; those of a smaller number are the first of a larger one.

    Their targets of average bits follow the golden ratio's sequence, so any number of them spreads evenly over the
    space's range.

    Raises:
        ValueError: the space holds fewer.
    """
    rng = np.random.default_rng(seed)
    start = rng.random()
    found: dict[str, QuantConfig] = {}
    for i in range(100 * num_configs):
        qconfig = space.sample(rng, (start + i * _GOLDEN) % 1)
        found.setdefault(qconfig.digest, qconfig)
        if len(found) == num_configs:
            return list(found.values())
    raise ValueError(
        f"the space holds about {len(found)} configurations (wanted {num_configs}): give a smaller num_configs"
    )


def one_by_one(space: Space, method: str) -> list[QuantConfig]:
    """Each weight alone with a method, or with what takes its place where it is not on offer; the others keep full
    precision.

    Raises:
        OutsideSpace: no method of these bits is on offer.
    """
    uniform = space.uniform(method).methods
    return [QuantConfig(space.graph.denoiser, {name: chosen}) for name, chosen in uniform.items()]


def read_configs(path: Path) -> list[QuantConfig]:
    """Configurations of a JSON file: one, a list, or the points of a front.

    Raises:
        StoreError: there are none in it.
    """
    if not path.is_file():
        raise StoreError(
            f"no file {path}: give configs=FILE with configurations, or what search wrote"
        )
    data = read_json(path)
    if isinstance(data, dict):
        data = data.get("points", [data])
    try:
        found = [QuantConfig.from_json(entry.get("qconfig", entry)) for entry in data]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} holds no configurations ({error}): give a list of them, or what search wrote"
        ) from error
    if not found:
        raise StoreError(f"{path} holds an empty list of configurations")
    return found


def table(space: Space, rows: Sequence[tuple[str, Outcome]]) -> str:
    """Average bits and metrics, one line per outcome; of many the first and the last."""
    names = list(rows[0][1].metrics)
    widths = [max(12, len(name) + 2) for name in names]
    lines = [
        f"{'configuration':<14}{'bits':>8}"
        + "".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
    ]
    for label, outcome in rows if len(rows) <= 24 else [*rows[:12], *rows[-12:]]:
        values: list[Any] = [outcome.metrics.get(name) for name in names]
        cells = "".join(
            f"{'-':>{w}}" if value is None else f"{value:>{w}.4f}"
            for value, w in zip(values, widths, strict=True)
        )
        lines.append(
            f"{label:<14}{avg_bits(space.graph, outcome.qconfig, space.full_bits):>8.4f}{cells}"
        )
    if len(rows) > 24:
        lines.insert(13, f"... {len(rows) - 24} more")
    return "\n".join(lines)


def histogram(bits: Sequence[float], num_bins: int = 10) -> str:
    """How many configurations have how many average bits: one line per bin."""
    counts, edges = np.histogram(bits, num_bins)
    lines = [
        f"{low:>7.3f} to {high:.3f} bits {count:>5} {'█' * round(40 * count / counts.max())}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run.main(measure)
