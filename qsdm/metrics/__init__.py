"""What pictures are scored by. Every metric is a frozen dataclass of paths and options in a file of its own;
``conf/metrics`` names them.

A metric works in two steps, so that any subset of the pictures can be scored again without making them again:
`Metric.features`, per picture, and `Metric.reduce`, over pictures. Networks are loaded at the first use and shared by
all metrics of a process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from qsdm.store.manifest import check_shipped


class MetricError(ValueError):
    """A metric cannot be computed; the message says what it lacks."""


class Metric(Protocol):
    """The contract.

    Attributes:
        name: as in outcomes and objectives.
        version: all that changes the value: layer, resize, digests of networks and references.
        larger_is_better: the direction.
        label: for tables and figures, with the unit if there is one.
        digits: after the decimal point, in tables.
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
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        """What the metric needs of each picture.

        Args:
            images: uint8 [N, H, W, 3].
            captions: N of them.
            full: uint8 [N, H, W, 3], the same prompts and seeds at full precision; None where `images` are these
                themselves.

        Returns:
            float32 [N, F].
        """
        ...

    def reduce(self, features: np.ndarray) -> float | None:
        """Features [N, F] => the value; None where it is not defined (PSNR of full precision to itself)."""
        ...


def described(metric: Metric) -> dict[str, str | bool | int]:
    """What a table needs to know of a metric: label, larger_is_better, digits."""
    return {
        "label": metric.label,
        "larger_is_better": metric.larger_is_better,
        "digits": metric.digits,
    }


def file_digest(path: Path) -> str:
    """First 12 hex digits of the sha256 of a file, or of the files of a folder with their names, hidden ones left out.

    Raises:
        MetricError: there is no such file.
    """
    if not path.exists():
        raise MetricError(
            f"no file {path}, which a metric needs: restore it, or give metrics.NAME.reference=FILE"
        )
    check_shipped(path)
    return _digest(
        path,
        max((p.stat().st_mtime_ns for p in path.rglob("*")), default=0)
        if path.is_dir()
        else path.stat().st_mtime_ns,
    )


@lru_cache(maxsize=64)
def _digest(path: Path, _changed: int) -> str:
    digest = hashlib.sha256()
    parts = (
        [path]
        if path.is_file()
        else [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    )
    for part in sorted(parts):
        digest.update(part.name.encode())
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
