"""Studies of published denoisers: every stage runs on a tiny pipeline of the same class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "studies"))

import study  # noqa: E402

COMMANDS = [
    "trace", "calibrate", "probe", "measure", "train", "search", "realize", "compare", "recipe",
]  # fmt: skip


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", study.NAMES)
def test_a_small_study_runs_to_its_recipe_and_goes_on(
    name: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [name, "small=true", f"out={tmp_path}"]
    assert study.main(arguments) == 0, capfd.readouterr().err
    printed = capfd.readouterr().out
    assert "the published model was not run" in printed
    folder = tmp_path / "store" / f"{study.Study.read(name).model}_small"
    for artifact in ("summary.json", "chosen.json", "recipes/chosen.torchao.json", "checkpoint"):
        assert (folder / artifact).exists(), artifact
    (tmp_path / "done" / "9_recipe").unlink()
    assert study.main(arguments) == 0
    again = capfd.readouterr().out
    assert again.count("done before") == len(COMMANDS) - 1
    assert "== 9_recipe: python -m qsdm.recipe" in again


@pytest.mark.parametrize("name", study.NAMES)
def test_a_study_has_every_stage_and_a_readme(name: str) -> None:
    about = study.Study.read(name)
    assert [stage.command for stage in about.stages] == COMMANDS
    text = (ROOT / "experiments" / name / "README.md").read_text(encoding="utf-8")
    for part in ("**Question.**", "arXiv 2412.14628", "**Not run.**", "why", "plan=true"):
        assert part in text, part
    budgets = {s.keys["budget.avg_bits"] for s in about.stages if "budget.avg_bits" in s.keys}
    assert len(budgets) == 1
    model = yaml.safe_load((ROOT / "conf" / "model" / f"{about.model}.yaml").read_text())
    assert model["path"] in text


def test_an_unknown_study_is_told() -> None:
    script = ROOT / "experiments" / "studies" / "study.py"
    done = subprocess.run(
        [sys.executable, script, "sdxl"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no study 'sdxl': give one of pixart_alpha_w34, " in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("name", study.NAMES)
def test_a_plan_prints_pictures_hours_disk_and_price(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([name, "plan=true"]) == 0
    printed = capsys.readouterr().out
    print(printed)
    about = study.Study.read(name)
    measured = about.number("measure", "num_configs") * about.number("measure", "num_images")
    assert f"{measured + about.number('measure', 'num_images'):,}" in printed
    for part in ("H100, hours", "RTX 4090, hours", "dollars", "disk: ", "memory: "):
        assert part in printed, part
