"""Whether pictures lie among the reference pictures, and these among them, by k-nearest-neighbour balls in features.

    precision   share of the pictures that lie in the ball of some reference picture
    recall      share of the reference pictures that lie in the ball of some picture
    density     how many reference balls a picture lies in, over k: unlike precision it is not ruled by outliers
    coverage    share of the reference pictures whose ball holds a picture

A ball reaches to its own k-th nearest neighbour, k = 5.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019), section 2.
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qsdm.metrics import networks
from qsdm.metrics.reference import Reference

NEAREST = 5
QUANTITIES = ("precision", "recall", "density", "coverage")


def radii(features: np.ndarray) -> np.ndarray:
    """Distance of each of features [N, D], N > k, to its k-th nearest other, float64 [N]."""
    return np.partition(_distances(features, features), NEAREST, axis=1)[
        :, NEAREST
    ]  # the nearest is itself


def neighbours(
    features: np.ndarray, reference: np.ndarray, reference_radii: np.ndarray
) -> dict[str, float]:
    """All four quantities of features [N, D], reference [M, D] and its `radii` [M]."""
    apart = _distances(reference, features)
    within = apart < reference_radii[:, None]
    return {
        "precision": float(within.any(0).mean()),
        "recall": float((apart < radii(features)[None]).any(1).mean()),
        "density": float(within.sum(0).mean() / NEAREST),
        "coverage": float(within.any(1).mean()),
    }


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch

    return torch.cdist(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """One of the four quantities, under its own name.

    Attributes:
        name: precision, recall, density or coverage.
        reference: see `Reference`.
        network: ``lite0`` or ``inception``.
    """

    name: str
    reference: str = "zoo"
    network: str = "lite0"
    larger_is_better: bool = True
    label: str = ""
    digits: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        if self.name not in QUANTITIES or self.network not in ("lite0", "inception"):
            raise ValueError(
                f"wanted one of {', '.join(QUANTITIES)} by the network lite0 or inception "
                f"(got {self.name!r} by {self.network!r})"
            )

    @property
    def version(self) -> str:
        from qsdm.metrics import lite0

        seen = f"lite0 {lite0.version()}" if self.network == "lite0" else "inception-v3-compat 2048"
        return f"{seen}, {NEAREST} neighbours, {Reference(self.reference).version}"

    def features(
        self, images: np.ndarray, captions: Sequence[str], full: np.ndarray | None
    ) -> np.ndarray:
        return networks.lite0(images) if self.network == "lite0" else networks.inception(images)

    def reduce(self, features: np.ndarray) -> float | None:
        if len(features) <= NEAREST:
            return None
        reference = Reference(self.reference)
        known = reference.features(self.network, features.shape[1])
        return neighbours(
            features, known, _reference_radii(reference, self.network, reference.version)
        )[self.name]


@lru_cache(maxsize=8)
def _reference_radii(reference: Reference, network: str, _version: str) -> np.ndarray:
    return radii(reference.features(network, None))
