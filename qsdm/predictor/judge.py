"""How well a predictor ranks configurations that it has not seen, beside trivial predictors.

Every configuration of the labels is predicted by the fold that was not trained on it, and the
configurations of a test set by all folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from qsdm.measurement.labels import Labels
from qsdm.predictor import Predictor, baselines
from qsdm.predictor.fit import evaluate
from qsdm.predictor.hamming import fit_hamming
from qsdm.predictor.linear import fit_additive
from qsdm.predictor.mean import INFORMED, MEAN, Mean, Priors
from qsdm.predictor.scores import ndcg, noise_ceiling, srcc
from qsdm.qconfig.cost import MethodTable
from qsdm.store.schemas import Agreement, Noise, Scores, Spread, TestReport, TestSet


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """A trained predictor with what it is compared to.

    Attributes:
        predictor: the predictor.
        table: errors of the space's weights under its methods.
        labels: labels that it was trained on.
        priors: these labels, and the probes.
    """

    predictor: Predictor
    table: MethodTable
    labels: Labels
    priors: Priors

    def closed(self, rows: np.ndarray) -> dict[str, Mean]:
        """Fit closed models on some labels.

        Args:
            rows: int64 [B'], their indices.

        Returns:
            Models by name: the mean, if there is one, and each alone.
        """
        alone = {n: Mean((one.model(rows),)) for n, one in self.priors.lessons.items()}
        return {MEAN: self.priors.model(rows), **alone} if self.priors.is_mean else alone

    def held_out(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Predict each configuration of the labels by the fold that has not seen it.

        Returns:
            Predictions by name of the predictor, float64 [B] each; and the standard deviations that
            the closed model of the fold gives them, float64 [B].
        """
        encoding, genes, values = self.predictor.encoding, self.labels.genes, self.labels.values
        hot, choices = encoding.one_hot(genes), baselines.one_hot(encoding.space, genes)
        fitted: dict[str, np.ndarray] = defaultdict(lambda: np.empty(len(values)))
        columns = torch.from_numpy(encoding.columns_of(genes))
        deviations = np.empty(len(values))
        for fold in self.predictor.folds:
            test, rest = fold.test, np.setdiff1d(np.arange(len(values)), fold.test)
            learned = evaluate(fold.gnn, columns[test]).value
            fitted["gnn"][test] = fold.mean + fold.deviation * learned
            for name, closed in self.closed(rest).items():
                fitted[name][test], deviation = closed.predict(hot[test])
                if name == INFORMED:
                    deviations[test] = deviation
            additive = fit_additive(encoding, hot[rest], values[rest])
            fitted["additive"][test] = additive(hot[test])
            fitted["ridge"][test] = baselines.ridge(choices[rest], values[rest], choices[test])
            fitted["hamming"][test] = fit_hamming(genes[rest], values[rest])(genes[test])[0]
        return fitted | self._untrained(genes), deviations

    def on_tests(self, tests: Sequence[Labels]) -> list[dict[str, np.ndarray]]:
        """Predict configurations that no fold has seen; everything learned from all labels.

        Args:
            tests: test sets.

        Returns:
            Of each test set: predictions by name of the predictor, float64 [B] each.
        """
        encoding, values = self.predictor.encoding, self.labels.values
        additive = fit_additive(encoding, encoding.one_hot(self.labels.genes), values)
        ridge = baselines.fit_ridge(baselines.one_hot(encoding.space, self.labels.genes), values)
        hamming = fit_hamming(self.labels.genes, values)
        closed = self.closed(np.arange(len(values)))
        return [
            {
                "gnn": self.predictor.predict(test.genes)[0],
                **{
                    name: model.predict(encoding.one_hot(test.genes))[0]
                    for name, model in closed.items()
                },
                "additive": additive(encoding.one_hot(test.genes)),
                "ridge": ridge(baselines.one_hot(encoding.space, test.genes)),
                "hamming": hamming(test.genes)[0],
                **self._untrained(test.genes),
            }
            for test in tests
        ]

    def _untrained(self, genes: np.ndarray) -> dict[str, np.ndarray]:
        encoding = self.predictor.encoding
        space = encoding.space
        lessons = self.priors.best
        unlabeled = lessons.model(np.empty(0, dtype=np.int64)).prior
        probes = (
            {}
            if lessons.probes is None
            else {"probes": unlabeled.expected(encoding.one_hot(genes))}
        )
        return {
            **probes,
            "error_sum": baselines.error_sum(space, self.table, genes),
            "avg_bits": baselines.avg_bits(space, genes),
        }


def score(
    predictions: Mapping[str, np.ndarray], values: np.ndarray, tests: Sequence[np.ndarray]
) -> dict[str, Scores]:
    """Compute rank correlation and NDCG@10 of predictions on each fold's test part.

    Args:
        predictions: by name of the predictor, float64 [B] each.
        values: float64 [B], measured.
        tests: int64, the configurations of each test part.

    Returns:
        By predictor and quantity: ``folds``, their ``mean`` and their standard deviation ``std``.
    """

    def spread(
        function: Callable[[np.ndarray, np.ndarray], float], predicted: np.ndarray
    ) -> Spread:
        folds = [function(predicted[test], values[test]) for test in tests]
        return {"mean": float(np.mean(folds)), "std": float(np.std(folds)), "folds": folds}

    return {
        name: {"srcc": spread(srcc, predicted), "ndcg_at_10": spread(ndcg, predicted)}
        for name, predicted in predictions.items()
    }


def noise(labels: Labels) -> Noise | None:
    """Estimate what the noise of labels allows, see `noise_ceiling`.

    Args:
        labels: of a space.

    Returns:
        The estimate; None for labels without halves.
    """
    return None if labels.halves is None else noise_ceiling(labels.halves)


def test_report(judge: Judge, tests: Sequence[Labels]) -> TestReport | None:
    """Judge a predictor by test sets.

    Args:
        judge: of the predictor.
        tests: the test set under every protocol that it was measured with.

    Returns:
        ``sets``: seed_set, num_images, num_configs, srcc by predictor, noise (see `noise`).
        ``between``: rank correlation of the labels of two seed sets, over the configurations of
        both. None without a test set.
    """
    if not tests:
        return None
    sets: list[TestSet] = [
        {
            "seed_set": test.protocol.seed_set,
            "num_images": test.protocol.num_images,
            "num_configs": len(test),
            "srcc": {name: srcc(predicted, test.values) for name, predicted in answers.items()},
            "noise": noise(test),
        }
        for test, answers in zip(tests, judge.on_tests(tests), strict=True)
    ]
    between = [pair for a, b in combinations(tests, 2) if (pair := _agreement(a, b)) is not None]
    return {"sets": sets, "between": between}


def _agreement(first: Labels, second: Labels) -> Agreement | None:
    """Rank correlation of the labels of two seed sets; None for fewer than three configurations."""
    rows = [dict(zip(labels.digests, labels.values, strict=True)) for labels in (first, second)]
    both = sorted(rows[0].keys() & rows[1].keys())
    protocols = first.protocol, second.protocol
    if protocols[0].seed_set == protocols[1].seed_set or len(both) < 3:
        return None
    values = [np.array([row[digest] for digest in both]) for row in rows]
    sets: Any = [[p.seed_set, p.num_images] for p in protocols]  # lists, as JSON has them
    return {"sets": sets, "srcc": srcc(*values)}
