"""Is a pair of configurations for bins of steps better than one of the same mean bits?

    for m in emoji_unet emoji_mmdit emoji_pixart; do
        for c in trace calibrate train; do python -m qsdm.$c +model=$m; done
        python experiments/time_steps/pairs.py --name $m
    done
    python experiments/time_steps/pairs.py      # only the table

Searches by `fd_lite0` alone, probes five bins of steps, and takes the pair that is predicted best
within each budget of mean bits, as `realize steps=true` does. It is measured on noise that nothing
has learned from, beside the single configuration that is predicted best within the same mean bits,
and beside the one within the same bytes: a pair stores both versions of its weights. Adds the rows
of the pipeline to pairs.json and prints the table of all pipelines in it; what the store holds is
not measured again. Differences are paired: the same captions and noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qsdm.engine.serial import Serial
from qsdm.measurement.bins import Suffering, chosen_bins, propose, read_bins
from qsdm.measurement.candidates import Terms
from qsdm.measurement.paired import difference
from qsdm.measurement.session import open_session
from qsdm.outcome import Objective, Outcome
from qsdm.probe import probe
from qsdm.qconfig import QuantConfig, cost
from qsdm.search import search
from qsdm.store.files import write_json
from qsdm.strategies.constraints import Constraints
from qsdm.strategies.greedy import Greedy
from qsdm.workspace import Workspace, named

RESULTS = Path(__file__).with_name("pairs.json")
METRICS = {"fd_lite0": 1, "psnr": 2}  # and their digits
QUALITY = Objective({"fd_lite0": -1})
PROBED = "uaq-3"
NUM_BINS = 5
BITS = (3.05, 3.1)
PAIR, SAME_BITS, SAME_BYTES = "pair", "single of its mean bits", "single of its bytes"
Z95 = 1.96


def best_single(front: Mapping[str, Any], size: float) -> tuple[QuantConfig, float]:
    """The point of a front with the best prediction within so many bytes, and its prediction."""
    within = (point for point in front["points"] if point["size_bytes"] <= size)
    best = max(within, key=lambda point: point["predicted"])
    return QuantConfig.from_json(best["qconfig"]), best["predicted"]


def rivals(
    workspace: Workspace, bins: Sequence[Suffering], front: Mapping[str, Any], bits: float
) -> dict[str, tuple[QuantConfig, float]]:
    """The best predicted pair within a budget of mean bits, and its rivals, by name."""
    space = workspace.space
    terms = Terms(space, QUALITY, Constraints(avg_bits=bits), workspace.model.metrics)
    pair = propose(terms, bins, front).best[0]
    return {
        PAIR: (pair.qconfig, pair.predicted),
        SAME_BITS: best_single(front, terms.max_bytes),
        SAME_BYTES: best_single(front, cost.size_bytes(space.graph, pair.qconfig, space.full_bits)),
    }


def row(
    workspace: Workspace, outcome: Outcome, predicted: float, rivals_of: Mapping[str, Outcome]
) -> dict[str, Any]:
    """What the table says of a measured configuration, minus each rival by metric."""
    space, qconfig = workspace.space, outcome.qconfig
    return {
        "predicted": -predicted,
        "avg_bits": cost.avg_bits(space.graph, qconfig, space.full_bits),
        "size_bytes": cost.size_bytes(space.graph, qconfig, space.full_bits),
        "metrics": {metric: outcome.metrics[metric] for metric in METRICS},
        "minus": {
            name: {
                metric: [change.value, change.standard_error]
                for metric in METRICS
                if (change := difference(outcome, other, metric)) is not None
            }
            for name, other in rivals_of.items()
        },
        "qconfig": qconfig.to_json(),
    }


def measured(workspace: Workspace, args: argparse.Namespace) -> dict[str, Any]:
    """Probe bins of steps, search, and measure the pairs and their rivals."""
    options = {"steps": NUM_BINS, "num_images": args.probe_images, "engine": Serial()}
    probe(workspace, QUALITY, [PROBED], **options)
    bins = read_bins(workspace.store, QUALITY)
    front = search(workspace, QUALITY, Greedy())
    chosen = {bits: rivals(workspace, bins, front, bits) for bits in BITS}
    full = QuantConfig(workspace.name, {})
    every = [full, *(qconfig for named in chosen.values() for qconfig, _ in named.values())]
    with open_session(workspace, Serial(), 64) as ready:
        protocol = ready.protocol(args.seed_set, args.images)
        done = ready.measure(list(dict.fromkeys(every)), protocol, "realize")
    budgets = []
    for bits, by_name in chosen.items():
        outcomes = {name: done.of(qconfig) for name, (qconfig, _) in by_name.items()}
        pair = by_name[PAIR][0]
        terms = Terms(workspace.space, QUALITY, Constraints(avg_bits=bits), workspace.model.metrics)
        budgets.append(
            {
                "bits": bits,
                "bins": chosen_bins(terms, bins, pair),
                "rows": {
                    name: row(
                        workspace,
                        outcomes[name],
                        predicted,
                        {o: outcomes[o] for o in outcomes if name == PAIR and o != PAIR},
                    )
                    for name, (_, predicted) in by_name.items()
                },
            }
        )
    return {
        "seed_set": args.seed_set,
        "num_images": args.images,
        "probe_images": args.probe_images,
        "full": {metric: done.of(full).metrics[metric] for metric in METRICS},
        "budgets": budgets,
    }


def stored() -> dict[str, Any]:
    """All results so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All rows as Markdown; differences with their 95 % intervals."""
    lines = [
        "| | budget | | mean bits | bytes | fd_lite0 ↓: predicted | measured | PSNR, dB ↑ "
        "| pair minus it: predicted | fd_lite0 | PSNR, dB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for budget in result["budgets"]:
            rows = budget["rows"]
            for who, one in rows.items():
                minus = rows[PAIR]["minus"].get(who)
                cells = [
                    f"`{name}`",
                    f"{budget['bits']:g}",
                    told(budget) if who == PAIR else who,
                    f"{one['avg_bits']:.3f}",
                    f"{one['size_bytes']:,}",
                    f"{one['predicted']:.1f}",
                    *(f"{one['metrics'][m]:.{digits}f}" for m, digits in METRICS.items()),
                ]
                if minus is None:
                    cells += ["", "", ""]
                else:
                    cells.append(f"{rows[PAIR]['predicted'] - one['predicted']:+.1f}")
                    cells += [
                        f"{minus[m][0]:+.{digits}f} ± {Z95 * minus[m][1]:.{digits}f}"
                        for m, digits in METRICS.items()
                    ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(budget: Mapping[str, Any]) -> str:
    """Which bits apply in which bins."""
    by_bits: dict[float, list[str]] = {}
    for one in budget["bins"]:
        by_bits.setdefault(one["avg_bits"], []).append(one["name"])
    (high, bins), (low, _) = sorted(by_bits.items(), reverse=True)
    return f"pair: {', '.join(bins)} {high:.2f}, elsewhere {low:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name")
    parser.add_argument("--store", default="store")
    parser.add_argument("--seed-set", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--probe-images", type=int, default=128)
    args = parser.parse_args()
    if args.name:
        workspace = named(args.name, store=args.store)
        metrics = {metric: workspace.model.metrics[metric] for metric in METRICS}
        model = replace(workspace.model, metrics=metrics)
        result = measured(replace(workspace, model=model), args)
        write_json(RESULTS, stored() | {args.name: result})
    print(table(stored()))


if __name__ == "__main__":
    main()
