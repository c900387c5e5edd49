"""Pairs of weights or of blocks whose joint harm is more or less than the sum of their harms.

The predictor proposes pairs, by its second difference at full precision or by that averaged over
what else may be quantized, the Shapley interaction; pictures decide. With the harm h of a
configuration against full precision, the excess of a pair is

    h(both) - h(first) - h(second) = -(label(both) - label(first) - label(second) + label(none))

All four share captions and starting noise, so the noise that they have in common cancels.

References:
    An axiomatic approach to the concept of interaction among players in cooperative games
    (Grabisch & Roubens, 1999), section 3: second-order differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from qsdm.graph import Graph
from qsdm.outcome import SIGNIFICANT_Z, Objective, Outcome, error_of_halves
from qsdm.predictor import Predictor
from qsdm.predictor.probes import PAIRS, harm_of
from qsdm.qconfig import QuantConfig

Group = tuple[str, ...]  # names of weights
MOST_GROUPS = 48  # whose pairs are predicted: the most harmful ones
MOST_PAIRS_OF_A_GROUP = 3
CHUNK = 16  # configurations at a time
COALITIONS = 4096  # for Shapley interactions: of 48 planted groups, found to a tenth of the largest
BY = ("difference", "shapley")
"""How pairs may be proposed."""

Game = Callable[[Sequence[Sequence[int]]], np.ndarray]
"""Lists of groups that are quantized together => predicted harm of each list."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that is worth measuring.

    Attributes:
        groups: two groups of weights.
        excess: predicted harm beyond the sum; negative if together they do less.
    """

    groups: tuple[Group, Group]
    excess: float


@dataclass(frozen=True, slots=True)
class Interaction:
    """A pair that was measured.

    Attributes:
        groups: the weights of each part; all others keep full precision.
        qconfig: of both parts.
        harms: of each part alone.
        joint: of both.
        standard_error: of the excess, over captions and starting noise; 0 without halves.
        num_images: pictures of each configuration.
    """

    groups: tuple[Group, Group]
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
        return 0 < SIGNIFICANT_Z * self.standard_error < abs(self.excess)


def blocks(graph: Graph) -> list[Group]:
    """Group a graph's weights by the blocks that they lie in.

    Args:
        graph: of the denoiser.

    Returns:
        The groups, in the order of the graph.
    """
    groups: dict[str, list[str]] = {}
    for weight in graph.weights:
        groups.setdefault(graph.node_of(weight.name).block, []).append(weight.name)
    return [tuple(names) for names in groups.values()]


def candidates(
    predictor: Predictor,
    qconfig: QuantConfig,
    num: int,
    groups: Sequence[Group] | None = None,
    by: str = "difference",
) -> list[Candidate]:
    """Choose pairs by the predicted excess, largest first.

    Args:
        predictor: trained.
        qconfig: a method for every weight, under which each is quantized.
        num: number of pairs; fewer where there are fewer. No group is in more than
            `MOST_PAIRS_OF_A_GROUP`.
        groups: disjoint groups of weights that are quantized together; by default, each weight.
        by: ``difference``, the excess where all else keeps full precision, or ``shapley``, its
            average over what else is quantized, which needs the package shapiq.

    Returns:
        The pairs, among the `MOST_GROUPS` that are predicted to be most harmful alone.

    Raises:
        OutsideSpace: a method is not on offer.
        ValueError: there is no such way, or shapiq is not installed.
    """
    if by not in BY:
        raise ValueError(f"pairs are proposed by {' or '.join(BY)} (got {by!r})")
    encoding = predictor.encoding
    space = encoding.space
    chosen = encoding.one_hot(space.encode(qconfig)[None])[0]  # [W, M + 1]
    full = encoding.full_precision()[0]

    names = [weight.name for weight in space.graph.weights]
    groups = [(name,) for name in names] if groups is None else groups
    rows = [[names.index(name) for name in group] for group in groups]

    def harm(parts: Sequence[Sequence[int]]) -> np.ndarray:
        hot = np.repeat(full[None], len(parts), axis=0)
        for row, part in zip(hot, parts, strict=True):
            weights = [w for g in part for w in rows[g]]
            row[weights] = chosen[weights]
        with torch.no_grad():
            values = [predictor.by_fold(part) for part in torch.from_numpy(hot).split(CHUNK)]
        return -torch.cat(values, dim=1).double().mean(dim=0).numpy()

    none, *alone = harm([(), *((g,) for g in range(len(groups)))])
    single = np.array(alone) - none
    kept = np.sort(np.argsort(-single, kind="stable")[:MOST_GROUPS])
    pairs = list(combinations(map(int, kept), 2))
    if by == "shapley" and pairs:
        excess = _shapley(harm, kept)
    else:
        excess = harm(pairs) - none - np.array([single[a] + single[b] for a, b in pairs])
    taken = np.zeros(len(groups), dtype=np.int64)
    proposals: list[Candidate] = []
    for i in np.argsort(-np.abs(excess), kind="stable"):
        pair = list(pairs[i])
        if len(proposals) < num and (taken[pair] < MOST_PAIRS_OF_A_GROUP).all():
            taken[pair] += 1
            proposals.append(Candidate((groups[pair[0]], groups[pair[1]]), float(excess[i])))
    return proposals


def _shapley(harm: Game, kept: np.ndarray) -> np.ndarray:
    """Shapley interactions of all pairs of the groups ``kept``, in the order of `combinations`."""
    try:
        from shapiq.approximator import KernelSHAPIQ
    except ImportError as error:
        raise ValueError(
            "Shapley interactions need the package shapiq: pip install 'qsdm[shapley]', or propose "
            "pairs by difference"
        ) from error

    def game(coalitions: np.ndarray) -> np.ndarray:
        return harm([tuple(map(int, kept[coalition])) for coalition in coalitions])

    approximator = KernelSHAPIQ(len(kept), max_order=2, index="k-SII", random_state=0)
    values = approximator.approximate(min(COALITIONS, 2 ** len(kept)), game).get_n_order_values(2)
    return np.asarray(values[np.triu_indices(len(kept), 1)])


def interaction(
    both: Outcome, alone: Sequence[Outcome], full: Outcome, objective: Objective
) -> Interaction:
    """Compare the joint harm of two groups of weights with the sum.

    Args:
        both: outcome of the two.
        alone: of each.
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

    def excess(split: int, half: int) -> float:
        return sum(
            sign * objective.weights[name] * outcome.halves[name][split][half]
            for outcome, sign in every
            for name in names
        )

    error = error_of_halves([(excess(i, 0), excess(i, 1)) for i in range(num)]) if num else 0.0
    joint = harm_of(both, full, objective)[0]
    groups = tuple(alone[0].qconfig.methods), tuple(alone[1].qconfig.methods)
    return Interaction(groups, both.qconfig, (first, second), joint, error, both.num_images)


def interactions_of(outcomes: Sequence[Outcome], objective: Objective) -> list[Interaction]:
    """Collect every pair that was measured, with its parts alone and full precision beside it.

    Args:
        outcomes: of a model, under any protocols.
        objective: whose loss is harm.

    Returns:
        The interactions, the greatest excess first.
    """
    names = objective.metrics
    complete = [o for o in outcomes if all(o.metrics.get(name) is not None for name in names)]
    known = {outcome.key: outcome for outcome in complete}
    pairs = []
    for outcome in complete:
        if outcome.provenance.get("stage") == PAIRS:
            parts = _parts(outcome, complete, known)
            full = known.get((QuantConfig(outcome.qconfig.denoiser, {}).digest, outcome.protocol))
            if parts is not None and full is not None:
                pairs.append(interaction(outcome, parts, full, objective))
    return sorted(pairs, key=lambda one: -one.excess)


def _parts(
    both: Outcome, outcomes: Sequence[Outcome], known: Mapping[tuple[str, str], Outcome]
) -> tuple[Outcome, Outcome] | None:
    """Two outcomes under the same protocol whose weights are those of ``both``, each once."""
    whole = dict(both.qconfig.methods)
    for first in outcomes:
        methods = first.qconfig.methods
        if not first.qconfig.has_methods_alone:
            continue
        if first.protocol != both.protocol or not 0 < len(methods) < len(whole):
            continue
        if all(whole.get(name) == method for name, method in methods.items()):
            rest = {name: method for name, method in whole.items() if name not in methods}
            digest = QuantConfig(both.qconfig.denoiser, rest).digest
            if (second := known.get((digest, both.protocol))) is not None:
                return first, second
    return None
