"""What the code of a forward tells of its arguments' axes: the shapes that it unpacks, and those that it documents.

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


def told(forward: Callable) -> dict[str, Axes]:
    """Parameter => names of its axes, in lower case; of different numbers of axes those that the docstring gives."""
    takes = inspect.signature(forward).parameters
    documented = {
        name: _split(text) for name, text in _DOCUMENTED.findall(inspect.getdoc(forward) or "")
    }
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):  # a class without a file
        source = ""
    unpacked = {
        name: _split(text) for text, name in reversed(_UNPACKED.findall(source))
    }  # the first line counts
    agreed = {
        name: axes
        for name, axes in unpacked.items()
        if len(documented.get(name, axes)) == len(axes)
    }
    found = documented | agreed
    return {name: axes for name, axes in found.items() if name in takes and "optional" not in axes}


def unpacked_in(line: str) -> tuple[str, Axes] | None:
    """The name and the axes of a source line that unpacks a shape."""
    match = _UNPACKED.match(line)
    return (match[2], _split(match[1])) if match else None


def layout(axes: Axes) -> str | None:
    """The axes as letters: ``BCHW``, ``BCFHW``, ``BNC``; None where one is unknown or comes twice."""
    letters = [
        next((letter for letter, names in _LETTERS if re.fullmatch(names, axis)), None)
        for axis in axes
    ]
    known = [letter for letter in letters if letter is not None]
    return "".join(known) if len(set(known)) == len(axes) else None


def _split(text: str) -> Axes:
    words = (re.sub(r"\s+", "_", word.strip("` \n'")) for word in text.split(","))
    return tuple(word.lower() for word in words if word)
