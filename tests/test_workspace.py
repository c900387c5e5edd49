"""A workspace opens each artifact once, for as long as it stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_unet import MODEL, SPACE, Toy, fill_store

import qsdm
from qsdm.denoisers import ModelError
from qsdm.outcome import Objective
from qsdm.store import StoreError
from qsdm.store.files import write_json
from qsdm.workspace import Workspace, takes_workspace


@pytest.fixture
def workspace(toy: Toy, tmp_path: Path) -> Workspace:
    fill_store(tmp_path, toy, 12)
    return Workspace(MODEL, SPACE, tmp_path)


def test_artifacts_are_read_once(workspace: Workspace, toy: Toy) -> None:
    assert workspace.graph is workspace.graph
    assert workspace.space is workspace.space
    assert workspace.table is workspace.table
    assert workspace.space.graph.digest == toy.space.graph.digest


def test_what_was_written_since_is_read_again(workspace: Workspace) -> None:
    before = workspace.graph
    data = before.to_json()
    write_json(workspace.path("graph.json"), {**data, "denoiser": "renamed"})
    assert workspace.graph.denoiser == "renamed"
    assert workspace.space.graph.denoiser == "renamed"


def test_what_is_missing_names_its_command(workspace: Workspace) -> None:
    with pytest.raises(StoreError, match=r"python -m qsdm\.train"):
        workspace.predictor(Objective({"fd_lite0": -1}))
    with pytest.raises(StoreError, match=r"python -m qsdm\.calibrate"):
        _ = replace(workspace, spec=replace(SPACE, name="other")).table
    with pytest.raises(ValueError, match="no space was chosen for 'toy_unet': give space=NAME"):
        _ = Workspace(MODEL, None, workspace.root).space


def test_models_are_opened_by_name(tmp_path: Path) -> None:
    emoji = qsdm.open("emoji_unet", store=tmp_path)
    assert emoji.model.directory is not None
    assert emoji.space_name == "traced"
    assert "fd_lite0" in emoji.model.metrics
    with pytest.raises(ModelError, match="no model 'emoji_unit': give a NAME of conf/model"):
        qsdm.open("emoji_unit")
    with pytest.raises(ValueError, match="no space 'narrow': give one of activations, paper"):
        qsdm.open("emoji_unet", space="narrow")


def test_pipelines_are_opened_by_path(tiny_model, tmp_path: Path) -> None:
    opened = qsdm.open(tiny_model.path, store=tmp_path)
    assert opened.model.denoiser == "UNet2DConditionModel"


def test_a_command_still_takes_a_model_a_space_and_a_store(tmp_path: Path) -> None:
    @takes_workspace("model", "space", "store")
    def command(workspace: Workspace, number: int = 0) -> tuple[Workspace, int]:
        return workspace, number

    own = Workspace(MODEL, SPACE, tmp_path)
    assert command(own, 3) == (own, 3)
    with pytest.warns(DeprecationWarning, match=r"command\(Workspace\(model, space, store\)"):
        assert command(MODEL, SPACE, tmp_path, number=4) == (own, 4)
    with pytest.warns(DeprecationWarning, match="command"):
        assert command(model=MODEL, space=SPACE, store=tmp_path) == (own, 0)


def test_a_table_of_other_full_bits_is_refused(workspace: Workspace) -> None:
    assert workspace.table.size_bytes.shape[0] > 0
    wider = Workspace(replace(MODEL, full_bits=32), SPACE, workspace.root)
    with pytest.raises(
        StoreError, match=r"other full_bits than the model's 32 .*qsdm.calibrate again"
    ):
        _ = wider.table
