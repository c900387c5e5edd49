"""What does the default objective find within 12 % of the pictures of 240 labels?

    python experiments/sample_efficiency/balanced.py --name emoji_unet --out found
    python experiments/sample_efficiency/balanced.py --name emoji_unet --out found --rounds 10

The default, ``objective=balanced``, wants good pictures (`fd_lite0`) that are near those of full
precision (PSNR). Both are predicted by closed models as `qsdm.predictor.by_metric` fits them, here
from fewer pictures: probes of the first 16, and labels of the first 64 (``--images``) that the
store has. `qsdm.search`'s explorer looks for configurations of at most 3.5 bits with them, and of
what it finds the one is taken that `qsdm.realize` would measure first.

With ``--rounds``, only a quarter of the labels (``--random``) are of random configurations. Each of
the rounds asks for the labels of others: the best one of 3.5 bits, by the same rule, for one draw
from the posterior of one of the closed models of either metric (Thompson sampling, with half the
deviation, as in `asked.py`). A killed run goes on.

Prints what a predictor that knows all labels and probes says of what was found; writes the
configurations for `compare.py`, by predictor and draw of the labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from asked import PROBE_IMAGES, SPREAD, read, unlabeled
from study import BUDGETS_OF_PICTURES, LABEL_IMAGES

from qsdm.engine.serial import Serial
from qsdm.measurement.candidates import Terms, best_points
from qsdm.measurement.decibels import PSNR
from qsdm.measurement.labels import Bank, Labels
from qsdm.measurement.session import open_session
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.by_metric import MetricModel, metric_model
from qsdm.predictor.encode import encode
from qsdm.predictor.mean import Coefficients, Mean
from qsdm.qconfig import QuantConfig
from qsdm.store.files import write_json
from qsdm.strategies import Problem
from qsdm.strategies.archive import Goal
from qsdm.strategies.choice import Tradeoff
from qsdm.strategies.constraints import Constraints
from qsdm.strategies.explorer import Explorer
from qsdm.strategies.greedy import Greedy, path
from qsdm.workspace import Workspace, named

QUALITY = "fd_lite0"
BALANCED = Objective({QUALITY: -1.0}, PSNR)
BITS = 3.5
SHARES = np.linspace(0, 1, 21)  # of quality, of the mixes that a draw is searched with


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A mean of closed models with coefficients that were drawn from its posterior."""

    mean: Mean
    coefficients: Coefficients

    @property
    def offset(self) -> float:
        return self.mean.offset

    @property
    def amplitudes(self) -> np.ndarray:
        return self.mean.amplitudes

    def contributions(self) -> np.ndarray:
        return self.mean.contributions(self.coefficients)

    def forms(self) -> np.ndarray:
        return self.mean.forms(self.coefficients)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search by both metrics has found.

    Attributes:
        genes: int64 [W].
        tradeoff: by which it was chosen.
    """

    genes: np.ndarray
    tradeoff: Tradeoff


class Finder:
    """One pipeline: predicts from parts of what was measured, and finds what the default finds."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.space, self.table = workspace.space, workspace.table
        self.encoding = encode(self.space, self.table)
        self.problem = Problem.of(self.space, self.table)
        self.constraints = Constraints.of({"avg_bits": BITS})
        self.terms = Terms(self.space, BALANCED, self.constraints, workspace.model.metrics)
        bank = workspace.bank()
        self.labels = bank.labels(Objective({QUALITY: -1.0}))
        own = [o for o in bank.outcomes if o.protocol == self.labels.protocol.digest]
        self.alone = [o for o in own if len(o.qconfig.methods) == 1]
        (self.full,) = (o for o in own if not o.qconfig.methods)
        everything = [*self.labels.outcomes, *self.alone, self.full]
        protocols = {self.labels.protocol.digest: self.labels.protocol}
        self.everything = Bank(self.space, everything, protocols)
        self.judges = self.models(self.everything, self.labels)

    def cut(
        self,
        rows: Iterable[int],
        num_images: int,
        asked: Sequence[Outcome] = (),
        probes: bool = True,
    ) -> tuple[Bank, Labels]:
        """Labels and probes of their first pictures.

        Args:
            rows: of the labels.
            num_images: of each label.
            asked: further labels, measured of so many pictures.
            probes: whether there are probes.

        Returns:
            The bank, and its labels.
        """
        of_labels = replace(self.labels.protocol, num_images=num_images)
        of_probes = replace(self.labels.protocol, num_images=PROBE_IMAGES)
        random = [first(self.labels.outcomes[i], num_images) for i in rows]
        kept = [replace(o, provenance={"stage": "measure"}) for o in asked]
        own = [first(self.full, num_images), *random, *kept]
        outcomes = [replace(o, protocol=of_labels.digest) for o in own]
        if probes:
            few = [first(o, PROBE_IMAGES) for o in (*self.alone, self.full)]
            outcomes += [replace(o, protocol=of_probes.digest) for o in few]
        bank = Bank(self.space, outcomes, {p.digest: p for p in (of_labels, of_probes)})
        return bank, bank.labels(Objective({QUALITY: -1.0}), num_images=num_images)

    def models(self, bank: Bank, labels: Labels) -> tuple[MetricModel, MetricModel]:
        """Learn quality and fidelity."""
        learn = (bank, self.encoding, self.table, labels)
        return metric_model(*learn, QUALITY, False), metric_model(*learn, PSNR, True)

    def enough(self, bank: Bank, labels: Labels) -> float:
        return self.terms.enough(bank.outcomes, labels.protocol)

    def find(self, models: tuple[MetricModel, MetricModel], enough: float) -> Found:
        """Search as the default does.

        Args:
            models: of quality and fidelity.
            enough: quality of full precision.
        """
        quality, fidelity = models
        max_bytes = self.constraints.max_bytes(self.space.graph.num_values)
        goal = Goal((fidelity,), (PSNR,), {}, max_bytes, max_bytes)

        def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return -quality(genes), np.zeros(len(genes))

        front: dict[str, Any] = Explorer(self.problem, Greedy(), goal).search(predict)
        points = [p for p in front["points"] if self.terms.allow(of_json(p["qconfig"]))]
        tradeoff = self.terms.tradeoff(points, enough)
        assert tradeoff is not None
        (best,) = best_points(points, 1, tradeoff)
        return Found(self.space.encode(of_json(best["qconfig"])), tradeoff)

    def propose(
        self,
        models: tuple[MetricModel, MetricModel],
        tradeoff: Tradeoff,
        rng: np.random.Generator,
        number: int,
    ) -> np.ndarray:
        """Find the best configuration for one draw from the posteriors.

        Args:
            models: of quality and fidelity.
            tradeoff: of the last search.
            rng: source of the draw.
            number: of the draw; the closed models come in turn.

        Returns:
            Genes, int64 [W].
        """
        drawn = []
        for model in models:
            several = model.mean.models
            one = Mean((several[number % len(several)],))
            mean: Any = Drawn(one, one.sampled(rng, SPREAD))
            drawn.append(replace(model, mean=mean))
        rows = np.arange(len(self.space.options))
        parts = [(m.mean.contributions(), m.mean.amplitudes[0], m.mean.forms()[0]) for m in drawn]
        spread = [np.ptp(m.mean.left_out) or 1.0 for m in models]
        tried = []
        for share in SHARES:
            weights = (share / spread[0], (1 - share) / spread[1])
            alone = sum(w * table for w, (table, _, _) in zip(weights, parts, strict=True))
            genes = self.at(alone)
            for _ in range(2):
                columns = self.encoding.columns[rows, genes]
                beside = sum(
                    w * 2 * (form @ amplitude[rows, columns])[:, None] * amplitude
                    for w, (_, amplitude, form) in zip(weights, parts, strict=True)
                )
                genes = self.at(alone + beside)
            tried.append(genes)
        quality, fidelity = (model(np.stack(tried)) for model in drawn)
        scores = [tradeoff.score(-q, f) for q, f in zip(quality, fidelity, strict=True)]
        return tried[max(range(len(tried)), key=scores.__getitem__)]

    def at(self, contributions: np.ndarray) -> np.ndarray:
        """Genes of the largest configuration of the greedy path within the budget."""
        columns = np.maximum(self.encoding.columns, 0)
        genes = path(self.problem, -np.take_along_axis(contributions, columns, axis=1))
        size = 8 * self.problem.size_of(genes) / self.space.graph.num_values
        return genes[int(np.argmax(size <= BITS))]

    def judged(self, genes: np.ndarray) -> tuple[float, float]:
        """What a configuration loses of the quality, and its PSNR, as all labels predict them."""
        full = self.full.metrics[QUALITY]
        assert full is not None
        quality, fidelity = (float(judge(genes[None])[0]) for judge in self.judges)
        return quality - full, fidelity


def of_json(data: Any) -> QuantConfig:
    return QuantConfig.from_json(data)


def first(outcome: Outcome, num_images: int) -> Outcome:
    """An outcome of its first pictures; the noise of halves rises as their number falls."""
    if num_images == outcome.num_images:
        return outcome
    factor = (outcome.num_images / num_images) ** 0.5

    def wider(pair: tuple[float, float]) -> tuple[float, float]:
        middle = sum(pair) / 2
        return middle + (pair[0] - middle) * factor, middle + (pair[1] - middle) * factor

    halves = {name: tuple(map(wider, pairs)) for name, pairs in outcome.halves.items()}
    metrics = outcome.prefixes[num_images]
    return replace(outcome, metrics=metrics, num_images=num_images, prefixes={}, halves=halves)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the pictures are spent on.

    Attributes:
        images: of each label.
        probes: pictures of all probes.
        num_random: labels of random configurations.
        per_round: labels that each round asks for.
    """

    images: int
    probes: int
    num_random: int
    per_round: int

    def pictures(self, num_labels: int) -> int:
        """Pictures of probes, labels and full precision."""
        return self.probes + self.images * (num_labels + 1)


Row = tuple[str, int, np.ndarray]
"""A predictor, its pictures, and what it has found."""


def from_random(finder: Finder, budget: Budget, draw: int) -> Iterator[Row]:
    """What is found with labels of random configurations."""
    bank, labels = finder.cut(rows_of(finder, budget, draw), budget.images, (), budget.probes > 0)
    found = finder.find(finder.models(bank, labels), finder.enough(bank, labels))
    probed = "probes-16" if budget.probes else "no probes"
    name = f"balanced, {probed} {budget.num_random}x{budget.images}/{draw}"
    yield name, budget.pictures(budget.num_random), found.genes


def from_rounds(
    finder: Finder, budget: Budget, draw: int, num_rounds: int, journal: Path
) -> Iterator[Row]:
    """What is found after each round of asking."""
    rows = rows_of(finder, budget, draw)
    size = f"x{budget.per_round}x{budget.images}/{draw}"
    rounds: dict[str, list[list[Any]]] = read(journal)
    own = rounds.setdefault(f"{budget.num_random}+{size}", [])
    with open_session(finder.workspace, Serial(), budget.images) as ready:
        protocol = ready.protocol(finder.labels.protocol.seed_set, budget.images)
        for number in range(num_rounds + 1):
            qconfigs = [of_json(point) for points in own[:number] for point in points]
            outcomes = ready.measure(qconfigs, protocol, "rounds").outcomes
            asked = [outcomes[q.digest] for q in qconfigs if q.digest in outcomes]
            bank, labels = finder.cut(rows, budget.images, asked)
            models = finder.models(bank, labels)
            found = finder.find(models, finder.enough(bank, labels))
            name = f"balanced, asked {budget.num_random}+{number}{size}"
            yield name, budget.pictures(len(labels)), found.genes
            if number == len(own) < num_rounds:
                rng = np.random.default_rng((draw, number))
                propose = partial(finder.propose, models, found.tradeoff, rng)
                own.append(unlabeled(propose, labels, finder.space, budget.per_round))
                write_json(journal, rounds)


def rows_of(finder: Finder, budget: Budget, draw: int) -> np.ndarray:
    """Which labels of random configurations a draw has."""
    return np.random.default_rng(draw).permutation(len(finder.labels))[: budget.num_random]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", type=Path, default=Path("found"))
    parser.add_argument("--draws", type=int, nargs="*", default=range(5), help="of the labels")
    parser.add_argument("--images", type=int, default=64, help="of each label")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--random", type=float, default=0.25, help="share of random labels")
    parser.add_argument("--no-probes", action="store_true")
    args = parser.parse_args()
    finder = Finder(named(args.name, store=args.store))
    num_weights, num_labels = len(finder.space.options), len(finder.labels)
    probes = 0 if args.no_probes else PROBE_IMAGES * num_weights
    affordable = min((BUDGETS_OF_PICTURES[1] - probes) // args.images - 1, num_labels)
    per_round = int((1 - args.random) * affordable / args.rounds) if args.rounds else 0
    budget = Budget(args.images, probes, affordable - per_round * args.rounds, per_round)
    args.out.mkdir(parents=True, exist_ok=True)
    found = args.out / f"{args.name}.json"

    def show(rows: Iterable[Row]) -> None:
        for name, pictures, genes in rows:
            harm, psnr = finder.judged(genes)
            line = f"{name}: {pictures:,} pictures, {harm:.1f} points, {psnr:.2f} dB"
            print(f"{args.name} {line}", flush=True)
            entry = {str(BITS): finder.space.decode(genes).to_json()}
            write_json(found, read(found) | {name: entry})

    if not args.rounds:
        best = finder.find(finder.judges, finder.enough(finder.everything, finder.labels))
        show([("balanced, all/0", LABEL_IMAGES * (num_weights + 1 + num_labels), best.genes)])
    for draw in args.draws:
        if args.rounds:
            journal = args.out / f"{args.name}.balanced.json"
            show(from_rounds(finder, budget, draw, args.rounds, journal))
        else:
            show(from_random(finder, budget, draw))


if __name__ == "__main__":
    main()
