from __future__ import annotations

import numpy as np
import pytest
from toy_unet import Toy

from qsdm.predictor import FitOptions, Predictor
from qsdm.predictor.encode import encode
from qsdm.predictor.fit import fit_folds


@pytest.fixture(scope="session")
def predictor(toy: Toy) -> Predictor:
    """Two small networks, hardly trained, whose learned part counts in full: it is not additive."""
    import torch

    outcomes, _ = toy.outcomes(40)
    genes = np.stack([toy.space.encode(outcome.qconfig) for outcome in outcomes])
    labels = -np.array([outcome.metrics["fd_lite0"] for outcome in outcomes], dtype=np.float64)
    encoding = encode(toy.space, toy.table)
    folds = fit_folds(encoding, genes, labels, FitOptions(folds=2, width=16, hops=2, epochs=3))
    torch.manual_seed(0)
    for fold in folds:
        fold.gnn.share.fill_(1.0)
        torch.nn.init.normal_(fold.gnn.contribution[-1].weight, std=0.05)
    return Predictor(encoding, folds, {"fd_lite0": -1.0})
