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
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from tqdm import tqdm

from qsdm.cost import MethodTable, TableFile
from qsdm.graph import Graph, Weight, canonical
from qsdm.log import Log, ignore
from qsdm.qconfig import QuantMethod, Space
from qsdm.quant.fitting import VERSION, Fitted, dequantize, fit_all, layout
from qsdm.quant.quantized import Quantized
from qsdm.quant.rows import sharing
from qsdm.quant.swap import sliced
from qsdm.store import StoreError
from qsdm.store.checksum import NUM_DIGITS, checksum
from qsdm.store.files import decode, replace
from qsdm.store.header import read_header
from qsdm.store.provenance import provenance
from qsdm.store.tensors import TensorFile, read_tensors, write_tensors

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
    source: str = "",
) -> MethodTable:
    """Quantizes every weight with every method on offer for it; writes table.safetensors and weights.safetensors.

    Both hold a digest of the very values that were read.

    Args:
        tensors: the denoiser's parameters by name.
        path: a directory; made if need be.
        error: what the table's first column of errors holds, which all later stages read: ``relative``, one definition
            for every method, or ``paper``, the paper's release's (see `qsdm.quant.fitting.Fitted`).
        source: digest of the files that ``tensors`` reads, by which later stages know them without reading them.

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

    shapes = {weight.name: weight.shape for weight in weights}
    digests = dict.fromkeys(shapes, "0" * NUM_DIGITS)  # as long as those that take their place

    def metadata() -> dict[str, str]:
        about = {"schema": SCHEMA, "version": VERSION, "shapes": shapes, "digests": digests}
        return {"qsdm": json.dumps(about)}

    def fill(partial: Path) -> None:
        with TensorFile(partial, parts, metadata()) as file:
            for done, (i, fits, digest) in enumerate(_fits(tensors, space), 1):
                digests[weights[i].name] = digest
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
            file.describe(metadata())

    replace(path / "weights.safetensors", fill)
    fitted = checksum(canonical(digests))
    names = tuple(weight.name for weight in weights)
    table = MethodTable(names, methods, errors, sizes, norms, fitted, source)
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
        "fitted": fitted,
        "source": source,
    }
    write_tensors(
        path / "table.safetensors",
        {"rel_error": errors, "size_bytes": sizes, "norm_error": norms},
        about,
    )
    return table


def _fits(
    tensors: Callable[[str], torch.Tensor], space: Space
) -> Iterator[tuple[int, dict[QuantMethod, Fitted], str]]:
    """Index, fits and digest of every weight as they come, two weights at a time if torch has two threads or more."""
    workers = min(2, torch.get_num_threads())

    def made(i: int) -> tuple[int, dict[QuantMethod, Fitted], str]:
        weight = space.graph.weights[i]
        with sharing(workers):
            tensor = _read(tensors, weight)
            try:
                return i, fit_all(tensor, space.options[i]), digest_of(tensor)
            except ValueError as error:
                raise ValueError(f"{weight.parameter}: {error}") from error

    waiting: set[Future[tuple[int, dict[QuantMethod, Fitted], str]]] = set()
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
            about.get("fitted", ""),
            about.get("source", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path / 'table.safetensors'} is no table of methods ({error}): "
            "run python -m qsdm.calibrate again"
        ) from error


class PackedFile(TypedDict):
    """What the file of packed weights says beside its arrays.

    Attributes:
        version: of the algorithms that fitted; shapes: by the weight's name; digests: of the values that were
            quantized, by the weight's name (none in files of qsdm 0.1.0).
    """

    schema: str
    version: str
    shapes: dict[str, tuple[int, ...]]
    digests: NotRequired[dict[str, str]]


class OtherWeights(StoreError):
    """What was quantized is not what pictures are drawn with; the message says how to quantize that."""


def digest_of(tensor: torch.Tensor) -> str:
    """xxh3_128 of a tensor's values in float32, whatever type they are stored in.

    Args:
        tensor: of any shape and floating-point type.
    """
    if tensor.dtype == torch.float32:
        return checksum(bytes_of(tensor))
    import xxhash

    state = xxhash.xxh3_128()  # in pieces that stay in the caches: ten times as fast
    for piece in tensor.detach().reshape(-1).split(1 << 18):
        state.update(bytes_of(piece.float()))
    return state.hexdigest()


def fitted_digest(tensors: Callable[[str], torch.Tensor], graph: Graph) -> str:
    """Digest of all weights, as `MethodTable.fitted` has it.

    Args:
        tensors: parameters by name.
        graph: of the space.

    Raises:
        ValueError: a parameter is not what the graph says.
    """
    digests = {weight.name: digest_of(_read(tensors, weight)) for weight in graph.weights}
    return checksum(canonical(digests))


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
        self._digests = about.get("digests")

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

    def require(self, tensors: Callable[[str], torch.Tensor], graph: Graph) -> None:
        """Compare what was quantized with what is going to be drawn with, bit by bit, by digests.

        Args:
            tensors: the denoiser's parameters by name, in full precision.
            graph: of the space.

        Raises:
            OtherWeights: a value differs, or the file does not tell from what it was made.
        """
        remedy = f"run python -m qsdm.calibrate +model={graph.denoiser}"
        if self._digests is None:
            raise OtherWeights(
                f"{self.path} does not tell which weights it was made from, as files of qsdm 0.1.0: {remedy} again"
            )
        for weight in graph.weights:
            for name in (weight.parameter, *weight.ties):
                values = sliced(tensors(name), weight)
                if digest_of(values) != self._digests.get(weight.name):
                    raise OtherWeights(
                        f"{self.path}: {name} was quantized from other weights of {graph.denoiser!r}: {remedy}"
                    )

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
