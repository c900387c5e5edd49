"""Train the predictor on measured outcomes, and say how well it ranks configurations that it has not seen.

    python -m qsdm.train +model=emoji_unet
    python -m qsdm.train +model=emoji_unet objective=paper predictor.ranking=spearman
    python -m qsdm.train -m +model=emoji_unet seed=0,1,2

Writes ``predictor/<space>/fold-K.safetensors`` and ``predictor/<space>/report.json``::

    schema              qsdm/predictor-report/1
    denoiser, space, objective, predictor, seed, protocol, num_outcomes, seconds
    cheap               num, num_images, and srcc of labels read off few pictures
                        (see `qsdm.predictor.cheap_labels`), or null
    scores              by name (gnn, additive, ridge, error_sum, avg_bits): srcc and ndcg_at_10 on held-out
                        configurations, {mean, std, folds}
    noise               halves (rank correlation of two halves' labels, mean over the ways to halve, with quantiles),
                        reliability, ceiling; null without halves
    test                one entry per seed set and number of pictures of the test set: srcc by predictor, noise; and the
                        rank correlation of the seed sets among each other; null without a test set
    held_out            configurations' digests with measured and predicted label, each by the fold that has not seen it
    provenance
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from qsdm.bounds import MANY, require
from qsdm.cost import MethodTable
from qsdm.denoisers import Model
from qsdm.log import Log, ignore
from qsdm.measurement.labels import (
    labels_of,
    noise,
    require_fitted,
    test_report,
    under_protocol,
    usable,
)
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import FitOptions
from qsdm.predictor.cheap_labels import CheapLabels, cheap_labels
from qsdm.qconfig import Space
from qsdm.store import Store, StoreError
from qsdm.store.provenance import provenance
from qsdm.store.schemas import REPORT
from qsdm.workspace import Workspace, takes_workspace


@takes_workspace("model", "space", "objective", "predictor", "store")
def train(
    workspace: Workspace,
    objective: Objective,
    predictor: FitOptions,
    seed_set: int = 0,
    num_images: int = 256,
    cheap_images: int = 0,
    seed: int = 0,
    log: Log = ignore,
) -> dict[str, Any]:
    """Train one network per fold and store them with their report.

    Args:
        workspace: model, space and store.
        objective: the label that is learned; larger is better.
        seed_set: of the noise that the labels were measured with.
        num_images: pictures that each label was measured from.
        cheap_images: learn from configurations of which so many pictures were drawn, too; their labels are read off
            these (see `qsdm.predictor.cheap_labels`). 0: from full labels only.
        seed: of the folds and of the networks' first parameters.

    Returns:
        The report.

    Raises:
        StoreError: an earlier stage has not run, or measured too little.
        ValueError: there are fewer outcomes than the folds need.
    """
    from qsdm.predictor import Predictor
    from qsdm.predictor.encode import encode
    from qsdm.predictor.fit import fit_folds

    require(2, MANY, num_images=num_images)
    require(0, MANY, cheap_images=cheap_images)
    began = perf_counter()
    model, files, made = workspace.model, workspace.store, workspace.space
    table = workspace.table
    require_fitted(model, table, made.graph)
    labelled = under_protocol(files, model, seed_set, num_images)
    outcomes = usable(labelled, made, objective, model.name)
    genes = np.stack([made.encode(outcome.qconfig) for outcome in outcomes])
    labels, halves = labels_of(outcomes, made, objective)
    num_full, cheap = len(labels), None
    if cheap_images:
        cheap, few = read_off(
            files, model, made, table, objective, outcomes, labels, seed_set, cheap_images
        )
        genes = np.concatenate([genes, np.stack([made.encode(outcome.qconfig) for outcome in few])])
        labels = np.concatenate([labels, cheap.labels])

    encoding = encode(made, table)
    folds = fit_folds(encoding, genes, labels, predictor, seed, log)
    trained = Predictor(encoding, folds, dict(objective.weights))
    trained.save(files.path(f"predictor/{workspace.space_name}"))
    predictions = held_out(trained, made, table, genes, labels)
    report: dict[str, Any] = {
        "schema": REPORT.schema,
        "denoiser": model.name,
        "space": workspace.space_name,
        "objective": dict(objective.weights),
        "predictor": {name: getattr(predictor, name) for name in FitOptions.__slots__},
        "seed": seed,
        "seed_set": seed_set,
        "protocol": outcomes[0].protocol,
        "num_outcomes": num_full,
        "cheap": None
        if cheap is None
        else {"num": len(cheap.labels), "num_images": cheap_images, "srcc": cheap.srcc},
        "seconds": round(perf_counter() - began, 1),
        "epochs": [fold.epochs for fold in folds],
        "scores": score(predictions, labels, [fold.test[fold.test < num_full] for fold in folds]),
        "noise": noise(halves),
        "test": test_report(
            files,
            model,
            made,
            objective,
            lambda tested: on_test(trained, made, table, genes, labels, tested),
        ),
        "held_out": {
            "qconfig": [outcome.qconfig.digest for outcome in outcomes],
            "measured": labels[:num_full].tolist(),
            **{name: values[:num_full].tolist() for name, values in predictions.items()},
        },
        "provenance": provenance(),
    }
    REPORT.write(files.path(f"predictor/{workspace.space_name}/report.json"), report)
    log(
        {
            f"train/{q}_{name}": s[q]["mean"]
            for name, s in report["scores"].items()
            for q in ("srcc", "ndcg_at_10")
        }
    )
    print_report(report)
    return report


def read_off(
    files: Store,
    model: Model,
    space: Space,
    table: MethodTable,
    objective: Objective,
    outcomes: Sequence[Outcome],
    labels: np.ndarray,
    seed_set: int,
    cheap_images: int,
) -> tuple[CheapLabels, list[Outcome]]:
    """Labels of the configurations that have ``cheap_images`` pictures and no full label."""
    from qsdm.predictor import baselines

    def known(some: Sequence[Outcome]) -> np.ndarray:
        genes = np.stack([space.encode(outcome.qconfig) for outcome in some])
        return np.stack(
            [-baselines.error_sum(space, table, genes), baselines.avg_bits(space, genes)], axis=1
        )

    have = {outcome.qconfig.digest for outcome in outcomes}
    found = usable(
        under_protocol(files, model, seed_set, cheap_images), space, objective, model.name
    )
    few = [outcome for outcome in found if outcome.qconfig.digest not in have]
    if not few:
        raise StoreError(
            f"all {len(found)} configurations of {cheap_images} pictures have a full label, too"
        )
    cheap = cheap_labels(outcomes, labels, known(outcomes), few, known(few), cheap_images)
    print(
        f"{len(few)} labels read off {cheap_images} pictures, by {len(outcomes)} full ones; left out, these are met "
        f"with srcc {cheap.srcc:.3f}"
    )
    return cheap, few


def held_out(
    predictor: Any, space: Space, table: MethodTable, genes: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Predictions by name, float64 [B] each; every configuration is predicted by the fold whose test part holds it."""
    import torch

    from qsdm.predictor import baselines
    from qsdm.predictor.fit import evaluate
    from qsdm.predictor.linear import fit_additive

    hot = predictor.encoding.one_hot(genes)
    found = {name: np.empty(len(labels)) for name in ("gnn", "additive", "ridge")}
    choices = baselines.one_hot(space, genes)
    for fold in predictor.folds:
        test, rest = fold.test, np.setdiff1d(np.arange(len(labels)), fold.test)
        found["gnn"][test] = (
            fold.mean + fold.deviation * evaluate(fold.gnn, torch.from_numpy(hot[test]))[0]
        )
        found["additive"][test] = fit_additive(predictor.encoding, hot[rest], labels[rest])(
            hot[test]
        )
        found["ridge"][test] = baselines.ridge(choices[rest], labels[rest], choices[test])
    found["error_sum"] = baselines.error_sum(space, table, genes)
    found["avg_bits"] = baselines.avg_bits(space, genes)
    return found


def on_test(
    predictor: Any,
    space: Space,
    table: MethodTable,
    genes: np.ndarray,
    labels: np.ndarray,
    tested: np.ndarray,
) -> dict[str, np.ndarray]:
    """Predictions by name, float64 [B], for configurations that no fold has seen."""
    from qsdm.predictor import baselines
    from qsdm.predictor.linear import fit_additive

    hot, choices = predictor.encoding.one_hot, baselines.one_hot
    return {
        "gnn": predictor.predict(tested)[0],
        "additive": fit_additive(predictor.encoding, hot(genes), labels)(hot(tested)),
        "ridge": baselines.ridge(choices(space, genes), labels, choices(space, tested)),
        "error_sum": baselines.error_sum(space, table, tested),
        "avg_bits": baselines.avg_bits(space, tested),
    }


def score(
    predictions: dict[str, np.ndarray], labels: np.ndarray, tests: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Rank correlation and NDCG@10 of each predictor: each test part, their mean and standard deviation."""
    from qsdm.predictor.scores import ndcg, srcc

    found: dict[str, Any] = {}
    for name, values in predictions.items():
        found[name] = {}
        for quantity, function in (("srcc", srcc), ("ndcg_at_10", ndcg)):
            folds = [function(values[test], labels[test]) for test in tests]
            found[name][quantity] = {
                "mean": float(np.mean(folds)),
                "std": float(np.std(folds)),
                "folds": folds,
            }
    return found


def print_report(report: dict[str, Any]) -> None:
    """Held-out scores by predictor, and the noise ceiling, on the terminal."""
    print(
        f"{report['num_outcomes']} outcomes, {len(report['epochs'])} folds, {report['seconds']:.0f} s; "
        "on held-out configurations:"
    )
    print(f"{'predictor':<12}{'srcc':>16}{'ndcg@10':>16}")
    for name, scores in report["scores"].items():
        cells = [
            f"{scores[q]['mean']:.3f} ± {scores[q]['std']:.3f}" for q in ("srcc", "ndcg_at_10")
        ]
        print(f"{name:<12}{cells[0]:>16}{cells[1]:>16}")
    if (found := report["noise"]) is None:
        print("noise ceiling: unknown, the outcomes hold no halves")
    else:
        print(
            f"noise ceiling of srcc: {found['ceiling']:.3f} (halves {found['halves']:.3f}, "
            f"{found['halves_low']:.3f} to {found['halves_high']:.3f}; "
            f"Spearman-Brown reliability {found['reliability']:.3f})"
        )
    if (test := report["test"]) is not None:
        print_test(test)


def print_test(test: dict[str, Any]) -> None:
    """Rank correlations on the test set, each beside its ceiling."""
    names = list(test["sets"][0]["srcc"])
    print("test set, which no fold has seen; srcc:")
    print(
        f"{'configurations':<16}{'pictures':<10}{'seed set':<10}"
        + "".join(f"{n:>11}" for n in [*names, "ceiling"])
    )
    for entry in test["sets"]:
        about = f"{entry['num_configs']:<16}{entry['num_images']:<10}{entry['seed_set']:<10}"
        ceiling = "-" if entry["noise"] is None else f"{entry['noise']['ceiling']:.3f}"
        print(about + "".join(f"{entry['srcc'][name]:>11.3f}" for name in names) + f"{ceiling:>11}")
    for pair in test["between"]:
        (a, n), (b, m) = pair["sets"]
        print(f"labels of seed set {a} ({n} pictures) and {b} ({m}): srcc {pair['srcc']:.3f}")


if __name__ == "__main__":
    from qsdm import run

    run.main(train)
