"""Probes of the objective, steadied by distances of the same pictures.

The loss of a Fréchet distance by one weight is mostly noise where it is small: half of the probes
improve on full precision by chance. The distance of each picture to its full-precision twin has
little noise, but another unit, and is not quite what the objective means. With the harm h, its
standard error s and the distance d of a probe,

    true harm ~ Normal(b d, (k b d)²),    h ~ Normal(true harm, s²)

The slope b and the relative misfit k are the most probable ones over all probes; no label is
needed. The result is the posterior of each true harm: the measured one where it is large, the
distance's where it is lost in noise.

References:
    Predicting the output from a complex computer code when fast approximations are available
    (Kennedy & O'Hagan, 2000), section 2: a cheap level, its scale, and a discrepancy.

    Stein's Estimation Rule and Its Competitors (Efron & Morris, 1973), section 2: empirical Bayes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize

from qsdm.predictor.probes import ProbeError, Probes

MISFITS = (0.05, 3.0)  # bounds of k


def fused(probes: Probes, distances: Probes) -> Probes:
    """Combine two measures of the same probes.

    Args:
        probes: in units of the objective, with standard errors.
        distances: of the same weights and methods.

    Returns:
        Probes in units of the objective; the same ones if distances say nothing of them, or if
        standard errors are not known.

    Raises:
        ProbeError: they are of other weights or methods.
    """
    if probes.weights != distances.weights or probes.harm.shape != distances.harm.shape:
        raise ProbeError("distances are of other probes than the harm")
    harm, error = probes.harm, probes.standard_error
    distance = np.maximum(distances.harm, 0)
    if not (error > 0).any() or not (distance > 0).any():
        return probes
    # One error by few halves is noisy itself; none is zero.
    error = np.sqrt((error**2 + np.mean(error**2)) / 2)
    slope = float((harm * distance).sum() / (distance**2).sum())
    if slope <= 0:
        return probes

    def loss(logs: np.ndarray) -> float:
        b, k = np.exp(logs)
        variance = error**2 + (k * b * distance) ** 2
        return float(0.5 * (np.log(variance) + (harm - b * distance) ** 2 / variance).sum())

    start = np.log([slope, 0.5])
    bounds = [(start[0] - 3, start[0] + 3), tuple(np.log(MISFITS))]
    b, k = np.exp(minimize(loss, start, method="L-BFGS-B", bounds=bounds).x)
    expected, misfit = b * distance, np.maximum(k * b * distance, 1e-12)
    precision = 1 / error**2 + 1 / misfit**2
    mean = (harm / error**2 + expected / misfit**2) / precision
    return dataclasses.replace(probes, harm=mean, standard_error=precision**-0.5)
