"""Learning at full size: what encode, train, predict, search and attribute cost on one thread.

    python experiments/bench/full_size.py [--models sdxl flux] [--labels 300] [--commit 51bc9d1]
    python experiments/bench/full_size.py --predict [--commit 51bc9d1]  # of barely trained networks

The graph is traced from the published config. Errors and labels are made up: a label is a sum of
damages of single weights, of pairs of which one feeds the other, and of noise, in known shares. So
the rank correlation of predictions with the label without noise is known, too. With a commit, its
code does the same work in a process of its own, on the same graph and labels.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

METHODS = ("uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4")
PAIRS, NOISE = 0.2, 0.03  # standard deviations, in those of the additive part
STEPS = 24  # of integrated gradients
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """How much is done.

    Attributes:
        labels: number of configurations that are learned from.
        predicted: number of configurations that are predicted, and judged by the truth.
        budget: number of configurations that the search may have predicted; 0 ends the work before
            the search.
        explained: number of configurations that are attributed.
        epochs: of training, at most.
    """

    labels: int = 300
    predicted: int = 10_000
    budget: int = 10_000
    explained: int = 36
    epochs: int = 60


@dataclass(frozen=True)
class Planted:
    """The law of the labels.

    Attributes:
        damage: float64 [W, O], of each option of each weight.
        pairs: int64 [P, 2], weights of which one feeds the other.
        strength: float64 [P], of their interaction.
        scale: factor of the pairs' part.
    """

    damage: np.ndarray
    pairs: np.ndarray
    strength: np.ndarray
    scale: float = 1.0

    def parts(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The additive and the pairwise part of minus the labels, float64 [B] each."""
        damage = self.damage[np.arange(len(self.damage)), genes]
        root = np.sqrt(damage)
        pairs = root[:, self.pairs[:, 0]] * root[:, self.pairs[:, 1]] @ self.strength
        return damage.sum(axis=1), self.scale * pairs

    def labels(self, genes: np.ndarray) -> np.ndarray:
        """The labels without noise, float64 [B]; larger is better."""
        return -np.sum(self.parts(genes), axis=0)


def run(graph_file: Path, work: Work) -> dict[str, float]:
    """Do all the work with the qsdm that this process imports, and measure it."""
    from qsdm.graph import Graph
    from qsdm.predictor import FitOptions, Predictor
    from qsdm.predictor.encode import encode
    from qsdm.predictor.fit import fit_folds
    from qsdm.predictor.scores import srcc
    from qsdm.qconfig import QuantConfig, SpaceSpec
    from qsdm.qconfig.cost import MethodTable
    from qsdm.sensitivity.attribution import integrated_gradients
    from qsdm.strategies import Problem
    from qsdm.strategies.evolution import Evolution
    from qsdm.strategies.explorer import search_front

    figures: dict[str, float] = {}

    def timed(name: str, function: Callable[[], T]) -> T:
        before = time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            result = function()
        figures[f"{name} CPU s"] = time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures[f"{name} peak GiB"] = peak
        return result

    graph = Graph.from_json(json.loads(graph_file.read_text(encoding="utf-8")))
    space = SpaceSpec("made_up", METHODS).of(graph)
    rng = np.random.default_rng(0)
    num_weights = len(space.options)
    level = np.exp(rng.normal(0, 0.5, num_weights))
    error = np.full((num_weights, len(space.methods)), np.nan)
    size = np.zeros(error.shape, dtype=np.int64)
    for i, (weight, offered) in enumerate(zip(space.graph.weights, space.options, strict=True)):
        for method in offered:
            j = space.methods.index(method)
            error[i, j] = level[i] * 4.0**-method.bits * np.exp(rng.normal(0, 0.3))
            size[i, j] = method.size_bits(weight, space.full_bits) // 8
    names = tuple(weight.name for weight in space.graph.weights)
    table = MethodTable(names, space.methods, error, size)
    problem = Problem.of(space, table)

    index = {name: i for i, name in enumerate(names)}
    nodes = space.graph.nodes
    pairs = np.array(
        [
            (index[a.weight.name], index[b.weight.name])
            for a, b in ((nodes[i], nodes[j]) for i, j in space.graph.edges)
            if a.weight is not None and b.weight is not None and a.weight.name != b.weight.name
        ]
    )
    sensitivity = np.exp(rng.normal(0, 1, num_weights))
    damage = sensitivity[:, None] * np.where(np.isfinite(problem.error), problem.error, 0)
    planted = Planted(damage, pairs, rng.exponential(size=len(pairs)))
    genes = problem.sample(rng, work.labels)
    additive, together = planted.parts(genes)
    planted = dataclasses.replace(planted, scale=PAIRS * additive.std() / together.std())
    labels = planted.labels(genes) + rng.normal(0, NOISE * additive.std(), work.labels)

    options = FitOptions(epochs=work.epochs)
    encoding = timed("encode", lambda: encode(space, table))
    folds = timed("train", lambda: fit_folds(encoding, genes, labels, options))
    predictor = Predictor(encoding, folds, {"fd_lite0": -1.0})
    new = problem.sample(rng, work.predicted)
    mean, _ = timed("predict", lambda: predictor.predict(new))
    figures["srcc with the truth"] = srcc(mean, planted.labels(new))
    if not work.budget:
        return figures
    within: list[float] = []

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = time.process_time()
        values = predictor.predict(genes)
        within.append(time.process_time() - before)
        return values

    front = timed(
        "search", lambda: search_front(predict, problem, Evolution(), evaluations=work.budget)
    )
    figures["search without predictor CPU s"] = figures["search CPU s"] - sum(within)
    chosen = [space.encode(QuantConfig.from_json(point["qconfig"])) for point in front["points"]]
    figures["true label of the front"] = float(planted.labels(np.stack(chosen)).mean())
    few = genes[: work.explained]
    harms, gaps = timed("attribute", lambda: integrated_gradients(predictor, few, STEPS))
    true = damage[np.arange(num_weights), few].mean(axis=0)
    figures["srcc of harms with the planted ones"] = srcc(harms.mean(axis=0), true)
    figures["greatest gap"] = float(np.abs(gaps / (harms.sum(axis=1) + gaps)).max())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["sdxl"], help="of conf/model")
    parser.add_argument("--labels", type=int, default=300, help="number of configurations")
    parser.add_argument("--commit", help="whose code is measured beside")
    parser.add_argument("--predict", action="store_true", help="one epoch, and no search")
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.graph is not None:
        import torch

        torch.set_num_threads(1)
        work = Work(args.labels)
        if args.predict:
            work = dataclasses.replace(work, epochs=1, budget=0)
        print(json.dumps(run(args.graph, work)))
        return
    from stages import ROOT, checked_out

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trees = {"here": ROOT}
        if args.commit:
            tree = stack.enter_context(checked_out(args.commit, Path(folder) / "before"))
            trees = {args.commit: tree, **trees}
        for model in args.models:
            store = Path(folder) / "store"
            trace = [sys.executable, "-m", "qsdm.trace", f"+model={model}", f"store={store}"]
            subprocess.run(trace, check=True, capture_output=True, cwd=ROOT)
            command = [sys.executable, __file__, "--labels", str(args.labels)]
            command += ["--predict"] * args.predict
            figures = {}
            for name, tree in trees.items():
                done = subprocess.run(
                    [*command, "--graph", str(store / model / "graph.json")],
                    env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                figures[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{model:<40}" + "".join(f"{name:>12}" for name in trees))
            for key in figures["here"]:
                row = "".join(f"{figures[name][key]:>12.4g}" for name in trees)
                print(f"{key:<40}{row}", flush=True)


if __name__ == "__main__":
    main()
