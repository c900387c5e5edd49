"""How many full labels are needed if the other configurations have a few pictures each?

    python experiments/fidelity/study.py --name emoji_unet

The study uses the shipped label bank. Full labels are fd_lite0 of 256 pictures. Of the other
configurations, only the metrics of their first 16 or 64 pictures are used (prefixes of the same
outcomes, which equal a measurement with num_images=16). The predictor is the additive model, fitted
to full labels and to labels estimated from few pictures alike. It is judged on configurations that
it has not seen: the test set, or a fifth that is held out. Results are means over several draws of
the configurations with full labels.

The columns are: pictures drawn, as a share of full labels for all; rank correlation with the full
labels of unseen configurations; and the hypervolume of the front that the predictor finds, relative
to that of all full labels, both judged by the model that is fitted to all of them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from pymoo.indicators.hv import HV

import qsdm
from qsdm.measurement.labels import Labels
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.cheap_labels import read_off
from qsdm.predictor.encode import encode
from qsdm.predictor.linear import Additive, fit_additive
from qsdm.predictor.scores import srcc
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})
DRAWS = 10


def front(additive: Additive, sizes: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """Decisions of the additive model's own front, int64 [P, W]: for each price of a byte, the best
    of every weight.
    """
    gains = np.where(offered, additive.contributions[:, :-1], -np.inf)
    span = np.nanmax(np.where(offered, np.abs(gains), 0)) / np.nanmin(sizes[offered])
    prices = np.concatenate([[0.0], np.geomspace(1e-6, 1, 200)]) * span
    return np.unique(
        [np.where(offered, gains - price * sizes, -np.inf).argmax(axis=1) for price in prices],
        axis=0,
    )


def volume(decisions: np.ndarray, judge: Additive, sizes: np.ndarray, corner: np.ndarray) -> float:
    """Hypervolume of (bytes, -quality), both to be small, below ``corner``."""
    rows = np.arange(sizes.shape[0])
    points = np.array(
        [
            [sizes[rows, d].sum(), -judge.contributions[rows, d].sum() - judge.offset]
            for d in decisions
        ]
    )
    return float(HV(ref_point=corner)(points))


def load(name: str, store: Path) -> tuple[Workspace, Labels, Labels | None]:
    """Labels and test set, both of 256 pictures."""
    workspace = qsdm.open(name, store=store)
    bank = workspace.bank()
    labels = bank.labels(QUALITY, seed_set=0, num_images=256)
    tests = [test for test in bank.tests(QUALITY) if test.protocol == labels.protocol]
    return workspace, labels, tests[0] if tests else None


def with_few(labels: Labels, num_images: int) -> Labels:
    """The labels as if only their first pictures had been drawn."""
    outcomes = tuple(
        Outcome(o.qconfig, "few", o.prefixes[num_images], num_images) for o in labels.outcomes
    )
    protocol = replace(labels.protocol, num_images=num_images)
    return replace(labels, outcomes=outcomes, protocol=protocol, halves=None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", type=Path, default=Path("store"), help="traced and calibrated")
    args = parser.parse_args()
    workspace, labelled, tested = load(args.name, args.store)
    space, table = workspace.space, workspace.table
    encoding = encode(space, table)
    rng = np.random.default_rng(0)
    everything = labelled if tested is None else labelled.joined(tested)
    all_labels = everything.values
    judge = fit_additive(encoding, encoding.one_hot(everything.genes), all_labels)
    sizes = np.nan_to_num(table.size_bytes.astype(float))
    offered = np.array([[m in options for m in space.methods] for options in space.options])
    sizes = np.where(offered, sizes, np.inf)
    best = front(judge, np.where(offered, sizes, 1.0), offered)
    corner = np.array([np.where(offered, sizes, 0).max(axis=1).sum(), -all_labels.min()])
    whole = volume(best, judge, sizes, corner)
    num_tested = 0 if tested is None else len(tested)
    print(f"{args.name}: {len(labelled)} labels, {num_tested} test configurations, {DRAWS} draws")
    print(f"{'full labels':>12}{'others':>14}{'pictures':>10}{'srcc':>16}{'front':>16}")
    for cheap_images in (0, 16, 64):
        for num_full in (10, 20, 40, 80, 160, len(labelled)):
            if num_full > len(labelled) or (cheap_images and num_full == len(labelled)):
                continue
            ranks, fronts = [], []
            for _ in range(DRAWS):
                order = rng.permutation(len(labelled))
                unseen, rest = tested, order
                if unseen is None:
                    unseen, rest = labelled.take(order[: len(order) // 5]), order[len(order) // 5 :]
                full = labelled.take(rest[:num_full])
                if cheap_images and num_full < len(rest):
                    few = with_few(labelled.take(rest[num_full:]), cheap_images)
                    full = full.joined(read_off(full, few, space, table)[0])
                fitted = fit_additive(encoding, encoding.one_hot(full.genes), full.values)
                hot, truth = encoding.one_hot(unseen.genes), unseen.values
                ranks.append(srcc(fitted(hot), truth))
                fronts.append(
                    volume(
                        front(fitted, np.where(offered, sizes, 1.0), offered), judge, sizes, corner
                    )
                    / whole
                )
            drawn = (256 * num_full + cheap_images * max(0, len(labelled) - num_full)) / (
                256 * len(labelled)
            )
            others_text = f"{cheap_images} pictures" if cheap_images else "-"
            print(
                f"{num_full:>12}{others_text:>14}{100 * drawn:>9.0f}%"
                f"{np.mean(ranks):>9.3f} ± {np.std(ranks):.3f}"
                f"{np.mean(fronts):>9.3f} ± {np.std(fronts):.3f}"
            )


if __name__ == "__main__":
    main()
