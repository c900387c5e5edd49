"""The W&B workspace is built without an account, shows what commands log, and is pushed once."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qsdm.dashboard import TITLES, dashboard, sections
from qsdm.report.tracked import PANELS, Kind
from qsdm.run.conf import BadInput
from qsdm.run.trackers import plain_name, wandb_workspace
from qsdm.run.trackers.wandb_workspace import Section, shown, specification, workspace


def test_every_key_of_every_command_has_a_panel() -> None:
    assert set(TITLES) == set(PANELS)
    built = [key for s in sections() for key in (*s.media, *s.tables, *s.files)]
    assert sorted(built) == sorted(key for kinds in PANELS.values() for key in kinds)


def test_without_the_package_one_sentence_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    monkeypatch.setattr(wandb_workspace, "account", lambda: None)
    with pytest.raises(BadInput, match=r"run pip install 'qsdm\[dashboard\]'"):
        dashboard(tmp_path / "dashboard.json")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def spaces() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        pytest.skip("needs wandb-workspaces")


@pytest.mark.usefixtures("spaces")
def test_without_an_account_it_is_written_and_not_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(wandb_workspace, "account", lambda: None)
    monkeypatch.setattr(wandb_workspace, "push", lambda _: pytest.fail("it was pushed"))
    path = tmp_path / "dashboard.json"
    content = dashboard(path, name="Ours")
    assert json.loads(path.read_text()) == content
    assert (content["displayName"], content["project"]) == ("Ours", "qsdm")
    kinds = [(key, kind) for keys in PANELS.values() for key, kind in keys.items()]
    assert shown(content) == {plain_name(k) if kind is Kind.file else k for k, kind in kinds}
    titles = [s["name"] for s in content["spec"]["section"]["panelBankConfig"]["sections"]]
    assert titles[0] == "Which weights are sensitive (attribute)"
    output = capsys.readouterr().out.splitlines()
    assert output[0] == str(path)
    assert "no account is logged in: run `wandb login`" in output[1]


@pytest.mark.usefixtures("spaces")
def test_with_an_account_it_is_saved_for_its_entity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Workspace = wandb_workspace.library()[1].Workspace

    def save(self: Any) -> Any:
        self._internal_name = "nw-abc-v"
        return self

    monkeypatch.setattr(wandb_workspace, "account", lambda: "me")
    monkeypatch.setattr(Workspace, "save", save)
    monkeypatch.setattr(Workspace, "url", property(lambda w: f"{w.entity}/{w._internal_name}"))
    assert dashboard(tmp_path / "a.json")["entity"] == "me"
    assert dashboard(tmp_path / "b.json", entity="team")["entity"] == "team"
    assert capsys.readouterr().out.splitlines()[1::2] == ["me/nw-abc-v", "team/nw-abc-v"]

    def fail(_: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(Workspace, "save", fail)
    with pytest.raises(BadInput, match=r"did not take the workspace \(OSError: no route\): check"):
        dashboard(tmp_path / "c.json")
    assert (tmp_path / "c.json").exists()


@pytest.mark.usefixtures("spaces")
def test_sections_without_keys_are_left_out_and_names_are_checked() -> None:
    built = workspace("a", "p", "e", [Section("none"), Section("one", tables=["train/scores"])])
    assert shown(specification(built)) == {"train/scores"}
    assert len(built.sections) == 1
    with pytest.raises(BadInput, match="W&B takes no workspace of the name"):
        workspace("\N{GRINNING FACE}", "p", "e", [])
