from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_probes import PROTOCOL, QUALITY, outcomes_of
from toy_unet import Toy

from qsdm.measurement.labels import Bank
from qsdm.outcome import Outcome
from qsdm.predictor.best_probes import choose_probes
from qsdm.predictor.fused import fused
from qsdm.predictor.probes import ProbeError, Probes


def measured(harm: np.ndarray, error: np.ndarray | float, fidelity: str = "full") -> Probes:
    harm = harm[:, None]
    names = tuple(f"w{i}" for i in range(len(harm)))
    errors = np.broadcast_to(np.asarray(error, dtype=float).reshape(-1, 1), harm.shape)
    return Probes(names, harm, errors, np.ones_like(harm), 16, fidelity)


def drawn(num: int, noise: float, misfit: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """True harm, measured harm and distance of a law with a slope of 0.5."""
    rng = np.random.default_rng(seed)
    distance = rng.lognormal(0.5, 1.2, num)
    truth = 0.5 * distance * (1 + misfit * rng.normal(size=num))
    return truth, truth + noise * rng.normal(size=num), distance


@pytest.mark.parametrize("seed", range(5))
def test_it_is_nearer_to_the_truth_than_either_measure(seed: int) -> None:
    truth, harm, distance = drawn(100, 1.0, 0.5, seed)
    probes = fused(measured(harm, 1.0), measured(distance, 0.0, "drawn"))
    found = probes.harm[:, 0]

    def away(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - truth) ** 2)))

    assert away(found) < 0.9 * away(harm)
    assert away(found) < 0.9 * away(0.5 * distance)
    inside = np.abs(found - truth) < 1.96 * probes.standard_error[:, 0]
    assert 0.85 < inside.mean() <= 1
    assert (probes.standard_error < 1.0).all()


def test_large_harms_stay_and_small_ones_follow_the_distance() -> None:
    _, harm, distance = drawn(200, 1.0, 0.5)
    found = fused(measured(harm, 1.0), measured(distance, 0.0, "drawn")).harm[:, 0]
    large, small = distance > 20, distance < 0.5
    np.testing.assert_allclose(found[large], harm[large], rtol=0.1)
    np.testing.assert_allclose(found[small], 0.5 * distance[small], rtol=0.35)
    assert (harm[small] < 0).mean() > 0.3
    assert (found[small] > 0).all()


def test_exact_harm_and_a_useless_distance_leave_the_probes() -> None:
    truth, _, distance = drawn(50, 0.0, 0.5)
    exact = measured(truth, 1e-6)
    np.testing.assert_allclose(
        fused(exact, measured(distance, 0.0, "drawn")).harm, exact.harm, rtol=1e-6
    )
    opposite = measured(-distance, 1.0)
    assert fused(opposite, measured(distance, 0.0, "drawn")) is opposite
    unknown = measured(truth, 0.0)
    assert fused(unknown, measured(distance, 0.0, "drawn")) is unknown
    with pytest.raises(ProbeError, match="other probes"):
        fused(exact, measured(distance[:-1], 0.0, "drawn"))


@pytest.mark.parametrize(("num_images", "is_steadied"), [(16, True), (64, False)])
def test_probes_of_few_pictures_are_steadied_where_they_are_chosen(
    toy: Toy, num_images: int, is_steadied: bool
) -> None:
    """By the distance that was measured of the same pictures; without one, they stay."""
    protocol = dataclasses.replace(PROTOCOL, num_images=num_images)
    rng = np.random.default_rng(0)
    full, *alone = (
        dataclasses.replace(outcome, protocol=protocol.digest, num_images=num_images)
        for outcome in outcomes_of(toy)
    )
    truth = np.array([outcome.metrics["fd_lite0"] - 20.0 for outcome in alone])  # type: ignore[operator]
    distance = truth * rng.lognormal(0, 0.2, len(truth)) * 3
    known = [
        dataclasses.replace(
            outcome,
            metrics={"fd_lite0": 20.0 + harm + rng.normal(0, 0.5), "lite0_distance": far},
        )
        for outcome, harm, far in zip(alone, truth, distance, strict=True)
    ]

    def chosen(outcomes: list[Outcome]) -> np.ndarray:
        bank = Bank(toy.space, [full, *outcomes], {protocol.digest: protocol}, None, None)
        return choose_probes(bank, toy.table, QUALITY).harm[:, 0]

    raw = np.array([outcome.metrics["fd_lite0"] - 20.0 for outcome in known])  # type: ignore[operator]
    without = [dataclasses.replace(o, metrics={"fd_lite0": o.metrics["fd_lite0"]}) for o in known]
    np.testing.assert_allclose(chosen(without), raw)
    found = chosen(known)
    if is_steadied:
        assert np.abs(found - truth).mean() < 0.7 * np.abs(raw - truth).mean()
    else:
        np.testing.assert_allclose(found, raw)
