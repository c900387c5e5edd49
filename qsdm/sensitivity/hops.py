"""Scores from the norms of hop embeddings: of a weight (hop 0) and of the m-hop subgraph that ends at it.

Training made the norm of a graph's hop-m embedding rank configurations like their labels. The norm of one weight's
embedding, standardised over the training part of its fold, is therefore a score of its subgraph; hops count by the rank
correlation that they reached on the fold's validation part, never on its test part.

References:
    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025), section 4.
"""

from __future__ import annotations

import numpy as np
import torch

from qsdm.predictor import Predictor


def hop_harms(predictor: Predictor, genes: np.ndarray) -> np.ndarray:
    """Harm of each weight's subgraph at each hop: float64 [H + 1, B, W], in the objective's units up to a factor.

    Args:
        genes: int64 [B, W].
    """
    from qsdm.predictor.fit import evaluate

    configurations = torch.from_numpy(predictor.encoding.one_hot(genes))
    harms = []
    for fold in predictor.folds:
        norms = evaluate(fold.gnn, configurations)[2]
        standard = (norms - fold.hop_mean[:, None, None]) / fold.hop_deviation[:, None, None]
        share = fold.hop_quality / max(fold.hop_quality.sum(), 1e-12)
        harms.append(-fold.deviation * share[:, None, None] * standard)
    return np.mean(harms, axis=0).swapaxes(1, 2)
