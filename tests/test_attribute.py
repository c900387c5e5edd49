from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy_unet import MODEL, SPACE, Explained, Toy, fill_store

from qsdm.attribute import Measuring, attribute, certify
from qsdm.engine.serial import Serial
from qsdm.measurement.intake import Measured
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.qconfig import QuantMethod, Space
from qsdm.sensitivity import Sensitivity
from qsdm.sensitivity.certificate import CurveOptions
from qsdm.store import Store, StoreError
from qsdm.store.files import read_json
from qsdm.store.schemas import CERTIFICATE
from qsdm.text import Log
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})


def test_attribute_finds_the_hidden_sensitivities(toy: Toy, explained: Explained) -> None:
    result = explained.result
    folder = explained.root / "toy_unet/sensitivity"
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
    assert "conv_in" in explained.printed
    assert "attributions miss" in explained.printed
    with pytest.raises(StoreError, match="objective"):
        attribute(Workspace(MODEL, SPACE, explained.root), Objective({"clip_score": 1}))


@dataclass
class Drawn:
    """A session whose pictures have the toy's law."""

    toy: Toy
    model: SimpleNamespace
    space: Space
    store: Store
    num_measured: int = 0
    versions: Mapping[str, str] = field(default_factory=lambda: {"fd_lite0": ""})

    def protocol(self, seed_set: int, num_images: int) -> Protocol:
        _, protocol = self.toy.outcomes(1)
        return dataclasses.replace(protocol, seed_set=seed_set, num_images=num_images)

    def measure(self, qconfigs: list, protocol: Protocol, stage: str, log: Log) -> Measured:
        assert stage == "certificate"
        measured = Measured()
        self.num_measured = len(qconfigs)
        for qconfig, fd in zip(qconfigs, self.toy.true_fd(qconfigs), strict=True):
            halves = {"fd_lite0": ((fd + 3, fd - 3), (fd - 1, fd + 1))}
            outcome = Outcome(qconfig, protocol.digest, {"fd_lite0": float(fd)}, 16, halves)
            measured.outcomes[qconfig.digest] = outcome
        return measured


def test_the_certificate_is_planned_measured_and_stored(
    toy: Toy,
    explained: Explained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without drawing: the toy's law stands for pictures."""
    workspace = Workspace(MODEL, SPACE, explained.copy(tmp_path))
    session = Drawn(toy, SimpleNamespace(metrics={"fd_lite0": None}), toy.space, workspace.store)
    monkeypatch.setattr(
        "qsdm.measurement.session.open_session", lambda *_, **__: nullcontext(session)
    )
    curves = CurveOptions(points=5, num_images=16, method="uaq-3", num_random=3, trainings=0)
    stale = dataclasses.replace(curves, seed_set=0)
    with pytest.raises(ValueError, match="wanted fresh noise"):
        certify(workspace, QUALITY, stale, Measuring(16, Serial(), False, None))
    path = workspace.path("sensitivity/traced-certificate.json")
    assert certify(workspace, QUALITY, curves, Measuring(16, Serial(), True, 2.5)) is None
    planned = re.search(r"plan: (\d+) configurations x 16 pictures", capsys.readouterr().out)
    # 4 orders in both directions and 3 random ones have 3 points each beside the ends; two orders
    # may meet in one.
    assert planned is not None
    assert 28 < int(planned[1]) <= 34
    assert not path.exists()
    logged: dict[str, object] = {}
    content = certify(
        workspace, QUALITY, curves, Measuring(16, Serial(), False, None), logged.update
    )
    assert session.num_measured == int(planned[1]) + 1
    assert CERTIFICATE.read(path) == content
    assert logged["attribute/certificate"] == path.with_suffix(".png")
    assert path.with_suffix(".png").stat().st_size > 5000
    against_chance = [d for d in content["differences"] if d["order"] == "random"]
    assert [d["sign"] for d in against_chance] == [1, 1]
    assert [c["holds"] for c in content["conditions"]][2] is None
    assert not content["holds"]  # trainings=0: shuffled measurements were not tried
    assert "not tried: shuffled measurements" in capsys.readouterr().out


def test_missing_stages_are_named(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"qsdm\.trace"):
        attribute(Workspace(MODEL, SPACE, tmp_path), QUALITY)
    fill_store(tmp_path, toy, 6)
    with pytest.raises(StoreError, match=r"qsdm\.train"):
        attribute(Workspace(MODEL, SPACE, tmp_path), QUALITY)
