"""The recipes that ship: complete, marked as what they are, and compared with a model's weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import compose
from toy_unet import MODEL, SPACE, Toy

from qsdm import denoisers, shelf
from qsdm.qconfig import QuantConfig
from qsdm.qconfig.cost import size_bytes
from qsdm.recipe import cli
from qsdm.recipes import RecipeError, native
from qsdm.run.values import values_of
from qsdm.store.files import read_json
from qsdm.store.schemas import GRAPH
from qsdm.workspace import Workspace

ENTRIES = shelf.recipes()


@pytest.mark.parametrize("name", ENTRIES)
def test_a_recipe_is_complete_and_marked(name: str) -> None:
    entry = ENTRIES[name]
    qconfig = QuantConfig.from_json(read_json(shelf.SHELF / entry["files"]["qsdm"]))
    assert qconfig.digest == entry["digest"]
    assert qconfig.denoiser == entry["denoiser"]
    assert name.startswith(f"{entry['denoiser']}-{entry['budget_bits']}")
    for file in entry["files"].values():
        assert (shelf.SHELF / file).is_file()
        assert ("unmeasured" in file) == (not entry["measured"])
    measured = {"weights", "metrics", "rivals", "errors", "num_images"}
    assert measured <= set(entry) if entry["measured"] else not measured & set(entry)
    assert ("unmeasured" in name) == (not entry["measured"])


def test_the_shelf_holds_what_was_measured_and_stays_small() -> None:
    results = {
        name: read_json(shelf.CHECKOUT / "experiments/equal_bytes/results" / f"{name}.json")
        for name in ("emoji_unet", "emoji_mmdit", "emoji_pixart")
    }
    for name, content in results.items():
        for budget, rules in content["rules"].items():
            code = rules["ours"]
            listed = f"{name}-{budget}" in ENTRIES
            assert listed == (code in content["outcomes"]), (name, budget)
    assert sum(path.stat().st_size for path in shelf.SHELF.rglob("*")) < 8e6
    assert not {path.name for path in shelf.SHELF.iterdir()} - {
        "index.json", "README.md", *(entry["denoiser"] for entry in ENTRIES.values()),
    }  # fmt: skip


def rival(value: float, deviation: float) -> shelf.Rival:
    return {"avg_bits": 3.5, "differences": {"fd_lite0": [value, deviation]}}


def entry_of(**fields: Any) -> shelf.Entry:
    about: dict[str, Any] = {
        "denoiser": "toy_unet", "measured": True, "budget_bits": 3.5, "avg_bits": 3.5,
        "size_bytes": 1, "files": {"qsdm": "toy.json"}, "digest": "", "version": "0",
        "weights": "ab" * 32, "num_images": 400, "metrics": {"fd_lite0": 5.0}, "rivals": {},
        "errors": [],
    }  # fmt: skip
    return about | fields  # type: ignore[return-value]


def test_what_would_prove_a_recipe_follows_from_its_intervals() -> None:
    """A difference of 4 standard errors from 400 pictures is 1.96 of them from 97."""
    shown = entry_of(rivals={"far": rival(-40, 2), "near": rival(-8, 2), "equal": rival(1, 2)})
    sentence = shelf.proof(shown)
    assert "two configurations of about 97 pictures each" in sentence
    assert "(near)" in sentence
    assert "nothing to prove" in shelf.proof(entry_of(rivals={"equal": rival(1, 2)}))
    assert "768 pictures" in shelf.proof(entry_of(measured=False))


@pytest.fixture
def workspace(toy: Toy, tmp_path: Path) -> Workspace:
    workspace = Workspace(MODEL, SPACE, tmp_path / "store")
    GRAPH.write(workspace.path("graph.json"), toy.space.graph.to_json())
    return workspace


def test_a_recipe_on_other_weights_says_how_far_they_are(
    workspace: Workspace, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    qconfig = toy.space.uniform("uaq-4")
    (tmp_path / "toy.json").write_text(native.write(toy.space.graph, qconfig).text)
    errors = (2 * toy.table.of(qconfig)[0]).tolist()
    entry = entry_of(
        digest=qconfig.digest,
        errors=errors,
        size_bytes=size_bytes(toy.space.graph, qconfig, 16),
    )
    shelf.INDEX.write(tmp_path / "index.json", {"recipes": {"toy-3.5": entry}})
    monkeypatch.setattr(shelf, "SHELF", tmp_path)
    monkeypatch.setattr(shelf, "recipes", lambda *_: {"toy-3.5": entry})
    monkeypatch.setattr(denoisers, "weights_digest", lambda _: "cd" * 32)
    assert shelf.use_recipe(["toy-3.5"], workspace) == qconfig
    printed = capsys.readouterr().out
    assert "measured on other weights (abababababababab): its figures need proof" in printed
    assert "is known once calibrate offers its methods" in printed
    assert "python -m qsdm.measure +model=toy_unet" in printed
    assert read_json(workspace.path("recipes/toy-3.5.json")) == qconfig.to_json()
    assert shelf._of_errors(np.array(errors), toy.table.of(qconfig)[0]) == (
        "errors of weights differ by a factor of 2.00 in the median, with a rank correlation of "
        "1.000; the largest factor is 2.00"
    )
    monkeypatch.setattr(denoisers, "weights_digest", lambda _: "ab" * 32)
    assert shelf.how_far(workspace, entry, qconfig) == [
        "measured on these very weights (abababababababab)"
    ]


def test_a_recipe_of_another_denoiser_is_refused_and_a_fine_tune_is_not(toy: Toy) -> None:
    graph = toy.space.graph
    qconfig = toy.space.uniform("uaq-4")
    other = QuantConfig("base", qconfig.methods)
    assert shelf.of_graph(graph, other) == qconfig
    method = qconfig.methods["conv_in"]
    strange = dataclasses.replace(other, methods={"conv_in": method, "transformer.0.q": method})
    num = len(graph.weights)
    with pytest.raises(
        RecipeError, match=rf"got one of 'base'\): it names 1 of the {num} weights \(\d+%\), and"
    ):
        shelf.of_graph(graph, strange)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli(["show", "emoji_unet-3.6"])
    assert done.value.code == 1
    assert "no recipe is called 'emoji_unet-3.6': closest to" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        cli(["list", "measured=true"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "emoji_unet-3.5" in printed
    assert "unmeasured" not in printed
    shelf.show_recipe(["emoji_unet-3.5"])
    assert "recipe minus the rival, 95 % interval" in capsys.readouterr().out
    function, cfg = compose("use_recipe", ["emoji_unet-3.5", "model=emoji_unet"])
    assert values_of(function, cfg)["name"] == ["emoji_unet-3.5"]
