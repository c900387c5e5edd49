"""Strategies at equal evaluations, by what the trained predictor says of their fronts.

    python experiments/strategies/study.py --store store --out experiments/strategies/table.json

Needs trace, calibrate and train of the three zoo pipelines in the store. Each strategy begins with
the same seeds; only its own proposals count. All fronts of a pipeline and seed are measured in one
box, that of all configurations that any strategy came by. ``--found`` writes the best
configurations of the first seed, which `measured.py` compares on pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qsdm.outcome import Objective
from qsdm.predictor.by_metric import metric_model
from qsdm.predictor.update import Remembered
from qsdm.store.files import write_json
from qsdm.strategies import Problem, Strategy, StrategyOptions
from qsdm.strategies.archive import Goal
from qsdm.strategies.argmax import ArgMax
from qsdm.strategies.evolution import Evolution
from qsdm.strategies.explorer import Explorer, volumes
from qsdm.strategies.greedy import Greedy
from qsdm.strategies.local import Swaps
from qsdm.strategies.random import Random
from qsdm.text import table
from qsdm.workspace import named

NAMES = ("emoji_unet", "emoji_pixart", "emoji_mmdit")
BITS = (3.25, 3.5, 3.75)
STRATEGIES: dict[str, StrategyOptions] = {
    "greedy": Greedy(),
    "swaps": Swaps(),
    "evolution": Evolution(),
    "argmax-op": ArgMax(),
    "argmax-block": ArgMax("block"),
    "random": Random(),
}


@dataclass(slots=True)
class Recorder:
    """A strategy that keeps what it was told."""

    strategy: Strategy
    told: list[tuple[np.ndarray, np.ndarray]]

    def ask(self) -> np.ndarray:
        return self.strategy.ask()

    def tell(self, genes: np.ndarray, values: np.ndarray) -> None:
        self.told.append((genes, values))
        self.strategy.tell(genes, values)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Options whose search is recorded."""

    options: StrategyOptions
    told: list[tuple[np.ndarray, np.ndarray]]

    def start(self, problem: Problem, seeds: np.ndarray, rng: np.random.Generator) -> Recorder:
        return Recorder(self.options.start(problem, seeds, rng), self.told)


def study(name: str, store: str, seed: int, evaluations: int, axis: str | None) -> list[dict]:
    """Run every strategy on one pipeline."""
    workspace = named(name, store=store)
    quality = Objective({"fd_lite0": -1})
    predictor = workspace.predictor(quality)
    predict = Remembered(predictor.predict)
    problem = Problem.of(workspace.space, workspace.table)
    bank = workspace.bank()
    goal = Goal()
    if axis is not None:
        labels = bank.labels(quality)
        model = metric_model(bank, predictor.encoding, workspace.table, labels, axis, False)
        goal = Goal((model,), (axis,))
    genes, values, rows = {}, {}, []
    for title, options in STRATEGIES.items():
        told: list[tuple[np.ndarray, np.ndarray]] = []
        began = time.process_time()
        explorer = Explorer(problem, Recorded(options, told), goal, evaluations, seed=seed)
        explorer.search(predict)
        genes[title], values[title] = (np.concatenate(part) for part in zip(*told, strict=True))
        rows.append(
            {
                "pipeline": name,
                "seed": seed,
                "strategy": title,
                "evaluations": len(values[title]),
                "cpu_s": round(time.process_time() - began, 1),
            }
        )
        print(rows[-1], flush=True)
    shares = volumes(values, np.concatenate(list(values.values())))
    num_values = workspace.space.graph.num_values
    for row in rows:
        own = values[row["strategy"]]
        row["hypervolume"] = shares[row["strategy"]]
        bits = 8 * own[:, 1] / num_values
        row["best"] = [float(own[bits <= limit, 0].min(initial=np.inf)) for limit in BITS]
        row["found"] = {
            str(limit): workspace.space.decode(
                genes[row["strategy"]][np.where(bits <= limit, own[:, 0], np.inf).argmin()]
            ).to_json()
            for limit in BITS
            if (bits <= limit).any()
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="store")
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--axis", help="also minimize a metric, such as lite0_distance")
    parser.add_argument("--names", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--found", type=Path, help="file of the configurations of the first seed")
    args = parser.parse_args()
    rows = [
        row
        for name in args.names
        for seed in range(args.seeds)
        for row in study(name, args.store, seed, args.evaluations, args.axis)
    ]
    if args.found is not None:
        found: dict[str, dict[str, dict]] = {}
        for row in rows[::-1]:  # the first seed comes last
            found.setdefault(row["pipeline"], {})[row["strategy"]] = row["found"]
        write_json(args.found, found)
    for row in rows:
        del row["found"]
    args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    cells = []
    for title in STRATEGIES:
        cell: list[object] = [title]
        for name in args.names:
            own = [r for r in rows if (r["pipeline"], r["strategy"]) == (name, title)]
            base = [r for r in rows if (r["pipeline"], r["strategy"]) == (name, "greedy")]
            cell.append(float(np.mean([r["hypervolume"] for r in own])))
            pairs = zip(own, base, strict=True)
            cell += np.mean([np.subtract(r["best"], b["best"]) for r, b in pairs], axis=0).tolist()
        cells.append(cell)
    heads = ["strategy", *(h for name in args.names for h in (name, *(f"{b:g}" for b in BITS)))]
    print(table(heads, cells, ("", *(".5f", "+.2f", "+.2f", "+.2f") * len(args.names))))


if __name__ == "__main__":
    main()
