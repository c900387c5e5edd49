from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from toy_unet import MODEL, SPACE, Toy, fill_store

from qsdm.measurement.labels import labels_of, noise, under_protocol, usable
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import FitOptions
from qsdm.predictor.scores import srcc
from qsdm.store import Store, StoreError
from qsdm.store.files import read_json
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.train import train
from qsdm.workspace import Workspace

QUICK = FitOptions(folds=2, width=16, hops=2, epochs=2)
QUALITY = Objective({"fd_lite0": -1})


def test_train_reports_held_out_scores_beside_the_baselines(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_store(tmp_path, toy, 60)
    logged: list[dict] = []
    report = train(
        Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64, log=logged.append
    )
    assert read_json(tmp_path / "toy_unet/predictor/traced/report.json") == report
    assert report["num_outcomes"] == 60
    held_out = report["held_out"]
    for name, scores in report["scores"].items():
        assert len(scores["srcc"]["folds"]) == 2
        assert scores["srcc"]["mean"] == pytest.approx(np.mean(scores["srcc"]["folds"]))
        assert srcc(held_out[name], held_out["measured"]) > 0.3, f"{name} knows nothing"
        assert 0 < scores["ndcg_at_10"]["mean"] <= 1
    assert report["scores"]["gnn"]["srcc"]["mean"] > report["scores"]["avg_bits"]["srcc"]["mean"]
    assert 0.9 < report["noise"]["ceiling"] <= 1
    assert any("val/srcc" in values for values in logged)
    assert "train/srcc_ridge" in logged[-1]
    printed = capsys.readouterr().out
    assert "noise ceiling" in printed
    assert all(name in printed for name in report["scores"])


def test_labels_follow_the_objective(toy: Toy) -> None:
    outcomes, _ = toy.outcomes(6)
    objective = Objective({"fd_lite0": -1, "avg_bits": -150})
    labels, halves = labels_of(outcomes, toy.space, objective)
    expected = [-o.metrics["fd_lite0"] - 150 * toy.avg_bits(o.qconfig) for o in outcomes]  # type: ignore[operator]
    np.testing.assert_allclose(labels, expected)
    assert halves is not None
    assert halves.shape == (1, 2, 6)
    np.testing.assert_allclose(halves[0].mean(axis=0), labels)
    bare = [Outcome(o.qconfig, o.protocol, o.metrics, o.num_images) for o in outcomes]
    assert labels_of(bare, toy.space, objective)[1] is None
    assert noise(None) is None


def test_outcomes_of_another_protocol_are_named_and_not_used(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, _ = toy.outcomes(6)
    foreign = [Outcome(o.qconfig, "f" * 64, o.metrics, o.num_images) for o in outcomes[:2]]
    found = usable([*foreign, *outcomes], toy.space, QUALITY, "toy_unet")
    assert found == outcomes
    assert "2 of ffffffffffff" in capsys.readouterr().out


def test_only_labels_of_the_wanted_noise_weights_and_count_are_learned_from(
    toy: Toy, tmp_path: Path
) -> None:
    fill_store(tmp_path, toy, 20)
    store = Store(tmp_path, "toy_unet")
    outcomes, protocol = toy.outcomes(40, seed=1)
    other = dataclasses.replace(protocol, seed_set=1)
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    for outcome in outcomes:  # more of them, with other noise
        database.add(dataclasses.replace(outcome, protocol=other.digest), other)
    for outcome in toy.outcomes(5, seed=2)[0]:  # proposed by a search
        database.add(dataclasses.replace(outcome, provenance={"stage": "candidates"}), protocol)
    labels = under_protocol(store, MODEL, 0, 64)
    assert {outcome.protocol for outcome in labels} == {protocol.digest}
    assert len([outcome for outcome in labels if outcome.qconfig.methods]) == 20
    assert len(under_protocol(store, MODEL, 1, 64)) == 40
    for model, seed_set, num_images in (
        (MODEL, 2, 64),
        (MODEL, 0, 256),
        (dataclasses.replace(MODEL, steps=11), 0, 64),
        (dataclasses.replace(MODEL, dtype="bfloat16"), 0, 64),
    ):
        with pytest.raises(
            StoreError, match=r"none of the \d+ labels.*run python -m qsdm\.measure"
        ):
            under_protocol(store, model, seed_set, num_images)


def test_missing_stages_are_named(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"qsdm\.trace"):
        train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64)
    fill_store(tmp_path, toy, 6)
    with pytest.raises(ValueError, match="measure more configurations"):
        train(Workspace(MODEL, SPACE, tmp_path), QUALITY, FitOptions(), num_images=64)
    with pytest.raises(StoreError, match=r"no outcomes with fid.*qsdm\.measure"):
        train(Workspace(MODEL, SPACE, tmp_path), Objective({"fid": -1}), QUICK, num_images=64)
    Store(tmp_path, "toy_unet").path("outcomes.sqlite").unlink()
    for side in ("-wal", "-shm"):
        Store(tmp_path, "toy_unet").path(f"outcomes.sqlite{side}").unlink(missing_ok=True)
    with pytest.raises(StoreError, match=r"qsdm\.measure"):
        train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64)


def test_a_test_set_is_reported_and_not_trained_on(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the labels' own protocol and under another seed set, each beside its ceiling."""
    fill_store(tmp_path, toy, 40)
    place = Store(tmp_path, "toy_unet")
    database = OutcomeDatabase(place.path("outcomes.sqlite"))
    tested, protocol = toy.outcomes(12, seed=77)
    other = dataclasses.replace(protocol, seed_set=1)
    again, _ = toy.outcomes(12, seed=77, noise=0.3)
    assert [o.qconfig for o in again] == [o.qconfig for o in tested]
    again = again[:10]  # not all of it is measured so far
    for outcomes, under in ((tested, protocol), (again, other)):
        for outcome in outcomes:
            marked = dataclasses.replace(
                outcome, protocol=under.digest, provenance={"stage": "test"}
            )
            database.add(marked, under)
    report = train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64)
    assert report["num_outcomes"] == 40
    sets, (between,) = report["test"]["sets"], report["test"]["between"]
    assert [(entry["seed_set"], entry["num_configs"]) for entry in sets] == [(0, 12), (1, 10)]
    assert between["sets"] == [[0, 64], [1, 64]]
    first, second = ([o.metrics["fd_lite0"] for o in outcomes] for outcomes in (tested[:10], again))
    assert between["srcc"] == pytest.approx(srcc(np.array(first), np.array(second)))
    assert sets[0]["srcc"]["ridge"] > 0.3
    assert sets[0]["noise"]["ceiling"] > sets[1]["noise"]["ceiling"], (
        "noisier labels have a lower ceiling"
    )
    printed = capsys.readouterr().out
    assert "test set, which no fold has seen" in printed
    assert [line.split()[:3] for line in printed.splitlines() if line[:2] in ("12", "10")] == [
        ["12", "64", "0"],
        ["10", "64", "1"],
    ]
