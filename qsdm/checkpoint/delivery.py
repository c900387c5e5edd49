"""A measured configuration of a running session as a checkpoint with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.checkpoint import card, save_quantized
from qsdm.denoisers import denoiser_tensors, load_pipeline
from qsdm.denoisers.narrow import mapped_denoiser
from qsdm.measurement import memory
from qsdm.outcome import Outcome, Protocol
from qsdm.quant.calibrated import PackedWeights
from qsdm.store.files import write_text

if TYPE_CHECKING:
    from qsdm.measurement.memory import Memory
    from qsdm.measurement.session import Session


def deliver(
    ready: Session,
    packed: Path,
    folder: Path,
    protocol: Protocol,
    outcomes: tuple[Outcome, Outcome],
) -> tuple[dict[str, int], Memory]:
    """Write the pipeline with its denoiser packed, and a card unless its user has written one.

    Args:
        ready: the running session.
        packed: directory of the quantized weights.
        folder: where the checkpoint is written.
        protocol: of the outcomes.
        outcomes: of the configuration and of full precision.

    Returns:
        Bytes of the denoiser's file by kind, and the memory of the whole pipeline.

    Raises:
        StoreError: it cannot be written, or the quantized weights are damaged.
        OtherWeights: other weights were quantized.
    """
    model, graph, bits = ready.model, ready.space.graph, ready.space.full_bits
    outcome, full = outcomes
    weights = PackedWeights(packed)
    weights.require(denoiser_tensors(model), graph)
    # The denoiser's weights are read only where they are not packed.
    mapped = {part.component: mapped_denoiser(part) for part in model.parts if bits == 16}
    parts: dict[str, Any] = {name: module for name, module in mapped.items() if module is not None}
    contents = save_quantized(
        load_pipeline(model, dtype=f"float{bits}", **parts),
        model.component,
        graph,
        outcome.qconfig,
        folder,
        weights.quantized,
        bits,
    )
    before = memory.memory_of(model, graph, [outcome.qconfig])
    if not card.is_kept(folder):
        after = {name: memory.total(tensors) for name, tensors in memory.tensors_in(folder).items()}
        text = card.card(model, graph, protocol, outcome, full, before, after)
        write_text(folder / card.NAME, text)
    return {
        "packed_bytes": contents.packed_bytes,
        "unquantized_bytes": sum(contents.plain.values()),
        "header_bytes": contents.header_bytes,
    }, before
