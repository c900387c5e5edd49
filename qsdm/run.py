"""The door: a command line becomes the keyword arguments of a command's function. Only here are Hydra and W&B known.

A command module ends in ``if __name__ == "__main__": run.main(train)``. The function's signature is the schema of its
keys: names, types and defaults; ``conf/<function>.yaml`` adds the groups chosen by default (``space: traced``). Nested
values are made from their ``_target_``, after their keys were checked against the target's signature too.

What the user can mend (an unknown key, a missing artifact, a full disk) is told in one sentence, with exit status 1;
Ctrl-C gives 130. ``QSDM_TRACEBACK=1`` or ``hydra.verbose=true`` shows the traceback as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import inspect
import os
import random
import re
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any

from qsdm.log import Log, ignore

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent
# A checkout's conf/ comes before the copy that a wheel carries.
CONF = CHECKOUT / "conf" if (CHECKOUT / "pyproject.toml").exists() else PACKAGE / "conf"
SHORT = {"path": "model.path"}
"""Keys that stand for one inside a group, for every command that takes the group."""
OF_MODEL = ("prompts", "metrics")
"""Groups that fill the model's key of their name: ``prompts.path`` stands for ``model.prompts.path``."""


class Wandb(Enum):
    """Where the run is logged to."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class BadInput(ValueError):
    """Something on the command line or in a YAML; the message says what was wanted."""


def main(function: Callable[..., Any]) -> None:
    """Run ``function`` with the arguments that the command line gives it, and exit."""
    sys.exit(execute(function, sys.argv[1:]))


def execute(function: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Run ``function`` on command-line ``arguments``; returns the exit status."""
    failures: list[BaseException] = []
    loud = bool(os.environ.get("QSDM_TRACEBACK")) or any(
        a.startswith("hydra.verbose=") and not a.lower().endswith("=false") for a in arguments
    )
    if {"--help", "-h"} & set(arguments):
        print(help_text(function))
        return 0
    try:
        _hydra(function, spelled(arguments, function), failures)
    except (Exception, KeyboardInterrupt) as error:
        if error not in failures:  # a sweep's failures were told as they came
            tell(error, loud, arguments)
            failures.append(error)
    if any(isinstance(failure, KeyboardInterrupt) for failure in failures):
        return 130
    return 1 if failures else 0


def _hydra(function: Callable[..., Any], arguments: list[str], failures: list[BaseException]) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    def job(cfg: Any) -> Any:
        settings = HydraConfig.get()
        sweep = settings.mode == RunMode.MULTIRUN
        if sweep:
            print(f"[{settings.job.num}] {' '.join(settings.overrides.task)}", flush=True)
        try:
            return perform(
                function, cfg, Path(settings.runtime.output_dir), Path(settings.sweep.dir).name if sweep else None
            )
        except (Exception, KeyboardInterrupt) as error:
            failures.append(error)
            tell(error, bool(os.environ.get("QSDM_TRACEBACK")) or bool(settings.verbose), settings.overrides.task)
            if sweep:  # an ordinary exception marks this job as failed and lets the others go on
                raise
        finally:
            gc.collect()

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them: we do that
    ConfigStore.instance().store(
        name="signature", node=dataclasses.make_dataclass("Signature", schema(function, wandb=True))
    )
    GlobalHydra.instance().clear()
    before, sys.argv = sys.argv, [sys.argv[0], *arguments, f"hydra.job.name={function.__name__}"]
    try:
        hydra.main(config_path=str(CONF), config_name=function.__name__, version_base="1.3")(job)()
    finally:
        sys.argv = before


def perform(function: Callable[..., Any], cfg: Any, folder: Path, group: str | None = None) -> Any:
    """Call ``function`` with what ``cfg`` holds.

    Args:
        cfg: the composed config, without Hydra's own part.
        folder: of this run, for its provenance and W&B's files.
        group: name of the sweep.
    """
    from qsdm import store

    values = keywords(function, cfg)
    if isinstance(seed := values.get("seed"), int):
        _seed(seed)
    about = {"command": function.__name__, "arguments": sys.argv[1:], **store.provenance()}
    store.write_json(folder / "provenance.json", about)
    with wandb_log(cfg.get("wandb", Wandb.disabled), function.__name__, folder, group, cfg) as log:
        if "log" in inspect.signature(function).parameters:
            values["log"] = log
        result = function(**values)
        if isinstance(result, Mapping):
            log({key: value for key, value in result.items() if isinstance(value, int | float)})
    return result


def _seed(seed: int) -> None:
    """Commands draw from generators of their own; this is for libraries that do not."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ---- keys and values


def schema(target: Callable[..., Any], wandb: bool = False) -> list[Any]:
    """Fields of `dataclasses.make_dataclass` for the keys that ``target`` takes.

    Numbers, strings, paths and enums keep their type and default. Anything else is free at this point and checked
    when it is made.
    """
    fields = []
    for name, parameter in inspect.signature(target).parameters.items():
        if name == "log" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kind = _simple(_hint(target, parameter))
        default = "???" if kind is Any or parameter.default is parameter.empty else parameter.default
        default = str(default) if isinstance(default, Path) else default
        fields.append((name, kind, dataclasses.field(default=default)))
    if wandb:
        fields.append(("wandb", Wandb, dataclasses.field(default=Wandb.disabled)))
    return fields


def _hint(target: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    names = vars(sys.modules[target.__module__]) if target.__module__ in sys.modules else {}
    # One annotation at a time: others may name classes of packages that are not imported yet.
    stub = type("Stub", (), {"__annotations__": {"value": parameter.annotation}})
    try:
        return typing.get_type_hints(stub, dict(names))["value"]
    except NameError:
        return Any


def _simple(hint: Any) -> Any:
    """The type that OmegaConf checks: a plain one, perhaps optional; otherwise Any. A config holds paths as text."""
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    kinds = [str if kind is Path else kind for kind in (typing.get_args(hint) if union else [hint])]
    plain = [kind for kind in kinds if kind is not type(None)]
    if len(plain) != 1 or not isinstance(plain[0], type):
        return Any
    if plain[0] not in (int, float, str, bool) and not issubclass(plain[0], Enum):
        return Any
    return plain[0] | None if len(kinds) == 2 else plain[0]


def spelled(arguments: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Arguments as Hydra wants them: groups first, with a ``+`` exactly where the command chooses none by default.

    Raises:
        BadInput: a key is none of the command's.
    """
    groups, chosen = choices(), set(defaults(function.__name__))
    short = shorthands(function)
    owned = OF_MODEL if "model" in inspect.signature(function).parameters else ()
    known = [*(name for name, *_ in schema(function)), *short, *owned, "wandb"]
    models = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith("model=")]
    by_model = {key.lstrip("/") for model in models if model in groups["model"] for key in defaults(f"model/{model}")}
    flags, first, parts, rest = [], [], [], []
    for argument in arguments:
        match = re.fullmatch(r"([+~]*)([^=@]*)(@[^=]*)?(=.*)?", argument, re.DOTALL)
        assert match is not None
        sign, key, package, value = (part or "" for part in match.groups())
        if argument.startswith("-") or not (value or sign):
            flags.append(argument)  # argparse wants them before the overrides
            continue
        top = re.split(r"[./\[]", key)[0]
        if top in owned and package in ("", f"@model.{top}") and not sign.strip("+"):
            if key == top:
                parts.append(f"{'' if key in by_model else '+'}{key}@model.{key}{value}")
            else:
                rest.append(f"++model.{key}{value}")
            continue
        if top not in known and top != "hydra" and not (package and re.split(r"[./\[]", package[1:])[0] in known):
            raise BadInput(unknown_key(function.__name__, top, known))
        if key in short:
            rest.append(f"++{short[key]}{value}")
        elif key in groups and not package and "~" not in sign:
            first.append(f"{'' if key in chosen else '+'}{key}{value}")
        elif "." in key and top in known and not sign:
            rest.append(f"++{argument}")  # what the YAML leaves out can be set too; `check` knows what there is
        else:
            rest.append(argument)
    return flags + first + parts + rest


def shorthands(function: Callable[..., Any]) -> dict[str, str]:
    """The `SHORT` keys that mean something to ``function``."""
    taken = inspect.signature(function).parameters
    return {key: full for key, full in SHORT.items() if full.partition(".")[0] in taken and key not in taken}


def unknown_key(taker: str, key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    return f"{taker} takes no {key!r}; " + (f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}")


def choices() -> dict[str, list[str]]:
    """What conf/ offers for each group."""
    folders = [folder for folder in sorted(CONF.iterdir()) if folder.is_dir() and folder.name != "hydra"]
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def defaults(command: str) -> dict[str, str]:
    """The groups that a command chooses by default."""
    import yaml

    entries = yaml.safe_load((CONF / f"{command}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    return {
        key: value
        for entry in entries
        if isinstance(entry, dict)
        for key, value in entry.items()
        if not key.startswith("override ")
    }


def keywords(function: Callable[..., Any], cfg: Any) -> dict[str, Any]:
    """The config as keyword arguments of ``function``.

    Raises:
        BadInput: a key is unknown or missing, or a value is of the wrong type.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name != "log"}
    for key in cfg:
        if key not in parameters and key != "wandb":
            raise BadInput(unknown_key(function.__name__, key, list(parameters)))
    values = {}
    for name, parameter in parameters.items():
        offered = choices().get(name)
        unchosen = offered and OmegaConf.is_config(cfg.get(name)) and "_target_" not in cfg[name]  # only model.path=
        if name not in cfg or OmegaConf.is_missing(cfg, name) or unchosen:
            if parameter.default is parameter.empty:
                sign = "" if name in defaults(function.__name__) else "+"
                how = f"add {sign}{name}=NAME, with a NAME of {', '.join(offered)}" if offered else f"add {name}=VALUE"
                raise BadInput(f"{function.__name__} needs a {name}: {how}")
            continue
        value = cfg[name]
        if OmegaConf.is_config(value):
            check(value, name)
            try:
                value = instantiate(value, _convert_="all")
            except InstantiationException as error:
                cause = error.__cause__ or error
                raise BadInput(f"{name}: {cause}".splitlines()[0]) from error
        hint = _hint(function, parameter)
        if isinstance(value, str) and (hint is Path or Path in typing.get_args(hint)):
            value = Path(value).expanduser()
        values[name] = value
    return values


def check(node: Any, path: str) -> None:
    """Walk a nested value: the keys and plain types beside every ``_target_`` must be what the target takes.

    Raises:
        BadInput: they are not.
    """
    from hydra.utils import get_object
    from omegaconf import OmegaConf, ValidationError

    if OmegaConf.is_list(node):
        for i, child in enumerate(node):
            check(child, f"{path}[{i}]")
    if not OmegaConf.is_dict(node):
        return
    own = {str(key) for key in node if not str(key).startswith("_")}
    if (target := node.get("_target_")) is not None:
        try:
            made = get_object(target)
        except (ImportError, ValueError) as error:
            raise BadInput(f"{path}: nothing is called {target!r} ({error})".splitlines()[0]) from error
        fields = schema(made)
        free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(made).parameters.values())
        for key in own - {name for name, *_ in fields}:
            if not free:
                raise BadInput(unknown_key(path, key, [name for name, *_ in fields]))
        typed = OmegaConf.structured(
            dataclasses.make_dataclass("Typed", [field for field in fields if field[1] is not Any])
        )
        for key in {key for key in own & set(typed) if not OmegaConf.is_missing(node, key)}:
            try:
                typed[key] = node[key]
            except ValidationError as error:
                raise BadInput(f"{path}.{key}: {_first_line(error)}") from error
    for key in own:
        if not OmegaConf.is_missing(node, key):
            check(node[key], f"{path}.{key}")
        elif target is not None:
            raise BadInput(f"{path} needs a {key}: add {path}.{key}=VALUE")


# ---- errors


def tell(error: BaseException, loud: bool, arguments: Sequence[str] = ()) -> None:
    """Print the one sentence about ``error``, or its traceback if it is a bug of ours.

    Args:
        arguments: of the command line; what ``+model=any`` found has a name that nobody can type as a model.
    """
    told = sentence(error)
    paths = [value for key, _, value in (argument.partition("=") for argument in arguments) if key.endswith("path")]
    if told is not None and paths and any(re.fullmatch(r"\+*model=any", argument) for argument in arguments):
        told = re.sub(r"\+model=[\w.-]*\w", lambda _: f"+model=any path={paths[-1]}", told)
    if loud or told is None:
        traceback.print_exception(error)
    if told is not None:
        print(f"error: {told}", file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str | None:
    """What the user can do about ``error``; None for an error that nobody foresaw."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was stored before is kept"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, wrong = error.missing_cfg_file.rpartition("/")
        offered = error.options or choices().get(group, [])
        close = difflib.get_close_matches(wrong, offered, 1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        return f"no {group} is called {wrong!r}{guess} (there are: {', '.join(offered)})"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: wanted KEY=VALUE, with quotes around anything but words and numbers"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {_first_line(error)}" if error.full_key else _first_line(error)
    if isinstance(error, HydraException):
        return sentence(error.__cause__) if isinstance(error.__cause__, OmegaConfBaseException) else _first_line(error)
    if type(error).__module__.split(".")[0] in (
        "qsdm",
        "__main__",
    ):  # StoreError, ModelError, OutsideSpace and their like
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | KeyError) and _raised_here(error):
        return str(error.args[0]) if error.args else repr(error)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it, as validation does, and not a library in its depth."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


# ---- W&B


@contextmanager
def wandb_log(mode: Wandb, command: str, folder: Path, group: str | None, cfg: Any) -> Iterator[Log]:
    """A `Log` that sends values to a W&B run, which is finished in any case. Keys become ``command/quantity``.

    Raises:
        BadInput: ``online`` without an account: nothing asks for a login.
    """
    if mode is Wandb.disabled:
        yield ignore
        return
    from omegaconf import OmegaConf

    for kind in (
        "DIR",
        "DATA_DIR",
        "CACHE_DIR",
        "ARTIFACT_DIR",
    ):  # before the import: else artifacts land in the user's home
        os.environ[f"WANDB_{kind}"] = str(folder)
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    if mode is Wandb.online and not wandb.login(prompt=False, verify=False):
        raise BadInput("wandb=online needs an account: run `wandb login` once, or choose wandb=offline")
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False, enum_to_str=True)
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(
        project="qsdm",
        mode=mode.value,
        dir=str(folder),
        group=group,
        job_type=command,
        config=config,
        settings=settings,
    )

    def log(values: Mapping[str, Any]) -> None:
        run.log({key if "/" in key else f"{command}/{key}": _panel(wandb, value) for key, value in values.items()})

    status = 1
    try:
        yield log
        status = 0
    finally:
        run.finish(exit_code=status)


def _panel(wandb: Any, value: Any) -> Any:
    """Pictures and pages by their path; rows of one table as a list of mappings; the rest as it is."""
    if isinstance(value, Path):
        return (
            wandb.Html(value.read_text(encoding="utf-8"), inject=False)
            if value.suffix == ".html"
            else wandb.Image(str(value))
        )
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        columns = list(dict.fromkeys(key for row in value for key in row))
        return wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in value])
    return value


# ---- help

COMMON = {
    "model": "whose denoiser it is.",
    "path": "directory or hub id of a diffusers pipeline, to take instead of the model's own, or for +model=any.",
    "prompts": "what the model draws; prompts.path=PATH of its file.",
    "metrics": "what the model's pictures are scored by.",
    "space": "methods on offer, and which weights are split by their inputs.",
    "objective": "what is good: a linear form of metrics and costs.",
    "engine": "where measurements run.",
    "strategy": "of the search.",
    "predictor": "how the graph network is fitted.",
    "attribution": "how sensitivities are computed.",
    "store": "folder of the artifacts.",
    "seed": "of all random draws.",
}


def help_text(function: Callable[..., Any]) -> str:
    """What a command does, by its docstrings, and its keys with their defaults."""
    name = function.__name__
    page = sys.modules[function.__module__].__doc__ or inspect.getdoc(function) or name
    meaning = COMMON | arguments_of(inspect.getdoc(function) or "")
    chosen, offered = defaults(name), choices()
    rows = []
    for key, parameter in inspect.signature(function).parameters.items():
        if key == "log":
            continue
        text = meaning.get(key, "")
        if key in offered:
            rows.append(
                (
                    f"{key}={chosen[key]}" if key in chosen else f"+{key}=NAME",
                    f"{text} One of {', '.join(offered[key])}.",
                )
            )
            if key == "model":
                rows += [(f"{part}=NAME", f"{COMMON[part]} One of {', '.join(offered[part])}.") for part in OF_MODEL]
        else:
            rows.append((f"{key}={'VALUE' if parameter.default is parameter.empty else parameter.default}", text))
    rows += [
        (f"{key}=VALUE", f"{meaning.get(key, '')} Short for {full}.") for key, full in shorthands(function).items()
    ]
    rows.append(("wandb=disabled", "where the run is logged to: disabled, offline or online."))
    margin = max(len(key) for key, _ in rows) + 4
    lines = []
    for key, text in rows:
        first, *rest = textwrap.wrap(text.strip(), 118 - margin) or [""]
        lines += [f"  {key:<{margin - 2}}{first}".rstrip(), *(" " * margin + line for line in rest)]
    flags = "-m seed=0,1,2 sweeps over values, --cfg job prints the config, --hydra-help lists the other flags."
    return "\n".join([page.strip(), "", "Keys, with their defaults:", *lines, "", flags])


def arguments_of(docstring: str) -> dict[str, str]:
    """The ``Args:`` of a docstring: meaning by name."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    for line in (section[1] if section else "").splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            found[name := match[1]] = match[2]
        elif line.strip() and found:
            found[name] += " " + line.strip()
    return found
