"""Commands and their configurations, as a command line composes them."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from qsdm.run import conf, keys

COMMANDS = (
    "trace",
    "calibrate",
    "probe",
    "measure",
    "train",
    "attribute",
    "search",
    "realize",
    "recipe",
    "main",
)


MODULES = {"audit": "shelf.audit", "main": "__main__", "use_recipe": "shelf"}
"""Modules that are not called like their function."""


def function_of(command: str) -> Any:
    return getattr(importlib.import_module(f"qsdm.{MODULES.get(command, command)}"), command)


def compose(command: str, overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    function = function_of(command)
    node = dataclasses.make_dataclass("Signature", keys.schema(function, trackers=True))
    ConfigStore.instance().store(name="signature", node=node)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        return function, compose(command, keys.spelled(overrides, function))
