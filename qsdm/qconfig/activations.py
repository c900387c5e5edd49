"""To how many bits the inputs of layers are rounded: their text forms and allowed values.

uaq-4+a8    a weight in 4 bits, whose layer rounds its input to 8
a8          a weight in full precision, whose layer rounds its input to 8
w3.50a8     a denoiser with 3.5 bits per weight, whose layers round their inputs to 8
"""

from __future__ import annotations

import re

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
FULL = 16  # an input that is not rounded
_TEXT = re.compile(r"(?:(?P<method>.+)\+)?a(?P<bits>\d+)")


def check(bits: int, what: str = "activations") -> int:
    """Check bits of activations.

    Args:
        bits: 2 to 8, or 16 for what is not rounded.
        what: that has them, for the error.

    Returns:
        The bits.

    Raises:
        ValueError: other bits.
    """
    if isinstance(bits, bool) or bits not in WIDTHS:
        raise ValueError(f"{what} have 2 to 8 bits, or 16 if they are not rounded (got {bits!r})")
    return bits


def parse(text: str) -> tuple[str | None, int | None]:
    """Split the text form of a method and of its layer's input.

    Args:
        text: as ``uaq-4+a8``, ``uaq-4`` or ``a8``.

    Returns:
        The text of the method, and the bits of the input; None for what is not there.

    Raises:
        ValueError: the bits are out of range.

    Example:
        >>> from qsdm.qconfig.activations import parse
        >>> parse("uaq-4+a8"), parse("a8"), parse("uaq-4")
        (('uaq-4', 8), (None, 8), ('uaq-4', None))
    """
    if (match := _TEXT.fullmatch(text)) is None:
        return text, None
    return match["method"], check(int(match["bits"]), f"the activations of {text!r}")


def text_of(method: str | None, bits: int | None) -> str:
    """Write what `parse` reads.

    Args:
        method: text of a method; None for full precision.
        bits: of the layer's input; None if nothing is said about it.

    Returns:
        The text form.
    """
    return "+".join(part for part in (method, None if bits is None else f"a{bits}") if part)


def name_of(avg_bits: float, bits: int | None) -> str:
    """Name a denoiser by the bits of its weights and activations.

    Args:
        avg_bits: of the weights.
        bits: of the activations; None for 16.

    Returns:
        As ``w3.50a8``.
    """
    return f"w{avg_bits:.2f}a{FULL if bits is None else bits}"
