"""Protocols, outcomes, objectives."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from outcomes import PROTOCOL

from qsdm.measurement.scoring import splits
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod

QCONFIG = QuantConfig("toy", {"a": QuantMethod("uaq", 4)})


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Protocol) if f.name != "digest"]
)
def test_every_field_makes_another_protocol(field: str) -> None:
    value = getattr(PROTOCOL, field)
    other = (
        {"x": "2"}
        if isinstance(value, dict)
        else value + 1
        if isinstance(value, int | float)
        else value + "x"
    )
    assert dataclasses.replace(PROTOCOL, **{field: other}).digest != PROTOCOL.digest


def test_a_protocol_of_a_later_schema_is_named() -> None:
    with pytest.raises(ValueError, match="a protocol of schema 2, got 99"):
        Protocol.from_json(PROTOCOL.to_json() | {"schema": 99})


def test_json_round_trips() -> None:
    assert Protocol.from_json(json.loads(json.dumps(PROTOCOL.to_json()))).digest == PROTOCOL.digest
    halves, prefixes = {"fd": ((1.0, 2.0),)}, {4: {"fd": 1.0}}
    outcome = Outcome(
        QCONFIG, PROTOCOL.digest, {"fd": 1.5, "psnr": None}, 8, halves, prefixes, {"seconds": 3}
    )
    again = Outcome.from_json(json.loads(json.dumps(outcome.to_json())))
    assert again == outcome
    assert again.key == (QCONFIG.digest, PROTOCOL.digest)


def measured(version: str = "1", **metrics: float) -> Outcome:
    return Outcome(
        QCONFIG,
        PROTOCOL.digest,
        metrics,
        8,
        {name: ((value, value),) for name, value in metrics.items()},
        {4: dict(metrics)},
        versions=dict.fromkeys(metrics, version),
    )


def test_metrics_of_the_same_pictures_are_put_together() -> None:
    both = measured(fd=1.0, psnr=20.0).merged(measured(psnr=21.0, fid=3.0))
    assert both.metrics == {"fd": 1.0, "psnr": 20.0, "fid": 3.0}  # the first of a version stays
    assert both.versions == {"fd": "1", "psnr": "1", "fid": "1"}
    assert set(both.halves) == set(both.prefixes[4]) == set(both.metrics)
    assert both.earlier == {}
    assert both.merged(measured(fd=5.0)) == both
    assert Outcome.from_json(json.loads(json.dumps(both.to_json()))) == both


def test_another_version_of_a_metric_is_measured_and_the_old_one_kept() -> None:
    old = measured(fd=1.0, psnr=20.0)
    assert old.lacks({"fd": "1", "psnr": "1"}) == set()
    assert old.lacks({"fd": "2", "psnr": "1", "fid": "1"}) == {"fd", "fid"}
    new = old.merged(measured("2", fd=5.0))
    assert (new.metrics, new.versions) == ({"fd": 5.0, "psnr": 20.0}, {"fd": "2", "psnr": "1"})
    assert new.halves["fd"] == ((5.0, 5.0),)
    assert new.earlier == {"fd: 1": {"value": 1.0, "halves": ((1.0, 1.0),)}}
    again = Outcome.from_json(json.loads(json.dumps(new.to_json())))
    assert again.earlier["fd: 1"]["value"] == 1.0
    assert new.merged(measured("3", fd=7.0)).earlier.keys() == {"fd: 1", "fd: 2"}


def test_outcomes_of_the_first_schema_are_read() -> None:
    data = Outcome(QCONFIG, PROTOCOL.digest, {"fd": 1.5}, 8).to_json()
    del data["schema"], data["prefixes"]
    assert Outcome.from_json(data | {"halves": {"fd": [1.0, 2.0]}}).halves == {"fd": ((1.0, 2.0),)}


def test_the_standard_error_of_a_mean_is_that_of_the_textbook() -> None:
    """Half samples of 400 values: deviation / sqrt(400), here 1 / 20."""
    values = np.random.default_rng(0).normal(3, 1, 400)
    pairs = tuple((float(values[a].mean()), float(values[b].mean())) for a, b in splits(400))
    outcome = Outcome(
        QCONFIG, PROTOCOL.digest, {"mean": float(values.mean())}, 400, {"mean": pairs}
    )
    error = outcome.standard_error("mean")
    assert error == pytest.approx(values.std() / 20, rel=0.4)  # of 16 pairs
    low, high = outcome.interval("mean")
    assert (high - low) / 2 == pytest.approx(1.96 * error)
    assert low < outcome.metrics["mean"] < high
    assert outcome.standard_error("other") is None
    assert outcome.interval("other") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"metric fd of configuration .* it is not stored"):
        Outcome(QCONFIG, PROTOCOL.digest, {"fd": value}, 8)


def test_a_distance_needs_two_pictures() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        dataclasses.replace(PROTOCOL, num_images=1)


def test_an_objective_is_linear() -> None:
    objective = Objective({"fid": -1, "avg_bits": -150})
    assert objective({"fid": 10.0, "avg_bits": 4.0, "other": None}) == -610
    with pytest.raises(KeyError, match="needs the metric 'fid'"):
        objective({"avg_bits": 4.0})
    with pytest.raises(KeyError, match="needs the metric 'fid'"):
        objective({"avg_bits": 4.0, "fid": None})


@pytest.mark.parametrize(
    "weights", [{}, {"fid": math.nan}, {"fid": -1, "psnr": ".inf"}, {"fid": None}]
)
def test_an_objective_needs_finite_weights(weights: dict) -> None:
    with pytest.raises(ValueError, match="finite weights"):
        Objective(weights)
