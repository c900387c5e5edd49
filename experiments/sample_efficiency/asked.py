"""What is found by labels that a search asks for, within 12 % of the pictures of 240 labels?

    python experiments/sample_efficiency/asked.py --name emoji_unet --out found
    python experiments/sample_efficiency/compare.py --name emoji_unet --bits 3.5 \\
        --write chosen.json --keys "asked 172+6x27x16/0"

Starts from the first 16 pictures of each weight alone and of random labels, which the store has.
Each of six rounds (or ``--rounds``) samples configurations of at most 3.5 average bits: each is the
best one for one draw from the posterior of a closed model (Thompson sampling, with half the
deviation), of the models in turn that start without probes, from the probes' distances, and from
their harm. Then it measures 16 pictures of each (or ``--images``), with the captions and noise of
seed set 0, and learns. Half of the pictures that probes leave (or ``--random``) go to the random
labels, the others to the rounds. After each round comes the best configuration that the mean of the
models predicts, as `study.py` finds it.

A killed run goes on: what a round proposes is written before it is measured, and outcomes are
stored as they arrive.

References:
    On the Likelihood that One Unknown Probability Exceeds Another in View of the Evidence of Two
    Samples (Thompson, 1933).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from study import BUDGETS, BUDGETS_OF_PICTURES, QUALITY, Study

from qsdm.engine.serial import Serial
from qsdm.measurement.labels import PROPOSED, Bank, Labels
from qsdm.measurement.rounds import joined
from qsdm.measurement.session import Session, open_session
from qsdm.predictor.mean import Mean
from qsdm.predictor.scores import srcc
from qsdm.qconfig import QuantConfig, Space
from qsdm.store.files import write_json
from qsdm.workspace import named

BITS = 3.5
PROBE_IMAGES = 16  # of each probe
SPREAD = 0.5  # of draws from a posterior, in units of its deviation
Rounds = list[list[dict]]
"""Configurations that each round has proposed, as JSON."""


class Asking:
    """The rounds of one pipeline.

    Args:
        study: of the pipeline.
        ready: the running session.
        labels: random ones.
        num_images: of each label.
    """

    def __init__(self, study: Study, ready: Session, labels: Labels, num_images: int) -> None:
        self.study, self.ready, self.random = study, ready, labels
        self.num_images = num_images
        self.protocol = ready.protocol(study.labels.protocol.seed_set, num_images)
        self.priors = [
            None,
            study.probes(PROBE_IMAGES, "lite0_distance"),
            study.probes(PROBE_IMAGES),
        ]

    def measured(self, rounds: Rounds) -> Labels:
        """Measure what the rounds have proposed, as far as that was not done before.

        Random labels come first, then those of the rounds.
        """
        study = self.study
        qconfigs = [QuantConfig.from_json(entry) for points in rounds for entry in points]
        if not qconfigs:
            return self.random
        self.ready.measure(qconfigs, self.protocol, "rounds")
        outcomes = tuple(self.ready.store.outcomes(self.protocol))
        bank = Bank(study.space, outcomes, {self.protocol.digest: self.protocol})
        (labels,) = bank.sets(QUALITY, PROPOSED, [self.protocol])
        wanted = {qconfig.digest for qconfig in qconfigs}
        own = [i for i, digest in enumerate(labels.digests) if digest in wanted]
        return joined(self.random, labels.take(own))

    def model(self, labels: Labels) -> Mean:
        """Learn from all labels so far, once from each prior."""
        return self.study.model(self.priors, labels, self.num_images)

    def propose(
        self, model: Mean, labels: Labels, num: int, rng: np.random.Generator
    ) -> list[dict]:
        """Sample configurations that were not measured yet, from the models in turn."""

        def best(i: int) -> np.ndarray:
            one = Mean((model.models[i % len(model.models)],))
            return self.study.best_of(one, (BITS,), one.sampled(rng, SPREAD))[0]

        return unlabeled(best, labels, self.study.space, num)


def unlabeled(
    propose: Callable[[int], np.ndarray], labels: Labels, space: Space, num: int
) -> list[Any]:
    """Take proposals until there are enough that have no label, as JSON.

    Args:
        propose: gives genes, int64 [W], by the number of the try.
        labels: that are known.
        space: of both.
        num: of proposals; fewer after 20 times as many tries.
    """
    known = {genes.tobytes() for genes in labels.genes}
    points: list[Any] = []
    for i in range(20 * num):
        if len(points) == num:
            break
        genes = propose(i)
        if genes.tobytes() not in known:
            known.add(genes.tobytes())
            points.append(space.decode(genes).to_json())
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", type=Path, default=Path("found"))
    parser.add_argument(
        "--draw", type=int, default=0, help="of the random labels and of the rounds"
    )
    parser.add_argument("--images", type=int, default=16, help="of each label")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--random", type=float, default=0.5, help="share of random labels")
    args = parser.parse_args()
    images = args.images
    workspace = named(args.name, store=args.store)
    study = Study(workspace)
    drawn = PROBE_IMAGES * study.num_weights + images  # probes, and full precision
    affordable = (BUDGETS_OF_PICTURES[1] - drawn) // images
    num = int((1 - args.random) * affordable / args.rounds)
    num_random = affordable - num * args.rounds
    order = np.random.default_rng(args.draw).permutation(len(study.labels))[:num_random]
    args.out.mkdir(parents=True, exist_ok=True)
    journal = args.out / f"{args.name}.rounds.json"
    rounds_of: dict[str, Rounds] = read(journal)
    rounds = rounds_of.setdefault(f"{num_random}+{num}x{images}/{args.draw}", [])
    with open_session(workspace, Serial()) as ready:
        asking = Asking(study, ready, study.few(images).take(order), images)
        labels, model = asking.random, asking.model(asking.random)
        for number in range(args.rounds + 1):
            if number > len(rounds):
                rng = np.random.default_rng((args.draw, number))
                rounds.append(asking.propose(model, labels, num, rng))
                write_json(journal, rounds_of)
            labels = asking.measured(rounds[:number])
            model = asking.model(labels)
            found = study.best_of(model)
            harms = "  ".join(f"{study.harm(genes):.1f}" for genes in found)
            name = f"asked {num_random}+{number}x{num}x{images}"
            pictures = drawn + images * len(labels)
            ranks = [
                srcc(model.predict(study.encoding.one_hot(test.genes))[0], test.values)
                for test in study.tests
            ]
            print(
                f"{args.name} {name}/{args.draw}: {pictures:,} pictures, "
                f"best label {-labels.values.max():.1f}, harm found {harms}",
                flush=True,
            )
            configurations = {
                str(bits): study.space.decode(genes).to_json()
                for bits, genes in zip(BUDGETS, found, strict=True)
            }
            path = args.out / f"{args.name}.json"
            write_json(path, read(path) | {f"{name}/{args.draw}": configurations})
            if args.draw == 0:
                path = args.out / f"{args.name}.curve.json"
                ranking = {"pictures": pictures, "srcc": ranks, "deviation": [0.0] * len(ranks)}
                write_json(path, read(path) | {name: ranking})


def read(path: Path) -> dict:
    """Contents of a JSON file; nothing if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    main()
