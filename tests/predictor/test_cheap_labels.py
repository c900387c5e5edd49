"""Labels read off a few pictures: as good as the nearness to full precision that they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from toy_unet import MODEL, SPACE, Toy, fill_store

from qsdm.outcome import Objective, Outcome
from qsdm.predictor import FitOptions
from qsdm.predictor.cheap_labels import cheap_labels
from qsdm.predictor.scores import srcc
from qsdm.store import StoreError
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.train import train
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})
QUICK = FitOptions(folds=2, width=16, hops=2, epochs=2)


def near(outcome: Outcome, rng: np.random.Generator, width: float) -> dict[str, float | None]:
    """Metrics of 16 pictures: a distance that grows with the true one, noise, and no PSNR."""
    truth = float(outcome.metrics["fd_lite0"] or 0)
    return {
        "lite0_distance": truth**1.3 * np.exp(rng.normal(0, width)),
        "fd_lite0": 900 + rng.normal(),
        "psnr": None,
    }


@pytest.mark.parametrize("width", [0.02, 0.3])
def test_follow_what_they_are_read_off(toy: Toy, width: float) -> None:
    rng = np.random.default_rng(0)
    outcomes, _ = toy.outcomes(120, noise=0.02)
    full = [dataclasses.replace(o, prefixes={16: near(o, rng, width)}) for o in outcomes[:40]]
    cheap = [
        dataclasses.replace(o, metrics=near(o, rng, width), num_images=16) for o in outcomes[40:]
    ]
    labels, truth = (
        -np.array([o.metrics["fd_lite0"] for o in some]) for some in (outcomes[:40], outcomes[40:])
    )
    ones = np.ones((40, 1)), np.ones((80, 1))
    found = cheap_labels(full, labels, ones[0], cheap, ones[1], 16)
    assert found.metrics == ("lite0_distance", "fd_lite0")
    nearness = -np.array([o.metrics["lite0_distance"] for o in cheap])
    assert srcc(found.labels, truth) > srcc(nearness, truth) - 0.03
    assert found.srcc == pytest.approx(srcc(found.labels, truth), abs=0.15), (
        "what it says of itself is right"
    )


def test_noise_alone_claims_nothing(toy: Toy) -> None:
    rng = np.random.default_rng(0)
    outcomes, _ = toy.outcomes(80)
    full = [dataclasses.replace(o, prefixes={16: {"x": rng.normal()}}) for o in outcomes[:40]]
    cheap = [dataclasses.replace(o, metrics={"x": rng.normal()}) for o in outcomes[40:]]
    labels = np.array([-o.metrics["fd_lite0"] for o in outcomes[:40]])
    assert abs(cheap_labels(full, labels, np.ones((40, 1)), cheap, np.ones((40, 1)), 16).srcc) < 0.5


def test_too_few_full_labels_are_told(toy: Toy) -> None:
    outcomes, _ = toy.outcomes(20)
    with pytest.raises(
        StoreError, match=r"need 8 full ones that know their first 16 pictures \(got 0;"
    ):
        cheap_labels(outcomes, np.zeros(20), np.ones((20, 1)), outcomes, np.ones((20, 1)), 16)


def test_train_learns_from_both_and_is_judged_by_full_ones(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = fill_store(tmp_path, toy, 1)
    place.path("outcomes.sqlite").unlink()
    database, rng = OutcomeDatabase(place.path("outcomes.sqlite")), np.random.default_rng(0)
    outcomes, protocol = toy.outcomes(90, seed=3, noise=0.05)
    few = dataclasses.replace(protocol, num_images=16)
    for outcome in outcomes[:30]:
        database.add(
            dataclasses.replace(outcome, prefixes={16: near(outcome, rng, 0.05)}), protocol
        )
    for outcome in outcomes:
        database.add(Outcome(outcome.qconfig, few.digest, near(outcome, rng, 0.05), 16), few)
    report = train(
        Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64, cheap_images=16
    )
    assert report["num_outcomes"] == 30
    assert report["cheap"]["num"] == 60
    assert report["cheap"]["srcc"] > 0.9
    assert len(report["held_out"]["measured"]) == len(report["held_out"]["gnn"]) == 30
    alone = train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64)
    assert alone["cheap"] is None
    assert report["scores"]["ridge"]["srcc"]["mean"] > alone["scores"]["ridge"]["srcc"]["mean"]
    assert "60 labels read off 16 pictures, by 30 full ones" in capsys.readouterr().out
    with pytest.raises(StoreError, match="all 30 configurations of 64 pictures have a full label"):
        train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64, cheap_images=64)
