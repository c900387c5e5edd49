"""A foreign recipe is read for a traced model, and measured with the command that is printed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
from composed import compose

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine.serial import Serial
from qsdm.measure import measure
from qsdm.qconfig import QuantConfig, SpaceSpec
from qsdm.recipe import Format, loader_of, recipe
from qsdm.recipes.skip_list import Engine
from qsdm.run.values import values_of
from qsdm.store import Store, StoreError
from qsdm.store.files import read_json
from qsdm.trace import trace
from qsdm.workspace import Workspace

SPEC = SpaceSpec("traced", ("uaq-3", "uaq-4"), splits=".*", max_overhead=4.0)


@pytest.fixture(scope="module")
def traced(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("traced")
    trace(Workspace(tiny_model, root=store), page=False)
    return store


@pytest.fixture
def store(traced: Path, tmp_path: Path) -> Path:
    """Traced, and nothing else."""
    return Path(shutil.copytree(traced, tmp_path / "traced"))


def spec_of(command: str) -> SpaceSpec:
    """The space of a printed command."""
    words = shlex.split(command)
    return values_of(*compose(words[2].removeprefix("qsdm."), ["model=emoji_unet", *words[4:]]))[
        "space"
    ]


def test_an_imported_recipe_is_measured(
    tiny_model: Model, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text(r"ff\.net=q4_1,.=f16,^blk=q4_0")
    recipe(Workspace(tiny_model, SPEC, store), rules)
    printed = capsys.readouterr().out
    assert "1 of the names or patterns decide about no weight: '^blk'" in printed
    calibrates, measures = printed.splitlines()[-2:]
    target = Store(store, "tiny").path("recipes/rules.json")
    assert measures.endswith(f"configs={target}")
    spec = spec_of(calibrates)
    assert spec == spec_of(measures)
    calibrate(Workspace(tiny_model, spec, store))
    (outcome,) = measure(
        Workspace(tiny_model, spec, store), configs=target, num_images=4, engine=Serial()
    )
    assert outcome.qconfig == QuantConfig.from_json(read_json(target))
    assert {str(method) for method in outcome.qconfig.methods.values()} == {"uaq_g32-4"}


def test_a_recipe_inside_the_space_needs_no_other_calibration(
    tiny_model: Model, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "skip.json").write_text(json.dumps(["conv_in", "time_embedding"]))
    recipe(Workspace(tiny_model, SPEC, store), tmp_path / "skip.json", default="uaq-3")
    printed = capsys.readouterr().out
    assert "calibrate" not in printed
    assert "3 full precision" in printed


@pytest.mark.parametrize("to", list(Format))
def test_what_realize_chose_is_written(
    tiny_model: Model, store: Path, to: Format, tmp_path: Path
) -> None:
    (tmp_path / "skip.json").write_text("[]")
    target = Store(store, "tiny")
    recipe(Workspace(tiny_model, SPEC, store), tmp_path / "skip.json")
    target.path("chosen.json").write_text(target.path("recipes/skip.json").read_text())
    written = recipe(Workspace(tiny_model, SPEC, store), to=to)
    assert target.path(f"recipes/chosen{written.suffix}").read_text() == written.text
    assert written.usage


def test_a_byte_order_mark_and_a_rule_of_skip_lists(
    tiny_model: Model, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "skip.json"
    file.write_text(json.dumps(["down_blocks", "conv_in"]), encoding="utf-8-sig")
    recipe(Workspace(tiny_model, SPEC, store), file, rules=Engine.quanto)
    printed = capsys.readouterr().out
    assert "decide about no weight: 'down_blocks'" in printed
    assert "a Conv, which diffusers' quanto backend leaves at full precision" in printed


def test_what_diffusers_does_with_a_class_is_asked_of_diffusers(tiny_model: Model) -> None:
    loaders = {
        name: loader_of(dataclasses.replace(tiny_model, denoiser=f"{name}Model"))
        for name in ("WanTransformer3D", "FluxTransformer2D", "PixArtTransformer2D")
    }
    assert "time_embedder" in loaders["WanTransformer3D"].keep
    assert [loader.single_file for loader in loaders.values()] == [True, True, False]
    assert loaders["FluxTransformer2D"].keep == ()


def test_bad_input_names_the_remedy(tiny_model: Model, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"run python -m qsdm\.trace \+model=tiny"):
        recipe(Workspace(tiny_model, SPEC, tmp_path))
    with pytest.raises(StoreError, match=r"missing.json cannot be read .*give file=PATH"):
        recipe(Workspace(tiny_model, SPEC, store), tmp_path / "missing.json")
    with pytest.raises(StoreError, match=r"cannot be read \(IsADirectoryError\): give file=PATH"):
        recipe(Workspace(tiny_model, SPEC, store), tmp_path)
    (tmp_path / "picture.json").write_bytes(bytes(range(256)))
    with pytest.raises(StoreError, match=r"cannot be read \(UnicodeDecodeError\): give file=PATH"):
        recipe(Workspace(tiny_model, SPEC, store), tmp_path / "picture.json")
    with pytest.raises(ValueError, match=r"wanted a method and its bits, as in uaq-4"):
        recipe(Workspace(tiny_model, SPEC, store), tmp_path / "missing.json", default="q4_0")
