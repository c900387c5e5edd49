"""The door: a command line becomes the keyword arguments of a command's function.

Hydra and trackers are used in this folder only. A command module ends in
``if __name__ == "__main__": run.main(train)``. The function's signature is the schema of its keys:
names, types and defaults; ``conf/<function>.yaml`` adds the groups chosen by default
(``space: traced``). Nested values are made from their ``_target_``, after their keys were checked
against the target's signature too.

What the user can fix (an unknown key, a missing artifact, a full disk) is reported in one sentence,
with exit status 1; Ctrl-C gives 130. ``QSDM_TRACEBACK=1`` or ``hydra.verbose=true`` shows the
traceback as well.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import os
import random
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qsdm.run import conf
from qsdm.run.errors import tell
from qsdm.run.help import help_text
from qsdm.run.keys import schema, spelled
from qsdm.run.trackers import Start, Tracker, Wandb, tracked
from qsdm.run.values import keywords

READER_LEFT = 141
"""Exit status of a program that SIGPIPE has ended, in a shell."""


def main(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command with command-line arguments, and exit with its status.

    Args:
        function: of a command.
        arguments: of the command line; by default, those of this process.
    """
    sys.exit(execute(function, sys.argv[1:] if arguments is None else arguments))


def execute(function: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Run a command with command-line arguments.

    Args:
        function: of a command.
        arguments: of the command line.

    Returns:
        The exit status.
    """
    failures: list[BaseException] = []
    loud = bool(os.environ.get("QSDM_TRACEBACK")) or any(
        a.startswith("hydra.verbose=") and not a.lower().endswith("=false") for a in arguments
    )
    try:
        if {"--help", "-h"} & set(arguments):
            print(help_text(function))
        else:
            _hydra(function, spelled(arguments, function), failures)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        leave_with_reader(error)
        if error not in failures:  # a sweep reports its failures as they come
            tell(error, loud, arguments)
            failures.append(error)
    if any(isinstance(failure, KeyboardInterrupt) for failure in failures):
        return 130
    return 1 if failures else 0


def leave_with_reader(error: BaseException) -> None:
    """Exit quietly if an error says that nobody reads what is printed, as behind ``| head``.

    Args:
        error: that was caught.

    Raises:
        SystemExit: it says so.
    """
    if not isinstance(error, BrokenPipeError):
        return
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in pipe.poll(0)):
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what is flushed at the end
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise SystemExit(READER_LEFT) from error


def _hydra(
    function: Callable[..., Any], arguments: list[str], failures: list[BaseException]
) -> None:
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
                function,
                cfg,
                Path(settings.runtime.output_dir),
                Path(settings.sweep.dir).name if sweep else None,
            )
        except (Exception, KeyboardInterrupt) as error:
            leave_with_reader(error)
            failures.append(error)
            tell(
                error,
                bool(os.environ.get("QSDM_TRACEBACK")) or bool(settings.verbose),
                settings.overrides.task,
            )
            if sweep:  # an ordinary exception marks this job as failed and lets the others go on
                raise
        finally:
            gc.collect()

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them: we do that
    ConfigStore.instance().store(
        name="signature",
        node=dataclasses.make_dataclass("Signature", schema(function, trackers=True)),
    )
    GlobalHydra.instance().clear()
    before, sys.argv = sys.argv, [sys.argv[0], *arguments, f"hydra.job.name={function.__name__}"]
    try:
        hydra.main(config_path=str(conf.CONF), config_name=function.__name__, version_base="1.3")(
            job
        )()
    finally:
        sys.argv = before


def perform(function: Callable[..., Any], cfg: Any, folder: Path, group: str | None = None) -> Any:
    """Call a command's function with the values of a config.

    Args:
        function: of a command.
        cfg: the composed config, without Hydra's own part.
        folder: of this run, for its provenance and the tracker's files.
        group: name of the sweep; None for a single run.

    Returns:
        What the function returns.

    Raises:
        BadInput: a key is unknown or missing, or a value is of the wrong type.
    """
    from qsdm.store.files import write_json
    from qsdm.store.provenance import provenance

    values = keywords(function, cfg)
    if isinstance(seed := values.get("seed"), int):
        _seed(seed)
    about = {"command": function.__name__, "arguments": sys.argv[1:], **provenance()}
    write_json(folder / "provenance.json", about)
    mode, tracker = cfg.get("wandb", Wandb.disabled), cfg.get("tracker", Tracker.wandb)
    is_tracked = tracker is not Tracker.wandb or mode is not Wandb.disabled
    begin = Start(function.__name__, folder, group, _plain(cfg) if is_tracked else {}, mode)
    with tracked(tracker, begin) as log:
        if "log" in inspect.signature(function).parameters:
            values["log"] = log
        result = function(**values)
        if isinstance(result, Mapping):
            log({key: value for key, value in result.items() if isinstance(value, int | float)})
    return result


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(
        OmegaConf.create(cfg), resolve=True, throw_on_missing=False, enum_to_str=True
    )
    return dict(config)


def _seed(seed: int) -> None:
    """Commands draw from generators of their own; this is for libraries that do not."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
