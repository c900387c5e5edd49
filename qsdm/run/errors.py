"""One clear sentence for what the user can mend, a traceback for a bug of ours."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from qsdm.run.conf import OF_MODEL, PACKAGE, choices, defaults


def tell(error: BaseException, loud: bool, arguments: Sequence[str] = ()) -> None:
    """Print the one sentence about an error, or its traceback if it is a bug of ours.

    Args:
        error: that a command raised.
        loud: print the traceback in any case.
        arguments: of the command line; the commands that the sentence advises keep its model and
            store.
    """
    text = sentence(error)
    if loud or text is None:
        traceback.print_exception(error)
    if text is not None:
        text = _ADVICE.sub(lambda match: advice(match, arguments), text)
        print(f"error: {text}", file=sys.stderr, flush=True)


_ADVICE = re.compile(
    r"(?P<command>python -m qsdm(?:\.(?P<name>\w+))? )?\+model=(?!NAME\b)[\w.-]*\w"
)


def advice(match: re.Match[str], arguments: Sequence[str]) -> str:
    """Complete a command that an error advises by the model, store and space of this one.

    Errors name the model by the name of its artifacts, which for ``+model=any`` nobody can type,
    and they know no paths.

    Args:
        match: of `_ADVICE`.
        arguments: of the command line.

    Returns:
        The command.
    """
    from qsdm.run.keys import SHORT

    groups = ["model"]
    if match["command"]:
        groups += OF_MODEL if match["name"] not in ("trace", "calibrate") else ()
        groups += ["space"] * ("space" in defaults(match["name"] or "main")) + ["store"]
    carried: dict[str, list[str]] = {key: [] for key in groups}
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        key = key.partition("@")[0]
        for part in OF_MODEL:  # as `spelled` places them
            key = re.sub(rf"^model\.{part}\b", part, key)
        group = "model" if key in SHORT else re.split(r"[.\[]", key)[0]
        if equals and group in carried:
            short = next((short for short, full in SHORT.items() if full == key), key)
            sign = "+" if key == "model" else ""
            carried[group].append(shlex.quote(f"{sign}{short}={value}"))
    carried["model"].sort(key=lambda argument: not argument.startswith("+model="))
    if not carried["model"] or not carried["model"][0].startswith("+model="):
        return match[0]
    return (match["command"] or "") + " ".join(text for group in groups for text in carried[group])


def sentence(error: BaseException) -> str | None:
    """Say what the user can do about an error.

    Args:
        error: that a command raised.

    Returns:
        A sentence; None for an error that nobody foresaw.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was stored before is kept"
    if (
        isinstance(error, MissingConfigException)
        and error.missing_cfg_file
        and "/" in error.missing_cfg_file
    ):
        group, _, wrong = error.missing_cfg_file.partition("/")
        if group == "model" and "/" in wrong:
            return f"no model is called {wrong!r}: a pipeline of your own is model=any path={wrong}"
        offered = error.options or choices().get(group, [])
        close = difflib.get_close_matches(wrong, offered, 1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        return f"no {group} is called {wrong!r}{guess} (there are: {', '.join(offered)})"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}: wanted KEY=VALUE, with quotes around anything but "
            "words and numbers"
        )
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {first_line(error)}" if error.full_key else first_line(error)
    if match := re.match(r"Multiple values for (\S+)\. ", str(error)):
        return f"{match[1]} is given twice: give it once"
    if isinstance(error, HydraException):
        return (
            sentence(error.__cause__)
            if isinstance(error.__cause__, OmegaConfBaseException)
            else first_line(error)
        )
    if type(error).__module__.split(".")[0] in ("qsdm", "__main__"):  # StoreError and its like
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | KeyError) and _raised_here(error):
        return str(error.args[0]) if error.args else repr(error)
    return None


def first_line(error: BaseException) -> str:
    """Shorten an error's message.

    Args:
        error: of a library.

    Returns:
        The first line of its message, or of its repr if it has none.
    """
    return (str(error) or repr(error)).splitlines()[0]


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it, as validation does, and not a library that it calls."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
