"""Does a width for each layer serve better than one for all, at equal bit operations?

    python -m qsdm.measure +model=emoji_unet num_configs=60 activations=[16,8,6,4]
    python experiments/activations/mixed.py --names emoji_unet

Measures the recipe of 3.5 bits with inputs of all layers in 16, 8, 6 and 4 bits, and with mixed
widths within the operations of 8 and of 6, on noise that no label has seen. Adds to mixed.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learned import BITS, HERE, learn

from qsdm.engine.serial import Serial
from qsdm.graph import Graph
from qsdm.measure import read_configs
from qsdm.measurement.inputs import by_role
from qsdm.measurement.intake import Measured
from qsdm.measurement.paired import difference
from qsdm.measurement.rounded import errors_of_rounding
from qsdm.measurement.session import open_session
from qsdm.qconfig import QuantConfig, QuantMethod, cost
from qsdm.qconfig.activations import FULL
from qsdm.text import ignore
from qsdm.workspace import named

MIXED = "mixed"
METRICS = {"fd_lite0": 1, "psnr": 2}  # and their digits
_UNITS = 20_000


def table_of(
    graph: Graph, rows: dict[tuple[str, int], QuantConfig], measured: Measured
) -> list[dict[str, Any]]:
    """Metrics of configurations, and differences from 16 bits and from the same bits for all."""

    def pair(qconfig: QuantConfig, other: QuantConfig, metric: str) -> list[float | None] | None:
        found = difference(measured.of(qconfig), measured.of(other), metric)
        return None if found is None else [found.value, found.standard_error]

    table = []
    for (name, own), qconfig in rows.items():
        row: dict[str, Any] = {"name": name, "bits": own, "qconfig": qconfig.to_json()}
        row["tera_bops"] = cost.tera_bops(graph, qconfig)
        row |= {metric: measured.of(qconfig).metrics[metric] for metric in METRICS}
        for what, other in (("of rounding", rows["ours", FULL]), ("of mixing", rows["ours", own])):
            row[what] = {
                metric: None if qconfig == other else pair(qconfig, other, metric)
                for metric in METRICS
            }
        table.append(row)
    return table


def choose_widths(
    graph: Graph, qconfig: QuantConfig, bits: Sequence[int], harm: np.ndarray, tera_bops: float
) -> QuantConfig:
    """Give each layer of a configuration a width, with the least harm within bit operations.

    A knapsack in which each layer takes one of its widths, solved by dynamic programming over the
    operations in `_UNITS` of the limit, each layer's rounded up.

    Args:
        graph: of the denoiser, with W weights.
        qconfig: the configuration, whose methods stay.
        bits: K widths.
        harm: float64 [W, K], of each weight's layer at each width; that of a layer's parts adds up.
        tera_bops: the most bit operations (`cost.tera_bops`).

    Returns:
        The configuration, with probabilities of attention rounded, too.

    Raises:
        ValueError: the fewest bits of all take more.
    """
    row = {name: i for i, name in enumerate(dict.fromkeys(w.parameter for w in graph.weights))}
    loss, per_bit = np.zeros((len(row), len(bits))), np.zeros(len(row))
    for w, weight in enumerate(graph.weights):
        loss[row[weight.parameter]] += harm[w]
    full = QuantMethod("fp", FULL)
    for node in graph.nodes:
        if node.weight is not None:
            own = qconfig.methods.get(node.weight.name, full).bits
            per_bit[row[node.weight.parameter]] += node.macs * own / 1e12
    if (least := float(per_bit.sum()) * min(bits)) > tera_bops:
        raise ValueError(
            f"inputs of {min(bits)} bits in all layers take {least:.4g} tera bit operations "
            f"(wanted at most {tera_bops:.4g}): give fewer bits"
        )
    above = np.outer(per_bit, np.array(bits) - min(bits))
    room = tera_bops - least
    units = np.ceil(above / max(room, 1e-30) * _UNITS - 1e-9).clip(0, _UNITS + 1).astype(np.int64)
    best = np.zeros(_UNITS + 1)  # least harm of the layers so far, by units
    taken = np.zeros((len(row), _UNITS + 1), dtype=np.int8)
    for i in range(len(row)):
        options = np.full((len(bits), _UNITS + 1), np.inf)
        for k, cost_of in enumerate(units[i]):
            if cost_of <= _UNITS:
                options[k, cost_of:] = best[: _UNITS + 1 - cost_of] + loss[i, k]
        taken[i] = options.argmin(axis=0)
        best = options.min(axis=0)
    left, chosen = _UNITS, [0] * len(row)
    for i in reversed(range(len(row))):
        chosen[i] = int(taken[i, left])
        left -= int(units[i, chosen[i]])
    widths = {w.name: int(bits[chosen[row[w.parameter]]]) for w in graph.weights}
    default = max((own for own in bits if own != FULL), default=None)
    return QuantConfig(qconfig.denoiser, qconfig.methods, default, widths)


def read(path: Path) -> dict[str, Any]:
    """What was measured before."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--store", default="store")
    parser.add_argument("--recipe", default="3.5", help="bits of the recipe")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seed-set", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    path = HERE / "mixed.json"
    for name in args.names:
        workspace = named(name, store=args.store)
        (ours,) = read_configs(HERE.parents[1] / f"recipes/{name}/{name}-{args.recipe}.json")
        graph = workspace.space.graph
        with open_session(workspace, Serial(), args.batch_size) as ready:
            error = errors_of_rounding(ready, BITS[1:])
            rows = {("ours", own): ours.with_activations(own) for own in BITS}
            roles: dict[str, Any] = {}
            labels, model = learn(workspace, error, "psnr")
            harm = model.harm[:, [[*model.bits, FULL].index(own) for own in BITS]]
            for own in (8, 6):
                limit = cost.tera_bops(graph, ours.with_activations(own))
                qconfig = rows[MIXED, own] = choose_widths(graph, ours, BITS, harm, limit)
                roles[str(own)] = {
                    role: Counter(qconfig.inputs[name] for name in members)
                    for role, members in by_role(graph).items()
                }
            protocol = ready.protocol(args.seed_set, args.images)
            measured = ready.measure(list(rows.values()), protocol, "realize", ignore)
            table = table_of(graph, rows, measured)
        about = {"num_images": args.images, "seed_set": args.seed_set, "labels": len(labels)}
        results = read(path) | {name: about | {"rows": table, "widths": roles}}
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(
        "| | inputs | tera bit operations | fd_lite0 ↓ | of rounding | PSNR, dB ↑ | of rounding |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, result in read(path).items():
        for row in result["rows"]:
            cells = [
                f"{row[metric]:.{digits}f} | {change(row['of rounding'][metric], digits)}"
                for metric, digits in METRICS.items()
            ]
            bits = f"{row['bits']} bits" if row["name"] == "ours" else f"mixed, as {row['bits']}"
            print(f"| `{name}` | {bits} | {row['tera_bops']:.5f} | {' | '.join(cells)} |")
        for row in result["rows"]:
            if row["name"] == MIXED:
                found = (f"{m} {change(row['of mixing'][m], d)}" for m, d in METRICS.items())
                print(f"{name}, mixed minus {row['bits']} bits: {', '.join(found)}")


def change(pair: list[float] | None, digits: int) -> str:
    """A paired difference and its standard error."""
    return "" if pair is None else f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


if __name__ == "__main__":
    main()
