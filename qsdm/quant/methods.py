"""The registry of quantization methods: to add one, write its file and name it here.

Artifacts contain these names, so a name must mean the same method years later.
"""

from __future__ import annotations

from qsdm.quant.codebook import KMEANS_A, KMEANS_A_W, KMEANS_C, KMEANS_C_W
from qsdm.quant.fp8 import FP8_E4M3
from qsdm.quant.full import FULL
from qsdm.quant.method import Method
from qsdm.quant.nf4 import NF4_G64
from qsdm.quant.uniform import UAQ, UAQ_ASYM, UAQ_G32, UAQ_G64, UAQ_G128, UAQ_REFINED, UAQ_W

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        FULL,
        UAQ,
        UAQ_REFINED,
        UAQ_ASYM,
        UAQ_G32,
        UAQ_G64,
        UAQ_G128,
        KMEANS_C,
        KMEANS_A,
        NF4_G64,
        FP8_E4M3,
        UAQ_W,
        KMEANS_C_W,
        KMEANS_A_W,
    )
}
"""Method by name."""
