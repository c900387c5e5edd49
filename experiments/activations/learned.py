"""Does the predictor know what rounded inputs do? Held-out correlations, and harm by role.

    python -m qsdm.measure +model=emoji_unet num_configs=60 activations=[16,8,6,4]
    python experiments/activations/learned.py --names emoji_unet

A label is what random widths of inputs (16, 8, 6 or 4 bits) add to the loss of a configuration of
the label bank, on the same captions and noise. Each is predicted by the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.engine.serial import Serial
from qsdm.measurement.inputs import by_role
from qsdm.measurement.rounded import errors_of_rounding
from qsdm.measurement.session import open_session
from qsdm.outcome import Objective
from qsdm.predictor.best_probes import choose_probes
from qsdm.predictor.rounding import (
    RoundingLabels,
    RoundingModel,
    learn_rounding,
    one_hot,
    rounding_labels,
)
from qsdm.predictor.scores import srcc
from qsdm.workspace import Workspace, named

HERE = Path(__file__).parent
BITS = (16, 8, 6, 4)
SETS = ("fd_lite0", "psnr")  # of PSNR, the squared error of pixels is learned


def learn(
    workspace: Workspace, error: np.ndarray, metric: str
) -> tuple[RoundingLabels, RoundingModel]:
    """Learn from what the store holds of a model.

    Args:
        workspace: of the model.
        error: float64 [W, K], of rounding each input to 8, 6 and 4 bits.
        metric: that is learned; of PSNR, the squared error of pixels.
    """
    bank, store = workspace.bank(), workspace.store
    objective = Objective({metric: 1.0 if metric == "psnr" else -1.0})
    protocols = {d: p for d, p in bank.protocols.items() if p.seed_set == 0}
    labels = rounding_labels(store.outcomes(protocols), protocols, objective)
    probes = choose_probes(bank, workspace.table, objective)
    return labels, learn_rounding(workspace.space.graph, probes, error, labels)


def judged(workspace: Workspace, error: np.ndarray, metric: str) -> dict[str, Any]:
    """Predict each label of a metric by the others.

    Args:
        workspace: of the model.
        error: float64 [W, K], of rounding each input to 8, 6 and 4 bits.
        metric: that is learned.
    """
    graph = workspace.space.graph
    labels, model = learn(workspace, error, metric)
    hot = one_hot(graph, [o.qconfig for o in labels.outcomes], labels.bits)
    untaught = model.model.prior.expected(hot)
    sums = -np.einsum("bwk,wk->b", hot, np.concatenate([error, 0 * error[:, :1]], axis=1))
    predicted = {
        "nothing: the mean": np.full(len(labels), labels.values.mean()),
        "errors of inputs": sums * float(sums @ labels.values) / float(sums @ sums),
        "probes of weights x errors of inputs": untaught,
        "and the other labels": model.model.left_out,
    }
    harm = model.harm
    names = [weight.name for weight in graph.weights]
    roles = {
        role: harm[[names.index(name) for name in members]].sum(axis=0).tolist()
        for role, members in by_role(graph).items()
    }
    return {
        "num": len(labels),
        "loss": [float(-labels.values.mean()), float(labels.values.std())],
        "predictors": {
            name: {
                "srcc": srcc(labels.values, values) if np.ptp(values) else None,
                "rmse": float(np.sqrt(np.mean((values - labels.values) ** 2))),
            }
            for name, values in predicted.items()
        },
        "bits": list(labels.bits),
        "roles": roles,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--store", default="store")
    args = parser.parse_args()
    path = HERE / "learned.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in args.names:
        workspace = named(name, store=args.store)
        with open_session(workspace, Serial(), 16) as ready:
            error = errors_of_rounding(ready, BITS[1:])
        results[name] = {metric: judged(workspace, error, metric) for metric in SETS}
        path.write_text(json.dumps(results, indent=1) + "\n")
    for name, by_metric in results.items():
        for metric, found in by_metric.items():
            mean, deviation = found["loss"]
            print(f"{name} {metric}: {found['num']} labels, loss {mean:.3g} ± {deviation:.3g}")
            for predictor, scores in found["predictors"].items():
                print(f"  {predictor:40}", {k: v and round(v, 5) for k, v in scores.items()})


if __name__ == "__main__":
    main()
