from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_unet import MODEL, SPACE, Toy, fill_store

from qsdm.attribute import attribute
from qsdm.measure import one_by_one
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import FitOptions
from qsdm.qconfig import QuantMethod
from qsdm.sensitivity import AttributionOptions, Sensitivity
from qsdm.store import Store, StoreError
from qsdm.store.files import read_json
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.train import train
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})


def measure_alone(store: Store, toy: Toy) -> None:
    """Add outcomes of each weight quantized alone, under the protocol of the labels."""
    _, protocol = toy.outcomes(1)
    qconfigs = one_by_one(toy.space, "uaq-3")
    for qconfig, fd in zip(qconfigs, toy.true_fd(qconfigs), strict=True):
        outcome = Outcome(qconfig, protocol.digest, {"fd_lite0": float(fd)}, 64)
        OutcomeDatabase(store.path("outcomes.sqlite")).add(outcome, protocol)


def test_attribute_finds_the_hidden_sensitivities(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_alone(fill_store(tmp_path, toy, 60), toy)
    train(
        Workspace(MODEL, SPACE, tmp_path),
        QUALITY,
        FitOptions(folds=2, width=16, hops=2, epochs=2),
        num_images=64,
    )
    result = attribute(
        Workspace(MODEL, SPACE, tmp_path), QUALITY, AttributionOptions(num_configs=12, steps=8)
    )
    folder = tmp_path / "toy_unet/sensitivity"
    assert read_json(folder / "traced.json") == result
    for name in ("role", "block", "weights", "interventions"):
        assert (folder / f"traced-{name}.png").stat().st_size > 5000
    found = {name: Sensitivity.from_json(data) for name, data in result["sensitivities"].items()}
    assert set(found) == {"integrated_gradients", "ablation_to_full", "ablation_from_full", "hops"}
    gradients = found["integrated_gradients"]
    truth = toy.sensitivity * np.nanmean(toy.table.rel_error, axis=1)
    assert np.corrcoef(gradients.per_weight, truth)[0, 1] > 0.6
    assert np.nanmean(gradients.at_bits(3)) > np.nanmean(gradients.at_bits(4))
    assert gradients.faithfulness["additive_srcc"] > 0.8
    assert gradients.faithfulness["interventions"] > 0.6
    assert len(result["interventions"]) == len(toy.space.graph.weights)
    first = result["interventions"][0]
    assert first["integrated_gradients"] == gradients.score(
        first["weight"], QuantMethod.parse(first["method"])
    )
    assert result["completeness"]["gap"] < 0.05
    assert result["full_precision"]["measured"] == -20.0
    for rows in result["tables"].values():
        total = sum(row["integrated_gradients"] for row in rows)
        assert total == pytest.approx(result["completeness"]["harm"], rel=0.05)
    printed = capsys.readouterr().out
    assert "conv_in" in printed
    assert "attributions miss" in printed
    with pytest.raises(StoreError, match="objective"):
        attribute(Workspace(MODEL, SPACE, tmp_path), Objective({"clip_score": 1}))


def test_missing_stages_are_named(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"qsdm\.trace"):
        attribute(Workspace(MODEL, SPACE, tmp_path), QUALITY)
    fill_store(tmp_path, toy, 6)
    with pytest.raises(StoreError, match=r"qsdm\.train"):
        attribute(Workspace(MODEL, SPACE, tmp_path), QUALITY)
