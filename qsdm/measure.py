"""Draw pictures under random configurations and score them.

    python -m qsdm.measure +model=emoji_unet num_configs=80
    python -m qsdm.measure +model=emoji_unet configs=FILE     # these instead of random ones
    python -m qsdm.measure +model=emoji_unet seed_set=1       # the same ones with other noise
    python -m qsdm.measure +model=emoji_unet alone=uaq-3      # each weight alone, others unchanged
    python -m qsdm.measure +model=emoji_unet num_configs=60 activations=[16,8,6]  # inputs rounded
    python -m qsdm.measure +model=emoji_unet num_configs=60 seed=1 test=true   # a test set
    python -m qsdm.measure +model=emoji_unet plan=true price_per_hour=2.5      # only time and price

Configurations that the same protocol has measured before are skipped, so a killed run continues
where it stopped. Picture i of all configurations has the same caption and starting noise.

With ``activations``, the first random configurations are measured again with the input of each
layer rounded to one of these widths by chance. What that adds to the same weights is what their
inputs suffer (`qsdm.predictor.rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsdm import run, text
from qsdm.denoisers import require_one_part
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.outcome import EvaluationError, Outcome
from qsdm.qconfig import QuantConfig, Space
from qsdm.qconfig.cost import avg_bits
from qsdm.store import StoreError
from qsdm.store.files import read_json
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

_GOLDEN = (5**0.5 - 1) / 2

if TYPE_CHECKING:
    from qsdm.engine import Engine


@takes_workspace("model", "space", "store", "num_configs")
def measure(
    workspace: Workspace,
    num_configs: int = 80,
    configs: Path | None = None,
    alone: str | None = None,
    activations: Sequence[int] = (),
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
    """Measure random configurations, or those in a file, and full precision.

    Args:
        workspace: model, space and store.
        num_configs: number of random configurations to measure, including those in the store.
        configs: JSON with a configuration, a list of them, or what `search` wrote.
        alone: a method, such as uaq-3: measure each weight with it while all others keep full
            precision, instead of random configurations.
        activations: bits of layers' inputs, 2 to 8 and 16, as [16,8,6]: each layer of a random
            configuration rounds its input to one of them.
        test: store the outcomes as a test set, on which `train` reports and never trains; choose
            another seed than that of the labels.
        num_images: pictures per configuration.
        seed_set: which starting noise; pictures of two seed sets have only the captions in common.
        seed: of the random configurations; two runs with the same seed begin with the same ones.
        batch_size: pictures at a time; halved where memory does not suffice. On CPUs 16 are faster
            than 64, which do not fit into the caches.
        shard: pictures per task: a configuration of more pictures is drawn by several workers, and
            a killed run continues within it.
        engine: where workers run.
        plan: only print what is missing, how long it takes and how much memory the pipeline needs.
        price_per_hour: of one worker, in any currency; for the plan.
        log: receives the metrics of every outcome.

    Returns:
        The outcomes of the configurations in their order, without those that were set aside; with
        ``plan`` those that were measured before.

    Raises:
        StoreError: the model is not traced or not calibrated, or the store cannot be written.
        EvaluationError: no configuration has an outcome.
        ValueError: a value is out of range.

    Example:
        >>> import qsdm
        >>> from qsdm.engine.serial import Serial
        >>> from qsdm.measure import measure
        >>> emoji = qsdm.open("emoji_unet")
        >>> (outcome,) = measure(emoji, num_configs=1, num_images=8, engine=Serial())
        >>> outcome.num_images, "fd_lite0" in outcome.metrics
        (8, True)
    """
    from qsdm.measurement.memory import memory_of
    from qsdm.measurement.plan import plan_session
    from qsdm.measurement.rounded import random_widths, read_widths
    from qsdm.measurement.session import open_session
    from qsdm.report.tracked import track

    require(1, MANY, num_configs=num_configs, batch_size=batch_size, shard=shard)
    require(2, MANY, num_images=num_images)
    require(0, price_per_hour=price_per_hour)
    widths = read_widths(activations)
    if widths:
        require_one_part(workspace.model, "activations are measured in")
        if configs is not None or alone is not None:
            raise ValueError(
                f"random configurations get random activations (got {list(widths)} with configs or "
                "alone): leave activations out, or these"
            )
    listed = None if configs is None else read_configs(configs)
    if listed is not None:
        chosen = listed
    elif alone is not None:
        chosen = one_by_one(workspace.space, alone)
    else:
        chosen = sample(workspace.space, num_configs, seed)
    if widths:
        chosen = random_widths(workspace.space.graph, chosen, widths, seed)
    # A plan starts no workers.
    with open_session(workspace, Serial() if plan else engine, batch_size, shard=shard) as ready:
        protocol = ready.protocol(seed_set, num_images)
        full = QuantConfig(workspace.name, {})
        planned = plan_session(ready, [full, *chosen], protocol)
        planned = replace(planned, num_workers=engine.num_workers, price_per_hour=price_per_hour)
        print(planned, flush=True)
        if plan or planned.num_pictures:
            quantized = [qconfig for qconfig in chosen if not qconfig.is_full]
            memory = memory_of(ready.model, ready.space.graph, quantized)
            print(memory.line(ready.batch_size), flush=True)
        if plan:
            by_digest = {o.qconfig.digest: o for o in ready.store.outcomes(protocol)}
            return [by_digest[q.digest] for q in chosen if q.digest in by_digest]
        measured = ready.measure([full, *chosen], protocol, "test" if test else "measure", log=log)
    outcomes = [
        measured.outcomes[qconfig.digest]
        for qconfig in chosen
        if qconfig.digest in measured.outcomes
    ]
    if not outcomes:
        reason = next(iter(measured.failures.values()))
        raise EvaluationError(f"no configuration has an outcome: {reason}")
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
        num = len(measured.failures)
        print(f"{num} configurations were set aside and have no outcome: {named}")
    track(log, "measure", workspace.store, workspace.space_name, workspace.model.full_bits)
    return outcomes


def sample(space: Space, num_configs: int, seed: int) -> list[QuantConfig]:
    """Draw distinct random configurations; a larger number begins with those of a smaller one.

    Their targets of average bits follow the golden ratio's sequence, so any number of them is
    spread evenly over the space's range.

    Args:
        space: of the configurations.
        num_configs: how many.
        seed: of the random numbers.

    Returns:
        The configurations.

    Raises:
        ValueError: the space holds fewer.
    """
    rng = np.random.default_rng(seed)
    start = rng.random()
    distinct: dict[str, QuantConfig] = {}
    for i in range(100 * num_configs):
        qconfig = space.sample(rng, (start + i * _GOLDEN) % 1)
        distinct.setdefault(qconfig.digest, qconfig)
        if len(distinct) == num_configs:
            return list(distinct.values())
    raise ValueError(
        f"the space holds about {len(distinct)} configurations (wanted {num_configs}): "
        "give a smaller num_configs"
    )


def one_by_one(space: Space, method: str) -> list[QuantConfig]:
    """Quantize each weight alone; all others keep full precision.

    Args:
        space: of the weights.
        method: for every weight, or its substitute where it is not on offer.

    Returns:
        One configuration per weight.

    Raises:
        OutsideSpace: no method of these bits is on offer.
    """
    uniform = space.uniform(method).methods
    return [QuantConfig(space.graph.denoiser, {name: chosen}) for name, chosen in uniform.items()]


def read_configs(path: Path) -> list[QuantConfig]:
    """Read configurations from a JSON file.

    Args:
        path: of a file with one, a list of them, or what `search` wrote.

    Returns:
        The configurations.

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
        qconfigs = [QuantConfig.from_json(entry.get("qconfig", entry)) for entry in data]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} holds no configurations ({error}): give a list of them, or what search wrote"
        ) from error
    if not qconfigs:
        raise StoreError(f"{path} holds an empty list of configurations")
    return qconfigs


def table(space: Space, rows: Sequence[tuple[str, Outcome]]) -> str:
    """Format average bits and metrics, one line per outcome; of many the first and the last.

    Args:
        space: whose weights are counted.
        rows: label and outcome of each line.
    """
    names = list(rows[0][1].metrics)
    cells = [
        [
            label,
            avg_bits(space.graph, outcome.qconfig, space.full_bits),
            *(outcome.metrics.get(name) for name in names),
        ]
        for label, outcome in (rows if len(rows) <= 24 else [*rows[:12], *rows[-12:]])
    ]
    lines = text.table(["configuration", "bits", *names], cells).splitlines()
    if len(rows) > 24:
        lines.insert(13, f"... {len(rows) - 24} more")
    return "\n".join(lines)


def histogram(bits: Sequence[float], num_bins: int = 10) -> str:
    """Format how many configurations have how many average bits, one line per bin.

    Args:
        bits: average bits of each configuration.
        num_bins: number of lines.
    """
    counts, edges = np.histogram(bits, num_bins)
    lines = [
        f"{low:>7.3f} to {high:.3f} bits {count:>5} {'█' * round(40 * count / counts.max())}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run.main(measure)
