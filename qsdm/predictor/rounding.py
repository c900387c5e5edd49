"""What rounded inputs of layers do, learned from configurations with random widths.

A label is the loss of quality of a configuration against the same weights with inputs as they are,
on the same captions and starting noise (``measure activations=[16,8,6,4]``). What captions, noise
and weights do cancels out, so few labels tell much.

Without any, an input is expected to suffer as the weight that it meets: an error of the same size
relative to the values moves the layer's output as far. So the harm of a width is

    harm of the weight's probe × error of rounding the input ÷ error of the probed method

and labels correct it as they correct the probes of weights (`qsdm.predictor.informed`). What inputs
suffer is added to what weights do; that it depends on their methods is part of the misfit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from qsdm.graph import Graph
from qsdm.measurement.decibels import PSNR, squared
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.predictor.informed import Informed, fit_informed, noise_of
from qsdm.predictor.prior import Prior, grouped
from qsdm.predictor.probes import Probes, differing
from qsdm.qconfig import QuantConfig
from qsdm.qconfig.activations import FULL


@dataclass(frozen=True, slots=True, eq=False)
class RoundingLabels:
    """What rounding did to B configurations.

    Attributes:
        outcomes: B outcomes with rounded inputs.
        values: float64 [B], quality minus that of the same weights without rounding.
        halves: float64 [S, 2, B], the same of the halves of the pictures; None if an outcome lacks
            them.
    """

    outcomes: tuple[Outcome, ...]
    values: np.ndarray
    halves: np.ndarray | None

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def bits(self) -> tuple[int, ...]:
        """Widths that occur, without 16, the most first."""
        own = {bits for outcome in self.outcomes for bits in outcome.qconfig.inputs.values()}
        return tuple(sorted(own - {FULL}, reverse=True))


def rounding_labels(
    outcomes: Sequence[Outcome], protocols: Mapping[str, Protocol], objective: Objective
) -> RoundingLabels:
    """Pair configurations that round inputs with the same weights without that.

    Args:
        outcomes: of any protocols. Weights that were measured with more pictures of the same seed
            set count by their first ones, whose halves are not known.
        protocols: of the outcomes that count, by digest.
        objective: whose metrics are quality, or of PSNR alone, the squared error of pixels, to
            which harms add.

    Returns:
        The labels, those of the protocol with most of them.
    """
    quality = _quality(objective)
    plain: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.protocol in protocols and outcome.qconfig.has_methods_alone:
            plain.setdefault(outcome.qconfig.digest, []).append(outcome)
    pairs: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for outcome in outcomes:
        own = outcome.qconfig
        if own.activations is not None or own.steps or not own.methods:
            continue  # attention rounds its probabilities, too, or not all steps do
        if outcome.protocol in protocols and own.inputs:
            rounded = protocols[outcome.protocol]
            for base in plain.get(QuantConfig(own.denoiser, own.methods).digest, ()):
                first = _first(base, protocols[base.protocol], rounded)
                both = () if first is None else (outcome, first)
                if both and all(
                    o.metrics.get(n) is not None for o in both for n in objective.metrics
                ):
                    pairs.setdefault(outcome.protocol, []).append(both)
                    break
    chosen = max(pairs.values(), key=len, default=[])

    def values(of: Callable[[Outcome, str], float | None]) -> np.ndarray:
        return np.array(
            [quality(partial(of, rounded)) - quality(partial(of, base)) for rounded, base in chosen]
        )

    def half(split: int, side: int) -> np.ndarray:
        return values(lambda outcome, name: outcome.halves[name][split][side])

    num = min(
        (len(o.halves.get(n, ())) for both in chosen for o in both for n in objective.metrics),
        default=0,
    )
    halves = [[half(split, side) for side in (0, 1)] for split in range(num)]
    return RoundingLabels(
        tuple(rounded for rounded, _ in chosen),
        values(lambda o, name: o.metrics[name]),
        np.array(halves) if num else None,
    )


def _quality(objective: Objective) -> Callable[[Callable[[str], float | None]], float]:
    if objective.metrics == [PSNR]:
        return lambda of: squared(float(of(PSNR) or 0))
    return lambda of: sum(
        w * float(of(name) or 0)
        for name, w in objective.weights.items()
        if name in objective.metrics
    )


def _first(base: Outcome, measured: Protocol, wanted: Protocol) -> Outcome | None:
    """The outcome of the wanted pictures, if these are the first of those that were measured."""
    if measured == wanted:
        return base
    known = base.prefixes.get(wanted.num_images)
    if known is None or measured.seed_set != wanted.seed_set or differing(measured, wanted):
        return None
    return replace(base, metrics=known, halves={}, num_images=wanted.num_images)


@dataclass(frozen=True, slots=True, eq=False)
class RoundingModel:
    """Predicts what rounding inputs adds to the quality of a configuration.

    Attributes:
        graph: of the denoiser, with W weights.
        bits: K widths below 16.
        model: the posterior, whose decisions are the widths and then 16.
    """

    graph: Graph
    bits: tuple[int, ...]
    model: Informed

    @property
    def harm(self) -> np.ndarray:
        """Expected loss of quality by weight and width, and 16 last, float64 [W, K + 1].

        No less for fewer bits, and at least half of what probes say: a choice among many layers
        would fall for those that noise flatters.
        """
        loss = np.maximum(-self.model.contributions(), self.model.prior.damage / 2)
        order = np.argsort([*self.bits, FULL])[::-1]
        loss[:, order] = np.maximum.accumulate(loss[:, order], axis=1)
        return loss

    def predict(self, qconfigs: Sequence[QuantConfig]) -> np.ndarray:
        """Predict.

        Args:
            qconfigs: with a width for each layer.

        Returns:
            Quality minus that of the same weights without rounding, float64 [B].

        Raises:
            ValueError: a width was not learned.
        """
        return self.model.predict(one_hot(self.graph, qconfigs, self.bits))[0]


def one_hot(graph: Graph, qconfigs: Sequence[QuantConfig], bits: Sequence[int]) -> np.ndarray:
    """Encode the widths of configurations.

    Args:
        graph: of the denoiser, with W weights.
        qconfigs: the configurations.
        bits: K widths below 16.

    Returns:
        Float64 [B, W, K + 1]; 16 is the last.

    Raises:
        ValueError: a configuration has another width.
    """
    columns = {own: k for k, own in enumerate((*bits, FULL))}
    hot = np.zeros((len(qconfigs), len(graph.weights), len(columns)))
    for b, qconfig in enumerate(qconfigs):
        for w, weight in enumerate(graph.weights):
            own = qconfig.inputs.get(weight.name, qconfig.activations or FULL)
            if own not in columns:
                raise ValueError(
                    f"wanted inputs of {', '.join(map(str, columns))} bits, as were learned "
                    f"(got {own} for {weight.name!r})"
                )
            hot[b, w, columns[own]] = 1
    return hot


def learn_rounding(
    graph: Graph, probes: Probes, error: np.ndarray, labels: RoundingLabels
) -> RoundingModel:
    """Learn what the widths of inputs do.

    Args:
        graph: of the denoiser, with W weights.
        probes: of its weights; they tell the proportions, and labels the scale.
        error: float64 [W, K], relative squared error of rounding each input to each of the labels'
            widths (`qsdm.measurement.inputs.rounding_errors`).
        labels: B labels; without any, proportions alone are known.

    Returns:
        The model.
    """
    hot = one_hot(graph, [outcome.qconfig for outcome in labels.outcomes], labels.bits)
    prior = _prior(graph, probes, error, hot, labels.values)
    noise = noise_of(prior, hot, labels.halves)
    return RoundingModel(graph, labels.bits, fit_informed(prior, hot, labels.values, noise))


def _prior(
    graph: Graph, probes: Probes, error: np.ndarray, hot: np.ndarray, values: np.ndarray
) -> Prior:
    error = np.concatenate([error, np.zeros_like(error[:, :1])], axis=1)
    parts = probes.parts_at(error)
    damage = np.maximum(np.einsum("wmk,wk->wm", parts, probes.harm), 0)
    uncertainty = np.sqrt(np.einsum("wmk,wk->wm", parts**2, probes.standard_error**2))
    total = np.einsum("bwm,wm->b", hot, damage)
    square = float(total @ total)
    scale = max(-float(total @ values) / square, 0.0) if square > 0 else 0.0
    scale = scale or 1.0
    return Prior(
        0.0,
        np.zeros_like(damage),
        scale * damage,
        scale * uncertainty,
        error / (np.median(error[error > 0]) if (error > 0).any() else 1.0),
        scale * float(damage[:, :-1].mean(axis=1).sum()) or 1.0,
        True,
        *grouped(graph),
    )
