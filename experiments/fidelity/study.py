"""How many full labels are needed, if the other configurations have a few pictures each?

    python experiments/fidelity/study.py --name emoji_unet

On the shipped label bank. Full labels are fd_lite0 of 256 pictures; the other configurations know the metrics of their
first 16 or 64 pictures only (prefixes of the same outcomes, which a run with num_images=16 would measure). The
predictor is the additive model, trained on full and read-off labels alike. Judged on configurations that it has not
seen: the test set if it is there, else one fifth that is held out; mean over several draws of who has a full label.

Columns: pictures drawn, as a share of all with full labels; rank correlation with the full labels of unseen
configurations; and the front that the predictor finds, as its hypervolume over that of all full labels, both judged by
the model that knows all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pymoo.indicators.hv import HV

from qsdm.graph import Graph
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import baselines
from qsdm.predictor.cheap_labels import cheap_labels
from qsdm.predictor.encode import encode
from qsdm.predictor.linear import Additive, fit_additive
from qsdm.predictor.scores import srcc
from qsdm.qconfig import Space, SpaceSpec
from qsdm.quant.calibration import read_table
from qsdm.store import Store
from qsdm.store.files import read_json

QUALITY = Objective({"fd_lite0": -1})
METHODS = ("uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4")
DRAWS = 10


def front(additive: Additive, sizes: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """Decisions of the additive model's own front, int64 [P, W]: for each price of a byte, the best of every weight."""
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


def load(name: str, store: Path) -> tuple[Space, object, list[Outcome], list[Outcome]]:
    """Space, table, labels and test set."""
    place = Store(store, name)
    space = SpaceSpec("traced", METHODS, ".*").of(
        Graph.from_json(read_json(place.find("graph.json", "trace")))
    )
    table = read_table(place.find("calibration/traced", "calibrate"))
    protocols = [d for d, p in place.protocols().items() if p.seed_set == 0 and p.num_images == 256]
    found = [
        o
        for o in place.outcomes()
        if o.protocol in protocols and len(o.metrics) > 3
        if len(o.qconfig.methods) == len(space.options)
    ]
    found = [
        o
        for o in found
        if all(
            m in offered
            for m, offered in zip(o.qconfig.methods.values(), space.options, strict=True)
        )
    ]
    return space, table, [o for o in found if o.is_label], [o for o in found if not o.is_label]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", type=Path, default=Path("store"), help="traced and calibrated")
    args = parser.parse_args()
    space, table, labelled, tested = load(args.name, args.store)
    encoding = encode(space, table)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)

    def parts(some: list[Outcome]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        genes = np.stack([space.encode(outcome.qconfig) for outcome in some])
        known = np.stack(
            [-baselines.error_sum(space, table, genes), baselines.avg_bits(space, genes)], axis=1
        )  # type: ignore[arg-type]
        return encoding.one_hot(genes), np.array([QUALITY(o.metrics) for o in some]), known

    everything, all_labels, _ = parts(labelled + tested)
    judge = fit_additive(encoding, everything, all_labels)
    sizes = np.nan_to_num(table.size_bytes.astype(float))  # type: ignore[attr-defined]
    offered = np.array([[m in options for m in space.methods] for options in space.options])
    sizes = np.where(offered, sizes, np.inf)
    best = front(judge, np.where(offered, sizes, 1.0), offered)
    corner = np.array([np.where(offered, sizes, 0).max(axis=1).sum(), -all_labels.min()])
    whole = volume(best, judge, sizes, corner)
    print(f"{args.name}: {len(labelled)} labels, {len(tested)} test configurations, {DRAWS} draws")
    print(f"{'full labels':>12}{'others':>14}{'pictures':>10}{'srcc':>16}{'front':>16}")
    for cheap_images in (0, 16, 64):
        for num_full in (10, 20, 40, 80, 160, len(labelled)):
            if num_full > len(labelled) or (cheap_images and num_full == len(labelled)):
                continue
            ranks, fronts = [], []
            for _ in range(DRAWS):
                order = [labelled[i] for i in rng.permutation(len(labelled))]
                unseen, rest = (
                    (tested, order)
                    if tested
                    else (order[: len(order) // 5], order[len(order) // 5 :])
                )
                full, others = rest[:num_full], rest[num_full:]
                x, y, known = parts(full)
                if cheap_images and others:
                    few = [
                        Outcome(o.qconfig, "few", o.prefixes[cheap_images], cheap_images)
                        for o in others
                    ]
                    hot, _, cheap_known = parts(others)
                    read = cheap_labels(full, y, known, few, cheap_known, cheap_images)
                    x, y = np.concatenate([x, hot]), np.concatenate([y, read.labels])
                fitted = fit_additive(encoding, x, y)
                hot, truth, _ = parts(unseen)
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
                f"{num_full:>12}{others_text:>14}{100 * drawn:>9.0f}%{np.mean(ranks):>9.3f} ± {np.std(ranks):.3f}"
                f"{np.mean(fronts):>9.3f} ± {np.std(fronts):.3f}"
            )


if __name__ == "__main__":
    main()
