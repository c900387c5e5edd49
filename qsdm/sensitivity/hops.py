"""Scores from the norms of hop embeddings, for a weight (hop 0) and its m-hop subgraph.

The subgraph is what feeds the weight, m steps back.

The networks are trained so that the norm of the graph's hop-m embedding ranks configurations like
their labels. The norm of one weight's embedding, standardized over the training part of its fold,
is therefore a score of its subgraph. Each hop is weighted by the rank correlation that it reached
on the fold's validation part, never on its test part.

References:
    Qua²SeDiMo: Quantifiable Quantization Sensitivity of Diffusion Models (Mills et al., 2025),
    section 4.
"""

from __future__ import annotations

import numpy as np
import torch

from qsdm.predictor import Predictor


def hop_harms(predictor: Predictor, genes: np.ndarray) -> np.ndarray:
    """Score each weight's subgraph at each hop.

    Args:
        predictor: trained on the space of the genes.
        genes: int64 [B, W].

    Returns:
        Harms, float64 [H + 1, B, W], in units of the objective up to a factor.
    """
    from qsdm.predictor.fit import evaluate

    columns = torch.from_numpy(predictor.encoding.columns_of(genes))
    harms = []
    for fold in predictor.folds:
        norms = evaluate(fold.gnn, columns).nodes
        standard = (norms - fold.hop_mean[:, None, None]) / fold.hop_deviation[:, None, None]
        share = fold.hop_quality / max(fold.hop_quality.sum(), 1e-12)
        harms.append(-fold.deviation * share[:, None, None] * standard)
    return np.mean(harms, axis=0).swapaxes(1, 2)
