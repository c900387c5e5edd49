"""A protocol, and outcomes under it."""

from __future__ import annotations

from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod

PROTOCOL = Protocol(
    denoiser="toy",
    weights="w",
    quantizer_version="1",
    sampler="DDIM",
    steps=10,
    guidance=2.0,
    resolution_px=32,
    dtype="float32",
    prompts="p",
    seed_set=0,
    num_images=8,
)


def outcome(bits: int, value: float = 1.0) -> Outcome:
    return Outcome(
        QuantConfig("toy", {"a": QuantMethod("uaq", bits)}), PROTOCOL.digest, {"fd": value}, 8
    )
