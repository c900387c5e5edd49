"""Do fits that know the layers' inputs draw better pictures at the same bytes?

    for NAME in emoji_unet emoji_mmdit emoji_pixart:
    python -m qsdm.trace +model=NAME
    python -m qsdm.calibrate +model=NAME space=traced
    python -m qsdm.calibrate +model=NAME space=weighted error=weighted
    python experiments/calibrated_fits/study.py --name NAME --write configs.json
    python -m qsdm.measure +model=NAME space=weighted configs=configs.json seed_set=2 num_images=512
    python experiments/calibrated_fits/study.py --name NAME

Every method is compared with its twin that weights errors by the mean square of the inputs
(``_w``), which takes the same bytes: everywhere (uniform), and in the shelf's configuration of 3.5
bits, each weight's method exchanged for its twin. And greedy search at 3.5 bits, by the weights'
relative errors, by their weighted errors, and by these with the twins on offer. Differences are
paired: the same captions and noise.

Without ``--write``, adds the differences to results.json and prints the table of all pipelines.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.measurement.paired import difference
from qsdm.outcome import Outcome
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.qconfig.cost import avg_bits
from qsdm.quant.calibrated import fitted_version
from qsdm.store.files import write_json
from qsdm.strategies import Problem
from qsdm.strategies.greedy import path as greedy_path
from qsdm.workspace import named

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
RESULTS = HERE / "results.json"
METRICS = ("fd_lite0", "psnr")
PLAIN = ("uaq-3", "kmeans_c-3", "kmeans_a-3", "uaq-4", "kmeans_c-4", "kmeans_a-4")
BITS = 3.5


def twin(qconfig: QuantConfig) -> QuantConfig:
    """Exchange every method for the one that weights errors; the bytes are the same."""
    methods = {
        name: QuantMethod(f"{method.name}_w", method.bits)
        for name, method in qconfig.methods.items()
    }
    return QuantConfig(qconfig.denoiser, methods)


def greedy(name: str, table: str, space: str, store: str) -> QuantConfig:
    """What greedy search finds within the bytes, in a space, by the errors of a table."""
    workspace = named(name, space=space, store=store)
    errors = named(name, space=table, store=store).table
    problem = Problem.of(workspace.space, errors)
    genes = greedy_path(problem, problem.error)
    sizes = problem.size_of(genes)
    fits = np.flatnonzero(8 * sizes <= BITS * workspace.graph.num_values)
    return workspace.space.decode(genes[fits[np.argmax(sizes[fits])]])


def pairs(name: str, store: str) -> dict[str, tuple[QuantConfig, QuantConfig]]:
    """Configurations with errors that count alike and with weighted ones, by what they are."""
    space = named(name, space="weighted", store=store).space
    result = {}
    shelf = json.loads((RECIPES / name / f"{name}-{BITS}.json").read_text(encoding="utf-8"))
    chosen = QuantConfig.from_json(shelf)
    result["shelf, 3.5 bits"] = chosen, twin(chosen)
    by_error = greedy(name, "traced", "traced", store)
    result["greedy, 3.5 bits: errors"] = by_error, greedy(name, "weighted", "traced", store)
    both = greedy(name, "weighted", "weighted", store)
    result["greedy, 3.5 bits: errors and fits"] = by_error, both
    for method in PLAIN:
        plain = space.uniform(method)
        result[f"uniform {method}"] = plain, twin(plain)
    return result


def row(what: str, plain: Outcome, weighted: Outcome, bits: tuple[float, float]) -> dict[str, Any]:
    """What a table's row says."""
    entry: dict[str, Any] = {"what": what, "bits": bits}
    for metric in METRICS:
        one = difference(weighted, plain, metric)
        assert one is not None
        entry[metric] = plain.metrics[metric], weighted.metrics[metric]
        entry[f"{metric}_change"] = one.value, one.standard_error
    return entry


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """All results as Markdown."""
    lines = [
        "| | | bits | fd_lite0 ↓ | weighted | change | PSNR, dB ↑ | weighted | change |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for entry in rows:
            cells = [f"`{name}`", entry["what"], f"{entry['bits'][1]:.2f}"]
            for metric, digits in zip(METRICS, (1, 2), strict=True):
                value, error = entry[f"{metric}_change"]
                cells += [f"{one:.{digits}f}" for one in entry[metric]]
                cells.append(f"{value:+.{digits}f} ± {error:.{digits}f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--seed-set", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--write", type=Path, help="file of the configurations to measure")
    args = parser.parse_args()
    compared = pairs(args.name, args.store)
    if args.write is not None:
        distinct = dict.fromkeys(qconfig for pair in compared.values() for qconfig in pair)
        write_json(args.write, [qconfig.to_json() for qconfig in distinct])
        print(f"{len(distinct)} configurations => {args.write}")
        return
    workspace = named(args.name, space="weighted", store=args.store)
    drawn = args.seed_set, args.images, fitted_version(workspace.packed)
    outcomes = workspace.store.measured(
        lambda p: (p.seed_set, p.num_images, p.quantizer_version) == drawn
    )
    rows = [
        row(
            what,
            outcomes[plain.digest],
            outcomes[weighted.digest],
            (avg_bits(workspace.graph, plain), avg_bits(workspace.graph, weighted)),
        )
        for what, (plain, weighted) in compared.items()
        if plain.digest in outcomes and weighted.digest in outcomes
    ]
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[args.name] = rows
    write_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
