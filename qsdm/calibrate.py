"""Quantize every weight of a denoiser with every method of a space.

    python -m qsdm.calibrate +model=emoji_unet
    python -m qsdm.calibrate +model=sdxl path=DIRECTORY space=wide

Writes ``calibration/<space>/table.safetensors`` (errors and sizes) and ``weights.safetensors`` (the
quantized weights, from which configurations are measured); graph.html then shows the errors.
"""

from __future__ import annotations

from contextlib import suppress

from qsdm import run, text
from qsdm.denoisers import ModelError, source_digest
from qsdm.denoisers import denoiser_tensors as parameters  # as it was called here in 0.1
from qsdm.qconfig import Space
from qsdm.qconfig.cost import MethodTable
from qsdm.report import graph_page
from qsdm.text import Log, ignore
from qsdm.workspace import Workspace, takes_workspace


@takes_workspace("model", "space", "store")
def calibrate(
    workspace: Workspace,
    error: str = "relative",
    log: Log = ignore,
) -> MethodTable:
    """Compute errors and bytes of every weight under every method.

    Args:
        workspace: model, space and store.
        error: ``relative``, or ``paper`` for the errors as the paper's release computes them.
        log: receives the progress.

    Returns:
        The table, which is in the store beside the quantized weights.

    Raises:
        StoreError: the denoiser was not traced.
        ModelError: the weights are not here.

    Example:
        >>> import qsdm
        >>> from qsdm.calibrate import calibrate
        >>> table = calibrate(qsdm.open("emoji_unet"))  # after trace
        >>> len(table.weights)
        127
    """
    from qsdm.quant import calibration
    from qsdm.report.tracked import track

    graph, space = workspace.graph, workspace.space
    target = workspace.path(f"calibration/{workspace.space_name}")
    model = workspace.model
    tensors, source = parameters(model), ""
    with suppress(ModelError):  # other components are missing
        source = source_digest(model)
    table = calibration.calibrate(tensors, space, target, log, error, source)
    graph_page.write(workspace.path("graph.html"), graph, graph_page.errors(graph, table))
    print(summary(space, table))
    track(log, "calibrate", workspace.store, workspace.space_name, workspace.model.full_bits)
    return table


def summary(space: Space, table: MethodTable) -> str:
    """Format one line per method: number of weights with it, their average bits and mean error.

    Args:
        space: whose weights are counted.
        table: errors and bytes of the weights.
    """
    import numpy as np

    numel = np.array([weight.numel for weight in space.graph.weights], dtype=np.float64)
    rows = []
    for i, method in enumerate(table.methods):
        on_offer = ~np.isnan(table.rel_error[:, i])
        bits = 8 * table.size_bytes[on_offer, i].sum() / numel[on_offer].sum()
        error = float(table.rel_error[on_offer, i].mean())
        rows.append((method, int(on_offer.sum()), bits, error))
    heads = ("method", "weights", "avg_bits", "rel_error")
    return text.table(heads, rows, ("", "", ".4f", ".5f"))


if __name__ == "__main__":
    run.main(calibrate)
