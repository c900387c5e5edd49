"""Metrics of pictures: frozen dataclasses of paths and options, which ``conf/metrics`` names.

A metric works in two steps, so that any subset of the pictures can be scored without drawing them
again: `Metric.features` looks at pictures, and `Metric.reduce` only at their features. Networks are
loaded at their first use and shared by all metrics of a process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from qsdm.store.manifest import check_shipped, require_zoo


class MetricError(ValueError):
    """A metric cannot be computed; the message says what is missing."""


class Metric(Protocol):
    """The contract of a metric.

    Example:
        >>> import numpy as np
        >>> from qsdm.metrics.fidelity import Psnr
        >>> metric, full = Psnr(), np.zeros((2, 8, 8, 3), np.uint8)
        >>> features = metric.features(full + np.uint8(1), ["a cat", "a dog"], full)
        >>> round(metric.reduce(features), 2)  # dB
        48.13

    Attributes:
        name: its key in outcomes and objectives.
        version: a text that changes with everything that changes the value: layer, resize, digests
            of networks and reference pictures.
        larger_is_better: whether pictures with a larger value are better.
        label: its name in tables and figures, with the unit if there is one.
        digits: decimal places in tables, 0 or more.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def larger_is_better(self) -> bool: ...

    @property
    def label(self) -> str: ...

    @property
    def digits(self) -> int: ...

    def features(
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None, /
    ) -> np.ndarray:
        """Everything that the metric needs to know of each picture.

        Args:
            images: uint8 [N, H, W, 3].
            captions: the N prompts of the pictures.
            full: uint8 [N, H, W, 3], drawn from the same prompts and seeds at full precision; None
                if ``images`` were.

        Returns:
            float32 [N, F].

        Raises:
            MetricError: a network or file is missing.
        """
        ...

    def reduce(self, features: np.ndarray, /) -> float | None:
        """The value of a set of pictures.

        Args:
            features: [N, F], of any pictures.

        Returns:
            None where the metric is not defined, such as the PSNR of full precision to itself.
        """
        ...


@runtime_checkable
class SharesWork(Protocol):
    """A metric that reduces subsets of the same pictures faster together than one by one."""

    def reduce_subsets(
        self, features: np.ndarray, subsets: Sequence[np.ndarray], /
    ) -> Sequence[float | None]:
        """What `Metric.reduce` returns of each subset, equal to rounding.

        Args:
            features: [N, F].
            subsets: indices of pictures, each [n].
        """
        ...


def reduce_subsets(
    metric: Metric, features: np.ndarray, subsets: Sequence[np.ndarray]
) -> Sequence[float | None]:
    """The values of subsets of the pictures.

    Args:
        metric: any metric.
        features: its features of all pictures, [N, F].
        subsets: indices of pictures, each [n].

    Returns:
        As `Metric.reduce`, by subset.
    """
    if isinstance(metric, SharesWork):
        return metric.reduce_subsets(features, subsets)
    return [metric.reduce(features[rows]) for rows in subsets]


def description(metric: Metric) -> dict[str, str | bool | int]:
    """What a table shows of a metric.

    Args:
        metric: any metric.

    Returns:
        Its label, larger_is_better and digits, by name.
    """
    return {
        "label": metric.label,
        "larger_is_better": metric.larger_is_better,
        "digits": metric.digits,
    }


def file_digest(path: Path) -> str:
    """A digest of a file, or of a folder's files and their names, without hidden ones.

    Args:
        path: the file or folder.

    Returns:
        The first 12 hexadecimal digits of a sha256.

    Raises:
        MetricError: there is no such file.
        StoreError: it ships with qsdm, and is damaged or was left out of this installation.
    """
    require_zoo(path)
    if not path.exists():
        raise MetricError(
            f"{path}, which a metric needs, does not exist: restore it, or set "
            "metrics.NAME.reference=FILE"
        )
    check_shipped(path)
    contents = path.rglob("*") if path.is_dir() else [path]
    states = ((str(file), file.stat()) for file in sorted(contents))
    return _digest(path, tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states))


@lru_cache(maxsize=64)
def _digest(path: Path, _states: tuple[tuple[str, int, int, int], ...]) -> str:
    """A digest that is computed again when the file or folder changes."""
    digest = hashlib.sha256()
    files = (
        [path]
        if path.is_file()
        else [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    )
    for part in sorted(files):
        digest.update(part.name.encode())
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
