"""Axes of a forward's arguments, read from its source: shapes that it unpacks or documents.

Both of these lines, for example, name the axes of ``hidden_states``::

    batch, channels, height, width = hidden_states.shape
    hidden_states (`torch.Tensor` of shape `(batch, channels, height, width)`):
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

Axes = tuple[str, ...]

_UNPACKED = re.compile(
    r"^\s*\(?(\w+(?:\s*,\s*\w+)*),?\)?\s*=\s*(\w+)\.(?:shape|size\(\))\s*$", re.MULTILINE
)
_DOCUMENTED = re.compile(r"^\s*`?(\w+)`?[ :]*\(.*?\(([^()]*,[^()]*)\).*\):?", re.MULTILINE)
_LETTERS = (
    ("B", r"b|bs|batch|batch_size"),
    ("F", r"t|f|\w*frames?|video_length"),
    ("H", r"h|height"),
    ("W", r"w|width"),
    ("N", r"n|l|\w*(seq|len|tok|patches)\w*"),
    ("C", r"c|_|.*(chan|dim|embed|hidden|feat).*"),
)


def of_forward(forward: Callable) -> dict[str, Axes]:
    """Read the names of the axes of a forward's parameters.

    Args:
        forward: a function; its source need not be available.

    Returns:
        Parameter => names of its axes, in lower case. Where code and docstring disagree about the
        number of axes, the docstring counts.
    """
    parameters = inspect.signature(forward).parameters
    documented = {
        name: _split(text) for name, text in _DOCUMENTED.findall(inspect.getdoc(forward) or "")
    }
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):  # a class without a file
        source = ""
    # Reversed, so that the first line counts.
    unpacked = {name: _split(text) for text, name in reversed(_UNPACKED.findall(source))}
    agreed = {
        name: axes
        for name, axes in unpacked.items()
        if len(documented.get(name, axes)) == len(axes)
    }
    return {
        name: axes
        for name, axes in (documented | agreed).items()
        if name in parameters and "optional" not in axes
    }


def unpacked_in(line: str) -> tuple[str, Axes] | None:
    """Parse a source line that unpacks a shape.

    Args:
        line: one line of Python.

    Returns:
        Name of the argument and names of its axes; None if the line does not unpack a shape.
    """
    match = _UNPACKED.match(line)
    return (match[2], _split(match[1])) if match else None


def layout(axes: Axes) -> str | None:
    """Abbreviate the names of axes to letters.

    Args:
        axes: names of the axes, in order.

    Returns:
        For example ``BCHW``, ``BCFHW`` or ``BNC``; None if a name is unknown or a letter repeats.
    """
    letters = [
        next((letter for letter, names in _LETTERS if re.fullmatch(names, axis)), None)
        for axis in axes
    ]
    recognized = [letter for letter in letters if letter is not None]
    return "".join(recognized) if len(set(recognized)) == len(axes) else None


def _split(text: str) -> Axes:
    words = (re.sub(r"\s+", "_", word.strip("` \n'")) for word in text.split(","))
    return tuple(word.lower() for word in words if word)
