"""Train the predictor on measured outcomes, and report how well it ranks unseen configurations.

    python -m qsdm.train +model=emoji_unet
    python -m qsdm.train +model=emoji_unet objective=paper predictor.ranking=spearman
    python -m qsdm.train +model=emoji_pixart 'from=[emoji_unet,emoji_mmdit]'
    python -m qsdm.train -m +model=emoji_unet seed=0,1,2

Writes ``predictor/<space>/fold-K.safetensors``, ``posterior.safetensors`` (how sure predictions
are) and ``report.json`` beside them::

    schema              qsdm/predictor-report/1
    denoiser, space, objective, predictor, seed, protocol, num_outcomes, seconds
    cheap               num, num_images, and srcc of labels read off few pictures
                        (see `qsdm.predictor.cheap_labels`), or null
    scores              by name (gnn, mean, informed, drawn, forward, no_probes, additive, ridge,
                        hamming, probes, error_sum, avg_bits): srcc and ndcg_at_10 on held-out
                        configurations, {mean, std, folds}
    noise               halves (rank correlation of two halves' labels, mean over the ways to halve,
                        with quantiles), reliability, ceiling; null without halves
    test                one entry per seed set and number of pictures of the test set: srcc by
                        predictor, noise; and the rank correlation of the seed sets among each
                        other; null without a test set
    held_out            configurations' digests with measured and predicted label, each by the fold
                        that has not seen it
    provenance
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm import text
from qsdm.outcome import Objective
from qsdm.predictor import FitOptions
from qsdm.qconfig import OutsideSpace
from qsdm.store.provenance import provenance
from qsdm.store.schemas import REPORT, TestReport
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from qsdm.measurement.labels import Bank, Labels
    from qsdm.predictor.encode import Encoding
    from qsdm.predictor.probes import Probes
    from qsdm.qconfig import Space
    from qsdm.qconfig.cost import MethodTable


@takes_workspace("model", "space", "objective", "predictor", "store")
def train(
    workspace: Workspace,
    objective: Objective,
    predictor: FitOptions,
    seed_set: int = 0,
    num_images: int = 256,
    cheap_images: int = 0,
    probes: bool = True,
    from_: str | Sequence[str] = (),
    seed: int = 0,
    log: Log = ignore,
) -> dict[str, Any]:
    """Train one network per fold and store them with their report.

    Args:
        workspace: model, space and store.
        objective: the label that is learned; larger is better.
        predictor: how the networks are trained.
        seed_set: of the noise that the labels were measured with.
        num_images: pictures that each label was measured from.
        cheap_images: learn from configurations of which this many pictures were drawn, too; their
            labels are read off these pictures (see `qsdm.predictor.cheap_labels`). 0: learn from
            full labels only.
        probes: use what `probe` measured of each weight alone, if the store has it.
        from_: other models of the same space and store; what their labels say of weights like
            these (see `qsdm.predictor.transfer`) stands for the model's own probes.
        seed: of the folds and of the networks' initial parameters.
        log: receives the losses of every epoch, and the scores.

    Returns:
        The report.

    Raises:
        StoreError: an earlier stage has not run, or measured too little.
        ModelError: there is no model of a name in ``from_``.
        NoTransfer: a model in ``from_`` is this one, or has nothing in common with it.
        ValueError: there are fewer outcomes than the folds need.

    Example:
        >>> import qsdm
        >>> from qsdm.outcome import Objective
        >>> from qsdm.predictor import FitOptions
        >>> from qsdm.train import train
        >>> quality, quick = Objective({"fd_lite0": -1}), FitOptions(folds=2, epochs=1)
        >>> report = train(qsdm.open("emoji_unet"), quality, quick)
        >>> report["num_outcomes"], report["scores"]["gnn"]["srcc"]["mean"] > 0.8
        (240, True)
    """
    from qsdm.measurement.labels import label_of_full, require_fitted
    from qsdm.predictor import Predictor
    from qsdm.predictor.encode import encode
    from qsdm.predictor.fit import fit_folds
    from qsdm.predictor.judge import Judge, noise, score, test_report
    from qsdm.predictor.mean import priors_of
    from qsdm.predictor.posterior import calibrated
    from qsdm.report.tracked import track

    require(2, MANY, num_images=num_images)
    require(0, MANY, cheap_images=cheap_images)
    began = perf_counter()
    space, table = workspace.space, workspace.table
    bank = workspace.bank()
    require_fitted(workspace.model, table, space.graph, bank.digests)
    cheap: dict[str, Any] | None = None
    full = bank.labels(objective, seed_set, num_images)
    if full.note:
        print(full.note)
    labels = full
    if cheap_images:
        few = bank.labels(objective, seed_set, cheap_images)
        labels, cheap = with_cheap(full, few, space, table)
    encoding = encode(space, table)
    own: dict[str, Probes] = {}
    if from_:
        own["transferred"] = taught(workspace, encoding, objective, from_, seed_set, num_images)
    elif probes:
        own = usable_probes(bank, table, objective, full)
    at_full = label_of_full(bank.outcomes, full.protocol.digest, objective, space.full_bits)
    priors = priors_of(encoding, table, objective, labels, own, at_full)
    informed = priors.model if own and predictor.additive else None
    folds = fit_folds(
        encoding, labels.genes, labels.values, predictor, seed, log, informed=informed
    )
    networks = Predictor(encoding, folds, dict(objective.weights))
    predictions, deviations = Judge(networks, table, labels, priors).held_out()
    everything = priors.best.model(np.arange(len(labels)))
    posterior = calibrated(everything, labels.values, predictions["gnn"], deviations)
    trained = replace(networks, posterior=posterior)
    trained.save(workspace.path(f"predictor/{workspace.space_name}"))
    judge = Judge(trained, table, labels, priors)
    judged = [fold.test[fold.test < len(full)] for fold in folds]  # by full labels alone
    report: dict[str, Any] = {
        "schema": REPORT.schema,
        "denoiser": workspace.name,
        "space": workspace.space_name,
        "objective": dict(objective.weights),
        "predictor": {name: getattr(predictor, name) for name in FitOptions.__slots__},
        "seed": seed,
        "seed_set": seed_set,
        "protocol": full.protocol.digest,
        "num_outcomes": len(full),
        "cheap": cheap,
        "seconds": round(perf_counter() - began, 1),
        "epochs": [fold.epochs for fold in folds],
        "scores": score(predictions, labels.values, judged),
        "noise": noise(full),
        "test": test_report(judge, bank.tests(objective)),
        "held_out": {
            "qconfig": full.digests,
            "measured": full.values.tolist(),
            **{name: values[: len(full)].tolist() for name, values in predictions.items()},
        },
        "provenance": provenance(),
    }
    REPORT.write(workspace.path(f"predictor/{workspace.space_name}/report.json"), report)
    log(
        {
            f"train/{quantity}_{name}": scores[quantity]["mean"]
            for name, scores in report["scores"].items()
            for quantity in ("srcc", "ndcg_at_10")
        }
    )
    print_report(report)
    track(log, "train", workspace.store, workspace.space_name, workspace.model.full_bits)
    return report


def with_cheap(
    full: Labels, few: Labels, space: Space, table: MethodTable
) -> tuple[Labels, dict[str, Any]]:
    """Add labels that are read off few pictures, and tell how well full ones are met.

    Args:
        full: labels of all their pictures.
        few: labels of the first pictures alone, those of ``full`` among them.
        space: of both.
        table: errors of every weight under every method.

    Returns:
        All labels, the full ones first, and the report's entry: num, num_images, srcc.
    """
    from qsdm.predictor.cheap_labels import read_off

    others, cheap = read_off(full, few, space, table)
    print(
        f"{len(others)} labels read off {few.protocol.num_images} pictures, by {len(full)} full "
        f"ones; left out, these are met with srcc {cheap.srcc:.3f}"
    )
    entry = {"num": len(cheap.labels), "num_images": few.protocol.num_images, "srcc": cheap.srcc}
    return full.joined(others), entry


def usable_probes(
    bank: Bank, table: MethodTable, objective: Objective, labels: Labels
) -> dict[str, Probes]:
    """Choose probes that fit the labels, and tell which, or why there are none.

    Args:
        bank: everything that was measured of the model.
        table: errors of the space's weights under the probed methods.
        objective: whose loss is harm.
        labels: that are learned from.

    Returns:
        Complete probes by fidelity, the best ones first.
    """
    from qsdm.predictor.best_probes import best_of_each_fidelity
    from qsdm.predictor.probes import ProbeError, is_probe

    if not any(is_probe(outcome) for outcome in bank.outcomes):
        return {}
    usable: dict[str, Probes] = {}
    try:
        for fidelity, probes in best_of_each_fidelity(bank, table, objective).items():
            probes.require(bank.space, labels.protocol)
            usable[fidelity] = probes
    except (ProbeError, OutsideSpace) as error:
        print(f"{'other ' if usable else ''}probes are not used: {error}")
    for probes in usable.values():
        of = f"of {probes.num_images} pictures each" if probes.num_images else "without pictures"
        print(f"probes of {len(probes.weights)} weights, {probes.fidelity}, {of}")
    return usable


def taught(
    workspace: Workspace,
    encoding: Encoding,
    objective: Objective,
    names: str | Sequence[str],
    seed_set: int,
    num_images: int,
) -> Probes:
    """Predict the damage of a model's weights from other models' labels and probes.

    Args:
        workspace: of the model.
        encoding: of its space.
        objective: that labels measure.
        names: of the other models, in ``conf/model``.
        seed_set: of their labels' noise.
        num_images: pictures of each label.

    Returns:
        What stands for probes.

    Raises:
        ModelError: there is no model of a name.
        NoTransfer: a model is this one, or has nothing in common with it.
        StoreError: an earlier stage of another model has not run, or measured too little.
    """
    from qsdm.measurement.labels import label_of_full
    from qsdm.predictor.encode import encode
    from qsdm.predictor.informed import Lessons
    from qsdm.predictor.transfer import NoTransfer, Teacher, transferred
    from qsdm.workspace import named

    names = list(dict.fromkeys([names] if isinstance(names, str) else names))
    if workspace.name in names:
        raise NoTransfer(f"from names {workspace.name!r} itself: give other models' names")
    models = [named(name, store=workspace.root).model for name in names]
    others = [Workspace(model, workspace.spec, workspace.root) for model in models]
    for other in others:  # before one teaches, which takes a while
        _ = other.space, other.table
    teachers = []
    for name, other in zip(names, others, strict=True):
        bank, table = other.bank(), other.table
        labels = bank.labels(objective, seed_set, num_images)
        lessons = Lessons.of(
            encode(other.space, table),
            table,
            objective,
            labels,
            next(iter(usable_probes(bank, table, objective, labels).values()), None),
            label_of_full(bank.outcomes, labels.protocol.digest, objective, other.space.full_bits),
        )
        model_of_labels = lessons.model(np.arange(len(labels)))
        teachers.append(Teacher.of(lessons.encoding, table, model_of_labels))
        print(f"learned from {len(labels)} labels of {name}")
    return transferred(teachers, encoding, workspace.table)


def print_report(report: dict[str, Any]) -> None:
    """Print held-out scores by predictor, and the noise ceiling.

    Args:
        report: what `train` returns.
    """
    print(
        f"{report['num_outcomes']} outcomes, {len(report['epochs'])} folds, "
        f"{report['seconds']:.0f} s; on held-out configurations:"
    )
    quantities = ("srcc", "ndcg_at_10")
    rows = [
        [name, *(f"{scores[q]['mean']:.3f} ± {scores[q]['std']:.3f}" for q in quantities)]
        for name, scores in report["scores"].items()
    ]
    print(text.table(["predictor", "srcc", "ndcg@10"], rows))
    if (noise := report["noise"]) is None:
        print("noise ceiling: unknown, the outcomes hold no halves")
    else:
        print(
            f"noise ceiling of srcc: {noise['ceiling']:.3f} (halves {noise['halves']:.3f}, "
            f"{noise['halves_low']:.3f} to {noise['halves_high']:.3f}; "
            f"Spearman-Brown reliability {noise['reliability']:.3f})"
        )
    if (test := report["test"]) is not None:
        print_test(test)


def print_test(test: TestReport) -> None:
    """Print rank correlations on the test set, each beside its ceiling.

    Args:
        test: part of the report.
    """
    names = list(test["sets"][0]["srcc"])
    print("test set, which no fold has seen; srcc:")
    rows = [
        [
            entry["num_configs"],
            entry["num_images"],
            entry["seed_set"],
            *(entry["srcc"][name] for name in names),
            entry["noise"] and entry["noise"]["ceiling"],
        ]
        for entry in test["sets"]
    ]
    heads = ["configurations", "pictures", "seed set", *names, "ceiling"]
    print(text.table(heads, rows, ".3f"))
    for pair in test["between"]:
        (a, n), (b, m) = pair["sets"]
        print(f"labels of seed set {a} ({n} pictures) and {b} ({m}): srcc {pair['srcc']:.3f}")


if __name__ == "__main__":
    from qsdm import run

    run.main(train)
