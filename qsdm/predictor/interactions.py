"""Pairs of weights whose joint harm is more or less than the sum of their harms.

The predictor proposes pairs by its second difference at full precision; pictures decide. With the
harm h of a configuration against full precision, the excess of a pair is

    h(both) - h(first) - h(second) = -(label(both) - label(first) - label(second) + label(none))

All four share captions and starting noise, so the noise that they have in common cancels.

References:
    An axiomatic approach to the concept of interaction among players in cooperative games
    (Grabisch & Roubens, 1999), section 3: second-order differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from qsdm.outcome import Objective, Outcome
from qsdm.predictor import Predictor
from qsdm.predictor.probes import PAIRS, harm_of
from qsdm.qconfig import QuantConfig

MOST_WEIGHTS = 48  # whose pairs are predicted: the most harmful ones
MOST_PAIRS_OF_A_WEIGHT = 3
CHUNK = 16  # configurations at a time


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that is worth measuring.

    Attributes:
        weights: two names, in the order of the graph.
        excess: predicted harm beyond the sum; negative if together they do less.
    """

    weights: tuple[str, str]
    excess: float


@dataclass(frozen=True, slots=True)
class Interaction:
    """A pair that was measured.

    Attributes:
        qconfig: of both weights; all others keep full precision.
        harms: of each weight alone, in the order of the configuration.
        joint: of both.
        standard_error: of the excess, over captions and starting noise; 0 without halves.
        num_images: pictures of each configuration.
    """

    qconfig: QuantConfig
    harms: tuple[float, float]
    joint: float
    standard_error: float
    num_images: int

    @property
    def excess(self) -> float:
        """Harm beyond the sum of the two; negative if together they do less."""
        return self.joint - sum(self.harms)

    @property
    def is_confirmed(self) -> bool:
        """Whether the 95 % interval of the excess excludes 0; without an error, never."""
        return 0 < 1.96 * self.standard_error < abs(self.excess)


def candidates(predictor: Predictor, qconfig: QuantConfig, num: int) -> list[Candidate]:
    """Choose pairs by the predicted excess, largest first.

    Args:
        predictor: trained.
        qconfig: a method for every weight, under which each is quantized.
        num: number of pairs; fewer where there are fewer. No weight is in more than
            `MOST_PAIRS_OF_A_WEIGHT`.

    Returns:
        The pairs, among the `MOST_WEIGHTS` that are predicted to be most harmful alone.

    Raises:
        OutsideSpace: a method is not on offer.
    """
    encoding = predictor.encoding
    space = encoding.space
    chosen = encoding.one_hot(space.encode(qconfig)[None])[0]  # [W, M + 1]
    full = encoding.full_precision()[0]

    def harm(groups: Sequence[tuple[int, ...]]) -> np.ndarray:
        hot = np.repeat(full[None], len(groups), axis=0)
        for row, group in zip(hot, groups, strict=True):
            row[list(group)] = chosen[list(group)]
        with torch.no_grad():
            parts = [predictor.by_fold(part) for part in torch.from_numpy(hot).split(CHUNK)]
        return -torch.cat(parts, dim=1).double().mean(dim=0).numpy()

    none, *alone = harm([(), *((w,) for w in range(encoding.num_weights))])
    single = np.array(alone) - none
    kept = np.sort(np.argsort(-single, kind="stable")[:MOST_WEIGHTS])
    pairs = list(combinations(map(int, kept), 2))
    excess = harm(pairs) - none - np.array([single[a] + single[b] for a, b in pairs])
    names = [weight.name for weight in space.graph.weights]
    taken = np.zeros(len(names), dtype=np.int64)
    found: list[Candidate] = []
    for i in np.argsort(-np.abs(excess), kind="stable"):
        pair = list(pairs[i])
        if len(found) < num and (taken[pair] < MOST_PAIRS_OF_A_WEIGHT).all():
            taken[pair] += 1
            found.append(Candidate((names[pair[0]], names[pair[1]]), float(excess[i])))
    return found


def interaction(
    both: Outcome, alone: Sequence[Outcome], full: Outcome, objective: Objective
) -> Interaction:
    """Compare the joint harm of two weights with the sum.

    Args:
        both: outcome of the two.
        alone: of each, in the order of ``both``'s methods.
        full: of full precision. All are on the same captions and noise.
        objective: whose loss is harm.

    Returns:
        The interaction, with the paired standard error of its excess.

    Raises:
        ProbeError: a metric is missing.
    """
    first, second = (harm_of(outcome, full, objective)[0] for outcome in alone)
    names = objective.metrics
    every = ((both, -1.0), (alone[0], 1.0), (alone[1], 1.0), (full, -1.0))
    num = min(len(outcome.halves.get(name, ())) for outcome, _ in every for name in names)
    # Half the difference of two halves' excess; see `Outcome.standard_error`.
    differences = [
        sum(
            sign * objective.weights[name] * (halves[0] - halves[1]) / 2
            for outcome, sign in every
            for name in names
            for halves in [outcome.halves[name][split]]
        )
        for split in range(num)
    ]
    error = float(np.sqrt(np.mean(np.square(differences)))) if differences else 0.0
    joint = harm_of(both, full, objective)[0]
    return Interaction(both.qconfig, (first, second), joint, error, both.num_images)


def interactions_of(outcomes: Sequence[Outcome], objective: Objective) -> list[Interaction]:
    """Collect every pair that was measured, with its weights alone and full precision beside it.

    Args:
        outcomes: of a model, under any protocols.
        objective: whose loss is harm.

    Returns:
        The interactions, the greatest excess first.
    """
    known = {outcome.key: outcome for outcome in outcomes}
    names = objective.metrics
    found = []
    for outcome in outcomes:
        qconfig = outcome.qconfig
        if outcome.provenance.get("stage") != PAIRS or len(qconfig.methods) != 2:
            continue
        parts = [QuantConfig(qconfig.denoiser, {n: m}) for n, m in qconfig.methods.items()]
        parts.append(QuantConfig(qconfig.denoiser, {}))
        first, second, full = (known.get((part.digest, outcome.protocol)) for part in parts)
        if first is None or second is None or full is None:
            continue
        group = (outcome, first, second, full)
        if all(one.metrics.get(name) is not None for one in group for name in names):
            found.append(interaction(outcome, (first, second), full, objective))
    return sorted(found, key=lambda one: -one.excess)
