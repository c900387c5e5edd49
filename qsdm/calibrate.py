"""Quantize every weight of a denoiser with every method of a space.

    python -m qsdm.calibrate +model=emoji_unet
    python -m qsdm.calibrate +model=sdxl path=DIRECTORY space=wide
    python -m qsdm.calibrate +model=emoji_unet space=weighted   # fits that know the layers' inputs

Writes ``calibration/<space>/table.safetensors`` (errors and sizes) and ``weights.safetensors`` (the
quantized weights, from which configurations are measured); graph.html then shows the errors.

Methods that end in ``_w`` weight errors by the mean square of the input that a weight meets. For
them, and for ``error=weighted``, a few pictures are drawn in full precision first
(`qsdm.measurement.moments`), or ``imatrix=FILE`` says what the inputs are like.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm import run, text
from qsdm.denoisers import ModelError, prompts_of, require_one_part, source_digest
from qsdm.denoisers import denoiser_tensors as parameters  # as it was called here in 0.1
from qsdm.qconfig import Space
from qsdm.qconfig.cost import MethodTable
from qsdm.quant.methods import METHODS
from qsdm.report import graph_page
from qsdm.store.room import require_memory
from qsdm.text import Log, ignore
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    import numpy as np


@takes_workspace("model", "space", "store")
def calibrate(
    workspace: Workspace,
    error: str = "relative",
    imatrix: str | None = None,
    log: Log = ignore,
) -> MethodTable:
    """Compute errors and bytes of every weight under every method.

    Args:
        workspace: model, space and store.
        error: ``relative``; ``weighted`` by what the inputs of each layer are like; or ``paper``
            for the errors as the paper's release computes them.
        imatrix: importance matrix that stable-diffusion.cpp has recorded, instead of drawing; names
            are matched, through those of the file if the model is a single one.
        log: receives the progress.

    Returns:
        The table, which is in the store beside the quantized weights.

    Raises:
        StoreError: the denoiser was not traced.
        ModelError: the weights are not here.
        EvaluationError: inputs are needed, and the pipeline cannot draw.
        NoRoom: memory or disk does not suffice.
        RecipeError: the importance matrix cannot be read, or is of another model.
        ValueError: there is no such error, or an importance matrix, but nothing to weight by it.

    Example:
        >>> import qsdm
        >>> from qsdm.calibrate import calibrate
        >>> table = calibrate(qsdm.open("emoji_unet"))  # after trace
        >>> len(table.weights)
        127
    """
    from qsdm.quant import calibration
    from qsdm.report.tracked import track

    calibration.require_error(error)
    graph, space = workspace.graph, workspace.space
    is_weighted = error == "weighted" or any(METHODS[m.name].is_weighted for m in space.methods)
    if imatrix is not None and not is_weighted:
        raise ValueError(
            f"imatrix={imatrix} would weight nothing: give space=weighted, or error=weighted"
        )
    if imatrix is not None:
        require_one_part(workspace.model, f"imatrix={imatrix} is of")
    importances = None if imatrix is None else read_imatrix(workspace, imatrix)
    target = workspace.path(f"calibration/{workspace.space_name}")
    model = workspace.model
    # In float32, as it is and as it is quantized; the file is checked when it is begun.
    largest = max((weight.numel for weight in graph.weights), default=0)
    require_memory("calibrating", 2 * 4 * largest)
    tensors, source = parameters(model), ""
    with suppress(ModelError):  # other components are missing
        source = source_digest(model)
    if is_weighted and importances is None:
        importances = recorded(workspace)
    table = calibration.calibrate(tensors, space, target, log, error, source, importances)
    graph_page.write(workspace.path("graph.html"), graph, graph_page.errors(graph, table))
    print(summary(space, table))
    track(log, "calibrate", workspace.store, workspace.space_name, workspace.model.full_bits)
    return table


def recorded(workspace: Workspace) -> dict[str, np.ndarray]:
    """Draw a few pictures, and take the mean square of every input channel of every layer.

    Args:
        workspace: model and space.

    Returns:
        See `qsdm.measurement.moments.importances`.

    Raises:
        EvaluationError: the pipeline cannot draw.
    """
    from qsdm.measurement.drawer import Drawer
    from qsdm.measurement.moments import importances

    drawer = Drawer(workspace.model, workspace.space.graph, None)
    print("recording the layers' inputs", flush=True)
    return importances(drawer, prompts_of(workspace.model))


def read_imatrix(workspace: Workspace, path: str) -> dict[str, np.ndarray]:
    """Read what another engine has recorded.

    Args:
        workspace: model and space.
        path: of the importance matrix.

    Returns:
        See `qsdm.recipes.imatrix.importances`.

    Raises:
        RecipeError: it cannot be read, or is of another model.
    """
    from qsdm.denoisers.original_names import origins
    from qsdm.recipes import imatrix
    from qsdm.store.header import read_header

    model, graph = workspace.model, workspace.space.graph
    names: dict[str, str] = {}
    if model.file is not None:
        parts = read_header(model.file).parts
        names = origins(model, {name: entry.shape for name, entry in parts.items()})
    matched = imatrix.importances(graph, imatrix.read(Path(path).expanduser()), names)
    print(
        f"{path}: entries of {len(matched)} of {len(graph.weights)} weights; inputs of the others "
        "count alike"
    )
    return matched


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
