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
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from qsdm.measurement.labels import Bank, Labels
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import baselines
from qsdm.predictor.encode import Encoding, encode, errors
from qsdm.predictor.informed import Informed, Lessons
from qsdm.predictor.linear import fit_additive
from qsdm.predictor.probes import Probes, probes_of
from qsdm.predictor.scores import noise_ceiling, srcc
from qsdm.strategies import Problem
from qsdm.strategies.greedy import path
from qsdm.workspace import Workspace, named

QUALITY = Objective({"fd_lite0": -1})
BUDGETS = (3.25, 3.5, 3.75)
DRAWS = 5
LABEL_IMAGES = 256

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
        self.full = QUALITY(full.metrics)
        self.num_weights = len(self.space.options)
        tested = [t for t in self.tests if t.protocol == self.labels.protocol]
        known = self.labels
        for test in tested:
            known = known.joined(test)
        self.judge = self.lessons(self.probes(LABEL_IMAGES), known).model(np.arange(len(known)))

    def probes(self, num_images: int, metric: Objective | str | None = None) -> Probes:
        """Probes of the first pictures; ``metric`` is a distance to full precision instead of the
        objective."""
        if metric is None:
            metric = QUALITY
        protocol = self.labels.protocol
        return probes_of(self.space, self.table, self.alone, protocol, metric, num_images)

    def lessons(self, probes: Probes | None, labels: Labels) -> Lessons:
        return Lessons(
            self.encoding,
            self.table,
            QUALITY,
            labels.genes,
            labels.values,
            labels.halves,
            probes,
            self.full,
        )

    def informed(self, probes: Probes | None, labels: Labels) -> Fitted:
        model = self.lessons(probes, labels).model(np.arange(len(labels)))
        return Fitted(
            lambda x: model.predict(x)[0], lambda x: model.predict(x)[1], self.best_of(model)
        )

    def best_of(self, model: Informed) -> list[np.ndarray]:
        """The configuration at each budget: on the path of single contributions, then on that of
        contributions beside the configuration so far, if it is predicted to be better."""
        table, form, amplitude = model.contributions(), model.form(), model.prior.amplitude
        rows = np.arange(self.num_weights)
        best = []
        for bits in BUDGETS:
            genes = self.at(table, bits)
            tried = [genes]
            for _ in range(3):
                columns = self.encoding.columns[rows, tried[-1]]
                others = form @ amplitude[rows, columns]
                tried.append(self.at(table + 2 * others[:, None] * amplitude, bits))
            values = model.predict(self.encoding.one_hot(np.stack(tried)))[0]
            best.append(tried[int(np.argmax(values))])
        return best

    def at(self, contributions: np.ndarray, bits: float) -> np.ndarray:
        """Genes of the largest configuration of the greedy path within a budget."""
        columns = self.encoding.columns
        harm = -np.take_along_axis(contributions, np.maximum(columns, 0), axis=1)
        genes = path(self.problem, harm)
        size = 8 * self.problem.size_of(genes) / self.space.graph.num_values
        return genes[int(np.argmax(size <= bits))]

    def harm(self, genes: np.ndarray) -> float:
        """What the judge predicts that a configuration loses."""
        return self.full - float(self.judge.predict(self.encoding.one_hot(genes[None]))[0][0])


def additive(study: Study, rows: np.ndarray) -> Fitted:
    hot = study.encoding.one_hot(study.labels.genes[rows])
    model = fit_additive(study.encoding, hot, study.labels.values[rows])
    return Fitted(model, None, [study.at(model.contributions, bits) for bits in BUDGETS])


def hamming(study: Study, rows: np.ndarray) -> Fitted:
    """A Gaussian process whose kernel falls with the number of weights that differ."""
    genes, values = study.labels.genes[rows], study.labels.values[rows]
    flat = study.encoding.one_hot(genes).reshape(len(genes), -1)
    scale = values.std()
    kernel = ConstantKernel(10.0, (0.1, 1e4)) * RBF(10.0, (1.0, 300.0)) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bound that is met is told
        process.fit(flat, (values - values.mean()) / scale)

    def mean(x: np.ndarray) -> np.ndarray:
        return values.mean() + scale * process.predict(x.reshape(len(x), -1))

    def deviation(x: np.ndarray) -> np.ndarray:
        return scale * process.predict(x.reshape(len(x), -1), return_std=True)[1]

    return Fitted(mean, deviation, None)


def untrained(study: Study, name: str) -> Fitted:

    def mean(x: np.ndarray) -> np.ndarray:
        columns = x.argmax(axis=2)
        genes = (study.encoding.columns[None] == columns[..., None]).argmax(axis=2)
        if name == "avg_bits":
            return baselines.avg_bits(study.space, genes)
        return baselines.error_sum(study.space, study.table, genes)

    error = np.nan_to_num(errors(study.space, study.table))
    contributions = -np.concatenate([error, np.zeros_like(error[:, :1])], axis=1)
    found = [study.at(contributions, bits) for bits in BUDGETS] if name == "error_sum" else None
    return Fitted(mean, None, found)


def network(study: Study, workspace: Workspace) -> Fitted:
    """Today's network, trained on all labels by `python -m qsdm.train`, and its single changes."""
    from qsdm.search import Archive, references, sensitivity

    trained = workspace.predictor(QUALITY)

    def mean(x: np.ndarray) -> np.ndarray:
        genes = (study.encoding.columns[None] == x.argmax(axis=2)[..., None]).argmax(axis=2)
        return trained.predict(genes)[0]

    rng = np.random.default_rng(0)
    archive = Archive(study.problem, trained.predict, 0.0)
    harm = sensitivity(archive, references(study.problem, rng))
    genes = path(study.problem, harm)
    size = 8 * study.problem.size_of(genes) / study.space.graph.num_values
    return Fitted(mean, None, [genes[int(np.argmax(size <= bits))] for bits in BUDGETS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", type=Path, help="folder for the configurations that are found")
    parser.add_argument("--network", action="store_true", help="also the network in the store")
    args = parser.parse_args()
    workspace = named(args.name, store=args.store)
    study = Study(workspace)
    labels, num = study.labels, study.num_weights
    rows_of: dict[str, dict] = {}
    orders = [np.random.default_rng(draw).permutation(len(labels)) for draw in range(DRAWS)]

    def show(name: str, pictures: int, fit: Callable[[np.ndarray], Fitted], once: bool) -> None:
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

    def informed(probes: Probes | None, count: int) -> Callable[[np.ndarray], Fitted]:
        def fit(order: np.ndarray) -> Fitted:
            return study.informed(probes, labels.take(order[:count]))

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
    for metric, images in (("psnr", 16), ("lite0_distance", 16), (None, 64), (None, 256)):
        probes = study.probes(images, metric)
        drawn = (num + 1) * images
        for count in (0, *((3, *counts) if metric else counts)):
            more = LABEL_IMAGES * count + (LABEL_IMAGES - images if count else 0)
            name = f"{metric or 'probes'}-{images} {count}"
            show(name, drawn + more, informed(probes, count), count in (0, len(labels)))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(rows_of, indent=1)
        (args.out / f"{args.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
