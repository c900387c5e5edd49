"""safetensors files: larger than memory if need be, filled in any order, read or mapped.

`qsdm.store.header` describes the checksums that our files carry.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np

from qsdm.store.checksum import NUM_DIGITS, checksum, checksums, checksums_beside
from qsdm.store.files import StoreError, decode, replace
from qsdm.store.header import (
    CHECKSUMS,
    ITEM_BYTES,
    NUMPY,
    Entry,
    Header,
    checksum_of_header,
    damaged_part,
    read_header,
)
from qsdm.store.room import require_disk

_CHUNK_BYTES = 1 << 18  # hashed while it is still in the core's own caches
_BESIDE_BYTES = 1 << 21  # so large that handing it to a thread costs little; in the shared cache

T = TypeVar("T")
Part = tuple[str, tuple[int, ...]]
"""A type by its name in safetensors, and a shape."""


class TensorFile:
    """A file that is filled in any order, within a ``with`` block; every byte must be written.

    Args:
        path: the file, replaced if it exists.
        parts: type and shape by name.
        metadata: texts by name.

    Raises:
        NoRoom: the disk does not hold it.
        ValueError: a part is incomplete when the block ends without another error.
    """

    def __init__(self, path: Path, parts: Mapping[str, Part], metadata: Mapping[str, str]) -> None:
        self._parts: dict[str, Entry] = {}
        end = 0
        # Large types first: then all are aligned.
        for key in sorted(parts, key=lambda key: (-ITEM_BYTES[parts[key][0]], key)):
            dtype, shape = parts[key]
            start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
            self._parts[key] = Entry(dtype, tuple(shape), (start, end))
        self._metadata = dict(metadata)
        self._checksums: dict[str, str] = {}
        self._missing = {
            key: e.data_offsets[1] - e.data_offsets[0] for key, e in self._parts.items()
        }
        header = self._header()
        self._start = len(header)
        name = re.sub(r"^\.(.*)\.\d+\.partial$", r"\1", path.name)
        require_disk(f"writing {name}", self._start + end, path.parent)
        self._file = path.open("w+b")
        self._file.write(header)
        self._file.truncate(self._start + end)

    def _header(self) -> bytes:
        """The header's bytes, as many at any time: checksums that are not known yet are zeros."""
        zeros = "0" * NUM_DIGITS
        digits = checksum_of_header(self._parts, self._metadata) + "".join(
            self._checksums.get(name, zeros) for name in sorted(self._parts)
        )
        header: dict[str, object] = {"__metadata__": self._metadata | {CHECKSUMS: digits}}
        for key, entry in self._parts.items():
            header[key] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": list(entry.data_offsets),
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with self._file:
            if error is None:
                incomplete = [key for key, missing in self._missing.items() if missing > 0]
                if incomplete:
                    raise ValueError(f"{incomplete[0]!r} was not written completely")
                for key, entry in self._parts.items():
                    if key not in self._checksums:  # written in pieces, or not at all
                        chunks = _chunks(self._file, self._start, entry)
                        self._checksums[key] = _checksum_of(chunks)
                self._file.seek(0)
                self._file.write(self._header())

    @property
    def checksums(self) -> Mapping[str, str]:
        """Checksums of all parts by name, once the file is closed."""
        return dict(self._checksums)

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata by what was not known when the file was opened.

        Args:
            metadata: texts by name, encoded as long as those that they replace.

        Raises:
            ValueError: they are longer or shorter.
        """
        previous, self._metadata = self._metadata, dict(metadata)
        if len(self._header()) != self._start:
            self._metadata = previous
            raise ValueError("the metadata must be as long as those that they replace")

    def write(self, key: str, data: bytes | memoryview, offset: int = 0) -> None:
        """Write a part or a piece of it.

        Args:
            key: name of the part.
            data: contiguous bytes.
            offset: where they begin, in bytes from the beginning of the part.
        """
        start, stop = self._parts[key].data_offsets
        self._file.seek(self._start + start + offset)
        self._file.write(data)
        self._missing[key] -= memoryview(data).nbytes
        self._checksums.pop(key, None)
        if memoryview(data).nbytes == stop - start:
            self._checksums[key] = checksum(data)


def _chunks(
    file: BinaryIO,
    start: int,
    entry: Entry,
    into: memoryview | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Iterator[memoryview]:
    """The bytes of a part in pieces, read into the buffer ``into`` or, if None, a small one."""
    left = entry.data_offsets[1] - entry.data_offsets[0]
    buffer = memoryview(bytearray(min(chunk_bytes, left))) if into is None else into
    file.seek(start + entry.data_offsets[0])
    offset = 0
    while left:
        size = min(chunk_bytes, left)
        chunk = buffer[:size] if into is None else buffer[offset : offset + size]
        if not (count := file.readinto(chunk)):  # type: ignore[attr-defined]
            raise ValueError("it is truncated")
        yield chunk[:count]
        left, offset = left - count, offset + count


def _checksum_of(chunks: Iterator[memoryview]) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def map_tensor(path: Path, key: str) -> np.ndarray:
    """Map one part of a safetensors file after comparing it with its checksum.

    Args:
        path: the file.
        key: name of the part.

    Returns:
        An array whose changes stay in memory (copy on write).

    Raises:
        KeyError: there is no such part.
        OSError: the file cannot be read.
        ValueError: the file is damaged.
    """
    header = read_header(path)
    entry = header.parts[key]
    if key in header.checksums:
        with path.open("rb", buffering=0) as file:
            if _checksum_of(_chunks(file, header.start, entry)) != header.checksums[key]:
                raise damaged_part(key)
    start = header.start + entry.data_offsets[0]
    return np.memmap(path, NUMPY[entry.dtype], "c", start, entry.shape)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write arrays to a safetensors file.

    Args:
        path: the file, replaced if it exists.
        tensors: arrays by name, of the types in `qsdm.store.header.NUMPY`.
        about: an object that JSON can hold, stored beside them.

    Raises:
        StoreError: it cannot be written.
        ValueError: a number in ``about`` is not finite.
    """
    names = {dtype: code for code, dtype in NUMPY.items()}
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    parts = {name: (names[array.dtype], array.shape) for name, array in arrays.items()}

    def fill(partial: Path) -> None:
        with TensorFile(partial, parts, {"qsdm": json.dumps(about, allow_nan=False)}) as file:
            for name, array in arrays.items():
                file.write(name, array.reshape(-1).view(np.uint8).data)

    replace(path, fill)


def check_tensors(path: Path, remedy: str) -> None:
    """Compare every part of a file with its checksum.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the error message.

    Raises:
        StoreError: it is damaged.
    """
    try:
        header = read_header(path)
        with path.open("rb", buffering=0) as file:
            for key, entry in header.parts.items():
                actual = _checksum_of(_chunks(file, header.start, entry))
                if header.checksums.get(key, actual) != actual:
                    raise damaged_part(key)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): {remedy}") from error


@overload
def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...
@overload
def read_tensors(
    path: Path, kind: type[T], remedy: str = ...
) -> tuple[dict[str, np.ndarray], T]: ...
def read_tensors(
    path: Path, kind: Any = dict, remedy: str = "remove it and create it again"
) -> tuple[dict[str, np.ndarray], Any]:
    """The inverse of `write_tensors`.

    Args:
        path: the file.
        kind: type of ``about``, one that msgspec can decode.
        remedy: what to do about a damaged file, for the error message.

    Returns:
        The arrays by name, and ``about``.

    Raises:
        StoreError: it is damaged or was not written by qsdm.
    """
    try:
        header = read_header(path)
        if "qsdm" not in header.metadata:
            raise ValueError("it lacks the metadata that qsdm writes")
        about = decode(header.metadata["qsdm"].encode(), kind)
        return _load(path, header), about
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged or was not written by qsdm ({error}): {remedy}"
        ) from error


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file that any program may have written.

    Args:
        path: the file.

    Returns:
        The arrays by name, compared with their checksums if the file has any.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is damaged, or has a type that numpy lacks.
    """
    return _load(path, read_header(path))


def _load(path: Path, header: Header) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    beside = bool(header.checksums) and header.size_bytes > 2 * _BESIDE_BYTES

    def pieces(file: BinaryIO) -> Iterator[tuple[str, memoryview]]:
        for key, entry in header.parts.items():
            if entry.dtype not in NUMPY:
                raise ValueError(f"its part {key!r} has the unsupported type {entry.dtype}")
            array = arrays[key] = np.empty(entry.shape, NUMPY[entry.dtype])
            into = array.reshape(-1).view(np.uint8).data
            yield key, into[:0]  # an empty part has a checksum, too
            size = _BESIDE_BYTES if beside else _CHUNK_BYTES
            for chunk in _chunks(file, header.start, entry, into, size):
                yield key, chunk

    with path.open("rb", buffering=0) as file:
        if not header.checksums:
            deque(pieces(file), maxlen=0)
            return arrays
        actual = checksums_beside(pieces(file)) if beside else checksums(pieces(file))
    for key, digits in actual.items():
        if digits != header.checksums[key]:
            raise damaged_part(key)
    return arrays
