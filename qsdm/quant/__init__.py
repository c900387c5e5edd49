"""Quantization of weights: every method makes codes and a few numbers that turn a code into a value.

    methods     the registry: fit, dequantize, layout of what is stored
    uaq         uniform affine quantization per channel or per group: searched ranges
    kmeans      codebooks per channel (K-Means-C) or per tensor (K-Means-A)
    blockwise   NF4 with double-quantized scales, fp8
    packing     codes of any bit width without gaps; decoding through tables
    swap        a module's weights change from one configuration to the next
    packed      layers that hold packed weights: the permanent form of a configuration
    kernels     fake quantization on CUDA and CPU from one source, and its reference in plain torch

The contract of a method: a fit of ``x``, float32 [rows, fan_in], gives codes, uint8 of the same shape, and tensors by
name as they are stored; a table made of these tensors, float32 [groups, 2**bits], holds the value of every code in
every group, where a group is a run of values of one row. Stored numbers are rounded before the codes are chosen:
decoding gives what the fit saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qsdm.qconfig import QuantMethod


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized weight as it is stored.

    Attributes:
        shape: of the weight, [out, in, *kernel].
        codes: uint8 [ceil(numel * bits / 8)], packed without gaps (see `qsdm.quant.packing`).
        tensors: scale, zero_point, codebook ... as the method names them.
    """

    method: QuantMethod
    shape: tuple[int, ...]
    codes: torch.Tensor
    tensors: Mapping[str, torch.Tensor]

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """All that is stored, by name: ``codes`` and the tensors."""
        return {"codes": self.codes, **self.tensors}

    @property
    def size_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())
