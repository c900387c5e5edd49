"""What qsdm's own commands choose within each budget, for `measure.sh` to measure as well.

    python experiments/equal_bytes/by_command.py --name emoji_unet --store trained --out chosen

Run after `choose.py`, with a store of its own: here the network is what `qsdm.train` learns by
default, from labels and probes. ``qsdm, balanced`` and ``qsdm, quality`` are what
`qsdm.search` with that objective and the budget says is best; no candidate is measured. Adds them
to ``chosen/NAME.json``, and writes ``chosen/steps/5-NAME.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from choose import BITS, WIDE, bits_of

from qsdm.measurement.candidates import Terms, best_points
from qsdm.outcome import Objective
from qsdm.qconfig import QuantConfig
from qsdm.search import search
from qsdm.store.files import read_json, write_json
from qsdm.strategies.constraints import Constraints
from qsdm.strategies.greedy import Greedy
from qsdm.workspace import Workspace, named

QUALITY = {"fd_lite0": -1.0}
OBJECTIVES = {
    "qsdm, balanced": Objective(QUALITY, "psnr"),
    "qsdm, quality": Objective(QUALITY),
}


def found(workspace: Workspace, objective: Objective, bits: float) -> QuantConfig:
    """Search, and take what `realize` would measure first.

    Args:
        workspace: with a trained predictor.
        objective: quality, with or without an axis of fidelity.
        bits: the budget.

    Returns:
        The configuration.
    """
    budget = {"avg_bits": bits}
    front = search(workspace, objective, Greedy(), budget)
    terms = Terms(workspace.space, objective, Constraints.of(budget), workspace.model.metrics)
    points = terms.allowed_points(front)
    protocol = workspace.labels(objective).protocol
    enough = terms.enough(workspace.store.outcomes(protocol), protocol)
    (best,) = best_points(points, 1, terms.tradeoff(points, enough))
    return QuantConfig.from_json(best["qconfig"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="trained")
    parser.add_argument("--out", type=Path, default=Path("chosen"))
    parser.add_argument("--bits", type=float, nargs="*", default=BITS)
    args = parser.parse_args()
    path = args.out / f"{args.name}.json"
    chosen = read_json(path)
    qconfigs = []
    for bits in args.bits:
        workspace = named(args.name, "wide" if bits <= WIDE else "traced", args.store)
        for rule, objective in OBJECTIVES.items():
            qconfig = found(workspace, objective, bits)
            own = bits_of(workspace, qconfig)
            print(f"  {bits} {rule:<18}{own:8.4f} {qconfig.digest[:12]}")
            chosen[str(bits)][rule] = qconfig.to_json()
            qconfigs.append(qconfig)
    write_json(path, chosen)
    distinct = dict.fromkeys(qconfigs)
    write_json(args.out / "steps" / f"5-{args.name}.json", [q.to_json() for q in distinct])


if __name__ == "__main__":
    main()
