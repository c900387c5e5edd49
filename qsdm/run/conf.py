"""What conf/ offers: groups, their entries, and what each command chooses by default."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent
# A checkout's conf/ comes before the copy that a wheel carries.
CONF = CHECKOUT / "conf" if (CHECKOUT / "pyproject.toml").exists() else PACKAGE / "conf"
OF_MODEL = ("prompts", "metrics")
"""Groups that fill the model's key of their name: ``prompts.path`` is ``model.prompts.path``."""


class BadInput(ValueError):
    """The command line or a YAML cannot be used; the message says what was wanted."""


def choices() -> Mapping[str, Sequence[str]]:
    """List what conf/ offers.

    Returns:
        Names of the entries by group.
    """
    return _choices(CONF)


@cache  # a command asks for them with every key
def _choices(conf: Path) -> dict[str, tuple[str, ...]]:
    folders = [path for path in sorted(conf.iterdir()) if path.is_dir() and path.name != "hydra"]
    return {
        folder.name: tuple(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in folders
    }


def defaults(command: str) -> Mapping[str, str]:
    """Read the groups that a command chooses by default.

    Args:
        command: its name, or the path of another YAML in conf/ without the suffix.

    Returns:
        Entry by group.
    """
    return _defaults(CONF / f"{command}.yaml")


@cache
def _defaults(path: Path) -> dict[str, str]:
    import yaml

    entries = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", [])
    return {
        key: value
        for entry in entries
        if isinstance(entry, dict)
        for key, value in entry.items()
        if not key.startswith("override ")
    }


def unknown_key(taker: str, key: str, keys: Sequence[str]) -> str:
    """Write the sentence about a key that does not exist.

    Args:
        taker: command or entry that the key was meant for.
        key: the wrong key.
        keys: those that exist.

    Returns:
        A sentence, with a suggestion.
    """
    typed = dict.fromkeys(  # from, not the from_ of a signature
        name.removesuffix("_") if keyword.iskeyword(name.removesuffix("_")) else name
        for name in keys
    )
    close = difflib.get_close_matches(key, typed, 1)
    return f"{taker} takes no {key!r}; " + (
        f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(typed)}"
    )


def load(group: str, name: str) -> Any:
    """Build what an entry of conf/ describes, with its defaults, as a command would receive it.

    Args:
        group: a folder of conf/, such as model or space.
        name: of a YAML in it.

    Returns:
        An object of the entry's ``_target_``.

    Raises:
        BadInput: there is no such entry.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate

    if name not in (offered := choices().get(group, [])):
        raise BadInput(f"no {group} {name!r}: give one of {', '.join(offered)}")
    running = GlobalHydra.instance().hydra  # of a command, or of the user's own program
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(overrides=[f"+{group}={name}"])
    finally:
        GlobalHydra.instance().hydra = running
    return instantiate(config[group], _convert_="all")
