"""Cards say what the store holds: predictions, measurements, attributions, interactions."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_unet import MODEL, SPACE, Explained, Toy, fill_store

from qsdm.engine.serial import Serial
from qsdm.measurement.retention import Adapter
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.interactions import Interaction
from qsdm.predictor.retention import read_retention
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod
from qsdm.report import cards as report
from qsdm.report import page, results
from qsdm.search import search
from qsdm.sensitivity.cards import (
    Evidence,
    NoWeight,
    cards,
    most_telling,
    price_of,
    runner_up,
    select,
    swapped,
)
from qsdm.store import StoreError
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.schemas import CHOSEN, LORA, WHY
from qsdm.strategies.constraints import Infeasible
from qsdm.strategies.random import Random
from qsdm.why import evidence_of, why
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})


def chosen_in(toy: Toy) -> QuantConfig:
    """conv_in and conv_out keep 4 bits, all others have 3."""
    low, high = toy.space.uniform("uaq-3").methods, toy.space.uniform("uaq-4").methods
    kept = {name: high[name] for name in ("conv_in", "conv_out")}
    return QuantConfig("toy_unet", {**low, **kept})


@pytest.fixture(scope="module")
def workspace(
    toy: Toy, explained: Explained, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """With a chosen configuration, of which one swap was measured."""
    workspace = Workspace(MODEL, SPACE, explained.copy(tmp_path_factory.mktemp("why")))
    qconfig = chosen_in(toy)
    CHOSEN.write(workspace.path("chosen.json"), qconfig.to_json())
    _, protocol = toy.outcomes(1)
    database = OutcomeDatabase(workspace.path("outcomes.sqlite"))
    swap = swapped(qconfig, "conv_in", QuantMethod("uaq", 3))
    for one, fd, halves in ((qconfig, 40.0, (50.0, 30.0)), (swap, 47.0, (58.0, 36.0))):
        stage = {"stage": "candidates"}
        outcome = Outcome(
            one, protocol.digest, {"fd_lite0": fd}, 64, {"fd_lite0": (halves,)}, provenance=stage
        )
        database.add(outcome, protocol)
    return workspace


@pytest.fixture(scope="module")
def evidence(workspace: Workspace) -> Evidence:
    return evidence_of(workspace, QUALITY, None)


def test_weights_are_named_in_five_ways(toy: Toy) -> None:
    graph = toy.space.graph
    assert select(graph, "conv_in") == ["conv_in"]
    block = select(graph, "down.1.attentions.0")
    assert len(block) == 6
    assert select(graph, "down.1.attentions") == block
    assert select(graph, "*attentions.*.to_k") == ["down.1.attentions.0.to_k"]
    split = next(w.name for w in graph.weights if "#" in w.name).partition("#")[0]
    assert [name.partition("#")[0] for name in select(graph, split)] == [split, split]


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("conv_inn", "'conv_in'"),
        ("down.1.attentoins.0.to_q", "'down.1.attentions.0.to_q'"),
        ("xyz*", "'time.linear_1'"),
    ],
)
def test_a_name_that_matches_nothing_gets_near_ones(toy: Toy, text: str, near: str) -> None:
    with pytest.raises(NoWeight, match="no weight or block of 'toy_unet' matches") as error:
        select(toy.space.graph, text)
    assert near in str(error.value)


def test_the_price_of_a_byte_is_the_slope_of_the_front() -> None:
    points = [{"size_bytes": size, "predicted": 2.0 * size} for size in (80, 98, 102, 150)]
    assert price_of(points, 100) == pytest.approx(2.0)
    assert price_of(points, 10) == price_of(points, 1000) == pytest.approx(2.0)
    assert price_of(points[:1], 80) is None
    falling = [{"size_bytes": size, "predicted": -size} for size in (90, 110)]
    assert price_of(falling, 100) == 0.0


def test_the_runner_up_is_what_the_price_would_buy_next() -> None:
    def swap(method: str, size: int, predicted: float, is_full: bool = False) -> dict:
        return {"method": method, "size_bytes": size, "predicted": predicted, "is_full": is_full}

    offered = [swap("uaq-4", 140, 5.0), swap("kmeans_c-3", 105, -1.0), swap("uaq-3", 95, -3.0)]
    offered.append(swap("fp-16", 500, 50.0, is_full=True))
    assert runner_up(offered, 100, 0.01) == "uaq-4"
    assert runner_up(offered, 100, 0.18) == "kmeans_c-3"
    assert runner_up(offered, 100, 1.0) == "uaq-3"
    assert runner_up(offered, 100, None) == "uaq-3"  # of no more bytes
    assert runner_up(offered, 90, None) == "uaq-4"  # nothing is smaller
    assert runner_up(offered[-1:], 100, None) is None


def test_a_card_tells_what_the_store_holds(toy: Toy, evidence: Evidence) -> None:
    (card,) = cards(evidence, ["conv_in"])
    qconfig, predictor = evidence.qconfig, evidence.predictor
    assert (card["method"], card["bits"]) == (str(qconfig.methods["conv_in"]), 4)
    offered = toy.space.options[[w.name for w in toy.space.graph.weights].index("conv_in")]
    assert {s["method"] for s in card["swaps"]} == {str(m) for m in offered} - {card["method"]} | {
        "fp-16"
    }
    swaps = {swap["method"]: swap for swap in card["swaps"]}
    both = [qconfig, swapped(qconfig, "conv_in", QuantMethod("uaq", 3))]
    mean, _ = predictor.predict(np.stack([toy.space.encode(one) for one in both]))
    assert swaps["uaq-3"]["predicted"] == pytest.approx(mean[1] - mean[0], abs=1e-5)
    assert swaps["uaq-3"]["low"] <= swaps["uaq-3"]["predicted"] <= swaps["uaq-3"]["high"]
    # Quality is minus the distance: 47 - 40 with halves 58 - 50 and 36 - 30.
    assert swaps["uaq-3"]["measured"] == {
        "value": -7.0,
        "low": pytest.approx(-7.0 - 1.96),
        "high": pytest.approx(-7.0 + 1.96),
        "num_images": 64,
    }
    assert swaps["fp-16"]["measured"] is None
    assert card["saved_bytes"] == swaps["fp-16"]["size_bytes"] - card["size_bytes"]
    gradients = evidence.sensitivities["sensitivities"]["integrated_gradients"]
    row = gradients["scores"][gradients["weights"].index("conv_in")]
    assert card["attribution"] == row[gradients["methods"].index(card["method"])]
    assert [entry["method"] for entry in card["alone"]] == ["uaq-3"]
    alone = toy.true_fd([QuantConfig("toy_unet", {"conv_in": QuantMethod("uaq", 3)})])[0] - 20.0
    assert card["alone"][0]["harm"] == pytest.approx(alone)
    assert card["probe"] is not None
    assert card["probe"]["harm"] == pytest.approx(alone)
    assert len(card["hops"]) == 3
    assert 1 <= card["attribution_rank"] <= card["num_weights"] == 27


def test_only_confirmed_interactions_are_told(evidence: Evidence) -> None:
    def pair(other: str, joint: float) -> Interaction:
        both = QuantConfig("toy_unet", {n: QuantMethod("uaq", 3) for n in ("conv_in", other)})
        return Interaction((("conv_in",), (other,)), both, (2.0, 3.0), joint, 1.0, 64)

    measured = [pair("conv_out", 10.0), pair("time.linear_1", 6.0)]
    (card,) = cards(dataclasses.replace(evidence, interactions=measured), ["conv_in"])
    (told,) = card["interactions"]
    assert (told["other"], told["excess"]) == (["conv_out"], 5.0)
    assert told["low"] == pytest.approx(5.0 - 1.96)
    assert ("interaction", "with conv_out: +5.0 (+3.0 to +7.0) beyond the sum of both") in (
        report.notes(card)
    )


def test_a_lora_is_told_and_limited_by_what_each_weight_leaves(
    toy: Toy, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy has no pipeline, so what `probe` would have measured is made up."""
    from safetensors.torch import save_file

    save_file({"unet.conv_in.lora_A.weight": torch.ones(1)}, tmp_path / "ink.safetensors")
    drawings = SimpleNamespace(digest="same")
    monkeypatch.setattr("qsdm.predictor.retention.drawings_of", lambda *_: drawings)
    names, low = [w.name for w in toy.space.graph.weights], QuantMethod("uaq", 3)
    losses = dict(zip(names, np.linspace(0.001, 0.02, len(names)), strict=True))
    losses["conv_in"] = 0.05
    retention = {
        QuantConfig("toy_unet", {name: low}).digest: (1 - loss, 0.002)
        for name, loss in losses.items()
    }
    retention[toy.space.uniform("uaq-3").digest] = (1 - 2 * sum(losses.values()), 0.01)
    about = {"denoiser": "toy_unet", "file": "ink.safetensors", "protocol": "same"}
    counts = {"seed_set": 0, "num_images": 8, "num_steps": 3}
    adapter = Adapter(tmp_path / "ink.safetensors")
    path = workspace.path(adapter.artifact("same", 3))
    LORA.write(path, {**about, **counts, "retention": dict(list(retention.items())[1:])})
    with pytest.raises(StoreError, match=r"for 26 of 27 weights, not for .* lora=.*ink"):
        read_retention(workspace, adapter.path)
    LORA.write(path, {**about, **counts, "retention": retention})

    (card,) = cards(evidence_of(workspace, QUALITY, None, adapter.path), ["conv_in"])
    said = "95.00 ± 0.39 % of the effect of ink.safetensors is left under uaq-3 alone; rank 1 of 27"
    assert ("LoRA", said) in report.notes(card)

    predict = read_retention(workspace, adapter.path).model(toy.table)
    three, four = (toy.space.encode(toy.space.uniform(m)) for m in ("uaq-3", "uaq-4"))
    worst, best = predict(np.stack([three, four]))
    assert worst == pytest.approx(1 - 2 * sum(losses.values()))
    ratio = toy.table.rel_error[:, toy.table.methods.index(QuantMethod("uaq", 4))]
    ratio = ratio / toy.table.rel_error[:, toy.table.methods.index(low)]
    assert best == pytest.approx(1 - 2 * ratio @ np.array(list(losses.values())))

    limit = float(0.5 * (worst + best))
    keys = {"limit": {"lora_retention": limit}, "lora": adapter.path}
    quick = {"strategy": Random(50), "evaluations": 150, "max_points": 20}
    front = search(workspace, QUALITY, **keys, **quick)
    assert all(point["metrics"]["lora_retention"] >= limit for point in front["points"])
    assert front["constraints"]["lora"] == "ink.safetensors"
    kept = search(workspace, QUALITY, **keys, strategy=Random(50), feasible=True)
    smallest = min(point["size_bytes"] for point in front["points"])
    assert kept["min_bytes"] < kept["lora_retention"] <= smallest
    with pytest.raises(Infeasible, match=r"lora_retention=1 cannot be met .* predicted there is 0"):
        search(workspace, QUALITY, limit={"lora_retention": 1.0}, lora=adapter.path, **quick)


def test_the_most_telling_weights_come_first(evidence: Evidence) -> None:
    names = most_telling(evidence, 27)
    greatest = [
        max(abs(s["predicted"]) for s in card["swaps"] if not s["is_full"])
        for card in cards(evidence, names)
    ]
    assert greatest == sorted(greatest, reverse=True)
    assert most_telling(evidence, 3) == names[:3]


def test_because_is_said_only_where_pictures_confirm(evidence: Evidence) -> None:
    (card,) = cards(evidence, ["conv_in"])
    worse = {**card, "runner_up": "uaq-3", "swaps": [dict(card["swaps"][0], method="uaq-3")]}
    worse["swaps"][0] |= {"predicted": -4.0, "size_bytes": card["size_bytes"] - 100}
    said = {certified: report.reason(worse, certified) for certified in (True, False, None)}
    assert said[True] == (
        "conv_in has uaq-4 because uaq-3 would change predicted quality by -4.00 and take "
        "100 Bytes less."
    )
    assert "because" not in said[False]
    assert said[False] == said[None]
    better = {**worse, "swaps": [worse["swaps"][0] | {"predicted": 4.0}]}
    assert "although" in report.reason(better, True)


class Pencil:
    """A session that draws gray pictures, as dark as there are weights in the configuration."""

    def __init__(self) -> None:
        self.drawn: list[QuantConfig] = []

    def pictures(self, qconfig: QuantConfig, _: object, num: int) -> np.ndarray:
        self.drawn.append(qconfig)
        level = 200 - len(qconfig.methods) - (qconfig.methods.get("conv_in") is None)
        return np.full((num, 8, 8, 3), level, dtype=np.uint8)


def test_why_prints_stores_and_draws_once(
    toy: Toy,
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pencil, (_, protocol) = Pencil(), toy.outcomes(1)
    monkeypatch.setattr(
        "qsdm.measurement.session.open_session", lambda *_, **__: nullcontext(pencil)
    )
    monkeypatch.setattr("qsdm.measurement.protocol.protocol_of", lambda *_: protocol)
    monkeypatch.setattr(Workspace, "packed", workspace.store.path("nothing is read of it"))
    monkeypatch.setattr("qsdm.quant.calibrated.fitted_version", lambda _: "3")
    monkeypatch.setattr("qsdm.why.prompts_of", lambda _: [])
    monkeypatch.setattr("qsdm.report.page._drawn", lambda _: iter(()))  # figures take seconds
    workspace.path("report.html").write_text("old")
    logged: dict[str, object] = {}
    content = why(
        workspace, QUALITY, "conv_*", swap="uaq-3", pictures=2, engine=Serial(), log=logged.update
    )
    printed = capsys.readouterr().out
    assert [card["weight"] for card in content["cards"]] == ["conv_in", "conv_out"]
    assert content["certified"] is None
    assert "certificate=true" in printed
    assert "-7.0 (-9.0 to -5.0)" in printed
    assert len(pencil.drawn) == 4  # full precision, as chosen, two swaps
    strip = workspace.path("why") / content["cards"][0]["pictures"]["file"]
    assert strip.stat().st_size > 500
    assert logged["why/conv_in/pictures"] == strip
    assert len(logged["why/cards"]) == sum(len(card["swaps"]) for card in content["cards"])
    assert "Why these methods" in workspace.path("report.html").read_text()

    again = why(workspace, QUALITY, "conv_in", swap="uaq-3", pictures=2, engine=Serial())
    assert len(pencil.drawn) == 4
    assert again["cards"] == content["cards"][:1]
    digest = chosen_in(toy).digest
    stored = WHY.read(workspace.path(f"why/{digest[:16]}.json"))
    assert {card["weight"] for card in stored["cards"]} == {"conv_in", "conv_out"}

    with pytest.raises(OutsideSpace, match="swap=uaq-8 is not on offer for 'conv_in'"):
        why(workspace, QUALITY, "conv_in", swap="uaq-8")


def test_the_page_shows_cards_with_their_pictures(workspace: Workspace, evidence: Evidence) -> None:
    drawn = {"file": "a/b.png", "swap": "uaq-3", "num_images": 2, "psnr": 31.25}
    told = cards(evidence, ["conv_in", "conv_out"])
    content = {"certified": True, "cards": [told[0], {**told[1], "pictures": drawn}]}
    content |= {"denoiser": "toy_unet", "objective": {"fd_lite0": -1.0}, "predicted": -40.0}
    shown = results.Results("toy_unet", why=content, why_pictures={"a/b.png": b"PNG"})
    first, second = report.shown(shown)
    assert first["sentence"].startswith("conv_out ")  # with pictures first
    assert first["uri"] == "data:image/png;base64,UE5H"
    assert second["uri"] is None
    text = page.render(shown)
    assert text.count('<details class="card"') == 2
    assert "PSNR 31.2 dB" in text
    assert "Pictures have confirmed the attributions." in text


def test_missing_stages_are_named(toy: Toy, tmp_path: Path, explained: Explained) -> None:
    bare = Workspace(MODEL, SPACE, tmp_path / "bare")
    with pytest.raises(StoreError, match=r"qsdm\.trace \+model=toy_unet"):
        why(bare, QUALITY)
    fill_store(tmp_path / "bare", toy, 6)
    with pytest.raises(StoreError, match=r"qsdm\.train \+model=toy_unet"):
        why(bare, QUALITY)
    with pytest.raises(StoreError, match=r"no chosen\.json .*qsdm\.realize \+model=toy_unet"):
        why(Workspace(MODEL, SPACE, explained.root), QUALITY)
    with pytest.raises(StoreError, match=r"no file nowhere\.json"):
        why(Workspace(MODEL, SPACE, explained.root), QUALITY, config=Path("nowhere.json"))
