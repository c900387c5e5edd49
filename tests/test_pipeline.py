"""The main job on a tiny pipeline: every stage runs, a second time none does, and a change reruns
what it must.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsdm.__main__ import Stage, main, stages
from qsdm.denoisers import Model
from qsdm.engine.serial import Serial
from qsdm.outcome import Objective
from qsdm.predictor import FitOptions
from qsdm.qconfig import QuantConfig, SpaceSpec, cost
from qsdm.recipe import recipe
from qsdm.report import results
from qsdm.sensitivity import AttributionOptions
from qsdm.store import Store
from qsdm.store.files import read_json
from qsdm.strategies.evolution import Evolution
from qsdm.workspace import Workspace

# Plain and weighted fits, and inputs of three widths, so that layers stay whole.
SPACE = SpaceSpec("small", ("uaq-3+a8", "uaq_w-4", "kmeans_a_w-3", "kmeans_a-4+a6"), splits="^$")
BUDGET = {"avg_bits": 4.5, "tera_bops": 5e-5}  # three fifths of what uaq_w-4 needs
NAMES = [stage.name for stage in stages(SPACE.name)]


def arguments(model: Model, store: Path) -> dict[str, Any]:
    return {
        "workspace": Workspace(model, SPACE, store),
        "objective": Objective({"fd_lite0": -1}, "psnr"),
        "predictor": FitOptions(folds=3, width=8, hops=2, epochs=2),
        "attribution": AttributionOptions(num_configs=4),
        "strategy": Evolution(population=8, offspring=8),
        "engine": Serial(),
        "probe_images": 2,
        "num_labels": 12,
        "num_images": 4,
        "budget": BUDGET,
        "evaluations": 60,
        "per_round": 2,
        "candidates": 1,
        "num_random": 2,
    }


def ran(seconds: dict[str, float]) -> list[str]:
    return [name for name in NAMES if seconds[f"{name}_s"] > 0]


def first_to_run(given: dict[str, Any]) -> str:
    """The first stage that the main job would run; it is stopped there."""

    class Begun(Exception):
        pass

    function = Stage.function.fget

    def stopped(stage: Stage) -> Callable[..., Any]:
        @functools.wraps(function(stage))
        def begin(*_args: Any, **_kwargs: Any) -> None:
            raise Begun(stage.name)

        return begin

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stage, "function", property(stopped))
        with pytest.raises(Begun) as begun:
            main(**given)
    return str(begun.value)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # half a minute on an idle core
def test_all_stages(
    tiny_model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted in the last, it goes on; then nothing is to do; a change reruns what it must."""
    from qsdm import realize

    given = arguments(tiny_model, tmp_path)
    place = Store(tmp_path, tiny_model.name)

    def interrupted(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(realize, "compared", interrupted)  # after the candidates were measured
        with pytest.raises(KeyboardInterrupt):
            main(**given)
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("[")] == NAMES
    kept = {outcome.key for outcome in place.outcomes()}
    kinds = [outcome.provenance["stage"] for outcome in place.outcomes()]
    assert kinds.count("rounds") == 2
    assert kinds.count("candidates") <= 1  # none if a round has measured the best point
    assert "realize" not in kinds

    assert ran(main(**given)) == ["realize"], "what was measured is kept, and makes nothing stale"
    capsys.readouterr()
    assert kept < {outcome.key for outcome in place.outcomes()}
    for stage in stages(SPACE.name):
        for name in stage.makes:
            assert place.path(name).stat().st_size > 0, name

    rows = {row["name"]: row for row in read_json(place.path("summary.json"))["rows"]}
    assert {
        "fp",
        "ours",
        "uaq_w-4",
        "uaq-3+a8",
        "kmeans_a-4+a6",
        "kmeans_a_w-3",
        "random-0",
        "random-1",
    } <= set(rows)
    assert rows["fp"]["avg_bits"] == 16
    assert rows["fp"]["metrics"]["psnr"] is None
    assert rows["ours"]["avg_bits"] <= 4.5
    chosen = QuantConfig.from_json(read_json(place.path("chosen.json")))
    space = given["workspace"].space
    assert space.decode(space.encode(chosen)) == chosen
    assert cost.tera_bops(space.graph, chosen) <= BUDGET["tera_bops"]
    assert "inputs of single layers in bits" in place.path("checkpoint/README.md").read_text()
    assert len(results.read(place, SPACE.name, 16).outcomes) >= 12  # the page knows the widths
    read = recipe(given["workspace"])  # what realize chose, in our own form
    assert QuantConfig.from_json(json.loads(read.text)) == chosen
    assert "qsdm.measure" in capsys.readouterr().out  # the space has calibrated all of it
    assert abs(rows["random-0"]["size_bytes"] / rows["ours"]["size_bytes"] - 1) <= 0.01
    stages_of: dict[str, set[str]] = {}
    for outcome in place.outcomes():
        stages_of.setdefault(outcome.protocol, set()).add(outcome.provenance["stage"])
    with_labels = next(kinds for kinds in stages_of.values() if "measure" in kinds)
    assert {"measure", "rounds"} <= with_labels <= {"measure", "rounds", "candidates"}
    others = [kinds for kinds in stages_of.values() if kinds is not with_labels]
    assert sorted(map(sorted, others)) == [["probe"], ["realize"]], (
        "the final table has a protocol of its own: fresh seeds"
    )
    front = read_json(place.path(f"search/{SPACE.name}.json"))
    (found,) = front["rounds"]["rounds"]
    proposed = {entry["digest"] for entry in found["proposals"]}
    assert len(proposed) == 2
    candidates = read_json(place.path("summary.json"))["candidates"]
    assert proposed <= {entry["qconfig"] for entry in candidates}, "realize chooses among them"

    assert ran(main(**given)) == [], "the second time there is nothing to do"
    text = capsys.readouterr().out
    assert text.count("up to date") == len(NAMES) - 2
    assert "weights are probed, drawn, of 2 pictures each" in text

    changed = {**given, "strategy": Evolution(population=6, offspring=6)}
    assert first_to_run(changed) == "search"
    place.path("chosen.json").unlink()
    assert first_to_run(given) == "realize"
    place.path(f"predictor/{SPACE.name}/report.json").write_text("{}")  # another hand was here
    assert first_to_run(given) == "train"


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_what_was_measured_is_never_measured_again(tiny_model: Model, tmp_path: Path) -> None:
    given = arguments(tiny_model, tmp_path)
    place = Store(tmp_path, tiny_model.name)
    main(**given)
    measured = len(place.outcomes())
    assert ran(main(**{**given, "num_labels": 14}))[:2] == ["measure", "train"]
    assert len(place.outcomes()) > measured

    forced = main(**{**given, "force": True})
    assert ran(forced) == [name for name in NAMES if name not in ("probe", "measure")]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_again_and_again_it_ends_with_the_same_configuration(
    tiny_model: Model, tmp_path: Path
) -> None:
    """Whatever stage runs when it is killed: what is stored, trained and chosen is the same."""
    whole, killed = (arguments(tiny_model, tmp_path / name) for name in ("whole", "killed"))
    began = time.monotonic()
    main(**whole)
    longest = (time.monotonic() - began) / 8
    rng = random.Random(0)
    num_kills = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=main, kwargs=killed)
        process.start()
        process.join(rng.uniform(0, longest) if num_kills < 25 else None)
        if process.exitcode == 0:
            break
        assert process.exitcode is None, "it must not fail"
        process.kill()
        process.join()
        num_kills += 1
    assert num_kills >= 8
    stores = [Store(tmp_path / name, tiny_model.name) for name in ("whole", "killed")]
    outcomes = [{one.key: one.metrics for one in store.outcomes()} for store in stores]
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[1]) == len(stores[1].outcomes()), "none is stored twice"
    for name in ("chosen.json", f"predictor/{SPACE.name}/report.json"):
        first, second = (without_time(read_json(store.path(name))) for store in stores)
        assert first == second, name
    assert not list(stores[1].path("shards").rglob("*.safetensors")), "left over"


def without_time(value: Any) -> Any:
    """What a file says, but when it was written and how long that took."""
    if isinstance(value, dict):
        varying = ("provenance", "seconds", "checksum")
        return {key: without_time(of) for key, of in value.items() if key not in varying}
    return value


def test_options_of_later_stages_are_checked_first(tiny_model: Model, tmp_path: Path) -> None:
    for changes, message in (
        ({"fidelity": "drawm"}, r"one of forward, drawn, full \(got 'drawm'\)"),
        ({"objective": Objective({"fid": -1})}, "'fid' is not measured; the metrics are fd_lite0"),
        ({"limit": {"fid": 3}}, "'fid' is not measured"),
        ({"budget": {"tera_bobs": 1}}, r"no budget\.tera_bobs: give .* budget\.tera_bops="),
    ):
        with pytest.raises(ValueError, match=message):
            first_to_run(arguments(tiny_model, tmp_path) | changes)


def test_the_stages_read_what_earlier_ones_make() -> None:
    made: set[str] = set()
    for stage in stages("any"):
        assert set(stage.reads) <= made
        made |= set(stage.makes)


def test_an_objects_digest_follows_its_fields() -> None:
    from qsdm.__main__ import plain

    one = plain(SPACE)
    assert plain(dataclasses.replace(SPACE, max_overhead=2.0)) != one
    assert plain({"a": (SPACE, Path("x"))})["a"][0] == one
