"""What other denoisers' labels say of a denoiser that has none.

A teacher is a denoiser with labels: the closed model of its labels and probes knows the damage of
each weight. What damage is has no unit that two denoisers share, so it is relative to the
denoiser's mean. Damage per error is learned from features of weights that mean the same in any
denoiser (op, role, relative depth, sizes, connectivity, the profile of errors; see
`qsdm.predictor.encode`), by a generalized linear model with a logarithmic link: damage is a product
of factors, is not negative, and weights without any count, too. Features that say nothing leave the
weights' errors alone. Coefficients are shrunk as far as lets the teachers predict each other best.

The result stands for probes: labels of the denoiser tell its scale, and correct it.

References:
    Generalized Linear Models (McCullagh & Nelder, 1989), section 6.2 (log-linear models) and
    chapter 9 (quasi-likelihood: only the variance's proportion to the mean is assumed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from qsdm.predictor.encode import Encoding, errors
from qsdm.predictor.informed import Informed
from qsdm.predictor.probes import Probes
from qsdm.qconfig import Space
from qsdm.qconfig.cost import MethodTable

PENALTIES = 10.0 ** np.arange(-2, 1.1, 0.5)
"""Of squared coefficients of standardized features, per weight."""
ALONE = 1.0  # the penalty where one teacher cannot be predicted by others


class NoTransfer(ValueError):
    """Nothing can be learned from another denoiser."""


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A denoiser that is learned from.

    Attributes:
        encoding: of its space.
        damage: float64 [W], of each weight under its method of the greatest error, not negative.
        error: float64 [W], relative squared error of each weight under this method.
    """

    encoding: Encoding
    damage: np.ndarray
    error: np.ndarray

    @staticmethod
    def of(encoding: Encoding, table: MethodTable, informed: Informed) -> Teacher:
        """Read damages off the closed model of a denoiser's labels.

        Args:
            encoding: of its space.
            table: errors of the space's weights under its methods.
            informed: learned from its labels, and probes if it has any.

        Returns:
            The teacher.
        """
        columns, error = worst(encoding.space, table)
        damage = informed.prior.costs - informed.contributions()
        chosen = damage[np.arange(len(columns)), columns]
        return Teacher(encoding, np.maximum(chosen, 0), error)


def transferred(teachers: Sequence[Teacher], encoding: Encoding, table: MethodTable) -> Probes:
    """Predict each weight's damage from what other denoisers teach.

    Args:
        teachers: at least one; none of the denoiser itself.
        encoding: of the denoiser's space.
        table: errors of the space's weights under its methods.

    Returns:
        Probes of fidelity ``transferred``, whose scale is for labels to tell.

    Raises:
        NoTransfer: a teacher's space offers other methods, or its weights have no op in common with
            those of the denoiser.
    """
    for teacher in teachers:
        require_shared(teacher.encoding, encoding)
    penalty = ALONE
    if len(teachers) > 1:
        penalty = min(PENALTIES, key=lambda value: _left_out(teachers, float(value)))
    _, error = worst(encoding.space, table)
    rate = _fit(teachers, float(penalty)).predict(features(encoding))
    harm = (error * rate)[:, None]
    names = tuple(weight.name for weight in encoding.space.graph.weights)
    return Probes(names, harm, np.zeros_like(harm), error[:, None], 0, "transferred")


def _fit(teachers: Sequence[Teacher], penalty: float) -> Pipeline:
    """Damage per error as a function of features."""
    x = np.concatenate([features(teacher.encoding) for teacher in teachers])
    damage, exposure = (
        np.concatenate(parts) for parts in zip(*map(_relative, teachers), strict=True)
    )
    rate = damage / np.maximum(exposure, 1e-12)
    model = make_pipeline(StandardScaler(), PoissonRegressor(alpha=penalty, max_iter=1000))
    return model.fit(x, rate, poissonregressor__sample_weight=exposure)


def _relative(teacher: Teacher) -> tuple[np.ndarray, np.ndarray]:
    """Damage and error, both relative to the denoiser's mean."""
    damage, error = (
        values / max(float(values.mean()), 1e-12) for values in (teacher.damage, teacher.error)
    )
    return damage, error


def _left_out(teachers: Sequence[Teacher], penalty: float) -> float:
    """How badly each teacher's damage is predicted by the others'."""
    total = 0.0
    for i, teacher in enumerate(teachers):
        others = [*teachers[:i], *teachers[i + 1 :]]
        damage, exposure = _relative(teacher)
        predicted = exposure * _fit(others, penalty).predict(features(teacher.encoding))
        total += mean_poisson_deviance(damage, np.maximum(predicted / predicted.mean(), 1e-9))
    return total


def features(encoding: Encoding) -> np.ndarray:
    """Select what the encoding says of the weights.

    Args:
        encoding: of a space.

    Returns:
        Float64 [W, F], of the first node that uses each weight.
    """
    first = [int(np.argmax(encoding.node_weight == w)) for w in range(encoding.num_weights)]
    return encoding.static[first].astype(np.float64)


def worst(space: Space, table: MethodTable) -> tuple[np.ndarray, np.ndarray]:
    """Find each weight's method of the greatest error.

    Args:
        space: W weights and the methods on offer for each.
        table: errors of the weights under the methods.

    Returns:
        Its column, int64 [W], and its error, float64 [W].
    """
    error = np.nan_to_num(errors(space, table), nan=-1.0)
    return error.argmax(axis=1), np.maximum(error.max(axis=1), 0)


def require_shared(teacher: Encoding, encoding: Encoding) -> None:
    """Check that two denoisers have something in common.

    Args:
        teacher: of the denoiser that is learned from.
        encoding: of the one that is predicted.

    Raises:
        NoTransfer: they have not.
    """
    name, other = encoding.space.graph.denoiser, teacher.space.graph.denoiser
    own, its = ({str(m) for m in one.methods} for one in (encoding, teacher))
    if own != its:
        unlike = sorted(own ^ its)
        raise NoTransfer(
            f"{other!r} cannot teach {name!r}: their spaces offer different methods "
            f"({', '.join(unlike)} only in one of them); calibrate both with the same space"
        )
    ops = [
        {node.op for node in one.space.graph.nodes if node.weight is not None}
        for one in (encoding, teacher)
    ]
    if not ops[0] & ops[1]:
        raise NoTransfer(
            f"{other!r} cannot teach {name!r}: no weight of the one is used by an operation of the "
            f"other ({', '.join(sorted(ops[1]))} there, {', '.join(sorted(ops[0]))} here)"
        )
