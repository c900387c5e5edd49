"""PSNR as the squared error of pixels, in which the harms of weights add up; decibels do not."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

PSNR = "psnr"

Real = TypeVar("Real", float, np.ndarray)


def squared(psnr: Real) -> Real:
    """Minus the squared error of pixels, in units of the largest one's square.

    Args:
        psnr: in dB.
    """
    value: Real = -(10 ** (-psnr / 10))
    return value


def in_decibels(quality: np.ndarray) -> np.ndarray:
    """The inverse of `squared`; a predicted error is at least that of 80 dB.

    Args:
        quality: minus the squared error.
    """
    return -10 * np.log10(np.maximum(-quality, 1e-8))
