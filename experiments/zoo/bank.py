"""Ship measured outcomes with a pipeline: the label bank.

    python -m qsdm.measure +model=emoji_unet num_configs=100
    python experiments/zoo/bank.py                # store/emoji_unet/ => qsdm/zoo/emoji_unet/store/

Only outcomes of the pipeline's present weights are taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from architectures import ARCHITECTURES, model_of

from qsdm.denoisers import weights_digest
from qsdm.store import OutcomeDatabase, write_json, write_outcomes_parquet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("store"), help="where outcomes were measured")
    parser.add_argument("--zoo", type=Path, default=Path("qsdm/zoo"), help="where the pipelines lie")
    parser.add_argument("--name", choices=ARCHITECTURES, default="emoji_unet")
    parser.add_argument("--seed-set", type=int, default=0, help="of the labels")
    args = parser.parse_args()
    home = args.zoo / args.name
    weights = weights_digest(model_of(args.name, args.zoo))
    database = OutcomeDatabase(args.store / args.name / "outcomes.sqlite")
    protocols = {
        digest: protocol
        for digest, protocol in database.protocols().items()
        if protocol.weights == weights and protocol.seed_set == args.seed_set
    }
    outcomes = [outcome for outcome in database.read() if outcome.protocol in protocols]
    if not outcomes:
        raise SystemExit(f"no outcomes of the present weights in {database.path}: run python -m qsdm.measure first")
    shutil.rmtree(home / "store", ignore_errors=True)
    write_outcomes_parquet(home / "store" / "outcomes.parquet", outcomes)
    write_json(home / "store" / "protocols.json", [protocol.to_json() for protocol in protocols.values()])
    counts = {digest[:12]: sum(o.protocol == digest for o in outcomes) for digest in protocols}
    print(f"{len(outcomes)} outcomes => {home / 'store'}: {json.dumps(counts)}")


if __name__ == "__main__":
    main()
