"""Every numeric key refuses what its command cannot use, in one sentence that names the key."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from test_conf import COMMANDS, compose, function_of

from qsdm.run import conf, errors, keys
from qsdm.run.values import check, keywords
from qsdm.workspace import Workspace

BAD = (-1, 0, True, "1.5x", float("nan"), float("inf"), float("-inf"), 1e30, 10**30)
MAY_BE_ZERO = {
    "cheap_images",
    "crossover",
    "ema",
    "gpus",
    "guidance",
    "kappa",
    "label_seed_set",
    "max_overhead",
    "num_gpus",
    "num_random",
    "pairs",
    "price_per_hour",
    "ranking_weight",
    "retries",
    "rounds",
    "seed",
    "seed_set",
    "weight_decay",
}
GROUPS = ("space", "predictor", "attribution", "strategy", "engine")
PIPELINE = conf.PACKAGE / "zoo" / "emoji_unet" / "pipeline"


def numeric(target: Any) -> list[str]:
    """Keys that hold numbers."""
    return [
        name
        for name, kind, _ in keys.schema(target)
        if {int, float} & set(get_args(kind) or (kind,))
    ]


def values(key: str) -> list[object]:
    return [value for value in BAD if value is True or value != 0 or key not in MAY_BE_ZERO]


@cache
def composed(command: str) -> Any:
    return compose(command, ["+model=emoji_unet", "store=no/such/store"])


def answer(command: str, key: str, value: object) -> str:
    """The sentence that a value is answered by; empty if the command took it."""
    from omegaconf import OmegaConf

    function, cfg = composed(command)
    cfg = cfg.copy()
    try:
        OmegaConf.update(cfg, key, value, force_add=True)
        function(**keywords(function, cfg))
    except Exception as error:  # all that a command line can end in
        return errors.sentence(error) or f"a traceback\n{error!r}"
    return ""


TOP_LEVEL = [(command, key) for command in COMMANDS for key in numeric(function_of(command))]


def test_there_are_commands_with_numbers() -> None:
    assert {("train", "seed"), ("search", "max_bits"), ("main", "num_labels")} <= set(TOP_LEVEL)


@pytest.mark.parametrize(("command", "key"), TOP_LEVEL)
def test_a_commands_number_out_of_range_is_named(
    command: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def began(_: Workspace) -> None:
        raise RuntimeError("the command began")

    for name in ("graph", "space", "table"):
        monkeypatch.setattr(Workspace, name, property(began))
    for value in values(key):
        sentence = answer(command, key, value)
        assert key in sentence, f"{key}={value}: {sentence}"
        assert "\n" not in sentence


def test_a_number_in_range_lets_the_command_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def began(_: Workspace) -> None:
        raise RuntimeError("the command began")

    monkeypatch.setattr(Workspace, "space", property(began))
    assert "the command began" in answer("train", "seed", 0)


NESTED = [(group, name) for group in GROUPS for name in conf.choices()[group]]


@pytest.mark.parametrize(("group", "name"), [*NESTED, ("model", "emoji_unet"), ("model", "any")])
def test_a_nested_number_out_of_range_is_named(group: str, name: str) -> None:
    from hydra.utils import get_object, instantiate
    from omegaconf import OmegaConf

    text = (conf.CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    plain = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    if name == "any":
        plain["path"] = str(Path(PIPELINE))

    def answered(key: str, value: object) -> str:
        node = OmegaConf.create({group: {**plain, key: value}}, flags={"allow_objects": True})
        try:
            check(node[group], group)
            instantiate(node[group], _convert_="all")
        except Exception as error:  # as `values_of` tells it
            cause = error.__cause__ or error
            return str(cause) if isinstance(cause, ValueError) else repr(cause)
        return ""

    for key in numeric(get_object(plain["_target_"])):
        for value in values(key):
            assert key in (told := answered(key, value)), f"{key}={value}: {told}"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.name", "../x", "wanted a name"),
        ("model.name", "", "wanted a name"),
        ("model.dtype", "float3", "dtype must be float32"),
        ("space.name", "a/b", "wanted a name"),
        ("space.methods", "uaq-3", "space.methods: wanted a list, as [a, b] (got uaq-3)"),
        ("space.methods", [], "wanted a list of methods"),
        ("configs", "no/such.json", "no file no/such.json: give configs=FILE"),
        ("model.prompts", {"num": 3}, "model.prompts: wanted prompts=NAME, one of captions, coco"),
        ("model.prompts", ["a"], "model.prompts: wanted prompts=NAME, one of captions, coco"),
        ("model.metrics", 3, "model.metrics: wanted names with values, as {a: 1, b: 2} (got 3)"),
        ("model.metrics", {"psnr": 3}, "metrics.psnr is no metric but 3"),
    ],
)
def test_a_text_that_is_no_name_is_told(key: str, value: object, words: str) -> None:
    assert words in answer("measure", key, value)
