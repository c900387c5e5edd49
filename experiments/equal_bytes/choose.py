"""Choose configurations of at most so many bits: ours, and those of simpler rules.

    python experiments/equal_bytes/choose.py --name emoji_unet --store store --out chosen

Writes ``chosen/NAME.json``, by bits and rule, and ``chosen/steps/*.json``, in the order in which
`measure.sh` measures them. Needs trace, calibrate (of both spaces) and, for the paper's rules, a
network that was trained without probes. Everything is learned from the shipped labels, probes and
their noise (seed set 0); measured it is on other noise.

Rules, all within the same budget of bytes:

- ``ours``: the mean of closed models (labels and probes) of both metrics; the point of their front
  that is ahead of all simpler rules in both metrics by the largest predicted margin
- ``ours (quality)``: the same models, of the Fréchet distance alone
- ``weight error``: greedy by relative squared error per byte
- ``probes``, ``probes, fidelity``: each weight measured alone with 256 pictures, by the Fréchet
  distance or by the squared error of pixels; the sum's knapsack
- ``additive``: ridge regression on 240 labels; its knapsack
- ``paper, ops`` and ``paper, blocks``: the option of the best hop score of each weight or unit
- ``best label``: of the random configurations with a label, that of the best one
- ``random-K``, and uniform ones under the method's name

Knapsacks are solved along the lower convex hull (`qsdm.strategies.greedy`): for an additive model
of 800 weights with 6 options within 5e-6 of the integer optimum.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qsdm.measurement.decibels import squared
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.encode import Encoding, encode, errors
from qsdm.predictor.informed import Informed, Lessons
from qsdm.predictor.linear import fit_additive
from qsdm.predictor.probes import Probes, probes_of
from qsdm.predictor.scores import srcc
from qsdm.qconfig import QuantConfig
from qsdm.store import StoreError
from qsdm.store.files import read_json, write_json
from qsdm.strategies import Problem
from qsdm.strategies.greedy import path
from qsdm.workspace import Workspace, named

QUALITY, FIDELITY = "fd_lite0", "psnr"
BITS = (3.5, 3.25, 3.75, 4.0, 3.0)
"""Budgets, most telling first."""

WIDE = 3.0
"""Too few for the six methods of the paper: chosen among the methods of 2 to 8 bits."""

UNIFORM = {
    3.0: ("uaq-2", "kmeans_a-2", "kmeans_c-2"),
    4.0: ("uaq-3", "kmeans_a-3", "kmeans_c-3", "uaq_g64-3", "kmeans_a-4"),
}
OVER = 0.003
"""Uniform 4-bit codebooks are 0.2 % above 4 bits: they are let in, which is to their advantage."""

NUM_RANDOM = 2
LABEL_PICTURES = 256
NUM_SAMPLED = 2_000  # random configurations whose units the paper's rule chooses from
TRADE_OFFS = np.linspace(0, 1, 41)
FIRST = ("ours", "ours (quality)", "weight error", "probes", "probes, fidelity", "additive")
"""Rules that are measured first; the others need pictures of their own at every budget, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """What labels and probes say of one metric, in units in which contributions add up.

    Attributes:
        name: of the metric.
        values: float64 [B], labels; larger is better.
        models: closed models, whose mean predicts.
        contributions: float64 [W, M + 1], their mean.
        forms: interactions and amplitudes of each model.
        probes: of 256 pictures.
        spread: deviation of the labels.
    """

    name: str
    values: np.ndarray
    models: Sequence[Informed]
    contributions: np.ndarray
    forms: Sequence[tuple[np.ndarray, np.ndarray]]
    probes: Probes
    spread: float

    def predict(self, hot: np.ndarray) -> np.ndarray:
        return np.mean([model.predict(hot)[0] for model in self.models], axis=0)


class Chooser:
    """One pipeline in one space."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.space, self.table = workspace.space, workspace.table
        self.encoding: Encoding = encode(self.space, self.table)
        self.problem = Problem.of(self.space, self.table)
        bank = workspace.bank()
        self.labels = bank.labels(Objective({QUALITY: -1}))
        own = [o for o in bank.outcomes if o.protocol == self.labels.protocol.digest]
        self.alone = [o for o in own if len(o.qconfig.methods) < 2]
        (self.full,) = (o for o in own if not o.qconfig.methods)
        self.metrics = [self.metric(QUALITY), self.metric(FIDELITY)]
        for test in bank.tests(Objective({QUALITY: -1})):
            hot = self.encoding.one_hot(test.genes)
            ranks = [
                srcc(m.predict(hot), np.array([value(m.name, o) for o in test.outcomes]))
                for m in self.metrics
            ]
            where = f"seed set {test.protocol.seed_set} x {test.protocol.num_images}"
            print(f"  rank correlation, {where}: " + ", ".join(f"{r:.3f}" for r in ranks))

    def metric(self, name: str) -> Metric:
        """Learn one metric from all labels, with several probes."""
        values = np.array([value(name, outcome) for outcome in self.labels.outcomes])
        halves = np.array(
            [
                [[signed(name, o.halves[name][s][side]) for o in self.labels.outcomes]
                 for side in (0, 1)]
                for s in range(len(self.labels.outcomes[0].halves[name]))
            ]
        )  # fmt: skip
        full = value(name, self.full) if name == QUALITY else 0.0
        of = Objective({name: -1}) if name == QUALITY else name
        several = [
            None,
            self.probes(FIDELITY if name == FIDELITY else "lite0_distance", 16),
            *(self.probes(of, n) for n in (64, LABEL_PICTURES)),
        ]
        models = [
            Lessons(
                self.encoding,
                self.table,
                Objective({name: -1}),
                self.labels.genes,
                values,
                halves,
                probes,
                full,
            ).model(np.arange(len(values)))
            for probes in several
        ]
        contributions = np.mean([model.contributions() for model in models], axis=0)
        forms = [(model.form(), model.prior.amplitude) for model in models]
        probes = several[-1]
        assert probes is not None
        return Metric(name, values, models, contributions, forms, probes, float(values.std()))

    def probes(self, measure: Objective | str, num_images: int) -> Probes:
        protocol = self.labels.protocol
        return probes_of(self.space, self.table, self.alone, protocol, measure, num_images)

    def bits_of(self, genes: np.ndarray) -> np.ndarray:
        return 8 * self.problem.size_of(genes) / self.space.graph.num_values

    def at(self, contributions: np.ndarray, bits: float) -> np.ndarray:
        """The largest configuration within a budget on the path of an additive model, by columns
        of the encoding."""
        columns = self.encoding.columns
        return self.within(-np.take_along_axis(contributions, np.maximum(columns, 0), axis=1), bits)

    def alone_at(self, metric: Metric, bits: float) -> np.ndarray:
        """The knapsack of what each weight loses alone; a gain counts as no loss."""
        damage = metric.probes.damage(self.space, self.table)
        return self.at(-np.maximum(damage, 0), bits)

    def within(self, harm: np.ndarray, bits: float) -> np.ndarray:
        """The largest configuration within a budget on the path of harms by options."""
        genes = path(self.problem, harm)
        sizes = self.bits_of(genes)
        if sizes.min() > bits:
            raise StoreError(f"nothing has at most {bits} bits (the least is {sizes.min():.4f})")
        return genes[int(np.argmax(sizes <= bits))]

    def mixed(self, shares: Sequence[float], bits: float) -> np.ndarray:
        """The best configuration by a weighted sum of metrics, each in deviations of its labels:
        on the path of single contributions, then on that of contributions beside it."""
        weights = [s / m.spread for s, m in zip(shares, self.metrics, strict=True)]
        both = list(zip(weights, self.metrics, strict=True))
        alone = np.sum([weight * metric.contributions for weight, metric in both], axis=0)
        rows = np.arange(len(self.encoding.columns))
        tried = [self.at(alone, bits)]
        for _ in range(3):
            columns = self.encoding.columns[rows, tried[-1]]
            beside = [
                w * 2 * (form @ amplitude[rows, columns])[:, None] * amplitude / len(metric.forms)
                for w, metric in both
                for form, amplitude in metric.forms
            ]
            tried.append(self.at(alone + np.sum(beside, axis=0), bits))
        return tried[int(np.argmax(np.asarray(weights) @ self.predict(tried)))]

    def predict(self, genes: Sequence[np.ndarray]) -> np.ndarray:
        """What both metrics are predicted to be, float64 [2, B]; larger is better."""
        hot = self.encoding.one_hot(np.stack(genes))
        return np.stack([metric.predict(hot) for metric in self.metrics])

    def balanced(self, bits: float, simpler: Sequence[np.ndarray]) -> np.ndarray:
        """Of the front of both metrics, the configuration that is predicted to be ahead of all
        simpler rules in both metrics by the largest margin, in deviations of labels."""
        genes = [self.mixed((share, 1 - share), bits) for share in TRADE_OFFS]
        spread = np.array([[metric.spread] for metric in self.metrics])
        best = self.predict(simpler).max(axis=1, keepdims=True)
        margin = (self.predict(genes) - best) / spread
        chosen = int(np.argmax(margin.min(axis=0)))
        print(
            f"  {bits} bits: share {TRADE_OFFS[chosen]:.3f}, ahead by "
            + ", ".join(f"{value:.3f}" for value in margin[:, chosen])
        )
        return genes[chosen]

    def paper(self, bits: float, unit_of: Sequence[str], seed: int = 0) -> np.ndarray:
        """The arg-max of each unit's hop score, less its bytes at the price that meets the budget.

        A unit of one weight is scored at hop 0; one of several at the weight that ends it, as many
        hops back as it has further weights. Settings of a unit are those of random configurations.
        """
        from qsdm.sensitivity.hops import hop_harms

        predictor = self.workspace.predictor(Objective({QUALITY: -1}))
        sampled = self.problem.sample(np.random.default_rng(seed), NUM_SAMPLED)
        harms = hop_harms(predictor, sampled)  # [hops + 1, B, W]
        graph = self.space.graph
        depth = [graph.node_of(weight.name).depth for weight in graph.weights]
        sizes = self.problem.size_bytes[np.arange(sampled.shape[1]), sampled]
        scored = []
        for unit in dict.fromkeys(unit_of):
            members = np.flatnonzero(np.array(unit_of) == unit)
            end = max(members, key=lambda w: depth[w])
            harm = harms[min(len(members) - 1, len(harms) - 1), :, end]
            scored.append((members, harm, sizes[:, members].sum(axis=1)))

        def at(price: float) -> np.ndarray:
            genes = np.empty(sampled.shape[1], dtype=np.int64)
            for members, harm, size in scored:
                genes[members] = sampled[np.argmin(harm + price * size), members]
            return genes

        low, high = 0.0, 1.0  # in harm per byte: nothing is that harmful
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.bits_of(at(middle)) <= bits else (middle, high)
        if self.bits_of(genes := at(high)) > bits:
            raise StoreError(f"the paper's rule has nothing of at most {bits} bits")
        return genes

    def best_label(self, bits: float) -> np.ndarray:
        inside = np.flatnonzero(self.bits_of(self.labels.genes) <= bits)
        if not len(inside):
            raise StoreError(f"no label has at most {bits} bits")
        return self.labels.genes[inside[np.argmax(self.labels.values[inside])]]

    def random(self, bits: float, num: int) -> list[np.ndarray]:
        """Random configurations of nearly the budget, drawn as labels are."""
        drawn = self.problem.sample(np.random.default_rng(round(1000 * bits)), 20_000)
        sizes = self.bits_of(drawn)
        rows = np.flatnonzero((sizes <= bits) & (sizes > bits - 0.03))
        return [drawn[row] for row in rows[:num]]

    def choose(self, bits: float) -> dict[str, np.ndarray]:
        """All rules' configurations."""
        error = np.nan_to_num(errors(self.space, self.table))
        error = np.concatenate([error, np.zeros_like(error[:, :1])], axis=1)
        quality, fidelity = self.metrics
        additive = fit_additive(
            self.encoding, self.encoding.one_hot(self.labels.genes), self.labels.values
        )
        simpler = {
            "weight error": self.at(-error, bits),
            "probes": self.alone_at(quality, bits),
            "probes, fidelity": self.alone_at(fidelity, bits),
            "additive": self.at(additive.contributions, bits),
        }
        chosen = {
            "ours": self.balanced(bits, list(simpler.values())),
            "ours (quality)": self.mixed((1, 0), bits),
            **simpler,
        }
        rules = {
            "paper, ops": lambda: self.paper(bits, [w.name for w in self.space.graph.weights]),
            "paper, blocks": lambda: self.paper(bits, units(self.workspace)),
            "best label": lambda: self.best_label(bits),
        }
        for rule, choose in rules.items():
            try:
                chosen[rule] = choose()
            except StoreError as reason:
                print(f"  {bits} bits, {rule}: left out: {reason}")
        for k, genes in enumerate(self.random(bits, NUM_RANDOM)):
            chosen[f"random-{k}"] = genes
        return chosen


def value(name: str, outcome: Outcome) -> float:
    """An outcome's metric, larger is better; PSNR as squared error of pixels, which adds up."""
    measured = outcome.metrics[name]
    assert measured is not None
    return signed(name, measured)


def signed(name: str, measured: float) -> float:
    return -measured if name == QUALITY else squared(measured)


def units(workspace: Workspace) -> list[str]:
    """The paper's blocks: a ResNet block; an attention, a feed-forward or a modulation of a
    transformer block; an embedding or an output."""
    graph, names = workspace.space.graph, []
    for weight in graph.weights:
        node = graph.node_of(weight.name)
        outer = node.block or node.stage
        inner = weight.name.removeprefix(outer).strip(".").split(".")
        names.append(f"{outer}.{inner[0]}" if node.block and len(inner) > 1 else outer)
    return names


def uniform(workspace: Workspace, bits: float) -> dict[str, QuantConfig]:
    """Uniform configurations within a budget, and the smallest of 4 bits beside 4 bits."""
    methods = next(methods for most, methods in UNIFORM.items() if bits <= most)
    every = {method: workspace.space.uniform(method) for method in methods}
    return {m: q for m, q in every.items() if bits_of(workspace, q) <= bits * (1 + OVER)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", type=Path, default=Path("chosen"))
    parser.add_argument("--bits", type=float, nargs="*", default=BITS)
    args = parser.parse_args()
    wide = named(args.name, "wide", args.store)
    choosers: dict[str, Chooser] = {}
    path_of_all = args.out / f"{args.name}.json"
    chosen = read_json(path_of_all) if path_of_all.exists() else {}
    for bits in args.bits:
        space = "wide" if bits <= WIDE else "traced"
        if space not in choosers:
            print(f"{args.name}, {space}")
            choosers[space] = Chooser(named(args.name, space, args.store))
        chooser = choosers[space]
        by_rule = {
            rule: chooser.space.decode(genes) for rule, genes in chooser.choose(bits).items()
        }
        by_rule |= uniform(wide, bits)
        chosen[str(bits)] = {rule: qconfig.to_json() for rule, qconfig in by_rule.items()}
        for rule, qconfig in by_rule.items():
            print(f"  {bits} {rule:<18}{bits_of(wide, qconfig):8.4f} {qconfig.digest[:12]}")
        for part, rules in parts(by_rule).items():
            step = args.out / "steps" / f"{list(BITS).index(bits)}{part}-{args.name}.json"
            write_json(step, [by_rule[rule].to_json() for rule in rules])
    write_json(path_of_all, chosen)


def bits_of(workspace: Workspace, qconfig: QuantConfig) -> float:
    from qsdm.qconfig.cost import avg_bits

    return avg_bits(workspace.space.graph, qconfig, workspace.model.full_bits)


def parts(by_rule: Mapping[str, QuantConfig]) -> dict[str, list[str]]:
    """The rules that are measured first, and the others."""
    return {
        "a": [rule for rule in by_rule if rule in FIRST],
        "b": [rule for rule in by_rule if rule not in FIRST],
    }


if __name__ == "__main__":
    main()
