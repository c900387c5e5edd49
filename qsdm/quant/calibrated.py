"""What `qsdm.quant.calibration` wrote: the table of methods, and packed weights, read on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from qsdm.graph import Graph
from qsdm.qconfig import QuantMethod, Space
from qsdm.qconfig.cost import MethodTable, TableFile
from qsdm.quant.decoding import dequantize
from qsdm.quant.digests import bytes_of, digest_of
from qsdm.quant.placement import Placement
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import sliced
from qsdm.store import StoreError
from qsdm.store.files import decode
from qsdm.store.header import read_header
from qsdm.store.tensors import read_tensors

SCHEMA = "qsdm/calibration/1"
TABLE = "table.safetensors"
WEIGHTS = "weights.safetensors"


def read_table(path: Path) -> MethodTable:
    """Read the table of methods.

    Args:
        path: the directory that `qsdm.quant.calibration.calibrate` wrote.

    Raises:
        StoreError: it is missing, damaged or was not written by qsdm.
    """
    arrays, about = read_tensors(path / TABLE, TableFile, "run python -m qsdm.calibrate again")
    try:
        if about["schema"] != SCHEMA:
            raise ValueError(f"wanted schema {SCHEMA!r}, got {about['schema']!r}")
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
            f"{path / TABLE} is not a table of methods ({error}): "
            "run python -m qsdm.calibrate again"
        ) from error


def require_full_bits(table: MethodTable, space: Space) -> None:
    """Refuse a table whose sizes count scales and centroids of another width.

    Args:
        table: of a calibration.
        space: whose ``full_bits`` the model has now.

    Raises:
        StoreError: they differ; the message says what to do.
    """
    weights = space.graph.weights
    if not weights or table.weights[:1] != (weights[0].name,):
        return  # of another trace, of which others tell
    offered = set(space.options[0])
    for method, counted in zip(table.methods, table.size_bytes[0].tolist(), strict=True):
        if method not in offered:
            continue
        wanted = method.size_bits(weights[0], space.full_bits) // 8
        if counted != wanted:
            raise StoreError(
                f"calibrated with other full_bits than the model's {space.full_bits} "
                f"({weights[0].name} as {method} took {counted:,} bytes, and takes {wanted:,}): "
                "run python -m qsdm.calibrate again, or give the earlier model.full_bits"
            )


class PackedFile(TypedDict):
    """Metadata of the file of packed weights.

    Attributes:
        schema: its name and version.
        version: of the algorithms that fitted.
        shapes: of the weights, by name.
        digests: of the values that were quantized, by the weight's name; missing in files of qsdm
            0.1.0.
    """

    schema: str
    version: str
    shapes: dict[str, tuple[int, ...]]
    digests: NotRequired[dict[str, str]]


def fitted_version(path: Path) -> str:
    """What decided the codes beside the weights, see `qsdm.quant.calibration.version_of`.

    Args:
        path: the directory that `qsdm.quant.calibration.calibrate` wrote.

    Raises:
        StoreError: the file is missing, damaged or was not written by qsdm.
    """
    return PackedWeights(path).version


class OtherWeights(StoreError):
    """Other weights were quantized than those that draw pictures; the message says what to do."""


class PackedWeights:
    """All quantized versions of a denoiser's weights, memory-mapped and read on demand.

    Args:
        path: the directory that `qsdm.quant.calibration.calibrate` wrote.

    Raises:
        StoreError: the file is missing, damaged or was not written by qsdm.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        self._parts: dict[tuple[str, str], list[str]] = {}
        self._checked: set[str] = set()
        self._placement = Placement()
        try:
            self._header = read_header(self.path / WEIGHTS)
            about = decode(self._header.metadata["qsdm"].encode(), PackedFile)
            if about["schema"] != SCHEMA:
                raise ValueError(f"wanted schema {SCHEMA!r}, got {about['schema']!r}")
            for key in self._header.parts:
                name, method, part = key.rsplit("|", 2)
                self._parts.setdefault((name, method), []).append(part)
            self._file = safe_open(self.path / WEIGHTS, "pt")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise self._damaged(error) from error
        self.version: str = about["version"]
        self._shapes = about["shapes"]
        self._digests = about.get("digests")

    def __reduce__(self) -> tuple[type[PackedWeights], tuple[Path]]:
        return PackedWeights, (self.path,)  # another process maps the file itself

    def __contains__(self, key: tuple[str, QuantMethod]) -> bool:
        return (key[0], str(key[1])) in self._parts

    def quantized(self, name: str, method: QuantMethod) -> Quantized:
        """One weight as one method stores it.

        Args:
            name: of the weight.
            method: a method that the space offers for it.

        Raises:
            StoreError: it was not calibrated with this method, or the file is damaged.
        """
        if (parts := self._parts.get((name, str(method)))) is None:
            raise StoreError(
                f"{self.path} has no {method} of {name!r}: "
                "run python -m qsdm.calibrate with a space that offers it"
            )
        tensors = {part: self._tensor(f"{name}|{method}|{part}") for part in parts}
        return Quantized(method, self._shapes[name], tensors.pop("codes"), tensors)

    def require(self, tensors: Callable[[str], torch.Tensor], graph: Graph) -> None:
        """Require that exactly these weights were quantized, by their digests.

        Args:
            tensors: the denoiser's parameters by name, in full precision.
            graph: of the space.

        Raises:
            OtherWeights: a value differs, or the file has no digests.
        """
        remedy = f"run python -m qsdm.calibrate +model={graph.denoiser}"
        if self._digests is None:
            raise OtherWeights(
                f"{self.path} does not record which weights were quantized, like all files of "
                f"qsdm 0.1.0: {remedy} again"
            )
        for weight in graph.weights:
            for name in (weight.parameter, *weight.ties):
                values = sliced(tensors(name), weight)
                if digest_of(values) != self._digests.get(weight.name):
                    raise OtherWeights(
                        f"{self.path}: {name} was quantized from other weights of "
                        f"{graph.denoiser!r}: {remedy}"
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
            f"{self.path / WEIGHTS} is missing, damaged or not a file of packed weights ({error}): "
            "run python -m qsdm.calibrate again"
        )

    def dequantize(
        self, name: str, method: QuantMethod, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The values of a weight under a method.

        Args:
            name: of the weight.
            method: a method that the space offers for it.
            out: see `qsdm.quant.decoding.dequantize`; on a GPU, the codes are brought there.

        Returns:
            ``out``, or new float32 values ``[out, in, *kernel]`` on the CPU.

        Raises:
            StoreError: see `quantized`.
        """
        device = torch.device("cpu") if out is None else out.device
        codes = self._placement.on(device, name, method, lambda: self.quantized(name, method))
        return dequantize(codes, out)

    def release(self) -> bool:
        """Give back the memory that codes take on GPUs, to which they are streamed from now on.

        Returns:
            Whether there was any.
        """
        return self._placement.release()
