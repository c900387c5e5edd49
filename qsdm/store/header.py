"""Headers of safetensors files: which parts a file has, where they are, and their checksums.

Files that we write carry checksums in their metadata under ``xxh3_128``: first that of the rest of
the header, then those of the parts in the order of their names, 32 digits each. A reader compares
each part with its checksum when it first reads it. Files without checksums, as qsdm 0.1.0 wrote
them, are accepted.

References:
    https://huggingface.co/docs/safetensors: 8 bytes of the header's length, the header as JSON, the
        data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.graph import canonical
from qsdm.store.checksum import NUM_DIGITS, checksum
from qsdm.store.files import decode

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types by their names in safetensors, with their names in torch and numpy."""

NUMPY = {code: np.dtype(name) for code, name in DTYPES.items() if name != "bfloat16"}
"""The types that numpy has."""

ITEM_BYTES = {"BF16": 2} | {code: dtype.itemsize for code, dtype in NUMPY.items()}

CHECKSUMS = "xxh3_128"


@dataclass(frozen=True, slots=True)
class Entry:
    """One part as the header describes it.

    Attributes:
        dtype: its type by the name of safetensors.
        shape: of the tensor.
        data_offsets: its first byte and one after its last, counted from the end of the header.

    Raises:
        ValueError: a size or an offset is negative, or the bytes do not hold the shape.
    """

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def __post_init__(self) -> None:
        start, stop = self.data_offsets
        if min(self.shape, default=0) < 0 or not 0 <= start <= stop:
            raise ValueError(
                f"the shape {self.shape} or the offsets {self.data_offsets} are negative"
            )
        item = ITEM_BYTES.get(self.dtype)
        if item is not None and stop - start != math.prod(self.shape) * item:
            raise ValueError(
                f"{self.dtype} of shape {self.shape} does not take {stop - start} bytes"
            )


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        parts: by name.
        metadata: texts by name, without the checksums.
        start: of the data, in bytes from the beginning of the file.
        checksums: by name of a part; empty if the file carries none.
    """

    parts: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return self.start + max((e.data_offsets[1] for e in self.parts.values()), default=0)

    def check(self, key: str, data: bytes | memoryview) -> None:
        """Compare a part's bytes with its checksum, if there is one.

        Args:
            key: name of the part.
            data: its bytes.

        Raises:
            ValueError: they differ.
        """
        if key in self.checksums and checksum(data) != self.checksums[key]:
            raise damaged_part(key)


def damaged_part(key: str) -> ValueError:
    """The error about a part that does not match its checksum.

    Args:
        key: name of the part.
    """
    return ValueError(f"its part {key!r} was changed after it was written")


def read_header(path: Path, whole: bool = True) -> Header:
    """Read the header of a safetensors file.

    Args:
        path: the file.
        whole: require all bytes that the header describes.

    Raises:
        OSError: there is no such file.
        ValueError: it is truncated, damaged, or not a safetensors file.
    """
    with path.open("rb") as file:
        size, length = path.stat().st_size, file.read(8)
        start = 8 + struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        if not 8 < start <= size:
            raise ValueError("it has no safetensors header")
        raw = decode(file.read(start - 8), dict[str, Any])
    metadata = decode(raw.pop("__metadata__", {}), dict[str, str])
    parts = decode(raw, dict[str, Entry])
    digits = metadata.pop(CHECKSUMS, None)
    header = Header(parts, metadata, start)
    if whole and size != header.size_bytes:
        raise ValueError(f"wanted {header.size_bytes} bytes, got {size}")
    if digits is None:
        return header
    names = sorted(parts)
    own, *others = (digits[i : i + NUM_DIGITS] for i in range(0, len(digits), NUM_DIGITS))
    if len(others) != len(names) or own != checksum_of_header(parts, metadata):
        raise ValueError("its header was changed after it was written")
    return Header(parts, metadata, start, dict(zip(names, others, strict=True)))


def checksum_of_header(parts: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    """The checksum of a header without its checksums.

    Args:
        parts: by name.
        metadata: texts by name.
    """
    layout = {
        name: [entry.dtype, *entry.shape, *entry.data_offsets] for name, entry in parts.items()
    }
    return checksum(canonical([layout, dict(metadata)]))
