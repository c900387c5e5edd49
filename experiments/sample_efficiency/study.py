"""How many pictures does a predictor need, if each weight is first measured alone?

    python experiments/sample_efficiency/study.py --name emoji_unet --out found --network
    python experiments/sample_efficiency/compare.py --name emoji_unet --write chosen.json
    python -m qsdm.measure +model=emoji_unet configs=chosen.json seed_set=2 num_images=512
    python experiments/sample_efficiency/compare.py --name emoji_unet

On the shipped outcomes: each weight alone (256 pictures, of which the first 16 and 64 are known,
too), 240 labels of 256 pictures and a test set. Needs trace and calibrate. Every row is one
predictor: what it costs in pictures (full precision included), the rank correlation with the test
set on the labels' noise and on other noise, the share of test labels inside its intervals of 68 %
and 95 %, and the harm of the configurations that it finds at 3.25, 3.5 and 3.75 bits, as a
predictor that knows everything predicts it. That judge has seen the same pictures: only fresh ones
decide (compare.py). Mean and deviation of five draws of the labels.

A label may also be measured of fewer pictures: ``lite0_distance-16 92x64`` has 92 labels of their
first 64 pictures, and probes of 16 pictures' distances to full precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qsdm.measurement.labels import Bank, Labels
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import baselines
from qsdm.predictor.cheap_labels import cheap_labels
from qsdm.predictor.encode import Encoding, encode, errors
from qsdm.predictor.fused import fused
from qsdm.predictor.hamming import fit_hamming
from qsdm.predictor.informed import Lessons
from qsdm.predictor.linear import fit_additive
from qsdm.predictor.mean import Coefficients, Mean
from qsdm.predictor.probes import Probes, probes_of
from qsdm.predictor.scores import noise_ceiling, srcc
from qsdm.strategies import Problem
from qsdm.strategies.greedy import path
from qsdm.workspace import Workspace, named

QUALITY = Objective({"fd_lite0": -1})
BUDGETS = (3.25, 3.5, 3.75)
DRAWS = 5
LABEL_IMAGES = 256
BUDGETS_OF_PICTURES = (1_850, 7_400, 14_800)  # 3, 12 and 24 % of 240 labels of 256 pictures
LEAST_LABELS = 6

Predict = Callable[[np.ndarray], np.ndarray]
"""One-hot configurations [B, W, M + 1] => labels, float64 [B]."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A predictor: means, deviations (None if it has none), and what it finds."""

    mean: Predict
    deviation: Predict | None
    found: list[np.ndarray] | None


class Study:
    """One pipeline's outcomes and what is asked of them."""

    def __init__(self, workspace: Workspace) -> None:
        self.space, self.table = workspace.space, workspace.table
        self.encoding: Encoding = encode(self.space, self.table)
        self.problem = Problem.of(self.space, self.table)
        bank: Bank = workspace.bank()
        self.labels: Labels = bank.labels(QUALITY)
        self.tests = bank.tests(QUALITY)
        own = [o for o in bank.outcomes if o.protocol == self.labels.protocol.digest]
        self.alone: list[Outcome] = [o for o in own if len(o.qconfig.methods) < 2]
        (full,) = (o for o in own if not o.qconfig.methods)
        self.full_outcome: Outcome = full
        self.num_weights = len(self.space.options)
        tested = [t for t in self.tests if t.protocol == self.labels.protocol]
        known = self.labels
        for test in tested:
            known = known.joined(test)
        self.judge = self.lessons(self.probes(LABEL_IMAGES), known).model(np.arange(len(known)))

    def full(self, num_images: int = LABEL_IMAGES) -> float:
        """The label of full precision."""
        return QUALITY(metrics_of(self.full_outcome, num_images))

    def few(self, num_images: int) -> Labels:
        """The same labels, measured of their first pictures only.

        The noise of halves falls with the root of the number of pictures.
        """
        values = [QUALITY(metrics_of(o, num_images)) for o in self.labels.outcomes]
        halves = self.labels.halves
        if halves is not None:
            middle = halves.mean(axis=1, keepdims=True)
            halves = middle + (halves - middle) * (LABEL_IMAGES / num_images) ** 0.5
        return dataclasses.replace(self.labels, values=np.array(values), halves=halves)

    def probes(self, num_images: int, metric: Objective | str | None = None) -> Probes:
        """Probes of the first pictures; ``metric`` is a distance to full precision instead of the
        objective."""
        if metric is None:
            metric = QUALITY
        protocol = self.labels.protocol
        return probes_of(self.space, self.table, self.alone, protocol, metric, num_images)

    def read_off(self, order: np.ndarray, num: int) -> Labels:
        """All labels in an order: the first ``num`` measured of 64 pictures, the others read off
        their first 16 pictures."""
        labels = self.few(64).take(order)
        described = np.stack(
            [
                -baselines.error_sum(self.space, self.table, labels.genes),
                baselines.avg_bits(self.space, labels.genes),
            ],
            axis=1,
        )
        others = [
            dataclasses.replace(outcome, metrics=outcome.prefixes[16], num_images=16)
            for outcome in labels.outcomes[num:]
        ]
        cheap = cheap_labels(
            labels.outcomes[:num], labels.values[:num], described[:num], others, described[num:], 16
        )
        values = np.concatenate([labels.values[:num], cheap.labels])
        return dataclasses.replace(labels, values=values, halves=None)

    def lessons(
        self, probes: Probes | None, labels: Labels, num_images: int = LABEL_IMAGES
    ) -> Lessons:
        return Lessons.of(self.encoding, self.table, QUALITY, labels, probes, self.full(num_images))

    def model(
        self,
        several: Sequence[Probes | None],
        labels: Labels,
        num_images: int = LABEL_IMAGES,
    ) -> Mean:
        """Closed models that start from different probes, learned from all of the labels."""
        rows = np.arange(len(labels))
        return Mean(tuple(self.lessons(p, labels, num_images).model(rows) for p in several))

    def informed(
        self, probes: Probes | None, labels: Labels, num_images: int = LABEL_IMAGES
    ) -> Fitted:
        model = self.model([probes], labels, num_images)
        same = num_images == LABEL_IMAGES  # else the test labels have another unit
        return Fitted(
            lambda x: model.predict(x)[0],
            (lambda x: model.predict(x)[1]) if same else None,
            self.best_of(model),
        )

    def mean(
        self, several: Sequence[Probes | None], labels: Labels, num_images: int = LABEL_IMAGES
    ) -> Fitted:
        model = self.model(several, labels, num_images)
        return Fitted(lambda x: model.predict(x)[0], None, self.best_of(model))

    def best_of(
        self,
        model: Mean,
        bits: Sequence[float] = BUDGETS,
        coefficients: Coefficients | None = None,
    ) -> list[np.ndarray]:
        """The configuration at each budget: on the path of single contributions, then on that of
        contributions beside the configuration so far, if it is predicted to be better; by the
        model's expectations, or by other coefficients of its parts."""
        table, forms = model.contributions(coefficients), model.forms(coefficients)
        amplitudes = model.amplitudes
        rows = np.arange(self.num_weights)
        best = []
        for budget in bits:
            tried = [self.at(table, budget)]
            for _ in range(3):
                columns = self.encoding.columns[rows, tried[-1]]
                slopes = np.einsum("jwv,jv->jw", forms, amplitudes[:, rows, columns])
                beside = 2 * np.einsum("jw,jwm->wm", slopes, amplitudes)
                tried.append(self.at(table + beside, budget))
            hot = self.encoding.one_hot(np.stack(tried))
            chosen = np.einsum("bwm,jwm->jbw", hot, amplitudes)
            values = np.einsum("bwm,wm->b", hot, table)
            values += np.einsum("jbv,jvw,jbw->b", chosen, forms, chosen, optimize=True)
            best.append(tried[int(np.argmax(values))])
        return best

    def at(self, contributions: np.ndarray, bits: float) -> np.ndarray:
        """Genes of the largest configuration of the greedy path within a budget."""
        columns = self.encoding.columns
        harm = -np.take_along_axis(contributions, np.maximum(columns, 0), axis=1)
        genes = path(self.problem, harm)
        size = 8 * self.problem.size_of(genes) / self.space.graph.num_values
        return genes[int(np.argmax(size <= bits))]

    def genes(self, configurations: np.ndarray) -> np.ndarray:
        """The inverse of one-hot."""
        columns = configurations.argmax(axis=2)
        return (self.encoding.columns[None] == columns[..., None]).argmax(axis=2)

    def harm(self, genes: np.ndarray) -> float:
        """What the judge predicts that a configuration loses."""
        return self.full() - float(self.judge.predict(self.encoding.one_hot(genes[None]))[0][0])


def metrics_of(outcome: Outcome, num_images: int) -> Mapping[str, float | None]:
    """Metrics of an outcome's first pictures."""
    return outcome.metrics if num_images == LABEL_IMAGES else outcome.prefixes[num_images]


def additive(study: Study, rows: np.ndarray) -> Fitted:
    hot = study.encoding.one_hot(study.labels.genes[rows])
    model = fit_additive(study.encoding, hot, study.labels.values[rows])
    return Fitted(model, None, [study.at(model.contributions, bits) for bits in BUDGETS])


def hamming(study: Study, rows: np.ndarray) -> Fitted:
    predict = fit_hamming(study.labels.genes[rows], study.labels.values[rows])
    return Fitted(lambda x: predict(study.genes(x))[0], lambda x: predict(study.genes(x))[1], None)


def untrained(study: Study, name: str) -> Fitted:

    def mean(x: np.ndarray) -> np.ndarray:
        genes = study.genes(x)
        if name == "avg_bits":
            return baselines.avg_bits(study.space, genes)
        return baselines.error_sum(study.space, study.table, genes)

    error = np.nan_to_num(errors(study.space, study.table))
    contributions = -np.concatenate([error, np.zeros_like(error[:, :1])], axis=1)
    found = [study.at(contributions, bits) for bits in BUDGETS] if name == "error_sum" else None
    return Fitted(mean, None, found)


def network(study: Study, workspace: Workspace) -> Fitted:
    """Today's network, trained on all labels by `python -m qsdm.train`, and its single changes."""
    from qsdm.strategies.archive import Archive, references, sensitivity

    trained = workspace.predictor(QUALITY)

    def mean(x: np.ndarray) -> np.ndarray:
        return trained.predict(study.genes(x))[0]

    rng = np.random.default_rng(0)
    archive = Archive(study.problem, trained.predict, 0.0)
    harm = sensitivity(archive, references(study.problem, rng))[0]
    genes = path(study.problem, harm)
    size = 8 * study.problem.size_of(genes) / study.space.graph.num_values
    return Fitted(mean, None, [genes[int(np.argmax(size <= bits))] for bits in BUDGETS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", type=Path, help="folder for the configurations that are found")
    parser.add_argument("--network", action="store_true", help="also the network in the store")
    parser.add_argument("--only", default="", help="regular expression: only these predictors")
    args = parser.parse_args()
    workspace = named(args.name, store=args.store)
    study = Study(workspace)
    labels, num = study.labels, study.num_weights
    rows_of: dict[str, dict] = {}
    curve: dict[str, dict] = {}
    orders = [np.random.default_rng(draw).permutation(len(labels)) for draw in range(DRAWS)]

    def show(name: str, pictures: int, fit: Callable[[np.ndarray], Fitted], once: bool) -> None:
        if not re.search(args.only, name):
            return
        ranks, harms, inside = [], [], []
        for order in orders[:1] if once else orders:
            fitted = fit(order)
            scores = []
            for test in study.tests:
                hot = study.encoding.one_hot(test.genes)
                mean = fitted.mean(hot)
                scores.append(srcc(mean, test.values))
                if fitted.deviation is not None and test.protocol == labels.protocol:
                    away = np.abs(test.values - mean) / fitted.deviation(hot)
                    inside.append([np.mean(away < 1), np.mean(away < 1.96)])
            ranks.append(scores)
            if fitted.found is not None:
                harms.append([study.harm(genes) for genes in fitted.found])
                key = f"{name}/{len(ranks) - 1}"
                rows_of[key] = {
                    str(bits): study.space.decode(genes).to_json()
                    for bits, genes in zip(BUDGETS, fitted.found, strict=True)
                }
        cells = " ".join(
            f"{m:.3f} ± {s:.3f}" for m, s in zip(np.mean(ranks, 0), np.std(ranks, 0), strict=True)
        )
        share = " ".join(f"{100 * v:3.0f}%" for v in np.mean(inside, 0)) if inside else " " * 9
        found = "  ".join(
            f"{m:6.1f} ± {s:4.1f}"
            for m, s in zip(np.mean(harms, 0), np.std(harms, 0), strict=True)
        ) if harms else ""  # fmt: skip
        print(f"{name:<24}{pictures:>8,}  {cells}  {share}  {found}", flush=True)
        curve[name] = {
            "pictures": pictures,
            "srcc": np.mean(ranks, 0).round(4).tolist(),
            "deviation": np.std(ranks, 0).round(4).tolist(),
        }

    few = {num_images: study.few(num_images) for num_images in (16, 64, LABEL_IMAGES)}

    def informed(
        probes: Probes | None, count: int, num_images: int = LABEL_IMAGES
    ) -> Callable[[np.ndarray], Fitted]:
        def fit(order: np.ndarray) -> Fitted:
            return study.informed(probes, few[num_images].take(order[:count]), num_images)

        return fit

    tests = ", ".join(
        f"seed set {t.protocol.seed_set} x {t.protocol.num_images}" for t in study.tests
    )
    print(f"{args.name}: {num} weights, {len(labels)} labels; test sets: {tests}")
    ceilings = [noise_ceiling(t.halves)["ceiling"] for t in study.tests if t.halves is not None]
    print("ceilings: " + ", ".join(f"{c:.3f}" for c in ceilings))
    print(f"{'predictor':<24}{'pictures':>8}  srcc by test set; inside 68 % and 95 %; harm found")
    counts = (8, 20, 40, 80, 160, len(labels))
    for name in ("avg_bits", "error_sum"):
        show(name, 0, lambda _, name=name: untrained(study, name), True)
    for count in counts:
        pictures = LABEL_IMAGES * (count + 1)
        once = count == len(labels)
        show(f"additive {count}", pictures, lambda o, c=count: additive(study, o[:c]), once)
        show(f"hamming {count}", pictures, lambda o, c=count: hamming(study, o[:c]), once)
        show(f"no probes {count}", pictures, informed(None, count), once)
    if args.network:
        pictures = LABEL_IMAGES * (len(labels) + 1)
        show(f"network {len(labels)}", pictures, lambda _: network(study, workspace), True)

    def averaged(
        several: Sequence[Probes | None], count: int, num_images: int = LABEL_IMAGES
    ) -> Callable[[np.ndarray], Fitted]:
        def fit(order: np.ndarray) -> Fitted:
            return study.mean(several, few[num_images].take(order[:count]), num_images)

        return fit

    def show_few(
        name: str, fit: Callable[[int, int], Callable[[np.ndarray], Fitted]], drawn: int
    ) -> None:
        """With as many labels of few pictures as a budget of pictures allows."""
        for budget in BUDGETS_OF_PICTURES:
            for images in (16, 64):
                count = min((budget - drawn - images) // images, len(labels))
                if count >= LEAST_LABELS:
                    show(
                        f"{name} {count}x{images}",
                        drawn + images + count * images,  # full precision included
                        fit(count, images),
                        count == len(labels),
                    )

    show_few("no probes", lambda *size: informed(None, *size), 0)
    drawn_16, drawn_256 = 16 * (num + 1), 256 * (num + 1)
    of_16 = [None, *(study.probes(16, metric) for metric in ("psnr", "lite0_distance", None))]
    of_256 = [None, study.probes(16, "lite0_distance"), study.probes(64), study.probes(256)]
    for count in counts:
        once, pictures = count == len(labels), LABEL_IMAGES * count
        show(f"mean {count}", drawn_256 + pictures, averaged(of_256, count), once)
        more = pictures + LABEL_IMAGES - 16
        show(f"mean-16 {count}", drawn_16 + more, averaged(of_16, count), once)
    for name, several, drawn in (("no probes", [None], 0), ("mean-16", of_16, drawn_16)):
        upgraded = (7_400 - drawn - 64 - 16 * len(labels)) // 48
        show(
            f"{name} {upgraded}x64+16",
            drawn + 64 + 16 * len(labels) + 48 * upgraded,
            lambda o, s=several, k=upgraded: study.mean(s, study.read_off(o, k), 64),
            False,
        )
    show_few("mean-16", lambda *size: averaged(of_16, *size), drawn_16)
    for metric, images in (
        ("psnr", 16),
        ("lite0_distance", 16),
        ("probes", 16),
        ("fused", 16),
        ("probes", 64),
        ("probes", 256),
    ):
        if metric == "fused":
            probes = fused(study.probes(images), study.probes(images, "lite0_distance"))
        else:
            probes = study.probes(images, None if metric == "probes" else metric)
        drawn = (num + 1) * images
        for count in (0, *((3, *counts) if images == 16 else counts)):
            more = LABEL_IMAGES * count + (LABEL_IMAGES - images if count else 0)
            name = f"{metric}-{images} {count}"
            show(name, drawn + more, informed(probes, count), count in (0, len(labels)))
        show_few(f"{metric}-{images}", lambda *size, p=probes: informed(p, *size), drawn)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in ((args.name, rows_of), (f"{args.name}.curve", curve)):
            path_of_all = args.out / f"{name}.json"
            if path_of_all.exists():
                rows = json.loads(path_of_all.read_text(encoding="utf-8")) | rows
            path_of_all.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
