"""What the default objective finds from fewer pictures, against what it finds from all.

    python experiments/sample_efficiency/draws.py --name emoji_unet --write chosen.json
    python -m qsdm.measure +model=emoji_unet configs=chosen.json seed_set=2 num_images=512
    python experiments/sample_efficiency/draws.py --name emoji_unet \\
        --save experiments/sample_efficiency/results/balanced.json

Of what `balanced.py` and `study.py` have found at 3.5 bits, and of what `qsdm.search` finds with
all labels and probes (``--chosen``, see experiments/equal_bytes): first writes the configurations;
then prints each predictor's mean over the draws of its labels, minus what all labels find by
default (``qsdm, balanced``) and minus what the network of 240 labels without probes finds
(``network 240``), in both metrics. Standard errors are paired, of the mean's pictures; the spread
is that of the draws. Positive is worse in ``fd_lite0`` and better in PSNR.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asked import read

from qsdm.measurement.paired import difference, mean_difference
from qsdm.outcome import Outcome
from qsdm.qconfig import QuantConfig
from qsdm.store.files import write_json
from qsdm.workspace import named

BITS = "3.5"
DEFAULT, NETWORK = "qsdm, balanced", "network 240"
METRICS = {"fd_lite0": ".1f", "psnr": ".2f"}


def row(
    outcomes: Sequence[Outcome], references: Mapping[str, Outcome]
) -> dict[str, dict[str, Any]]:
    """Means, spreads and paired differences of one predictor, by metric."""
    cells: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        values = [outcome.metrics[metric] for outcome in outcomes]
        cells[metric] = {"draws": values}
        for name, reference in references.items():
            both = mean_difference(outcomes, reference, metric)
            each = [difference(outcome, reference, metric) for outcome in outcomes]
            assert both is not None
            alone = [one.value for one in each if one is not None]
            spread = float(np.std(alone, ddof=1)) if len(alone) > 1 else None
            cells[metric][name] = [both.value, both.standard_error, spread]
    return cells


def text(metric: str, cell: Mapping[str, Any]) -> str:
    form = METRICS[metric]
    parts = [f"{np.mean(cell['draws']):{form}}"]
    for name in (DEFAULT, NETWORK):
        if name in cell:
            value, error, spread = cell[name]
            of_draws = "" if spread is None else f" (spread {spread:{form}})"
            parts.append(f"{value:+{form}} ± {error or 0:{form}}{of_draws}")
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--found", type=Path, default=Path("found"))
    parser.add_argument("--chosen", type=Path, default=Path("chosen"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--save", type=Path, help="JSON of the measured differences")
    args = parser.parse_args()
    found = {
        key: QuantConfig.from_json(entry[BITS])
        for key, entry in read(args.found / f"{args.name}.json").items()
        if key.startswith(("balanced, probes", "balanced, asked", NETWORK))
    }
    chosen = read(args.chosen / f"{args.name}.json")
    found[f"{DEFAULT}/0"] = QuantConfig.from_json(chosen[BITS][DEFAULT])
    if args.write is not None:
        write_json(args.write, [qconfig.to_json() for qconfig in dict.fromkeys(found.values())])
        return
    store = named(args.name, store=args.store).store
    drawn = (2, args.images)
    outcomes = store.measured(lambda p: (p.seed_set, p.num_images) == drawn)
    by_predictor: dict[str, list[Outcome]] = {}
    for key, qconfig in found.items():
        if qconfig.digest in outcomes:
            by_predictor.setdefault(key.rsplit("/", 1)[0], []).append(outcomes[qconfig.digest])
    references = {name: by_predictor[name][0] for name in (DEFAULT, NETWORK)}
    rows = {name: row(several, references) for name, several in by_predictor.items()}
    full = next(outcome for outcome in outcomes.values() if outcome.qconfig.is_full)
    print(f"{args.name}: full precision {full.metrics['fd_lite0']:.1f}")
    for name, cells in rows.items():
        line = " | ".join(text(metric, cell) for metric, cell in cells.items())
        print(f"| {name} ({len(cells['psnr']['draws'])}) | {line} |")
    if args.save is not None:
        write_json(args.save, read(args.save) | {args.name: rows})


if __name__ == "__main__":
    main()
