"""Probes: what the quantization of each weight does alone, and what that says of any configuration.

Harm is the loss of quality against full precision, on the same captions and starting noise. Small
perturbations add up, and each does harm in proportion to the squared error of its weight; so the
prediction of a configuration is the sum over weights of

    harm of the probe × error of the weight's method ÷ error of the probed method.

It needs no label. Where a weight was probed under several methods, harm is interpolated between
them by error, from the origin on, and extrapolated in proportion. A group of weights that was
probed together lends each of them a share in proportion to its error.

References:
    HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks (Dong et al., 2020),
    section 3.2: the sensitivity of a configuration as a sum over layers of curvature × squared
    error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.measurement.decibels import PSNR, squared
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.predictor.encode import errors
from qsdm.qconfig import OutsideSpace, QuantMethod, Space
from qsdm.qconfig.cost import MethodTable

FIDELITIES = ("error", "transferred", "forward", "drawn", "full")
MEASURED = FIDELITIES[2:]
STAGE = "probe"  # what outcomes of groups of weights were measured for
PAIRS = "pairs"  # what outcomes of two weights were measured for, see `interactions`

DISTANCES: Mapping[str, Callable[[float], float]] = {
    "lpips": lambda value: value,
    "lite0_distance": lambda value: value,
    PSNR: lambda value: -squared(value),
    "output_error": lambda value: value,
}
"""Metrics that say how far from full precision a configuration is, best first, and the distance."""


def require_fidelity(fidelity: str) -> None:
    """Check the name of what probes measure.

    Args:
        fidelity: ``forward``, ``drawn`` or ``full``.

    Raises:
        ValueError: another name.
    """
    if fidelity not in MEASURED:
        raise ValueError(f"fidelity must be one of {', '.join(MEASURED)} (got {fidelity!r})")


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
            output (``forward``), of other denoisers' weights (``transferred``), or of the weights
            alone (``error``).
        protocol: that the probes were measured under; None if nothing was.

    Raises:
        ProbeError: a value is not finite, or the shapes do not agree.
    """

    weights: tuple[str, ...]
    harm: np.ndarray
    standard_error: np.ndarray
    error: np.ndarray
    num_images: int
    fidelity: str
    protocol: Protocol | None = None

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

    def require(self, space: Space, protocol: Protocol | None = None) -> None:
        """Check that the probes are those of a space's weights, and of a model's present pictures.

        Args:
            space: whose configurations are predicted.
            protocol: of the labels; captions, noise and number of pictures may differ. None if it
                does not matter.

        Raises:
            ProbeError: they are not.
        """
        require_weights(self.weights, space)
        if protocol is None or self.protocol is None:
            return
        if other := differing(self.protocol, protocol):
            raise ProbeError(
                f"the probes were measured with other {', '.join(other)} than the labels: "
                f"run python -m qsdm.probe +model={space.graph.denoiser}"
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
        parts = self.parts_at(np.nan_to_num(errors(space, table)))
        return np.concatenate([parts, np.zeros_like(parts[:, :1])], axis=1)

    def parts_at(self, error: np.ndarray) -> np.ndarray:
        """Compute what part of each probe an error takes.

        Args:
            error: float64 [W, M], relative squared error of each weight, or of what stands for it.

        Returns:
            Float64 [W, M, K]; the harm of an error is the sum over probes of part × harm.
        """
        parts = np.zeros((*error.shape, self.harm.shape[1]))
        for w, row in enumerate(error):
            for m, value in enumerate(row):
                parts[w, m] = _parts(value, self.error[w])
        return parts

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
    protocol: Protocol,
    measure: Objective | str,
    num_images: int | None = None,
) -> Probes:
    """Collect the probes among the outcomes of a protocol.

    Args:
        space: W weights.
        table: errors of the weights under the probed methods.
        outcomes: of each weight alone under the same methods, or of groups of weights; of full
            precision, too, if ``measure`` is an objective. Others are ignored.
        protocol: of the outcomes; those of other protocols are ignored.
        measure: objective whose loss is the harm (costs such as average bits are no part of it), or
            one of `DISTANCES`.
        num_images: number of first pictures to use, of which the outcomes know the metrics; all of
            them by default.

    Returns:
        The probes.

    Raises:
        ProbeError: full precision, a weight, a metric or the first pictures are missing; or the
            outcomes are of weights that the space does not have.
        OutsideSpace: a probed method was not calibrated.
    """
    denoiser = space.graph.denoiser
    again = f"run python -m qsdm.probe +model={denoiser}"
    own = [outcome for outcome in outcomes if outcome.protocol == protocol.digest]
    probed = [outcome for outcome in own if is_probe(outcome)]
    if not probed:
        raise ProbeError(f"no weight of {denoiser!r} was measured alone: {again}")
    full = next((outcome for outcome in own if outcome.qconfig.is_full), None)
    if full is None and isinstance(measure, Objective):
        raise ProbeError(f"full precision was not measured beside the probes: {again}")
    chosen = _narrowest(probed)
    require_weights(tuple(chosen), space, again)
    counts = {name: len(found) for name, found in chosen.items()}
    num = min(counts.values())
    if max(counts.values()) > num:
        few = min(counts, key=counts.__getitem__)
        raise ProbeError(
            f"{few!r} was probed under {num} methods and other weights under "
            f"{max(counts.values())}: {again} with the same methods"
        )
    names = tuple(weight.name for weight in space.graph.weights)
    harm, deviation, error = (np.empty((len(names), num)) for _ in range(3))
    losses = {o.qconfig.digest: harm_of(o, full, measure, num_images) for o in probed}
    for w, name in enumerate(names):
        for k, (method, outcome) in enumerate(chosen[name]):
            error[w, k] = _error(table, name, method)
            members = outcome.qconfig.methods
            together = sum(_error(table, other, m) for other, m in members.items())
            share = error[w, k] / together if together > 0 else 1 / len(members)
            harm[w, k], deviation[w, k] = (share * x for x in losses[outcome.qconfig.digest])
    fidelity = "full" if isinstance(measure, Objective) else "drawn"
    if measure == "output_error":
        fidelity = "forward"
    used = protocol.num_images if num_images is None else num_images
    drawn = 0 if fidelity == "forward" else used
    return Probes(names, harm, deviation, error, drawn, fidelity, protocol)


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
    return Probes(names, error, np.zeros_like(error), error, 0, "error")


def is_probe(outcome: Outcome) -> bool:
    """Whether an outcome is of one weight alone, or of a group of weights that was probed.

    Args:
        outcome: of any configuration.
    """
    num = len(outcome.qconfig.methods)
    if not outcome.qconfig.has_methods_alone:  # which is harm of another kind
        return False
    return num == 1 or (num > 1 and outcome.provenance.get("stage") == STAGE)


def differing(first: Protocol, second: Protocol) -> list[str]:
    """Name what two protocols differ in, beside captions, noise and number of pictures.

    Args:
        first: a protocol.
        second: another one.
    """
    free = {"prompts", "seed_set", "num_images", "digest"}
    names = [field.name for field in dataclasses.fields(Protocol) if field.name not in free]
    return [name for name in names if getattr(first, name) != getattr(second, name)]


def require_weights(names: Sequence[str], space: Space, remedy: str = "probe again") -> None:
    """Check that the names are those of all weights of a space.

    Args:
        names: of the weights that were probed.
        space: whose configurations are predicted.
        remedy: what to do, for the error.

    Raises:
        ProbeError: a weight is missing, or is not in the space.
    """
    wanted, given = [weight.name for weight in space.graph.weights], set(names)
    if other := sorted(given - set(wanted)):
        raise ProbeError(
            f"the probes are of other weights: {space.graph.denoiser!r} has no {other[0]!r} in "
            f"this space: {remedy}"
        )
    if missing := [name for name in wanted if name not in given]:
        raise ProbeError(
            f"{len(missing)} of {len(wanted)} weights were not probed ({missing[0]!r} among them): "
            f"{remedy}, which goes on where it was"
        )


def _narrowest(probed: Sequence[Outcome]) -> dict[str, list[tuple[QuantMethod, Outcome]]]:
    """By weight: its methods and outcomes, of the smallest group that it was probed in; most bits
    first."""
    sizes: dict[str, int] = {}
    for outcome in probed:
        for name in outcome.qconfig.methods:
            num = len(outcome.qconfig.methods)
            sizes[name] = min(sizes.get(name, num), num)
    chosen: dict[str, list[tuple[QuantMethod, Outcome]]] = {name: [] for name in sizes}
    for outcome in probed:
        for name, method in outcome.qconfig.methods.items():
            if len(outcome.qconfig.methods) == sizes[name]:
                chosen[name].append((method, outcome))
    return {
        name: sorted(found, key=lambda pair: (-pair[0].bits, pair[0].name))
        for name, found in chosen.items()
    }


def harm_of(
    outcome: Outcome,
    full: Outcome | None,
    measure: Objective | str,
    num_images: int | None = None,
) -> tuple[float, float]:
    """Compute what a configuration loses against full precision.

    Args:
        outcome: of the configuration.
        full: of full precision, on the same captions and noise; a distance needs none.
        measure: an objective, or one of `DISTANCES`.
        num_images: number of first pictures to use; all of them by default.

    Returns:
        Harm, and its paired standard error over captions and noise; 0 without halves.

    Raises:
        ProbeError: a metric or the first pictures are missing.
    """
    names = [measure] if isinstance(measure, str) else measure.metrics

    def combine(values: Sequence[float], whole: Sequence[float]) -> float:
        if isinstance(measure, str):
            return DISTANCES[measure](values[0])
        weights = [measure.weights[name] for name in names]
        return sum(w * (b - a) for w, a, b in zip(weights, values, whole, strict=True))

    reference = outcome if full is None or isinstance(measure, str) else full
    value = combine(*(_metrics(one, names, num_images) for one in (outcome, reference)))
    halves = [(outcome.halves.get(name, ()), reference.halves.get(name, ())) for name in names]
    num = min((len(pairs) for both in halves for pairs in both), default=0)
    # Half the difference of two halves' harm; see `Outcome.standard_error`.
    squares = 0.0
    for s in range(num):
        first, second = (
            combine([own[s][side] for own, _ in halves], [all_[s][side] for _, all_ in halves])
            for side in (0, 1)
        )
        squares += (first - second) ** 2 / 4
    share = outcome.num_images / (num_images or outcome.num_images)
    return value, float(np.sqrt(squares / max(num, 1) * share))


def _metrics(outcome: Outcome, names: Sequence[str], num_images: int | None) -> list[float]:
    use_all = num_images is None or num_images == outcome.num_images
    metrics = outcome.metrics if use_all else outcome.prefixes.get(num_images or 0, {})
    values = []
    for name in names:
        if (value := metrics.get(name)) is None:
            of = "all pictures" if use_all else f"{num_images} pictures"
            raise ProbeError(
                f"a probe has no {name} of {of} (configuration {outcome.qconfig.digest[:12]}): "
                "give a metric that was measured, and 16, 64 or all pictures"
            )
        values.append(value)
    return values


def _error(table: MethodTable, name: str, method: QuantMethod) -> float:
    method = method.of_weight
    if name in table.weights and method in table.methods:
        error = table.rel_error[table.weights.index(name), table.methods.index(method)]
        if not np.isnan(error):
            return float(error)
    raise OutsideSpace(
        f"{method} was not calibrated for {name!r}: run calibrate with a space that offers it"
    )


def _parts(error: float, probed: np.ndarray) -> np.ndarray:
    """Weights of K probes in the harm at an error: linear between (0, 0) and the probes."""
    parts = np.zeros(len(probed))
    order = np.argsort(probed, kind="stable")
    order = order[probed[order] > 0]  # a method without error tells nothing
    if not error > 0 or not len(order):
        return parts
    above = int(np.searchsorted(probed[order], error))
    if above == 0 or len(order) == 1:
        parts[order[0]] = error / probed[order[0]]
    elif above == len(order):
        parts[order[-1]] = error / probed[order[-1]]
    else:
        low, high = order[above - 1], order[above]
        share = (error - probed[low]) / (probed[high] - probed[low])
        parts[low], parts[high] = 1 - share, share
    return parts
