from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_unet import MODEL, SPACE, Toy, fill_store

from qsdm.denoisers import Model, ModelError
from qsdm.measurement import labels as labels_module
from qsdm.measurement.labels import Bank, Labels, NoLabels
from qsdm.outcome import Objective, Outcome
from qsdm.predictor import FitOptions
from qsdm.predictor.judge import noise
from qsdm.predictor.scores import srcc
from qsdm.predictor.transfer import NoTransfer
from qsdm.qconfig import QuantConfig, Space
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
    assert "train/srcc_ridge" in logged[-2]
    assert {"train/scores", "train/predictor", "train/rank_correlation"} == set(logged[-1])
    printed = capsys.readouterr().out
    assert "noise ceiling" in printed
    assert all(name in printed for name in report["scores"])


def test_train_reads_the_outcomes_once_and_hashes_the_weights_once(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test sets of several protocols and labels of few pictures included."""
    store = fill_store(tmp_path, toy, 20)
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    tested, protocol = toy.outcomes(9, seed=5)
    for seed_set in (0, 1, 2):
        under = dataclasses.replace(protocol, seed_set=seed_set)
        for outcome in tested:
            database.add(
                dataclasses.replace(outcome, protocol=under.digest, provenance={"stage": "test"}),
                under,
            )
    num_stored = len(store.outcomes())
    counts = {"outcomes": 0, "decoded": 0, "weights": 0, "encoded": 0}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(Store, "outcomes", counting("outcomes", Store.outcomes))
    monkeypatch.setattr(Outcome, "from_json", counting("decoded", Outcome.from_json))
    monkeypatch.setattr(Space, "encode", counting("encoded", Space.encode))
    for module in list(sys.modules.values()):  # whoever has imported it
        if getattr(module, "__name__", "").startswith("qsdm") and hasattr(module, "weights_digest"):
            digest = counting("weights", module.weights_digest)
            monkeypatch.setattr(module, "weights_digest", digest)
    report = train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64)
    assert len(report["test"]["sets"]) == 3
    assert counts["outcomes"] == 2, "labels of one protocol, and all that are none"
    assert counts["decoded"] == num_stored, "each row once"
    assert counts["weights"] == 1
    # Full precision is tried, too.
    assert counts["encoded"] == 20 + 1 + 3 * 9, "each outcome becomes genes once"


def bank_of(toy: Toy, *outcomes: Outcome) -> Bank:
    """A bank of outcomes, of which some may be of a second protocol."""
    _, protocol = toy.outcomes(1)
    second = dataclasses.replace(protocol, seed_set=protocol.seed_set, prompts="other")
    return Bank(toy.space, outcomes, {p.digest: p for p in (protocol, second)})


def test_labels_follow_the_objective(toy: Toy) -> None:
    outcomes, _ = toy.outcomes(6)
    objective = Objective({"fd_lite0": -1, "avg_bits": -150})
    labels = bank_of(toy, *outcomes).labels(objective, num_images=64)
    expected = [-o.metrics["fd_lite0"] - 150 * toy.avg_bits(o.qconfig) for o in outcomes]  # type: ignore[operator]
    np.testing.assert_allclose(labels.values, expected)
    np.testing.assert_array_equal(labels.genes, [toy.space.encode(o.qconfig) for o in outcomes])
    assert labels.halves is not None
    assert labels.halves.shape == (1, 2, 6)
    np.testing.assert_allclose(labels.halves[0].mean(axis=0), labels.values)
    assert noise(labels) is not None
    bare = [Outcome(o.qconfig, o.protocol, o.metrics, o.num_images) for o in outcomes]
    without = bank_of(toy, *bare).labels(objective, num_images=64)
    assert without.halves is None
    assert noise(without) is None


def test_labels_can_be_selected_and_joined(toy: Toy) -> None:
    labels = bank_of(toy, *toy.outcomes(6)[0]).labels(QUALITY, num_images=64)
    parts = labels.take([4, 0]), labels.take([1, 2, 3, 5])
    assert parts[0].digests == [labels.digests[4], labels.digests[0]]
    assert parts[0].halves is not None
    np.testing.assert_array_equal(parts[0].halves, labels.halves[..., [4, 0]])  # type: ignore[index]
    both = parts[0].joined(parts[1])
    assert sorted(both.digests) == sorted(labels.digests)
    by_digest = dict(zip(labels.digests, labels.values, strict=True))
    np.testing.assert_array_equal(both.values, [by_digest[digest] for digest in both.digests])
    assert both.halves is None


def test_outcomes_of_another_protocol_are_named_and_not_used(toy: Toy) -> None:
    outcomes, protocol = toy.outcomes(6)
    other = dataclasses.replace(protocol, prompts="other").digest
    foreign = [Outcome(o.qconfig, other, o.metrics, o.num_images) for o in outcomes[:2]]
    labels = bank_of(toy, *foreign, *outcomes).labels(QUALITY, num_images=64)
    assert list(labels.outcomes) == outcomes
    assert f"not used: 2 of {other[:12]}" in labels.note
    assert not bank_of(toy, *outcomes).labels(QUALITY, num_images=64).note


def test_labels_of_today_come_before_more_labels_of_another_day(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else new labels would be counted, measured and not learned from."""
    outcomes, protocol = toy.outcomes(6)
    other = dataclasses.replace(protocol, prompts="other").digest
    ours = [Outcome(o.qconfig, other, o.metrics, o.num_images) for o in outcomes[:2]]
    bank = bank_of(toy, *ours, *outcomes)
    monkeypatch.setattr(
        labels_module,
        "of_today",
        lambda protocol, model: dataclasses.replace(protocol, prompts="other"),
    )
    labels = dataclasses.replace(bank, model=MODEL).labels(QUALITY, num_images=64)
    assert list(labels.outcomes) == ours
    assert labels.is_current(MODEL)
    (rest,) = [group for group in bank.sets(QUALITY, "measure") if len(group) == 6]
    assert not rest.is_current(MODEL)


def test_versions_of_a_metric_are_not_mixed(toy: Toy) -> None:
    outcomes, _ = toy.outcomes(7)
    first = [dataclasses.replace(o, versions={"fd_lite0": "1"}) for o in outcomes[:4]]
    second = [dataclasses.replace(o, versions={"fd_lite0": "2"}) for o in outcomes[4:]]
    labels = bank_of(toy, *second, *first).labels(QUALITY, num_images=64)
    assert list(labels.outcomes) == first
    assert "3 of" in labels.note
    assert "other versions of the metrics" in labels.note

    class Metric:
        version = "2"

    model = dataclasses.replace(MODEL, metrics={"fd_lite0": Metric()})
    assert not labels.is_current(model), "today's version is another one"


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

    def labels_of(model: Model, seed_set: int, num_images: int) -> Labels:
        return Workspace(model, SPACE, tmp_path).labels(QUALITY, seed_set, num_images)

    labels = labels_of(MODEL, 0, 64)
    assert {outcome.protocol for outcome in labels.outcomes} == {protocol.digest}
    assert len(labels) == 20
    assert len(labels_of(MODEL, 1, 64)) == 40
    for model, seed_set, num_images in (
        (MODEL, 2, 64),
        (MODEL, 0, 256),
        (dataclasses.replace(MODEL, steps=11), 0, 64),
        (dataclasses.replace(MODEL, dtype="bfloat16"), 0, 64),
    ):
        with pytest.raises(NoLabels, match=r"none of the \d+ labels.*run python -m qsdm\.measure"):
            labels_of(model, seed_set, num_images)


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


def add_probes(
    root: Path, toy: Toy, num: int | None = None, has_distances: bool = False, **changes: Any
) -> None:
    """Each weight alone, or the first ``num``, by the toy's law, under the protocol of its labels.

    ``changes`` are of the protocol.
    """
    protocol = dataclasses.replace(toy.outcomes(1)[1], **changes)
    uniform = toy.space.uniform("uaq-3").methods
    alone = [QuantConfig("toy_unet", {name: method}) for name, method in uniform.items()]
    database = OutcomeDatabase(Store(root, "toy_unet").path("outcomes.sqlite"))
    full = QuantConfig("toy_unet", {})
    values = [20.0, *toy.true_fd(alone).tolist()]
    for qconfig, value in list(zip([full, *alone], values, strict=True))[: num and num + 1]:
        stage = {"stage": "probe"}
        metrics: dict[str, float | None] = {"fd_lite0": value}
        if has_distances:
            metrics["lite0_distance"] = abs(value - 20.0) ** 0.5
        outcome = Outcome(qconfig, protocol.digest, metrics, 64, provenance=stage)
        database.add(outcome, protocol)


def test_labels_of_another_model_stand_for_probes(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other model is a twin here: what its labels teach ranks better than weight errors."""
    fill_store(tmp_path, toy, 60)
    workspace = Workspace(MODEL, SPACE, tmp_path)
    monkeypatch.setattr("qsdm.workspace.named", lambda name, store: Workspace(MODEL, root=store))
    report = train(workspace, QUALITY, QUICK, num_images=64, from_="twin")
    assert "learned from 60 labels of twin" in capsys.readouterr().out
    ranks = {name: s["srcc"]["mean"] for name, s in report["scores"].items()}
    assert ranks["probes"] > ranks["error_sum"] + 0.02
    assert {"informed", "no_probes", "hamming"} <= ranks.keys()


def test_what_cannot_teach_is_refused(toy: Toy, tmp_path: Path) -> None:
    fill_store(tmp_path, toy, 20)
    workspace = Workspace(MODEL, SPACE, tmp_path)
    with pytest.raises(NoTransfer, match="from names 'toy_unet' itself: give other models' names"):
        train(workspace, QUALITY, QUICK, num_images=64, from_=["toy_unet"])
    with pytest.raises(ModelError, match="no model 'nobody': give a NAME"):
        train(workspace, QUALITY, QUICK, num_images=64, from_=["emoji_unet", "nobody"])
    with pytest.raises(StoreError, match=r"python -m qsdm.trace \+model=emoji_unet"):
        train(workspace, QUALITY, QUICK, num_images=64, from_="emoji_unet")


def test_probes_in_the_store_are_learned_from(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network learns what labels and probes leave, and what it learned can be loaded."""
    fill_store(tmp_path, toy, 40)
    workspace = Workspace(MODEL, SPACE, tmp_path)
    without = train(workspace, QUALITY, QUICK, num_images=64)
    assert "probes" not in without["scores"]
    add_probes(tmp_path, toy)
    with_probes = train(workspace, QUALITY, QUICK, num_images=64)
    assert "probes of 27 weights, full, of 64 pictures each" in capsys.readouterr().out
    ranks = {name: s["srcc"]["mean"] for name, s in with_probes["scores"].items()}
    assert ranks["probes"] > 0.9
    assert ranks["informed"] > without["scores"]["informed"]["srcc"]["mean"]
    assert ranks["gnn"] > ranks["informed"] - 0.03
    refused = train(workspace, QUALITY, QUICK, num_images=64, probes=False)
    assert refused["scores"] == without["scores"]

    add_probes(tmp_path, toy, has_distances=True)
    capsys.readouterr()
    several = train(workspace, QUALITY, QUICK, num_images=64)
    printed = capsys.readouterr().out
    assert "probes of 27 weights, drawn, of 64 pictures each" in printed
    assert {"mean", "informed", "drawn", "no_probes"} <= several["scores"].keys()
    assert several["scores"]["informed"] == with_probes["scores"]["informed"]
    assert [line.split()[0] for line in printed.splitlines() if "±" in line][:5] == [
        "gnn", "mean", "informed", "drawn", "no_probes"
    ]  # fmt: skip
    loaded = workspace.predictor(QUALITY)
    fold = loaded.folds[0]
    assert fold.gnn.forms == 3
    assert float(fold.gnn.pairs.abs().max()) > 0
    genes = workspace.labels(QUALITY, 0, 64).genes[:9]
    import torch

    slow = loaded.by_fold(torch.from_numpy(loaded.encoding.one_hot(genes))).mean(0)
    np.testing.assert_allclose(loaded.predict(genes)[0], slow.detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("num", "changes", "told"),
    [
        (20, {}, "probes are not used: 7 of 27 weights were not probed"),
        (None, {"quantizer_version": "g"}, "with other quantizer_version than the labels"),
    ],
)
def test_probes_that_do_not_fit_are_told_and_left(
    toy: Toy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    num: int | None,
    changes: dict[str, str],
    told: str,
) -> None:
    fill_store(tmp_path, toy, 30)
    add_probes(tmp_path, toy, num, **changes)
    report = train(Workspace(MODEL, SPACE, tmp_path), QUALITY, QUICK, num_images=64)
    assert told in capsys.readouterr().out
    assert "probes" not in report["scores"]
    assert report["num_outcomes"] == 30
