"""How far attributions depend on what the predictor was trained with.

Three questions, each answered by rank correlations over the weights: do the networks of two folds
agree; do fewer labels lead to the same attributions; and do shuffled measurements lead to others?
When measurements are shuffled, labels change places among configurations, and the harm of probes
among weights: all that was measured is wrong, all that is known without measuring stays.

References:
    Sanity Checks for Saliency Maps (Adebayo et al., 2018), section 3: the data randomization test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from qsdm.outcome import SIGNIFICANT_Z
from qsdm.predictor import FitOptions, Predictor, one_thread
from qsdm.qconfig import QuantConfig
from qsdm.sensitivity import balanced_genes, by_decision

if TYPE_CHECKING:
    from qsdm.predictor.informed import Lessons
    from qsdm.predictor.mean import Priors

NUM_CONFIGS, STEPS = 12, 12  # that are explained: ranks need fewer than harms
PARTS = (2, 4)  # the labels are divided by
LEAST_LABELS, LEAST_PER_FOLD = 16, 5


@dataclass(frozen=True, slots=True)
class Stability:
    """Rank correlations of attributions.

    Attributes:
        num_weights: that are ranked.
        folds: between each two folds.
        label_counts: of what some of the labels teach with what all of them do, by their number.
        shuffled: of what shuffled measurements teach with what the right ones do, by training.
    """

    num_weights: int
    folds: Sequence[float] = ()
    label_counts: Mapping[int, float] = dataclasses.field(default_factory=dict)
    shuffled: Sequence[float] = ()

    @property
    def is_of_measurements(self) -> bool | None:
        """Whether shuffled measurements teach other attributions; None if that was not tried.

        They do if the mean correlation is within the 95 % interval of chance, or below half of
        that between folds.
        """
        if not self.shuffled:
            return None
        mean = abs(float(np.mean(self.shuffled)))
        chance = SIGNIFICANT_Z / np.sqrt(max(self.num_weights - 1, 1) * len(self.shuffled))
        half = float(np.mean(self.folds)) / 2 if self.folds else 0.0
        return bool(mean <= max(chance, half))


def stability(
    predictor: Predictor,
    priors: Priors,
    options: FitOptions,
    qconfig: QuantConfig,
    trainings: int,
    seed: int = 0,
) -> Stability:
    """Compare attributions of folds, and of predictors that were trained with less or wrong data.

    Args:
        predictor: whose attributions are in question.
        priors: what it has learned from.
        options: how it was trained.
        qconfig: the attributions of its decisions are compared.
        trainings: how often shuffled measurements are learned; 0 leaves out the smaller numbers of
            labels, too.
        seed: of shuffling and of the configurations that are explained.

    Returns:
        The correlations.
    """
    from qsdm.predictor.scores import srcc

    rng = np.random.default_rng(seed)
    explained = balanced_genes(predictor.encoding.space, NUM_CONFIGS, rng)
    by_fold = [
        decisions(dataclasses.replace(predictor, folds=(fold,)), explained, qconfig)
        for fold in predictor.folds
    ]
    whole = np.mean(by_fold, axis=0)

    def agreement(other: Priors) -> float:
        return srcc(decisions(learned(other, options, seed), explained, qconfig), whole)

    counts: dict[int, float] = {}
    order = rng.permutation(len(priors.best.values))
    for part in PARTS if trainings else ():
        rows = order[: len(order) // part]
        if len(rows) >= max(LEAST_LABELS, LEAST_PER_FOLD * options.folds):
            counts[len(rows)] = agreement(each(priors, partial(only, rows=rows)))
    return Stability(
        len(whole),
        [srcc(first, second) for first, second in combinations(by_fold, 2)],
        counts,
        [agreement(shuffled(priors, rng)) for _ in range(trainings)],
    )


def decisions(predictor: Predictor, genes: np.ndarray, qconfig: QuantConfig) -> np.ndarray:
    """Attribute harm to the decisions of a configuration, in the context of others.

    Args:
        predictor: trained on the space.
        genes: int64 [B, W], balanced configurations.
        qconfig: a method for each of W weights.

    Returns:
        Float64 [W].
    """
    from qsdm.sensitivity.attribution import integrated_gradients

    space = predictor.encoding.space
    with one_thread():
        harms = by_decision(space, genes, integrated_gradients(predictor, genes, STEPS)[0])
    rows = np.arange(len(space.options))
    return harms[rows, predictor.encoding.columns_of(space.encode(qconfig)[None])[0]]


def learned(priors: Priors, options: FitOptions, seed: int) -> Predictor:
    """Train a predictor as `qsdm.train` does.

    Args:
        priors: what it learns from.
        options: how.
        seed: of the folds and of the initial parameters.

    Returns:
        The predictor, without a posterior.
    """
    from qsdm.predictor.fit import fit_folds

    best = priors.best
    informed = priors.model if best.probes is not None and options.additive else None
    folds = fit_folds(best.encoding, best.genes, best.values, options, seed, informed=informed)
    return Predictor(best.encoding, folds, dict(best.objective.weights))


def each(priors: Priors, change: Callable[[Lessons], Lessons]) -> Priors:
    """Change what each closed model learns from.

    Args:
        priors: of all models.
        change: of the lessons of one.
    """
    changed = {name: change(lessons) for name, lessons in priors.lessons.items()}
    return dataclasses.replace(priors, lessons=changed)


def only(lessons: Lessons, rows: np.ndarray) -> Lessons:
    """Keep some of the labels.

    Args:
        lessons: all of them.
        rows: int64 [B'], indices of labels.
    """
    halves = None if lessons.halves is None else lessons.halves[..., rows]
    return dataclasses.replace(
        lessons, genes=lessons.genes[rows], values=lessons.values[rows], halves=halves
    )


def shuffled(priors: Priors, rng: np.random.Generator) -> Priors:
    """Let labels change places among configurations, and probes among weights.

    Args:
        priors: the right ones.
        rng: source of random numbers.
    """
    order = rng.permutation(len(priors.best.values))
    places = rng.permutation(priors.best.encoding.num_weights)

    def mixed(lessons: Lessons) -> Lessons:
        other = dataclasses.replace(only(lessons, order), genes=lessons.genes)
        if (probes := lessons.probes) is None:
            return other
        harm, deviation = probes.harm[places], probes.standard_error[places]
        moved = dataclasses.replace(probes, harm=harm, standard_error=deviation)
        return dataclasses.replace(other, probes=moved)

    return each(priors, mixed)
