"""The mean of closed models that start from different priors.

Each prior errs in a way of its own: weight errors know no pictures, distances to full precision
are another quantity than the objective, and probes of the objective are noisy. The models learn
from the same labels, and their errors differ where labels are few: at the low-bit configurations
that a search asks for. There, single models promise too much; what their mean finds was measured to
be better on all three small denoisers (experiments/sample_efficiency).

References:
    Bagging predictors (Breiman, 1996), section 4: the mean of predictors errs less than they do on
    average, by their variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qsdm.measurement.labels import Labels
from qsdm.outcome import Objective
from qsdm.predictor.encode import Encoding
from qsdm.predictor.informed import Informed, Lessons
from qsdm.predictor.probes import Probes
from qsdm.qconfig.cost import MethodTable

Coefficients = Sequence[Sequence[np.ndarray]]
"""Of each model, those of each of its parts."""

MEAN = "mean"
INFORMED = "informed"
NO_PROBES = "no_probes"


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """One closed model or several.

    Attributes:
        models: of the same labels, the one with the best probes first.
    """

    models: tuple[Informed, ...]

    def predict(self, configurations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict labels.

        Args:
            configurations: [B, W, M + 1], one-hot or relaxed.

        Returns:
            Mean over the models, and standard deviation of what measuring would give, as the first
            model has it, float64 [B] each.
        """
        answers = [model.predict(configurations) for model in self.models]
        return np.mean([mean for mean, _ in answers], axis=0), answers[0][1]

    @property
    def left_out(self) -> np.ndarray:
        """Prediction of each label by the others, float64 [B]."""
        return np.mean([model.left_out for model in self.models], axis=0)

    @property
    def offset(self) -> float:
        """What is predicted of no contribution at all."""
        return float(np.mean([model.prior.offset for model in self.models]))

    @property
    def amplitudes(self) -> np.ndarray:
        """Amplitude of each decision in each model, float64 [J, W, M + 1]."""
        return np.stack([model.prior.amplitude for model in self.models])

    @property
    def coefficients(self) -> Coefficients:
        """Posterior means of each model's coefficients."""
        return [model.coefficients() for model in self.models]

    def sampled(self, rng: np.random.Generator, spread: float = 1.0) -> Coefficients:
        """Draw coefficients of each model from its posterior, see `Informed.sampled`.

        Args:
            rng: source of the draws.
            spread: factor of a draw's distance from the posterior's mean.
        """
        return [model.sampled(rng, spread) for model in self.models]

    def contributions(self, coefficients: Coefficients | None = None) -> np.ndarray:
        """Compute what each decision adds to the offset.

        Args:
            coefficients: of each model; by default their posterior means.

        Returns:
            Float64 [W, M + 1].
        """
        pairs = zip(self.models, coefficients or self.coefficients, strict=True)
        return np.mean([model.contributions(values) for model, values in pairs], axis=0)

    def forms(self, coefficients: Coefficients | None = None) -> np.ndarray:
        """Compute the quadratic forms of `amplitudes` whose sum is the interactions.

        Args:
            coefficients: of each model; by default their posterior means.

        Returns:
            Float64 [J, W, W].
        """
        pairs = zip(self.models, coefficients or self.coefficients, strict=True)
        return np.stack([model.form(values) for model, values in pairs]) / len(self.models)


@dataclass(frozen=True, slots=True, eq=False)
class Priors:
    """What closed models learn from: the same labels, and different probes.

    Attributes:
        lessons: by name of the model; the first has the best probes.
        averaged: names of the models whose mean the networks complete, the first model's first.
    """

    lessons: Mapping[str, Lessons]
    averaged: tuple[str, ...]

    @staticmethod
    def of(lessons: Lessons, others: Mapping[str, Probes]) -> Priors:
        """List the priors that there are.

        Args:
            lessons: labels, and the best probes.
            others: probes of other fidelities, by name. With them, the mean counts of all models,
                that without probes among them; else the model of the best probes alone.

        Returns:
            The priors.
        """
        models = {INFORMED: lessons}
        if lessons.probes is not None:
            models |= {name: replace(lessons, probes=probes) for name, probes in others.items()}
            models[NO_PROBES] = replace(lessons, probes=None)
        return Priors(models, tuple(models) if others else (INFORMED,))

    @property
    def is_mean(self) -> bool:
        """Whether several models are averaged."""
        return len(self.averaged) > 1

    @property
    def best(self) -> Lessons:
        """Labels and the best probes."""
        return next(iter(self.lessons.values()))

    def model(self, rows: np.ndarray) -> Mean:
        """Learn from some labels, as if there were no others.

        Args:
            rows: int64 [B'], their indices.

        Returns:
            The mean, or the only model.

        Raises:
            ProbeError: probes are of other weights.
            ValueError: a label is not finite.
        """
        return Mean(tuple(self.lessons[name].model(rows) for name in self.averaged))


def priors_of(
    encoding: Encoding,
    table: MethodTable,
    objective: Objective,
    labels: Labels,
    probes: Mapping[str, Probes],
    at_full: float | None,
) -> Priors:
    """List the priors of labels and of all probes that fit them.

    Args:
        encoding: of the space.
        table: errors of every weight under every method.
        objective: that labels measure.
        labels: to learn from.
        probes: by fidelity, the best ones first; may be empty.
        at_full: label of full precision; None if it was not measured.

    Returns:
        The priors.
    """
    best = next(iter(probes), None)
    own = None if best is None else probes[best]
    lessons = Lessons.of(encoding, table, objective, labels, own, at_full)
    return Priors.of(lessons, {name: other for name, other in probes.items() if name != best})
