"""The informed predictor: probes say what to expect, labels correct it.

A label is what the probes predict and a sum of parts, each linear in unknown coefficients:

    label(c) = label of full precision + costs(c) - damage(c) + sum over parts of f(c) . b + noise

With no label, this is the probes' prediction exactly. Every label moves the coefficients b away
from 0, as far as their variances and the noise allow:

- ``scale``, ``role``, ``weight``: all damages, those of a role, and those of a weight are off by
  some factor
- ``method``: so is the damage of a weight under each method; a quantized weight is one point in
  space, whose damage is not its distance from full precision alone
- ``error``: damage that no probe has seen, in proportion to the weight's error
- ``probe``: the probe's own standard error
- ``edges``, ``blocks``: what two weights do beyond the sum, where one feeds the other or both are
  in one block, in proportion to the geometric mean of their damages

Coefficients and noise are normal. So the posterior is closed: its mean is a table of contributions
and a quadratic form, its variance that of a Gaussian process with the sum of the parts' kernels.
The variances are the most probable ones given the labels (marginal likelihood times a log-normal
prior around typical scales, which decides where labels are few).

Why a Gaussian model and not a generalized ridge regression, which has the same mean: each part has
a shrinkage of its own, chosen without folds, from few labels; and it says how sure it is.

References:
    Gaussian Processes for Machine Learning (Rasmussen & Williams, 2006): section 2.2, Eq. 2.25 and
    2.26 (prediction); section 2.7 (explicit features); section 5.4.1, Eq. 5.8 and 5.9 (marginal
    likelihood); section 5.4.2, Eq. 5.12 (leave-one-out predictions).

    Additive Gaussian Processes (Duvenaud et al., 2011), section 3: kernels of one and of two
    variables.

    Predicting the output from a complex computer code when fast approximations are available
    (Kennedy & O'Hagan, 2000), section 2: a cheap level, its scale, and a discrepancy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from qsdm.measurement.labels import Labels
from qsdm.outcome import Objective
from qsdm.predictor.encode import Encoding
from qsdm.predictor.kernels import Pairs, Part, Sums
from qsdm.predictor.prior import Prior, prior_of
from qsdm.predictor.probes import Probes
from qsdm.qconfig.cost import MethodTable

CHUNK = 256  # configurations at a time
_JITTER = 1e-10  # of the mean variance of a label, for the factorization
# Natural logarithm of a scale: normal around that of its part, with this deviation. It may move by
# three of them in either direction.
_SPREAD = 1.0
_RANGE = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """How far a label lies from the sum of its parts, as a function of the damage d.

    Attributes:
        least: standard deviation of measuring a configuration without damage.
        rising: how much it rises by damage: measuring has the deviation least + rising × d.
        misfit: what parts do not explain, as a share of d.
    """

    least: float
    rising: float
    misfit: float

    def variances(self, damage: np.ndarray) -> list[np.ndarray]:
        """Compute the variances of measuring and of misfit.

        Args:
            damage: float64 [B], not negative.

        Returns:
            Two arrays float64 [B].
        """
        return [(self.least + self.rising * damage) ** 2, (self.misfit * damage) ** 2]


@dataclass(frozen=True, slots=True, eq=False)
class Informed:
    """The posterior.

    Attributes:
        prior: what is expected without labels.
        parts: J parts.
        noise: of labels, before it is scaled.
        scales: float64 [J + 2], standard deviation of each part's coefficients, and factors of the
            deviations of measuring and misfit.
        configurations: [B, W, M + 1], those with a label.
        dual: float64 [B], C^-1 (labels - expected labels), with C the labels' covariance.
        inverse: float64 [B, B], C^-1.
        left_out: float64 [B], prediction of each label by the others.
        left_out_deviation: float64 [B], their standard deviations.
        evidence: logarithm of the marginal likelihood, and of the scales' prior.
    """

    prior: Prior
    parts: tuple[Part, ...]
    noise: Noise
    scales: np.ndarray
    configurations: np.ndarray
    dual: np.ndarray
    inverse: np.ndarray
    left_out: np.ndarray
    left_out_deviation: np.ndarray
    evidence: float
    _known: list[np.ndarray] = field(default_factory=list, init=False, repr=False)

    def predict(self, configurations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict labels.

        Args:
            configurations: [B', W, M + 1], one-hot or relaxed.

        Returns:
            Mean and standard deviation of what measuring each would give, float64 [B'] each.
        """
        parts = [
            self._predict(configurations[i : i + CHUNK])
            for i in range(0, len(configurations), CHUNK)
        ]
        if not parts:
            return np.zeros(0), np.zeros(0)
        mean, variance = (np.concatenate(values) for values in zip(*parts, strict=True))
        return mean, np.sqrt(variance)

    def covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compute the covariance of what two sets of configurations do, without noise.

        Args:
            first: [B', W, M + 1], one-hot or relaxed.
            second: [B'', W, M + 1].

        Returns:
            Float64 [B', B''].
        """
        a, b = self._features(first), self._features(second)
        return a @ b.T - (a @ self._labeled.T) @ self.inverse @ (self._labeled @ b.T)

    def noise_variance(self, configurations: np.ndarray) -> np.ndarray:
        """Compute the variance of measuring a configuration, and of what no part explains.

        Args:
            configurations: [B', W, M + 1], one-hot or relaxed.

        Returns:
            Float64 [B'].
        """
        measuring, misfit = self.noise.variances(self.prior.total(configurations))
        return self.scales[-2] ** 2 * measuring + self.scales[-1] ** 2 * misfit

    def _predict(self, configurations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = self._features(configurations)
        covariance = features @ self._labeled.T
        variance = (features**2).sum(axis=1)
        variance -= ((covariance @ self.inverse) * covariance).sum(axis=1)
        variance = np.maximum(variance, 0) + self.noise_variance(configurations)
        return self.prior.expected(configurations) + covariance @ self.dual, variance

    def _features(self, configurations: np.ndarray) -> np.ndarray:
        """All parts' features, each in units of its coefficients' deviation; float64 [B', P]."""
        scaled = [
            scale * part.features(configurations)
            for scale, part in zip(self.scales[:-2], self.parts, strict=True)
        ]
        return np.concatenate(scaled, axis=1)

    @property
    def _labeled(self) -> np.ndarray:
        """Features of the configurations with a label."""
        if not self._known:
            self._known.append(self._features(self.configurations))
        return self._known[0]

    def coefficients(self) -> list[np.ndarray]:
        """Compute the posterior mean of each part's coefficients, float64 [P] each."""
        return [
            scale**2 * part.features(self.configurations).T @ self.dual
            for scale, part in zip(self.scales[:-2], self.parts, strict=True)
        ]

    def sampled(self, rng: np.random.Generator, spread: float = 1.0) -> list[np.ndarray]:
        """Draw each part's coefficients from the posterior, float64 [P] each.

        A draw from the prior, moved by what the labels say against it (Matheron's rule; Wilson et
        al., "Efficiently Sampling Functions from Gaussian Process Posteriors", 2020, Eq. 9).

        Args:
            rng: source of the draw.
            spread: factor of the draw's distance from the mean; 1 for the posterior itself.
        """
        features, scales = [p.features(self.configurations) for p in self.parts], self.scales[:-2]
        drawn = [s * rng.standard_normal(f.shape[1]) for s, f in zip(scales, features, strict=True)]
        noise = np.sqrt(self.noise_variance(self.configurations))
        labels = noise * rng.standard_normal(len(noise))
        for feature, values in zip(features, drawn, strict=True):
            labels += feature @ values
        away = self.dual - self.inverse @ labels
        return [
            mean + spread * (values + scale**2 * (feature.T @ away) - mean)
            for mean, values, scale, feature in zip(
                self.coefficients(), drawn, scales, features, strict=True
            )
        ]

    def contributions(self, coefficients: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Compute what each decision adds to the label of full precision.

        Args:
            coefficients: of each part; by default their posterior means.

        Returns:
            Float64 [W, M + 1].
        """
        total = self.prior.contributions
        coefficients = self.coefficients() if coefficients is None else coefficients
        for part, values in zip(self.parts, coefficients, strict=True):
            if isinstance(part, Sums):
                total = total + part.contributions(values)
        return total

    def form(self, coefficients: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Compute the interactions as a quadratic form of the amplitudes.

        Args:
            coefficients: of each part; by default their posterior means.

        Returns:
            Float64 [W, W].
        """
        total = np.zeros((len(self.prior.amplitude),) * 2)
        coefficients = self.coefficients() if coefficients is None else coefficients
        for part, values in zip(self.parts, coefficients, strict=True):
            if isinstance(part, Pairs):
                total += part.form(values)
        return total


def fit_informed(
    prior: Prior,
    configurations: np.ndarray,
    labels: np.ndarray,
    noise: Noise,
    parts: Sequence[Part] | None = None,
    scales: np.ndarray | None = None,
) -> Informed:
    """Learn from labels.

    Args:
        prior: what is expected without labels.
        configurations: [B, W, M + 1], one-hot; B may be 0.
        labels: float64 [B].
        noise: of the labels.
        parts: of a label; by default those that the module describes.
        scales: float64 [J + 2], see `Informed`; by default the most probable ones.

    Returns:
        The posterior.

    Raises:
        ValueError: a label is not finite.
    """
    if not np.isfinite(labels).all():
        raise ValueError("a label is not finite: measure this configuration again")
    parts = tuple(prior.parts() if parts is None else parts)
    residual = labels - prior.expected(configurations)
    features = [part.features(configurations) for part in parts]
    kernels = [f @ f.T for f in features]
    kernels += [np.diag(v) for v in noise.variances(prior.total(configurations))]
    typical = np.array([*(part.scale for part in parts), 1.0, 1.0])
    evidence = 0.0
    if scales is None:
        scales, evidence = _most_probable(kernels, residual, typical)
    num = len(labels)
    if num == 0:
        empty, square = np.zeros(0), np.zeros((0, 0))
        return Informed(
            prior, parts, noise, scales, configurations, empty, square, empty, empty, evidence
        )
    factor = cho_factor(_covariance(kernels, scales), lower=True)
    inverse, dual = cho_solve(factor, np.eye(num)), cho_solve(factor, residual)
    alone = 1 / np.diag(inverse)
    return Informed(
        prior,
        parts,
        noise,
        scales,
        configurations,
        dual,
        inverse,
        labels - dual * alone,
        np.sqrt(alone),
        evidence,
    )


def noise_of(prior: Prior, configurations: np.ndarray, halves: np.ndarray | None) -> Noise:
    """Estimate the noise of labels from the halves of their pictures.

    Captions and starting noise are the same for all configurations. So only what differs between
    configurations counts: half the difference of two halves, less its mean over configurations.

    Args:
        prior: what is expected without labels.
        configurations: [B, W, M + 1], one-hot.
        halves: float64 [S, 2, B], labels by the halves of the pictures in S ways; None if they are
            not known.

    Returns:
        The noise; without halves, or of fewer than eight configurations, 2 % of the typical damage.
    """
    damage = prior.total(configurations)
    if halves is None or len(damage) < 8:
        return Noise(0.02 * prior.typical, 0.02, MISFIT)
    differences = (halves[:, 0] - halves[:, 1]) / 2
    differences = differences - differences.mean(axis=1, keepdims=True)
    deviation = np.sqrt((differences**2).mean(axis=0))
    if np.ptp(damage) > 0:
        slope, intercept = np.polyfit(damage, deviation, 1)
    else:  # probes saw no harm at all
        slope, intercept = 0.0, deviation.mean()
    least = max(float(intercept), 0.1 * float(deviation.mean()))
    return Noise(least, max(float(slope), 0.0), MISFIT)


MISFIT = 0.05  # of the damage, until labels tell


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """What the informed predictor learns from; any part of the labels teaches a model.

    Attributes:
        encoding: of the space.
        table: errors of the space's weights under its methods.
        objective: that labels measure.
        genes: int64 [B, W], labeled configurations.
        values: float64 [B], their labels.
        halves: float64 [S, 2, B], labels by halves of the pictures; None if they are not known.
        probes: of each weight; None for its error alone.
        full: label of full precision; None if it was not measured.
    """

    encoding: Encoding
    table: MethodTable
    objective: Objective
    genes: np.ndarray
    values: np.ndarray
    halves: np.ndarray | None = None
    probes: Probes | None = None
    full: float | None = None
    _models: dict[bytes, Informed] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        encoding: Encoding,
        table: MethodTable,
        objective: Objective,
        labels: Labels,
        probes: Probes | None,
        full: float | None,
    ) -> Lessons:
        """Learn from labels as a store has them.

        Args:
            encoding: of the space.
            table: errors of the space's weights under its methods.
            objective: that labels measure.
            labels: of the space.
            probes: of each weight; None for its error alone.
            full: label of full precision; None if it was not measured.

        Returns:
            What can be learned.
        """
        return cls(
            encoding, table, objective, labels.genes, labels.values, labels.halves, probes, full
        )

    def model(self, rows: np.ndarray) -> Informed:
        """Learn from some labels, as if there were no others; once from the same ones.

        Args:
            rows: int64 [B'], their indices.

        Returns:
            The model.

        Raises:
            ProbeError: the probes are of other weights.
            ValueError: a label is not finite.
        """
        key = np.asarray(rows, dtype=np.int64).tobytes()
        if key not in self._models:
            self._models[key] = self._learned(rows)
        return self._models[key]

    def _learned(self, rows: np.ndarray) -> Informed:
        hot = self.encoding.one_hot(self.genes[rows]).astype(np.float64)
        values = self.values[rows]
        prior = prior_of(
            self.encoding, self.table, self.probes, self.objective, self.full, hot, values
        )
        halves = None if self.halves is None else self.halves[..., rows]
        return fit_informed(prior, hot, values, noise_of(prior, hot, halves))


def _covariance(kernels: Sequence[np.ndarray], scales: np.ndarray) -> np.ndarray:
    return _jittered(np.tensordot(scales**2, np.stack(kernels), axes=1))


def _jittered(covariance: np.ndarray) -> np.ndarray:
    num = len(covariance)
    covariance[np.diag_indices(num)] += _JITTER * np.trace(covariance) / max(num, 1)
    return covariance


def _most_probable(
    kernels: Sequence[np.ndarray], residual: np.ndarray, typical: np.ndarray
) -> tuple[np.ndarray, float]:
    """Scales of the greatest posterior density, and the logarithm of that density."""
    center = np.log(typical)
    num = len(residual)
    flat = np.stack(kernels).reshape(len(kernels), -1)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        scales = np.exp(logs)
        covariance = _jittered((scales**2 @ flat).reshape(num, num))
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        inverse = cho_solve(factor, np.eye(num), overwrite_b=True, check_finite=False)
        dual = inverse @ residual
        away = (logs - center) / _SPREAD
        value = (
            0.5 * residual @ dual + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
        )  # Eq. 5.8
        slopes = scales**2 * (flat @ (inverse - np.outer(dual, dual)).ravel())  # Eq. 5.9
        return float(value), slopes + away / _SPREAD

    if not num:
        return typical, 0.0
    bounds = [(c - _RANGE, c + _RANGE) for c in center]
    found = minimize(loss, center, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.exp(found.x), -float(found.fun)
