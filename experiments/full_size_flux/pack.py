"""Choose a mix of methods by the errors of the weights alone, and write the checkpoint.

    python experiments/full_size_flux/pack.py FOLDER METHODS AVG_BITS

`qsdm.realize` chooses by pictures, of which a CPU would need days at this size; it writes the
checkpoint with the same functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.checkpoint import save_quantized
from qsdm.denoisers import denoiser_tensors, discover, load_pipeline
from qsdm.denoisers.narrow import mapped_denoiser
from qsdm.qconfig import QuantConfig, SpaceSpec, cost
from qsdm.quant.calibrated import PackedWeights
from qsdm.strategies import Problem
from qsdm.strategies.greedy import filled, path
from qsdm.workspace import Workspace


def mix(workspace: Workspace, avg_bits: float) -> QuantConfig:
    """Choose the configuration of least summed relative error within a budget.

    Args:
        workspace: traced and calibrated.
        avg_bits: at most, of the quantizable weights.

    Returns:
        The configuration.
    """
    space = workspace.space
    problem = Problem.of(space, workspace.table)
    max_bytes = avg_bits * space.graph.num_values / 8
    genes = path(problem, problem.error)
    largest = genes[np.flatnonzero(problem.size_of(genes) <= max_bytes)[0]]
    return space.decode(filled(problem, problem.error, largest, max_bytes))


def main(folder: Path, methods: list[str], avg_bits: float) -> None:
    """Write FOLDER/checkpoint.

    Args:
        folder: of the experiment.
        methods: that were calibrated.
        avg_bits: at most.
    """
    model = discover(str(folder / "flux"), name="flux")
    spec = SpaceSpec("two", methods, splits=".*")
    workspace = Workspace(model, spec, folder / "store")
    space, qconfig = workspace.space, mix(workspace, avg_bits)
    weights = PackedWeights(workspace.packed)
    weights.require(denoiser_tensors(model), space.graph)
    parts: dict[str, Any] = {model.component: mapped_denoiser(model)}
    written = save_quantized(
        load_pipeline(model, dtype=f"float{space.full_bits}", **parts),
        model.component,
        space.graph,
        qconfig,
        folder / "checkpoint",
        weights.quantized,
        space.full_bits,
    )
    expected = cost.size_bytes(space.graph, qconfig, space.full_bits)
    print(f"{cost.avg_bits(space.graph, qconfig, space.full_bits):.4f} bits; {written}")
    print(f"packed bytes: {written.packed_bytes:,}, by the cost model {expected:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3]))
