"""Every option of every group composes with its command and becomes what its ``_target_`` makes."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from composed import COMMANDS, compose, function_of
from hydra.errors import MissingConfigException

from qsdm.run import conf, errors, keys
from qsdm.run.help import help_text
from qsdm.run.values import check, values_of


def taker(group: str) -> str:
    """The first command that takes a group."""
    return next(c for c in COMMANDS if group in keys.parameters(function_of(c)))


def options() -> Iterator[Any]:
    for group, names in conf.choices().items():
        if group not in conf.OF_MODEL:
            for name in names:
                yield pytest.param(group, name, id=f"{group}={name}")


@pytest.mark.parametrize(("group", "name"), list(options()))
def test_an_option_composes_and_builds(group: str, name: str) -> None:
    path = ["model.path=some/model"] if name == "any" else []
    if group == "model":
        function, cfg = compose("trace", [f"model={name}", *path])
    else:
        function, cfg = compose(taker(group), ["model=emoji_unet", f"{group}={name}"])
    check(cfg[group], group)
    if name != "any":  # reads a pipeline
        made = values_of(function, cfg)[group]
        assert dataclasses.is_dataclass(made)
        assert getattr(made, "name", name) == name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_defaults_for_all_but_the_model(command: str) -> None:
    function, cfg = compose(command, ["model=emoji_unet"])
    values = values_of(function, cfg)
    for name, parameter in keys.parameters(function).items():
        assert name in values or parameter.default is not parameter.empty
    assert set(conf.defaults(command)) <= set(conf.choices())
    assert set(conf.defaults(command)) <= set(values)


@pytest.mark.parametrize(
    "model", ["emoji_unet", "sdxl"]
)  # one that comes with metrics and prompts, one without
@pytest.mark.parametrize("name", conf.choices().get("metrics", []))
def test_metrics_can_be_chosen_for_a_model(name: str, model: str) -> None:
    function, cfg = compose("trace", [f"metrics={name}", f"model={model}"])
    assert values_of(function, cfg)["model"].metrics
    for spelling in ("metrics@model.metrics", "+metrics@model.metrics"):
        assert compose("trace", [f"model={model}", f"{spelling}={name}"])[1] == cfg


@pytest.mark.parametrize("model", ["emoji_unet", "sdxl"])
@pytest.mark.parametrize("name", conf.choices().get("prompts", []))
def test_prompts_can_be_chosen_for_a_model(name: str, model: str) -> None:
    function, cfg = compose("measure", ["prompts.path=data", f"prompts={name}", f"model={model}"])
    made = values_of(function, cfg)["model"].prompts
    assert dataclasses.is_dataclass(made)
    assert made.path == "data"
    with pytest.raises(conf.BadInput, match=r"needs a path: add model\.prompts\.path=VALUE"):
        values_of(*compose("measure", [f"model={model}", f"prompts={name}"]))


def test_what_belongs_to_the_model_is_explained_and_guessed() -> None:
    assert re.search(
        r"prompts=NAME +what the model draws.* One of captions, coco",
        help_text(function_of("measure")),
    )
    with pytest.raises(conf.BadInput, match=r"measure takes no 'prompt'; did you mean 'prompts'\?"):
        compose("measure", ["model=sdxl", "prompt=coco"])
    with pytest.raises(conf.BadInput, match=r"probes, from, seed, (?!.*\bfrom)"):
        compose("train", ["model=sdxl", "zzz=1"])


def test_no_model_is_chosen_by_default() -> None:
    """``+model=NAME`` works only then."""
    assert all("model" not in conf.defaults(command) for command in COMMANDS)


def test_a_path_is_not_the_name_of_a_model() -> None:
    with pytest.raises(MissingConfigException) as caught:
        compose("trace", ["+model=pipelines/mine"])
    assert errors.sentence(caught.value) == (
        "no model is called 'pipelines/mine': a pipeline of your own is "
        "model=any path=pipelines/mine"
    )


def test_every_file_begins_with_what_it_is_for() -> None:
    for path in conf.CONF.rglob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("# "), path.relative_to(conf.CONF)


def test_the_paper_space_splits_where_the_paper_does() -> None:
    import yaml

    spec = yaml.safe_load((conf.CONF / "space" / "paper.yaml").read_text())
    pattern = re.compile(spec["splits"])
    split = ["up_blocks.0.resnets.2.conv1", "blocks.25.skip_linear"]
    whole = [
        "up_blocks.0.resnets.2.conv_shortcut",
        "single_transformer_blocks.3.proj_out",
        "down_blocks.0.resnets.0.conv1",
    ]
    assert all(pattern.search(name) for name in split)
    assert not any(pattern.search(name) for name in whole)


def test_the_packaged_configs_are_found_without_a_checkout(tmp_path: Path) -> None:
    """As in a wheel, where conf/ lies in the package."""
    import shutil
    import subprocess
    import sys

    package = tmp_path / "qsdm"
    package.mkdir()
    for path in (conf.PACKAGE / "__init__.py", conf.PACKAGE / "text.py"):
        shutil.copy(path, package)
    shutil.copytree(conf.PACKAGE / "run", package / "run")
    shutil.copytree(conf.CONF, package / "conf")
    code = "from qsdm.run import conf; print(conf.CONF, len(conf.choices()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == str(package / "conf")
    assert int(done.stdout.split()[1]) == len(conf.choices())


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands and their arguments in a page's shell blocks, with ``MODEL="..."`` filled in."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    model = re.search(r'^MODEL="(.*)"$', text, re.MULTILINE)
    for command, arguments in re.findall(r"^python -m qsdm(\.\w+)? +([^#\n]*)", text, re.MULTILINE):
        yield (
            command[1:] or "main",
            shlex.split(arguments.replace("$MODEL", model[1] if model else "")),
        )


def test_the_commands_of_the_protocols_compose() -> None:
    commands = list(commands_of(conf.CHECKOUT / "docs" / "protocols.md"))
    assert len(commands) == 5
    for command, arguments in commands:
        model = values_of(*compose(command, arguments))["model"]
        assert model.prompts is not None
        assert set(model.metrics) == {"fid", "clip_score", "psnr"}


def test_the_commands_that_scale_compose() -> None:
    commands = list(commands_of(conf.CHECKOUT / "docs" / "scaling.md"))
    engines = [values_of(*compose(command, arguments))["engine"] for command, arguments in commands]
    assert [type(engine).__name__ for engine in engines] == ["Local", "Ray", "Ray", "Slurm"]
