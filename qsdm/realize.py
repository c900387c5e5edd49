"""Measure the best configurations of the search, choose one and compare it with others.

    python -m qsdm.realize +model=emoji_unet
    python -m qsdm.realize +model=emoji_unet budget.avg_bits=3.25 candidates=12
    python -m qsdm.realize +model=emoji_unet budget.size_bytes=1.6e6 limit.psnr=26
    python -m qsdm.realize +model=emoji_unet lora=FILE limit.lora_retention=0.9
    python -m qsdm.realize +model=emoji_unet activations=[8,16,6]    # and inputs of layers rounded
    python -m qsdm.realize +model=emoji_unet steps=true    # after probe steps=5

The front's best predicted points within the budget are measured under the protocol of the labels.
Of them and of what the search's rounds have measured, the one with the best objective that keeps
the limits is chosen, or, if the objective has an axis of fidelity, the knee of both. Being chosen
by what it measured flatters it. So it is measured again on fresh seeds, which no choice has seen,
beside full precision, every uniform configuration, and random ones of its size; differences are
paired (the same captions and noise). What the store holds of these is not measured again: random
configurations of a test set on the fresh seeds serve as random ones.

With ``activations``, the chosen configuration and the best uniform one of each width are measured
with their activations rounded, too, on the same captions and noise; the checkpoint's layers round
their inputs to the first of these widths.

With ``steps``, pairs of the front's points are measured as well, of which the larger applies in the
bins of the sampler's steps that suffer most, and whose mean bits over the steps keep the budget of
bits (`qsdm.measurement.bins`). The best of them is a row of its own beside the chosen one, and the
checkpoint holds both of its versions, which takes more bytes than one. ``chosen-steps.json`` is
this configuration.

Writes ``summary.json`` (measured values only), ``chosen.json`` (the configuration), ``checkpoint/``
(the pipeline with its denoiser packed, see `qsdm.checkpoint.load_quantized`, and a model card),
``pictures/*.png`` and ``report.html``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import run, text
from qsdm.denoisers import require_one_part
from qsdm.engine.local import Local
from qsdm.graph import canonical
from qsdm.metrics import description
from qsdm.outcome import Objective, Outcome, require_measured
from qsdm.qconfig import OutsideSpace, QuantConfig, Space, cost
from qsdm.report.summary import STEPPED
from qsdm.store import StoreError, memo
from qsdm.store.provenance import provenance
from qsdm.store.schemas import CHOSEN, CHOSEN_STEPS, FRONT, REPORT, SUMMARY
from qsdm.strategies.constraints import Constraints, read_budget, with_bytes
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.measurement.bins import Suffering
    from qsdm.measurement.session import Measured, Session
    from qsdm.outcome import Protocol

NUM_SHOWN = 16  # pictures in a grid


@takes_workspace("model", "space", "objective", "store", "avg_bits")
def realize(
    workspace: Workspace,
    objective: Objective,
    budget: Mapping[str, float] | None = None,
    limit: Mapping[str, float] | None = None,
    pin: Mapping[str, str] | Sequence[str] | None = None,
    forbid: Sequence[str] = (),
    target: str | None = None,
    lora: Path | None = None,
    candidates: int = 6,
    num_images: int = 256,
    label_seed_set: int = 0,
    seed_set: int = 1,
    num_random: int = 5,
    seed: int = 0,
    activations: Sequence[int] = (),
    steps: bool = False,
    batch_size: int = 16,
    engine: Engine = Local(),  # noqa: B008 (a frozen value)
    avg_bits: float | None = None,
    log: Log = ignore,
) -> dict[str, Any]:
    """Choose among the front's points by measuring them, and compare the chosen one with others.

    Args:
        workspace: model, space and store.
        objective: by which the best candidate is chosen; with an axis of fidelity, the knee.
        budget: the most that the chosen configuration may take, as budget.size_bytes=1.2e9 or
            budget.avg_bits=3.5, which is the default, and budget.tera_bops=0.5.
        limit: the worst allowed measured value of a metric, as limit.psnr=28.
        pin: method of a weight, or of all that match a pattern, as pin.conv_in=uaq-4.
        forbid: methods that no weight may have, with or without bits, as [uaq-3,kmeans_a].
        target: engine that must hold the result: torchao, gguf, sdnq or qsdm.
        lora: file of the LoRA that limit.lora_retention is about; the candidates' retention is
            measured as probe has measured that of single weights.
        candidates: number of points of the front that are measured, beside what rounds measured.
        num_images: pictures per configuration, in both rounds.
        label_seed_set: starting noise of the first round, that of the labels.
        seed_set: starting noise of the second round.
        num_random: number of random configurations within 1 % of the chosen one's bytes.
        seed: of the random configurations.
        activations: bits of activations to measure, 2 to 8 and 16, as [16,8,6]; the checkpoint has
            the first of them.
        steps: whether to choose a pair of configurations for bins of the sampler's steps as well,
            of the budget's mean bits, and to write the checkpoint with it; probe steps=5 first.
        batch_size: pictures that are drawn at a time.
        engine: where workers run.
        avg_bits: old spelling of budget.avg_bits.
        log: receives the metrics of every outcome, the pictures and the page.

    Returns:
        What summary.json holds.

    Raises:
        StoreError: an earlier stage has not run.
        ValueError: a value is out of range, or the front has nothing that keeps the constraints.
        EvaluationError: a configuration that the table needs cannot be measured.
        NoRoom: memory or disk does not suffice.

    Example:
        >>> import qsdm
        >>> from qsdm.engine.serial import Serial
        >>> from qsdm.outcome import Objective
        >>> from qsdm.realize import realize
        >>> emoji, quality = qsdm.open("emoji_unet"), Objective({"fd_lite0": -1})
        >>> few = {"candidates": 1, "num_random": 0, "num_images": 4, "engine": Serial()}
        >>> summary = realize(emoji, quality, {"avg_bits": 3.5}, **few)
        >>> [row["name"] for row in summary["rows"]][::7]
        ['fp', 'ours']
    """
    from qsdm.measurement import bins
    from qsdm.measurement.candidates import Terms
    from qsdm.measurement.rounded import measure_rounded, read_widths
    from qsdm.measurement.session import open_session
    from qsdm.predictor.retention import read_retention

    widths = read_widths(activations)
    if widths:
        require_one_part(workspace.model, "activations are measured in")
    if lora is not None:
        require_one_part(workspace.model, "a LoRA is of")
    require(1, MANY, candidates=candidates, batch_size=batch_size)
    require(2, MANY, num_images=num_images)
    require(0, MANY, num_random=num_random)
    require(1, avg_bits=avg_bits)
    budget, _ = read_budget(budget, avg_bits=avg_bits)
    constraints = Constraints.of(with_bytes(budget), limit, pin, forbid, target, lora)
    require_fresh(workspace, seed_set, label_seed_set)
    suffering = bins_of(workspace, objective, constraints, widths) if steps else None
    probed = None if lora is None else read_retention(workspace, lora)
    with open_session(workspace, engine, batch_size, check=False) as ready:
        front = ready.store.read(FRONT, f"search/{workspace.space_name}.json")
        retaining = None if probed is None else probed.measuring(ready)
        terms = Terms(ready.space, objective, constraints, workspace.model.metrics, retaining)
        labels = ready.protocol(label_seed_set, num_images)
        require_measured(objective.metrics, ready.model.metrics)
        pairs = None
        if suffering is not None:
            enough = terms.enough(ready.store.outcomes(labels), labels)
            pairs = bins.propose(terms, suffering, front, enough)
        choice = terms.measured_choice(ready, front, labels, candidates, log)
        ours = choice.qconfig
        print(choice.why)
        CHOSEN.write(ready.store.path("chosen.json"), ours.to_json())
        stepped = None
        if pairs is not None:
            pairs = replace(pairs, best=pairs.best[:candidates])
            stepped = bins.measured_choice(ready, terms, pairs, labels, log)
            print(f"in bins of steps, {stepped.why}")
            CHOSEN_STEPS.write(ready.store.path("chosen-steps.json"), stepped.qconfig.to_json())

        fresh = ready.protocol(seed_set, num_images)
        rivals = random_of_size(ready, fresh, ours, num_random, np.random.default_rng(seed))
        rows = compared(ready.space, ours, rivals)
        if stepped is not None:
            rows[STEPPED] = stepped.qconfig
        final = ready.measure(list(rows.values()), fresh, "realize", log)
        summary: dict[str, Any] = {
            "schema": SUMMARY.schema,
            "denoiser": workspace.name,
            "space": workspace.space_name,
            "objective": dict(objective.weights),
            "metrics": {n: description(m) for n, m in workspace.model.metrics.items()},
            "max_avg_bits": 8 * terms.max_bytes / ready.space.graph.num_values,
            "constraints": constraints.to_json(),
            "why": choice.why,
            "num_images": num_images,
            "seed_set": seed_set,
            "label_seed_set": label_seed_set,
            "protocol": fresh.to_json(),
            "rows": [row(ready.space, name, final.of(qconfig)) for name, qconfig in rows.items()],
            "differences": differences(rows, final),
            "candidates": tried(ready.space, choice.candidates),
            "provenance": provenance(),
        }
        stored = ours
        if stepped is not None and suffering is not None:
            stored = stepped.qconfig
            summary["steps"] = {
                "why": stepped.why,
                "bins": bins.chosen_bins(terms, suffering, stored),
                "candidates": tried(ready.space, stepped.candidates),
            }
        if widths:
            weights = {name: rows[name] for name in ("ours", *best_uniform(ready, summary["rows"]))}
            summary["activations"], rounded = measure_rounded(ready, weights, widths, fresh, log)
            stored = ours.with_activations(widths[0])
            final.outcomes.update(rounded.outcomes)
        summary["checkpoint"], memory = checkpoint(
            ready, workspace.packed, fresh, (final.of(stored), final.of(rows["fp"]))
        )
        SUMMARY.write(ready.store.path("summary.json"), summary)
        draw(ready, rows, summary["rows"], fresh)
    finish(ready, summary, memory, log)
    return summary


def require_fresh(workspace: Workspace, seed_set: int, label_seed_set: int) -> None:
    """Check that nothing has learned from the noise of the final table.

    Args:
        workspace: with the predictor, if there is one.
        seed_set: of the final table.
        label_seed_set: of the candidates.

    Raises:
        ValueError: something has.
    """
    if seed_set == label_seed_set:
        raise ValueError(
            f"wanted fresh noise, a seed_set other than label_seed_set (got {seed_set} for both)"
        )
    learned = workspace.path(f"predictor/{workspace.space_name}/report.json")
    if learned.exists() and REPORT.read(learned, workspace.name)["seed_set"] == seed_set:
        raise ValueError(
            f"wanted fresh noise, but the predictor's labels have seed_set={seed_set}: "
            "give another one"
        )


def bins_of(
    workspace: Workspace, objective: Objective, constraints: Constraints, widths: Sequence[int]
) -> list[Suffering]:
    """Read what bins of steps suffer, and refuse what does not go with them.

    Args:
        workspace: whose steps were probed.
        objective: by which configurations are chosen.
        constraints: that they must keep.
        widths: of activations, that are measured.

    Returns:
        The bins.

    Raises:
        ModelError: several parts share a budget.
        StoreError: the steps were not probed.
        ValueError: what is quantized is no denoiser, the axis of fidelity is no distance, a LoRA is
            limited, or activations are rounded.
    """
    from qsdm.measurement.bins import read_bins
    from qsdm.measurement.decibels import PSNR

    require_one_part(workspace.model, "bins of steps are of")
    if not workspace.model.denoisers:
        raise ValueError(
            "bins of steps are those in which a denoiser is called (got "
            f"{workspace.model.component}): leave steps out"
        )
    axis = objective.fidelity
    is_similarity = axis not in (None, PSNR) and workspace.model.metrics[axis].larger_is_better
    for is_given, what, remedy in (
        (is_similarity, f"the axis {axis}, which is no distance,", "the axis psnr"),
        (constraints.lora is not None, "a limit of lora_retention", "no lora"),
        (bool(widths), "rounded activations", "no activations"),
    ):
        if is_given:
            raise ValueError(f"bins of steps are not chosen with {what} yet: give {remedy}")
    return read_bins(workspace.store, objective)


def random_of_size(
    ready: Session, fresh: Protocol, ours: QuantConfig, num: int, rng: np.random.Generator
) -> list[QuantConfig]:
    """Choose random configurations within 1 % of a configuration's bytes.

    Args:
        ready: the running session.
        fresh: protocol of the comparison; random configurations that the store holds of it come
            first.
        ours: the configuration.
        num: how many.
        rng: source of random numbers.

    Returns:
        The configurations.
    """
    from qsdm.measurement.labels import RANDOM, stage_of
    from qsdm.strategies.random import near

    space = ready.space
    size = cost.size_bytes(space.graph, ours, space.full_bits)
    chosen: list[QuantConfig] = []
    for outcome in ready.store.outcomes(fresh):
        if stage_of(outcome) not in RANDOM or outcome.lacks(ready.versions):
            continue
        try:
            space.encode(outcome.qconfig)
        except OutsideSpace:
            continue
        other = cost.size_bytes(space.graph, outcome.qconfig, space.full_bits)
        if abs(other - size) <= 0.01 * size and outcome.qconfig.digest != ours.digest:
            chosen.append(outcome.qconfig)
    chosen = chosen[:num]
    return chosen + [near(space, size, 0.01, rng) for _ in range(num - len(chosen))]


def compared(
    space: Space, ours: QuantConfig, rivals: Sequence[QuantConfig]
) -> dict[str, QuantConfig]:
    """List the rows of the final table.

    Args:
        space: of the configurations.
        ours: the chosen configuration.
        rivals: random configurations of its size.

    Returns:
        Configurations by name.
    """
    methods = sorted((m for m in space.methods if not m.is_full), key=lambda m: (-m.bits, m.name))
    return {
        "fp": QuantConfig(ours.denoiser, {}),
        **{str(method): space.uniform(method) for method in methods},
        **{f"random-{i}": qconfig for i, qconfig in enumerate(rivals)},
        "ours": ours,
    }


def differences(
    rows: Mapping[str, QuantConfig], final: Measured
) -> dict[str, dict[str, list[float | None]]]:
    """Compare ours with every other row, and with the mean of the random ones, in pairs.

    Args:
        rows: configurations by name, ours among them.
        final: their outcomes under one protocol.

    Returns:
        By name (``random`` for the mean) and metric: value of the row minus that of ours, and the
        paired standard error (see `qsdm.measurement.paired`); None without halves.
    """
    from qsdm.measurement.paired import mean_difference

    ours = final.of(rows["ours"])
    groups = {name: [final.of(q)] for name, q in rows.items() if name != "ours"}
    if random := [final.of(q) for name, q in rows.items() if name.startswith("random-")]:
        groups["random"] = random
    return {
        name: {
            metric: [found.value, found.standard_error]
            for metric in ours.metrics
            if (found := mean_difference(others, ours, metric)) is not None
        }
        for name, others in groups.items()
    }


def row(space: Space, name: str, outcome: Outcome) -> dict[str, Any]:
    """Describe a measured configuration.

    Args:
        space: of the configuration.
        name: of the row.
        outcome: of the configuration.

    Returns:
        A row of the summary.
    """
    return {
        "name": name,
        "avg_bits": cost.avg_bits(space.graph, outcome.qconfig, space.full_bits),
        "size_bytes": cost.size_bytes(space.graph, outcome.qconfig, space.full_bits),
        "metrics": dict(outcome.metrics),
        "standard_errors": {metric: outcome.standard_error(metric) for metric in outcome.halves},
        "num_images": outcome.num_images,
        "qconfig": outcome.qconfig.digest,
    }


def tried(space: Space, candidates: Sequence[tuple[float, Outcome]]) -> list[dict[str, Any]]:
    """Describe candidates that were measured.

    Args:
        space: of the configurations.
        candidates: predicted quality and outcome of each.

    Returns:
        Rows of the summary, each with its predicted quality.
    """
    return [
        {"predicted": predicted} | row(space, outcome.qconfig.digest[:12], outcome)
        for predicted, outcome in candidates
    ]


def checkpoint(
    ready: Session, packed: Path, protocol: Protocol, outcomes: tuple[Outcome, Outcome]
) -> tuple[dict[str, int], str]:
    """Write the pipeline with its denoiser packed and a card, unless the store holds both.

    Args:
        ready: the running session.
        packed: directory of the quantized weights.
        protocol: of the outcomes; it digests everything that the pipeline is loaded from.
        outcomes: of the chosen configuration and of full precision.

    Returns:
        Bytes of the denoiser's file by kind, and the memory of the whole pipeline in one line.
    """
    from qsdm import __version__

    folder = ready.store.path("checkpoint")
    about = {
        "versions": [__version__, metadata.version("diffusers")],
        "model": [ready.model.path, ready.model.revision, dict(ready.model.source)],
        "packed": memo.changes_in(packed),
        "protocol": protocol.digest,
        "full_bits": ready.space.full_bits,
        "batch_size": ready.batch_size,
        "outcomes": [[outcome.qconfig.digest, dict(outcome.metrics)] for outcome in outcomes],
    }
    made_from = hashlib.sha256(canonical(about)).hexdigest()
    if (result := memo.recall(folder, made_from)) is None:
        from qsdm.checkpoint.delivery import deliver

        sizes, memory = deliver(ready, packed, folder, protocol, outcomes)
        result = {"sizes": sizes, "memory": memory.line(ready.batch_size)}
        memo.remember(folder, made_from, result)
    return result["sizes"], result["memory"]


def draw(
    ready: Session,
    rows: Mapping[str, QuantConfig],
    table: Sequence[Mapping[str, Any]],
    protocol: Protocol,
) -> None:
    """Draw grids of full precision, of the best uniform configurations and of ours.

    Args:
        ready: the running session.
        rows: configurations by name.
        table: their measured rows.
        protocol: how the pictures are drawn.
    """
    from qsdm.report import grids

    by_name = {entry["name"]: entry for entry in table}
    shown = ["fp", *best_uniform(ready, table), "ours"]
    count = min(NUM_SHOWN, protocol.num_images)
    pictures = {
        name: ready.pictures(rows[name], protocol, count, batch=-(-count // 2)) for name in shown
    }
    for name in shown:
        grids.write(ready.store.path(f"pictures/{name}.png"), grids.grid(pictures[name]))
    titles = {"fp": "full precision", "ours": "ours"}
    labels = {
        name: f"{titles.get(name, 'uniform ' + name)}\n{by_name[name]['avg_bits']:.2f} bits"
        for name in shown
    }
    grids.write(
        ready.store.path("pictures/comparison.png"),
        grids.strips({labels[name]: pictures[name][:8] for name in shown}),
    )


def best_uniform(ready: Session, table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose the uniform configuration of each bit width that is best by the first metric.

    Args:
        ready: the running session.
        table: measured rows.

    Returns:
        Names of the rows, most bits first.
    """
    name_of, metric = next(iter(ready.model.metrics.items()))
    sign = 1 if metric.larger_is_better else -1
    widths: dict[int, list[Mapping[str, Any]]] = {}
    names = {str(method): method.bits for method in ready.space.methods if not method.is_full}
    for entry in table:
        if entry["name"] in names:
            widths.setdefault(names[entry["name"]], []).append(entry)
    best = {
        bits: max(rows, key=lambda row: sign * row["metrics"][name_of])
        for bits, rows in widths.items()
    }
    return [best[bits]["name"] for bits in sorted(best, reverse=True)]


def finish(ready: Session, summary: Mapping[str, Any], memory: str, log: Log) -> None:
    """Print the table, write the page and log both.

    Args:
        ready: the session.
        summary: what `realize` returns.
        memory: of the pipeline with the chosen configuration, one line.
        log: receives metrics, pictures and the page.
    """
    from qsdm.report import page, results
    from qsdm.report.summary import activation_table, sentence, step_sentence
    from qsdm.report.tracked import track

    names = list(summary["rows"][0]["metrics"])
    rows = [
        [row["name"], row["avg_bits"], row["size_bytes"], *(row["metrics"][n] for n in names)]
        for row in summary["rows"]
    ]
    print(text.table(["", "bits", "bytes", *names], rows))
    if (rounded := activation_table(summary)) is not None:
        print(text.table(*rounded, are_texts=True))
    for entry in summary["rows"]:
        log(
            {
                f"realize/{entry['name']}/{name}": value
                for name, value in entry["metrics"].items()
                if value is not None
            }
        )
    for verdict in filter(None, [sentence(summary), step_sentence(summary)]):
        print(verdict)
    size = summary["checkpoint"]
    print(
        f"checkpoint: {ready.store.path('checkpoint')}, denoiser {sum(size.values()):,} bytes "
        f"(packed {size['packed_bytes']:,}, unquantized {size['unquantized_bytes']:,}, "
        f"header {size['header_bytes']:,})"
    )
    print(memory)
    target = ready.store.path("report.html")
    try:
        page.write(target, results.read(ready.store, summary["space"], ready.space.full_bits))
    except StoreError as error:  # the measured table is written; a missing page does not undo it
        print(f"no page: {error}")
        return
    print(target)
    track(log, "realize", ready.store, summary["space"], ready.space.full_bits)


if __name__ == "__main__":
    run.main(realize)
