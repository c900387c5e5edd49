"""Which of the configurations that were found are better, on pictures that no predictor has seen?

    python experiments/sample_efficiency/compare.py --name emoji_unet --write chosen.json
    python -m qsdm.measure +model=emoji_unet configs=chosen.json seed_set=2 num_images=512
    python experiments/sample_efficiency/compare.py --name emoji_unet

First writes the configurations that `study.py` has found with these predictors; then, of what is
measured of them so far, prints fd_lite0 and its paired differences from what the network of all
labels finds, and from what greedy search on weight errors finds: positive is worse. Captions and
noise are the same, so differences are paired. ``--save`` adds the lines to a JSON file, from which
`figure.py` draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qsdm.measurement.paired import difference
from qsdm.qconfig import QuantConfig
from qsdm.store.files import write_json
from qsdm.workspace import named

METRIC = "fd_lite0"
REFERENCES = ("network 240/0", "error_sum/0")
BITS = ("3.5", "3.25", "3.75")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--found", type=Path, default=Path("found"))
    parser.add_argument("--seed-set", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--keys", nargs="*", help="predictor/draw; by default what is measured")
    parser.add_argument("--bits", nargs="*", default=BITS)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--save", type=Path, help="JSON of the measured differences")
    args = parser.parse_args()
    found = json.loads((args.found / f"{args.name}.json").read_text(encoding="utf-8"))
    keys = args.keys or list(found)
    if args.write is not None:
        chosen = {
            QuantConfig.from_json(found[key][bits]): None for bits in args.bits for key in keys
        }
        write_json(args.write, [qconfig.to_json() for qconfig in chosen])
        print(f"{len(chosen)} configurations => {args.write}")
        return
    store = named(args.name, store=args.store).store
    drawn = args.seed_set, args.images
    outcomes = store.measured(lambda p: (p.seed_set, p.num_images) == drawn)
    full = next((o for o in outcomes.values() if not o.qconfig.methods), None)
    if full is not None:
        print(f"{args.name}: full precision {full.metrics[METRIC]:.1f}")
    measured: dict[str, dict[str, dict]] = {}
    for bits in args.bits:
        of = {
            key: outcomes.get(QuantConfig.from_json(found[key][bits]).digest)
            for key in {*keys, *REFERENCES} & found.keys()
        }
        for key in sorted(of, key=lambda key: (key not in REFERENCES, list(found).index(key))):
            if (outcome := of[key]) is None:
                continue
            entry = {"fd_lite0": outcome.metrics[METRIC], "qconfig": outcome.qconfig.digest}
            line = f"{bits:>5} bits  {key:<30}{outcome.metrics[METRIC]:8.1f}"
            for reference in REFERENCES:
                if (other := of.get(reference)) is not None:
                    one = difference(outcome, other, METRIC)
                    if one is not None and one.standard_error is not None:
                        entry[reference] = one.value, one.standard_error
                        line += f"  {one.value:+6.1f} ± {one.standard_error:.1f}"
            print(line)
            measured.setdefault(bits, {})[key] = entry
    if args.save is not None:
        saved = json.loads(args.save.read_text(encoding="utf-8")) if args.save.exists() else {}
        write_json(args.save, saved | {args.name: measured})


if __name__ == "__main__":
    main()
