"""A quantized weight as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qsdm.qconfig import QuantMethod


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized weight as it is stored.

    Attributes:
        method: the method that quantized it.
        shape: of the weight, ``[out, in, *kernel]``.
        codes: uint8 [ceil(numel * bits / 8)], packed without gaps (see `qsdm.quant.packing`).
        tensors: scales, zero points and codebooks by the method's names, on the device of the
            codes.
    """

    method: QuantMethod
    shape: tuple[int, ...]
    codes: torch.Tensor
    tensors: Mapping[str, torch.Tensor]

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """Everything that is stored, by name: ``codes`` and the tensors."""
        return {"codes": self.codes, **self.tensors}

    @property
    def size_bytes(self) -> int:
        """Size of all parts together."""
        return sum(part.nbytes for part in self.parts.values())
