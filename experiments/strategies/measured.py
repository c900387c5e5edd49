"""Which strategy's configurations are better when they are measured?

    python experiments/strategies/study.py --seeds 1 --out predicted.json --found found.json
    python experiments/strategies/measured.py --name NAME --found found.json --write configs.json
    python -m qsdm.measure +model=NAME configs=configs.json seed_set=2 num_images=512
    python experiments/strategies/measured.py --name NAME --found found.json

Adds to measured.json how much worse each strategy's configurations are than those of the greedy
path: paired differences, as captions and noise are the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qsdm.measurement.paired import difference
from qsdm.qconfig import QuantConfig
from qsdm.store.files import write_json
from qsdm.workspace import named

MEASURED = Path(__file__).with_name("measured.json")
METRIC = "fd_lite0"
BASE = "greedy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--store", default="store")
    parser.add_argument("--found", type=Path, required=True)
    parser.add_argument("--bits", nargs="*", default=["3.5"])
    parser.add_argument("--seed-set", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--write", type=Path, help="file of the configurations to measure")
    args = parser.parse_args()
    by_strategy = json.loads(args.found.read_text(encoding="utf-8"))[args.name]
    qconfigs = {
        (bits, strategy): QuantConfig.from_json(found[bits])
        for bits in args.bits
        for strategy, found in by_strategy.items()
        if bits in found
    }
    if args.write is not None:
        distinct = dict.fromkeys(qconfigs.values())
        write_json(args.write, [qconfig.to_json() for qconfig in distinct])
        print(f"{len(distinct)} configurations => {args.write}")
        return
    store = named(args.name, store=args.store).store
    drawn = args.seed_set, args.images
    outcomes = store.measured(lambda p: (p.seed_set, p.num_images) == drawn)
    rows = []
    for (bits, strategy), qconfig in qconfigs.items():
        base = outcomes.get(qconfigs[bits, BASE].digest)
        own = outcomes.get(qconfig.digest)
        if base is None or own is None or (away := difference(own, base, METRIC)) is None:
            continue
        same = qconfig == qconfigs[bits, BASE]
        rows.append(
            {
                "bits": bits,
                "strategy": strategy,
                METRIC: own.metrics[METRIC],
                "difference": [away.value, away.standard_error],
                "same_as_greedy": same,
            }
        )
        print(
            f"{args.name}  {bits} bits  {strategy:<14}{own.metrics[METRIC]:8.1f}"
            f"{away.value:+8.1f} ± {away.standard_error:.1f}{'  the same' if same else ''}"
        )
    content = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    write_json(MEASURED, content | {args.name: rows})


if __name__ == "__main__":
    main()
