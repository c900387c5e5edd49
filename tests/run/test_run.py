"""The door: command lines become arguments, mistakes one sentence, W&B runs can be read back."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from qsdm import run
from qsdm.qconfig import OutsideSpace, SpaceSpec
from qsdm.run import conf, errors
from qsdm.run.help import help_text
from qsdm.run.keys import spelled
from qsdm.store import StoreError
from qsdm.store.files import read_json
from qsdm.text import Log, ignore
from qsdm.train import train

ROOT = Path(__file__).parents[2]
COMMANDS = ("trace", "calibrate", "measure", "train", "attribute", "search", "realize", "why")


class Mode(Enum):
    fast = 1
    slow = 2


@dataclass(frozen=True, slots=True)
class Plant:
    """A value that is made from its ``_target_``."""

    name: str
    height_cm: int = 10
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.height_cm < 0:
            raise ValueError(f"a plant grows upwards (got {self.height_cm})")


calls: list[dict[str, Any]] = []


def grow(
    plant: Plant,
    space: SpaceSpec,
    store: Path = Path("store"),
    seed: int = 0,
    rate: float = 0.5,
    limit: float | None = None,
    mode: Mode = Mode.fast,
    log: Log = ignore,
) -> dict[str, float]:
    """Water a plant.

    Args:
        plant: what grows.
        rate: litres
            per day.
    """
    calls.append(
        {
            "plant": plant,
            "space": space,
            "store": store,
            "seed": seed,
            "rate": rate,
            "limit": limit,
            "mode": mode,
        }
    )
    failures: dict[int, Callable[[], BaseException]] = {
        90: lambda: StoreError("no water: run python -m qsdm.well"),
        91: lambda: OutsideSpace("no such pot"),
        92: lambda: KeyboardInterrupt(),
        93: lambda: ZeroDivisionError("a bug"),
        94: lambda: OSError(28, "No space left on device", "store/leaf.json"),
    }
    if seed in failures:
        raise failures[seed]()
    for step in range(3):
        log({"height": step * rate, "val/leaves": step})
    return {"final_height": 2 * rate}


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of configs for `grow`, and an empty working directory."""
    folder = tmp_path / "conf"
    (folder / "plant").mkdir(parents=True)
    (folder / "base.yaml").write_text((ROOT / "conf" / "base.yaml").read_text())
    (folder / "grow.yaml").write_text(
        "defaults:\n  - base\n  - signature\n  - space: traced\n  - _self_\n"
    )
    for name in ("rose", "oak"):
        (folder / "plant" / f"{name}.yaml").write_text(
            f"_target_: {__name__}.Plant\nname: {name}\ntags: [a, b]\n"
        )
    (folder / "plant" / "vague.yaml").write_text(f"_target_: {__name__}.Plant\nname: ???\n")
    (folder / "space").symlink_to(ROOT / "conf" / "space")
    monkeypatch.setattr(conf, "CONF", folder)
    monkeypatch.setattr(
        errors, "PACKAGE", Path(__file__).parent
    )  # what this file raises counts as raised by us
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("QSDM_TRACEBACK", raising=False)
    calls.clear()
    level = logging.getLogger().level
    yield tmp_path
    logging.getLogger().setLevel(level)  # hydra.verbose lowers it


@pytest.mark.parametrize("argument", ["+plant=rose", "plant=rose", "++plant=rose"])
def test_every_spelling_of_a_group_works(garden: Path, argument: str) -> None:
    assert run.execute(grow, [argument, "+space=paper", "rate=2", "plant.height_cm=7"]) == 0
    (call,) = calls
    assert call["plant"] == Plant("rose", 7, ["a", "b"])  # type: ignore[arg-type]
    assert call["space"].name == "paper"
    assert isinstance(call["store"], Path)
    assert (call["rate"], call["limit"], call["mode"]) == (2.0, None, Mode.fast)


@pytest.mark.parametrize("argument", ["height=7", "+height=7", "++height=7"])
def test_a_short_key_stands_for_a_nested_one(
    garden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    monkeypatch.setattr("qsdm.run.keys.SHORT", {"height": "plant.height_cm", "path": "model.path"})
    assert run.execute(grow, [argument, "+plant=rose"]) == 0
    assert calls[0]["plant"].height_cm == 7
    assert run.execute(grow, ["+plant=rose", "path=x"]) == 1  # this command takes no model
    assert "takes no 'path'" in capsys.readouterr().err
    assert run.execute(grow, ["--help"]) == 0
    assert "Short for plant.height_cm." in capsys.readouterr().out


def test_values_have_the_types_of_the_signature(garden: Path) -> None:
    assert run.execute(grow, ["plant=oak", "limit=3", "mode=slow", "store=~/x", "store='~/x'"]) == 1
    assert run.execute(grow, ["plant=oak", "limit=3", "mode=slow", "store='~/x'"]) == 0
    assert calls[0]["limit"] == 3.0
    assert isinstance(calls[0]["limit"], float)
    assert calls[0]["mode"] is Mode.slow
    assert calls[0]["store"] == Path.home() / "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["needs a plant", "+plant=NAME", "oak, rose"]),
        (["plant=rosse"], ["no plant is called 'rosse'", "did you mean 'rose'?", "oak"]),
        (["plant=3"], ["no plant is called '3'", "oak, rose"]),
        (["plant.height_cm=7"], ["needs a plant", "+plant=NAME"]),
        (["plnt=rose"], ["takes no 'plnt'", "did you mean 'plant'?"]),
        (["+plnt=rose"], ["takes no 'plnt'", "did you mean 'plant'?"]),
        (["plant=rose", "zzz=1"], ["takes no 'zzz'", "space, store, seed"]),
        (
            ["plant=rose", "plant.heigth_cm=1"],
            ["takes no 'heigth_cm'", "did you mean 'height_cm'?"],
        ),
        (
            ["plant=rose", "+plant.heigth_cm=1"],
            ["takes no 'heigth_cm'", "did you mean 'height_cm'?"],
        ),
        (["plant=rose", "plant.height_cm=tall"], ["plant.height_cm", "tall"]),
        (["plant=rose", "plant.height_cm=-1"], ["plant", "grows upwards (got -1)"]),
        (["plant=vague"], ["plant needs a name", "plant.name=VALUE"]),
        (["plant=rose", "seed=one"], ["seed", "one"]),
        (["plant=rose", "seed=1.5"], ["seed", "1.5"]),
        (["plant=rose", "mode=medium"], ["mode", "medium", "fast, slow"]),
        (["plant=rose", "wandb=maybe"], ["wandb", "disabled, offline, online"]),
        (["plant=rose", "seed"], ["'seed'", "KEY=VALUE"]),
        (["plant=rose", "space=tracd"], ["no space is called 'tracd'", "did you mean 'traced'?"]),
        (["plant=rose", "seed=90"], ["no water: run python -m qsdm.well"]),
        (["plant=rose", "seed=91"], ["no such pot"]),
        (["plant=rose", "seed=94"], ["store/leaf.json: No space left on device"]),
    ],
)
def test_a_mistake_gets_one_sentence(
    garden: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert run.execute(grow, arguments) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "Traceback" not in text
    for word in words:
        assert word in text


def test_interrupting_gives_130(garden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.execute(grow, ["plant=rose", "seed=92"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_keeps_its_traceback(garden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.execute(grow, ["plant=rose", "seed=93"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["environment", "key"])
def test_the_traceback_can_be_asked_for(
    garden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("QSDM_TRACEBACK", "1")
    verbose = ["hydra.verbose=true"] if how == "key" else []
    assert run.execute(grow, ["plant=rose", "seed=90", *verbose]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "error: no water" in text


def test_a_sweep_goes_on_after_a_failure(garden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.execute(grow, ["-m", "plant=rose,oak", "seed=1,90"]) == 1
    assert [(call["plant"].name, call["seed"]) for call in calls] == [
        ("rose", 1),
        ("rose", 90),
        ("oak", 1),
        ("oak", 90),
    ]
    assert capsys.readouterr().err.count("error: no water") == 2
    assert len(list(Path("multirun/grow").glob("*/[0-3]/provenance.json"))) == 4


def test_a_run_leaves_its_config_and_provenance(garden: Path) -> None:
    assert run.execute(grow, ["plant=rose", "seed=3"]) == 0
    (folder,) = Path("outputs/grow").iterdir()
    assert "seed: 3" in (folder / ".hydra" / "config.yaml").read_text()
    about = read_json(folder / "provenance.json")
    assert about["command"] == "grow"
    assert "numpy" in about["versions"]


def test_help_tells_keys_defaults_and_choices(
    garden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.execute(grow, ["--help"]) == 0
    text = capsys.readouterr().out
    for words in (
        "+plant=NAME",
        "what grows. One of oak, rose, vague.",
        "space=traced",
        "rate=0.5",
        "litres per day.",
    ):
        assert words in text
    assert not calls


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error(unbuffered: str) -> None:
    """As `head` does: the program ends quietly, with what a shell reports for SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(
        [sys.executable, "-m", "qsdm.trace", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(writing)
    assert ended.returncode == run.READER_LEFT
    assert ended.stderr == b""
    run.leave_with_reader(BrokenPipeError())  # of another pipe


def test_online_without_an_account_asks_nothing(
    garden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(garden))
    monkeypatch.setenv("NETRC", str(garden / "none"))
    assert run.execute(grow, ["plant=rose", "wandb=online"]) == 1
    assert "needs an account" in capsys.readouterr().err
    assert not calls


def test_an_offline_run_can_be_read_back(garden: Path) -> None:
    """Also when it fails: it is finished then, with an exit status that says so."""
    import wandb

    assert run.execute(grow, ["-m", "plant=rose", "wandb=offline", "rate=2", "seed=0,90"]) == 1
    wandb.teardown()
    (sweep,) = Path("multirun/grow").iterdir()
    good, bad = (records(next((sweep / job).rglob("*.wandb"))) for job in ("0", "1"))
    (history,) = [[entry for entry in good if "grow/height" in entry]]
    assert [entry["grow/height"] for entry in history] == [0, 2, 4]
    assert [entry["val/leaves"] for entry in history] == [0, 1, 2]
    assert any(entry.get("grow/final_height") == 4 for entry in good)
    starts = [entry for entry in good if "run" in entry]
    assert starts[0]["run"] == {"run_group": sweep.name, "job_type": "grow", "project": "qsdm"}
    assert [entry["exit"] for entry in good if "exit" in entry] == [0]
    assert [entry["exit"] for entry in bad if "exit" in entry] == [1]
    outside = {path.name for path in garden.iterdir()} - {"conf", "work"}
    assert not outside


def records(path: Path) -> list[dict[str, Any]]:
    """The start, the history and the exit of an offline run, as W&B's own reader gives them."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [wandb, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True
    )
    records_of_run: list[dict[str, Any]] = []
    for entry in map(json.loads, done.stdout.splitlines()):
        if entry["type"] == "history":
            records_of_run.append(entry["history"]["item"])
        elif entry["type"] == "run":
            records_of_run.append(
                {"run": {key: entry["run"][key] for key in ("run_group", "job_type", "project")}}
            )
        elif entry["type"] == "exit":
            records_of_run.append({"exit": entry["exit"].get("exit_code", 0)})
    return records_of_run


@pytest.mark.parametrize("command", ["", *(f".{name}" for name in COMMANDS)])
def test_help_of_each_command_is_fast(command: str, tmp_path: Path) -> None:
    """No heavy package is imported for it."""
    module = f"qsdm{command or '.__main__'}"
    heavy = ("torch", "diffusers", "transformers", "wandb", "captum", "torch_geometric")
    heavy += ("matplotlib", "scipy", "pymoo", "pandas", "networkx", "numba")
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"print(set({heavy}) & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "+model=NAME" in done.stdout
    assert "emoji_unet" in done.stdout
    assert done.stdout.rstrip().endswith("set()"), "heavy imports"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_command_works_from_any_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qsdm.train"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: train needs a model: add +model=NAME, with a NAME of ")
    assert "emoji_unet" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "--help"], 0, "python -m qsdm.train +model=emoji_unet"),
        (["trace"], 1, "trace needs a model: add +model=NAME"),
        (["tarin", "+model=emoji_unet"], 1, "qsdm has no command 'tarin': did you mean 'train'?"),
        (["--help"], 0, "without a command, all of them run in order"),
    ],
)
def test_a_command_is_named_first(arguments: list[str], status: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qsdm", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == status
    assert words in done.stdout + done.stderr


def test_one_version_number() -> None:
    import qsdm

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {qsdm.__version__}\n" in citation


def test_a_word_that_python_reserves_can_be_a_key() -> None:
    """``from`` is the parameter ``from_``."""
    arguments = ["+model=emoji_unet", "from=[emoji_mmdit,emoji_pixart]"]
    assert spelled(arguments, train) == [arguments[0], "++from_=[emoji_mmdit,emoji_pixart]"]
    shown = help_text(train)
    assert "  from=()" in shown
    assert "from_=" not in shown


def test_entries_are_loaded_within_a_command() -> None:
    """Hydra has one global state, which belongs to the command."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        assert conf.load("model", "emoji_unet").name == "emoji_unet"
        with pytest.raises(conf.BadInput, match="no model 'emoji_unit'"):
            conf.load("model", "emoji_unit")
        assert GlobalHydra.instance().hydra is running
        assert compose(overrides=["+objective=quality"])
    assert conf.load("space", "traced").name == "traced"
    assert not GlobalHydra.instance().is_initialized()
