"""One clear sentence for what the user can mend, a traceback for a bug of ours."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from qsdm.run.conf import PACKAGE, choices


def tell(error: BaseException, loud: bool, arguments: Sequence[str] = ()) -> None:
    """Print the one sentence about ``error``, or its traceback if it is a bug of ours.

    Args:
        arguments: of the command line; what ``+model=any`` found has a name that nobody can type as a model.
    """
    told = sentence(error)
    paths = [
        value
        for key, _, value in (argument.partition("=") for argument in arguments)
        if key.endswith("path")
    ]
    if (
        told is not None
        and paths
        and any(re.fullmatch(r"\+*model=any", argument) for argument in arguments)
    ):
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
    if (
        isinstance(error, MissingConfigException)
        and error.missing_cfg_file
        and "/" in error.missing_cfg_file
    ):
        group, _, wrong = error.missing_cfg_file.rpartition("/")
        offered = error.options or choices().get(group, [])
        close = difflib.get_close_matches(wrong, offered, 1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        return f"no {group} is called {wrong!r}{guess} (there are: {', '.join(offered)})"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: wanted KEY=VALUE, with quotes around anything but words and numbers"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {first_line(error)}" if error.full_key else first_line(error)
    if isinstance(error, HydraException):
        return (
            sentence(error.__cause__)
            if isinstance(error.__cause__, OmegaConfBaseException)
            else first_line(error)
        )
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


def first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it, as validation does, and not a library in its depth."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
