"""Probes: what the quantization of each weight does alone, and what that says of any configuration.

Harm is the loss of quality against full precision, on the same captions and starting noise. Small
perturbations add up, and each does harm in proportion to the squared error of its weight; so the
prediction of a configuration is the sum over weights of

    harm of the probe × error of the weight's method ÷ error of the probed method.

It needs no label. Where a weight was probed under several methods, harm is interpolated between
them by error, from the origin on, and extrapolated in proportion.

References:
    HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks (Dong et al., 2020),
    section 3.2: the sensitivity of a configuration as a sum over layers of curvature × squared
    error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.cost import MethodTable
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.encode import errors
from qsdm.qconfig import OutsideSpace, QuantMethod, Space

FIDELITIES = ("error", "forward", "drawn", "full")


class ProbeError(ValueError):
    """Probes do not fit the space, the protocol or each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """Harm of each weight when it alone is quantized.

    Attributes:
        weights: names of W weights.
        harm: float64 [W, K], loss of quality under each of K probed methods; positive is worse.
        standard_error: float64 [W, K], of the harm, over captions and starting noise; 0 if none was
            estimated.
        error: float64 [W, K], relative squared error of the weight under the probed method.
        num_images: number of pictures of each probe; 0 if none was drawn.
        fidelity: ``full`` if harm is in units of the objective. Else the scale is for labels to
            tell: of pictures' distance to those of full precision (``drawn``), of the denoiser's
            output (``forward``), or of the weights alone (``error``).
        protocol: digest of the protocol that the probes were measured under.

    Raises:
        ProbeError: a value is not finite, or the shapes do not agree.
    """

    weights: tuple[str, ...]
    harm: np.ndarray
    standard_error: np.ndarray
    error: np.ndarray
    num_images: int
    fidelity: str
    protocol: str

    def __post_init__(self) -> None:
        shape = self.harm.shape
        if len(shape) != 2 or shape[0] != len(self.weights) or shape[1] < 1:
            raise ProbeError(
                f"wanted harm of shape [{len(self.weights)}, methods], a row for each weight "
                f"(got {list(shape)})"
            )
        for name in ("harm", "standard_error", "error"):
            values = getattr(self, name)
            if values.shape != shape:
                raise ProbeError(f"wanted {name} of shape {list(shape)} (got {list(values.shape)})")
            if not np.isfinite(values).all():
                bad = self.weights[int(np.argwhere(~np.isfinite(values))[0, 0])]
                raise ProbeError(
                    f"the {name.replace('_', ' ')} of the probe of {bad!r} is not finite: "
                    "probe this weight again"
                )
        if self.fidelity not in FIDELITIES:
            raise ProbeError(
                f"fidelity must be one of {', '.join(FIDELITIES)} (got {self.fidelity!r})"
            )

    def require(self, space: Space, protocol: str | None = None) -> None:
        """Check that the probes are those of a space's weights, under the protocol of its labels.

        Args:
            space: whose configurations are predicted.
            protocol: digest of the protocol of full labels; None if it does not matter.

        Raises:
            ProbeError: they are not.
        """
        require_weights(self.weights, space)
        if protocol is not None and self.protocol != protocol:
            raise ProbeError(
                f"the probes were measured under protocol {self.protocol[:12]} and the labels under "
                f"{protocol[:12]}: probe with the same weights, sampler and captions"
            )

    def interpolation(self, space: Space, table: MethodTable) -> np.ndarray:
        """Compute what part of each probe a decision takes.

        Args:
            space: W weights and the methods on offer for each.
            table: errors of the weights under the methods.

        Returns:
            Float64 [W, M + 1, K]; the harm of a decision is the sum over probes of part × harm.
            Zeros for full precision and for methods that are not on offer.

        Raises:
            ProbeError: the probes are of other weights.
            ValueError: the table lacks a weight or a method that the space offers.
        """
        self.require(space)
        error = np.nan_to_num(errors(space, table))
        parts = np.zeros((*error.shape, self.harm.shape[1]))
        for w, row in enumerate(error):
            for m, value in enumerate(row):
                parts[w, m] = _parts(value, self.error[w])
        return np.concatenate([parts, np.zeros_like(parts[:, :1])], axis=1)

    def damage(self, space: Space, table: MethodTable) -> np.ndarray:
        """Compute the harm of each decision.

        Args:
            space: W weights and the methods on offer for each.
            table: errors of the weights under the methods.

        Returns:
            Float64 [W, M + 1].

        Raises:
            ProbeError: the probes are of other weights.
        """
        return np.einsum("wmk,wk->wm", self.interpolation(space, table), self.harm)


def probes_of(
    space: Space,
    table: MethodTable,
    outcomes: Sequence[Outcome],
    objective: Objective,
    num_images: int | None = None,
) -> Probes:
    """Collect the probes among the outcomes of one protocol.

    Args:
        space: W weights.
        table: errors of the weights under the probed methods.
        outcomes: of full precision, and of each weight alone under the same methods; others are
            ignored.
        objective: whose loss is the harm; costs such as average bits are no part of it.
        num_images: number of first pictures to use, of which the outcomes know the metrics; all of
            them by default.

    Returns:
        The probes.

    Raises:
        ProbeError: the outcomes are of several protocols, lack full precision, a weight, a metric
            or the first pictures; or are of weights that the space does not have.
    """
    denoiser = space.graph.denoiser
    again = f"run python -m qsdm.probe +model={denoiser}"
    full = [outcome for outcome in outcomes if not outcome.qconfig.methods]
    alone = [outcome for outcome in outcomes if len(outcome.qconfig.methods) == 1]
    if not alone:
        raise ProbeError(f"no weight of {denoiser!r} was measured alone: {again}")
    if len(protocols := {outcome.protocol for outcome in (*alone, *full)}) > 1:
        named = ", ".join(sorted(digest[:12] for digest in protocols))
        raise ProbeError(f"probes must be of one protocol (got {named}): choose one")
    if not full:
        raise ProbeError(f"full precision was not measured beside the probes: {again}")
    by_weight: dict[str, list[tuple[QuantMethod, Outcome]]] = {}
    for outcome in alone:
        ((name, method),) = outcome.qconfig.methods.items()
        by_weight.setdefault(name, []).append((method, outcome))
    require_weights(tuple(by_weight), space, again)
    counts = {name: len(found) for name, found in by_weight.items()}
    least = min(counts.values())
    if (most := max(counts.values())) > least:
        few = min(counts, key=counts.__getitem__)
        raise ProbeError(
            f"{few!r} was probed under {least} methods and other weights under {most}: {again} "
            "with the same methods"
        )
    names = tuple(weight.name for weight in space.graph.weights)
    harm, deviation, error = (np.empty((len(names), most)) for _ in range(3))
    for w, name in enumerate(names):
        for k, (method, outcome) in enumerate(
            sorted(by_weight[name], key=lambda pair: -pair[0].bits)
        ):
            harm[w, k], deviation[w, k] = _harm(outcome, full[0], objective, num_images)
            error[w, k] = _error(table, name, method)
    num = alone[0].num_images if num_images is None else num_images
    return Probes(names, harm, deviation, error, num, "full", alone[0].protocol)


def probes_of_errors(space: Space, table: MethodTable) -> Probes:
    """Take each weight's relative error for its harm, where nothing was probed.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods.

    Returns:
        Probes of fidelity ``error``, under each weight's method of the greatest error.
    """
    error = np.nan_to_num(errors(space, table)).max(axis=1, keepdims=True)
    names = tuple(weight.name for weight in space.graph.weights)
    return Probes(names, error, np.zeros_like(error), error, 0, "error", "")


def require_weights(names: Sequence[str], space: Space, remedy: str = "probe again") -> None:
    """Check that the names are those of all weights of a space.

    Args:
        names: of the weights that were probed.
        space: whose configurations are predicted.
        remedy: what to do, for the error.

    Raises:
        ProbeError: a weight is missing, or is not in the space.
    """
    wanted = [weight.name for weight in space.graph.weights]
    if other := sorted(set(names) - set(wanted)):
        raise ProbeError(
            f"the probes are of other weights: {space.graph.denoiser!r} has no {other[0]!r} in this "
            f"space: {remedy}"
        )
    if missing := [name for name in wanted if name not in set(names)]:
        raise ProbeError(
            f"{len(missing)} of {len(wanted)} weights were not probed ({missing[0]!r} among them): "
            f"{remedy}, which goes on where it was"
        )


def _harm(
    outcome: Outcome, full: Outcome, objective: Objective, num_images: int | None
) -> tuple[float, float]:
    """Harm and its paired standard error: both were measured on the same captions and noise."""
    names = [name for name in objective.weights if name != "avg_bits"]
    value, least = 0.0, None
    for name in names:
        pair = []
        for one in (outcome, full):
            use_all = num_images is None or num_images == one.num_images
            metrics = one.metrics if use_all else one.prefixes.get(num_images or 0, {})
            number = metrics.get(name)
            if number is None:
                of = f"{num_images} pictures" if num_images else "all pictures"
                raise ProbeError(
                    f"a probe has no {name} of {of} (configuration {one.qconfig.digest[:12]}): "
                    "give a metric that full precision has, too, and 16, 64 or all pictures"
                )
            pair.append(number)
        value += objective.weights[name] * (pair[1] - pair[0])
        num = min(len(outcome.halves.get(name, ())), len(full.halves.get(name, ())))
        least = num if least is None else min(least, num)
    if not least:
        return value, 0.0
    squares = 0.0
    for s in range(least):
        # Half the difference of two halves' harm; see `Outcome.standard_error`.
        first, second = (
            sum(
                objective.weights[name] * (full.halves[name][s][k] - outcome.halves[name][s][k])
                for name in names
            )
            for k in (0, 1)
        )
        squares += (first - second) ** 2 / 4
    share = outcome.num_images / (num_images or outcome.num_images)
    return value, float(np.sqrt(squares / least * share))


def _error(table: MethodTable, name: str, method: QuantMethod) -> float:
    column = {known: i for i, known in enumerate(table.methods)}.get(method)
    row = table.weights.index(name) if name in table.weights else None
    if row is None or column is None or np.isnan(error := table.rel_error[row, column]):
        raise OutsideSpace(
            f"{method} was not calibrated for {name!r}: run calibrate with a space that offers it"
        )
    return float(error)


def _parts(error: float, probed: np.ndarray) -> np.ndarray:
    """Weights of K probes in the harm at an error: linear between (0, 0) and the probes."""
    parts = np.zeros(len(probed))
    order = np.argsort(probed, kind="stable")
    order = order[probed[order] > 0]  # a method without error tells nothing
    if not error > 0 or not len(order):
        return parts
    above = int(np.searchsorted(probed[order], error))
    if above == 0 or len(order) == 1:
        first = order[0]
        parts[first] = error / probed[first]
    elif above == len(order):
        last = order[-1]
        parts[last] = error / probed[last]
    else:
        low, high = order[above - 1], order[above]
        share = (error - probed[low]) / (probed[high] - probed[low])
        parts[low], parts[high] = 1 - share, share
    return parts
