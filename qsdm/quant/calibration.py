"""Streams a denoiser's weights through the methods of a space: a table of errors and sizes, all versions in a file.

At most two weights at a time are in memory, and the packed versions of a few more. The file is safetensors with keys
``NAME|METHOD|part``; as the sizes of all parts follow from the shapes, its header comes first and the parts as they are
made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from tqdm import tqdm

from qsdm.cost import MethodTable, TableFile
from qsdm.graph import Weight
from qsdm.log import Log, ignore
from qsdm.qconfig import QuantMethod, Space
from qsdm.quant.fitting import VERSION, Fitted, dequantize, fit_all, layout
from qsdm.quant.quantized import Quantized
from qsdm.quant.rows import sharing
from qsdm.quant.swap import sliced
from qsdm.store import StoreError
from qsdm.store.files import decode, replace
from qsdm.store.provenance import provenance
from qsdm.store.tensors import TensorFile, read_header, read_tensors, write_tensors

SCHEMA = "qsdm/calibration/1"
_AHEAD = 6  # weights that are quantized or wait, packed, to be written
SAFETENSORS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types as safetensors spells them."""


def calibrate(
    tensors: Callable[[str], torch.Tensor],
    space: Space,
    path: Path,
    log: Log = ignore,
    error: str = "relative",
) -> MethodTable:
    """Quantizes every weight with every method on offer for it; writes table.safetensors and weights.safetensors.

    Args:
        tensors: the denoiser's parameters by name.
        path: a directory; made if need be.
        error: what the table's first column of errors holds, which all later stages read: ``relative``, one definition
            for every method, or ``paper``, the paper's release's (see `qsdm.quant.fitting.Fitted`).

    Raises:
        ValueError: there is no such error; a parameter is not what the graph says or holds NaN; tied parameters differ.
    """
    if error not in ("relative", "paper"):
        raise ValueError(f"wanted the error 'relative' or 'paper' (got {error!r})")
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

    def fill(partial: Path) -> None:
        shapes = {weight.name: weight.shape for weight in weights}
        about = json.dumps({"schema": SCHEMA, "version": VERSION, "shapes": shapes})
        with TensorFile(partial, parts, {"qsdm": about}) as file:
            for done, (i, fits) in enumerate(_fits(tensors, space), 1):
                for method, fitted in fits.items():
                    for part, stored in fitted.quantized.parts.items():
                        file.write(f"{weights[i].name}|{method}|{part}", bytes_of(stored))
                    column = methods.index(method)
                    errors[i, column] = (
                        fitted.rel_error if error == "relative" else fitted.paper_error
                    )
                    norms[i, column] = fitted.norm_error
                log(
                    {"calibrate/weights": done}
                    | {
                        f"calibrate/error/{method}": errors[i, methods.index(method)]
                        for method in fits
                    }
                )

    replace(path / "weights.safetensors", fill)
    table = MethodTable(tuple(weight.name for weight in weights), methods, errors, sizes, norms)
    about = {
        "schema": SCHEMA,
        "version": VERSION,
        "graph": space.graph.digest,
        "provenance": provenance(),
    }
    about |= {
        "error": error,
        "weights": table.weights,
        "methods": [str(method) for method in methods],
    }
    write_tensors(
        path / "table.safetensors",
        {"rel_error": errors, "size_bytes": sizes, "norm_error": norms},
        about,
    )
    return table


def _fits(
    tensors: Callable[[str], torch.Tensor], space: Space
) -> Iterator[tuple[int, dict[QuantMethod, Fitted]]]:
    """Index and fits of every weight as they come, two weights at a time if torch has two threads or more."""
    workers = min(2, torch.get_num_threads())

    def made(i: int) -> tuple[int, dict[QuantMethod, Fitted]]:
        weight = space.graph.weights[i]
        with sharing(workers):
            tensor = _read(tensors, weight)
            try:
                return i, fit_all(tensor, space.options[i])
            except ValueError as error:
                raise ValueError(f"{weight.parameter}: {error}") from error

    waiting: set[Future[tuple[int, dict[QuantMethod, Fitted]]]] = set()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in tqdm(range(len(space.options)), "calibrate", disable=None, unit="weight"):
                waiting.add(pool.submit(made, i))
                if len(waiting) == _AHEAD:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(waiting))
        finally:
            pool.shutdown(cancel_futures=True)


def read_table(path: Path) -> MethodTable:
    """The table that `calibrate` wrote into the directory ``path``.

    Raises:
        StoreError: it is damaged or not ours.
    """
    arrays, about = read_tensors(
        path / "table.safetensors", TableFile, "run python -m qsdm.calibrate again"
    )
    try:
        if about["schema"] != SCHEMA:
            raise ValueError(f"schema {about['schema']!r}, wanted {SCHEMA!r}")
        methods = tuple(map(QuantMethod.parse, about["methods"]))
        return MethodTable(
            tuple(about["weights"]),
            methods,
            arrays["rel_error"],
            arrays["size_bytes"],
            arrays.get("norm_error"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path / 'table.safetensors'} is no table of methods ({error}): "
            "run python -m qsdm.calibrate again"
        ) from error


class PackedFile(TypedDict):
    """What the file of packed weights says beside its arrays.

    Attributes:
        version: of the algorithms that fitted; shapes: by the weight's name.
    """

    schema: str
    version: str
    shapes: dict[str, tuple[int, ...]]


class PackedWeights:
    """All quantized versions of a denoiser's weights, mapped from the file that `calibrate` wrote, read when asked for.

    Args:
        path: the directory.

    Raises:
        StoreError: the file is missing, damaged or not ours.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        self._parts: dict[tuple[str, str], list[str]] = {}
        self._checked: set[str] = set()
        try:
            self._header = read_header(self.path / "weights.safetensors")
            about = decode(self._header.metadata["qsdm"].encode(), PackedFile)
            if about["schema"] != SCHEMA:
                raise ValueError(f"schema {about['schema']!r}, wanted {SCHEMA!r}")
            for key in self._header.parts:
                name, method, part = key.rsplit("|", 2)
                self._parts.setdefault((name, method), []).append(part)
            self._file = safe_open(self.path / "weights.safetensors", "pt")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise self._damaged(error) from error
        self.version: str = about["version"]
        self._shapes = about["shapes"]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, (self.path,)  # another process maps the file anew

    def __contains__(self, key: tuple[str, QuantMethod]) -> bool:
        return (key[0], str(key[1])) in self._parts

    def quantized(self, name: str, method: QuantMethod) -> Quantized:
        """Raises StoreError if this weight was not calibrated with this method."""
        if (parts := self._parts.get((name, str(method)))) is None:
            raise StoreError(
                f"{self.path} holds no {method} of {name!r}: run calibrate with a space that offers it"
            )
        found = {part: self._tensor(f"{name}|{method}|{part}") for part in parts}
        return Quantized(method, self._shapes[name], found.pop("codes"), found)

    def _tensor(self, key: str) -> torch.Tensor:
        """A part, compared with its checksum when this process first reads it."""
        tensor = self._file.get_tensor(key)
        if key not in self._checked:
            try:
                self._header.check(key, bytes_of(tensor))
            except ValueError as error:
                raise self._damaged(error) from error
            self._checked.add(key)
        return tensor

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path / 'weights.safetensors'} is no whole store of packed weights ({error}): "
            "run python -m qsdm.calibrate again"
        )

    def dequantize(
        self, name: str, method: QuantMethod, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Float32 values of the weight under the method; into ``out``, if given."""
        return dequantize(self.quantized(name, method), out)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor as they lie in memory."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _read(tensors: Callable[[str], torch.Tensor], weight: Weight) -> torch.Tensor:
    """The weight's slice of its parameter, on the CPU, contiguous; tied parameters must hold the same values."""
    found = [tensors(name).cpu() for name in (weight.parameter, *weight.ties)]
    slices = [sliced(tensor, weight).contiguous() for tensor in found]
    if tuple(slices[0].shape) != weight.shape:
        raise ValueError(
            f"wanted {weight.name!r} of shape {weight.shape} (got {tuple(found[0].shape)}): "
            "weights and graph are of different models"
        )
    for name, other in zip(weight.ties, slices[1:], strict=True):
        if not torch.equal(slices[0], other) and all(one.isfinite().all() for one in slices):
            raise ValueError(
                f"{name!r} is tied to {weight.parameter!r}, but holds other values: "
                "remove it from the model's tied list"
            )
    return slices[0]
