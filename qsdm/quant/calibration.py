"""Calibration: quantize a denoiser's weights by all methods of a space, and write the errors.

At most two weights are in memory at a time, and the packed versions of a few more. The packed
versions go to a safetensors file with keys ``NAME|METHOD|part``. The sizes of all parts follow from
the shapes, so its header is written first, and the parts in the order in which they are fitted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qsdm.graph import canonical
from qsdm.qconfig import QuantMethod, Space
from qsdm.qconfig.cost import MethodTable
from qsdm.quant.calibrated import SCHEMA, TABLE, WEIGHTS
from qsdm.quant.decoding import layout
from qsdm.quant.digests import bytes_of, digest_of, values_of
from qsdm.quant.fitting import VERSION, Fitted, fit_all
from qsdm.quant.methods import METHODS
from qsdm.quant.rows import sharing
from qsdm.store.checksum import NUM_DIGITS, checksum
from qsdm.store.files import replace
from qsdm.store.header import DTYPES
from qsdm.store.provenance import provenance
from qsdm.store.tensors import TensorFile, write_tensors
from qsdm.text import Log, ignore

ERRORS = ("relative", "weighted", "paper")
_MAX_PENDING = 6  # weights that are being quantized, or wait, packed, to be written
SAFETENSORS = {getattr(torch, name): code for code, name in DTYPES.items()}
"""Names of types in safetensors, by torch's types."""


def calibrate(
    tensors: Callable[[str], torch.Tensor],
    space: Space,
    path: Path,
    log: Log = ignore,
    error: str = "relative",
    source: str = "",
    importances: Mapping[str, np.ndarray] | None = None,
) -> MethodTable:
    """Quantize every weight by every method that the space offers for it.

    Writes table.safetensors and weights.safetensors, both with a digest of the values that were
    read.

    Args:
        tensors: the denoiser's parameters by name.
        space: the methods on offer for every weight; bits of inputs are left aside.
        path: the directory to write to; it is made if need be.
        log: called with the errors of each weight.
        error: which error all later stages read: ``relative``, defined alike for every method;
            ``weighted`` by ``importances``; or ``paper``, that of the paper's release (see
            `qsdm.quant.fitting.Fitted`).
        source: digest of the files that ``tensors`` reads, by which later stages recognize them
            without reading them.
        importances: mean square of each input channel, float32 [in], by the name of a weight; all
            inputs of a weight that is missing are alike.

    Returns:
        The table of errors and sizes, as it was written.

    Raises:
        ValueError: there is no such error; a parameter does not fit the graph or contains NaN; the
            values of tied parameters differ.
        StoreError: a file cannot be written.
    """
    require_error(error)
    offered = {"offered": [str(m) for m in space.methods]} if space.rounds_inputs else {}
    space = space.of_weights
    version = version_of(space, importances)
    weights, methods = space.graph.weights, space.methods
    errors, norms = (np.full((len(weights), len(methods)), np.nan) for _ in range(2))
    sizes = np.array(
        [
            [method.size_bits(weight, space.full_bits) // 8 for method in methods]
            for weight in weights
        ]
    )
    parts = {
        f"{weight.name}|{method}|{part}": (SAFETENSORS[kind[0]], kind[1])
        for weight, offered in zip(weights, space.options, strict=True)
        for method in offered
        for part, kind in layout(method, weight.shape).items()
    }

    shapes = {weight.name: weight.shape for weight in weights}
    digests = dict.fromkeys(shapes, "0" * NUM_DIGITS)  # as long as the digests to come

    def metadata() -> dict[str, str]:
        about = {"schema": SCHEMA, "version": version, "shapes": shapes, "digests": digests}
        return {"qsdm": json.dumps(about)}

    def fill(partial: Path) -> None:
        with TensorFile(partial, parts, metadata()) as file:
            for num_done, (i, fits, digest) in enumerate(
                _fits(tensors, space, importances or {}), 1
            ):
                digests[weights[i].name] = digest
                for method, fitted in fits.items():
                    for part, stored in fitted.quantized.parts.items():
                        file.write(f"{weights[i].name}|{method}|{part}", bytes_of(stored))
                    column = methods.index(method)
                    errors[i, column] = {
                        "relative": fitted.rel_error,
                        "weighted": fitted.weighted_error,
                        "paper": fitted.paper_error,
                    }[error]
                    norms[i, column] = fitted.norm_error
                log(
                    {"calibrate/weights": num_done}
                    | {
                        f"calibrate/error/{method}": errors[i, methods.index(method)]
                        for method in fits
                    }
                )
            file.describe(metadata())

    replace(path / WEIGHTS, fill)
    fitted_digest = checksum(canonical(digests))
    names = tuple(weight.name for weight in weights)
    table = MethodTable(names, methods, errors, sizes, norms, fitted_digest, source)
    about = {
        "schema": SCHEMA,
        "version": version,
        "graph": space.graph.digest,
        "provenance": provenance(),
        "error": error,
        "weights": table.weights,
        "methods": [str(method) for method in methods],
        "fitted": fitted_digest,
        "source": source,
        **offered,
    }
    write_tensors(
        path / TABLE,
        {"rel_error": errors, "size_bytes": sizes, "norm_error": norms},
        about,
    )
    return table


def require_error(error: str) -> None:
    """Check the name of an error.

    Args:
        error: see `calibrate`.

    Raises:
        ValueError: there is no such error.
    """
    if error not in ERRORS:
        raise ValueError(f"wanted the error 'relative', 'weighted' or 'paper' (got {error!r})")


def version_of(space: Space, importances: Mapping[str, np.ndarray] | None) -> str:
    """What decides the codes beside the weights: the algorithms, and inputs if they are weighted.

    Args:
        space: of the methods.
        importances: see `calibrate`.

    Returns:
        The version, of the same length for the same kind of methods.
    """
    if importances is None or not any(METHODS[m.name].is_weighted for m in space.methods):
        return VERSION
    digests = {name: checksum(array.tobytes()) for name, array in importances.items()}
    return f"{VERSION}-{checksum(canonical(digests))[:12]}"


def _fits(
    tensors: Callable[[str], torch.Tensor],
    space: Space,
    importances: Mapping[str, np.ndarray],
) -> Iterator[tuple[int, dict[QuantMethod, Fitted], str]]:
    """Index, fits and digest of every weight as they are finished.

    Two weights are quantized at a time if torch has two threads or more.
    """
    workers = min(2, torch.get_num_threads())

    def fit_weight(i: int) -> tuple[int, dict[QuantMethod, Fitted], str]:
        weight = space.graph.weights[i]
        with sharing(workers):
            tensor = values_of(tensors, weight)
            try:
                own = importances.get(weight.name)
                return i, fit_all(tensor, space.options[i], own), digest_of(tensor)
            except ValueError as error:
                raise ValueError(f"{weight.parameter}: {error}") from error

    pending: set[Future[tuple[int, dict[QuantMethod, Fitted], str]]] = set()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in tqdm(range(len(space.options)), "calibrate", disable=None, unit="weight"):
                pending.add(pool.submit(fit_weight, i))
                if len(pending) == _MAX_PENDING:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(pending))
        finally:
            pool.shutdown(cancel_futures=True)
