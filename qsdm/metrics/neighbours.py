"""Whether pictures lie among the reference pictures, and those among them, in a space of features.

    precision   share of the pictures that lie in the ball of some reference picture
    recall      share of the reference pictures that lie in the ball of some picture
    density     number of reference balls that a picture lies in, over k: less sensitive to outliers
    coverage    share of the reference pictures whose ball contains a picture

The ball of a picture reaches to its k-th nearest neighbor of its own set, k = 5.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al.,
        2019), section 2.
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), equations 5
        and 6.
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
    """The radii of the balls: distances to the k-th nearest neighbor.

    Args:
        features: [N, D], N > k.

    Returns:
        float64 [N].
    """
    return _radii(_distances(features, features))


def neighbours(
    features: np.ndarray, reference: np.ndarray, reference_radii: np.ndarray
) -> dict[str, float]:
    """All four quantities.

    Args:
        features: of pictures, [N, D], N > k.
        reference: features of the reference pictures, [M, D].
        reference_radii: `radii` of ``reference``, [M].

    Returns:
        Value by name: 0 to 1, density 0 or more.
    """
    subset = [np.arange(len(features))]
    return {
        name: _of_subsets(name, features, subset, reference, reference_radii)[0]
        for name in QUANTITIES
    }


def _of_subsets(
    name: str,
    features: np.ndarray,
    subsets: Sequence[np.ndarray],
    reference: np.ndarray,
    reference_radii: np.ndarray,
) -> list[float]:
    """One quantity of subsets of the pictures. Distances, most of the work, are computed once."""
    distances = _distances(reference, features)
    if name == "recall":
        own = _distances(features, features)
        return [
            float((distances[:, rows] < _radii(own[np.ix_(rows, rows)])).any(1).mean())
            for rows in subsets
        ]
    within = distances < reference_radii[:, None]
    if name == "coverage":
        return [float(within[:, rows].any(1).mean()) for rows in subsets]
    of_pictures = np.asarray(within.any(0) if name == "precision" else within.sum(0) / NEAREST)
    return [float(of_pictures[rows].mean()) for rows in subsets]


def _radii(distances: np.ndarray) -> np.ndarray:
    return np.partition(distances, NEAREST, axis=1)[:, NEAREST]  # the nearest is the picture itself


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

        network = (
            f"lite0 {lite0.version()}" if self.network == "lite0" else "inception-v3-compat 2048"
        )
        return f"{network}, {NEAREST} neighbours, {Reference(self.reference).version}"

    def features(
        self, images: np.ndarray, _captions: Sequence[str], _full: np.ndarray | None
    ) -> np.ndarray:
        return networks.lite0(images) if self.network == "lite0" else networks.inception(images)

    def reduce(self, features: np.ndarray) -> float | None:
        return self.reduce_subsets(features, [np.arange(len(features))])[0]

    def reduce_subsets(
        self, features: np.ndarray, subsets: Sequence[np.ndarray]
    ) -> list[float | None]:
        reference = Reference(self.reference)
        reference_features = reference.features(self.network, features.shape[1])
        reference_radii = _reference_radii(reference, self.network, reference.version)
        values = iter(
            _of_subsets(
                self.name,
                features,
                [rows for rows in subsets if len(rows) > NEAREST],
                reference_features,
                reference_radii,
            )
        )
        return [next(values) if len(rows) > NEAREST else None for rows in subsets]


@lru_cache(maxsize=8)
def _reference_radii(reference: Reference, network: str, _version: str) -> np.ndarray:
    return radii(reference.features(network, None))
