"""safetensors: arrays by name with what is known of them, one part mapped, and files filled in any order, larger than
memory if need be.

Files that we write carry checksums in their metadata under ``xxh3_128``: that of the rest of the header, and then those
of the parts in the order of their names, 32 digits each. A reader compares each part with its checksum the first time
that it is read. Files without them, as version 0.1.0 wrote, are taken as they are.

References:
    https://huggingface.co/docs/safetensors: 8 bytes of the header's length, the header as JSON, the data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np

from qsdm.graph import canonical
from qsdm.store.checksum import NUM_DIGITS, checksum
from qsdm.store.files import StoreError, decode, replace

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Types as safetensors spells them; numpy has no bfloat16."""

CHECKSUMS = "xxh3_128"
_CHUNK_BYTES = 1 << 18  # hashed while it is still in the cores' caches

T = TypeVar("T")
Part = tuple[str, tuple[int, ...]]  # a type as safetensors spells it, and a shape


@dataclass(frozen=True, slots=True)
class Entry:
    """One part as the header describes it.

    Attributes:
        data_offsets: its first byte and one after its last, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def __post_init__(self) -> None:
        start, stop = self.data_offsets
        if min(self.shape, default=0) < 0 or not 0 <= start <= stop:
            raise ValueError(f"the shape {self.shape} or the place {self.data_offsets} is negative")
        item = ITEM_BYTES.get(self.dtype)
        if item is not None and stop - start != math.prod(self.shape) * item:
            raise ValueError(
                f"{self.dtype} of shape {self.shape} does not take {stop - start} bytes"
            )


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        parts: by name.
        metadata: texts by name, without the checksums.
        start: of the data, in bytes from the beginning of the file.
        checksums: by name; empty if the file carries none.
    """

    parts: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self.start + max((e.data_offsets[1] for e in self.parts.values()), default=0)

    def check(self, key: str, data: bytes | memoryview) -> None:
        """Compare a part's bytes with its checksum, if there is one.

        Raises:
            ValueError: they differ.
        """
        if key in self.checksums and checksum(data) != self.checksums[key]:
            raise ValueError(f"its part {key!r} is not as it was written")


def read_header(path: Path, whole: bool = True) -> Header:
    """The header of a safetensors file.

    Args:
        path: of the file.
        whole: the file must have all bytes that its header tells of.

    Raises:
        OSError: there is no such file.
        ValueError: it is cut short, damaged, or no safetensors file.
    """
    with path.open("rb") as file:
        size, length = path.stat().st_size, file.read(8)
        start = 8 + struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        if not 8 < start <= size:
            raise ValueError("it has no header of safetensors")
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
    if len(others) != len(names) or own != _header_checksum(parts, metadata):
        raise ValueError("its header is not as it was written")
    return Header(parts, metadata, start, dict(zip(names, others, strict=True)))


def _header_checksum(parts: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    places = {
        name: [entry.dtype, *entry.shape, *entry.data_offsets] for name, entry in parts.items()
    }
    return checksum(canonical([places, dict(metadata)]))


class TensorFile:
    """Opened for writing, in any order; every byte must be written.

    Args:
        path: made anew.
        parts: type and shape by name.
        metadata: texts by name.

    Raises:
        ValueError: a part is not whole when the block ends without another error.
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
        self._file = path.open("w+b")
        self._file.write(header)
        self._file.truncate(self._start + end)

    def _header(self) -> bytes:
        """The header's length never depends on what is written yet."""
        unknown = "0" * NUM_DIGITS
        digits = _header_checksum(self._parts, self._metadata) + "".join(
            self._checksums.get(name, unknown) for name in sorted(self._parts)
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
                if short := [key for key, missing in self._missing.items() if missing > 0]:
                    raise ValueError(f"{short[0]!r} was not written whole")
                for key, entry in self._parts.items():
                    if key not in self._checksums:  # written in pieces, or not at all
                        chunks = _chunks(self._file, self._start, entry)
                        self._checksums[key] = _checksum_of(chunks)
                self._file.seek(0)
                self._file.write(self._header())

    @property
    def checksums(self) -> Mapping[str, str]:
        """Of all parts by name, once the file is closed."""
        return dict(self._checksums)

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata, which were not known when the file was opened.

        Args:
            metadata: texts by name, together as long as the first ones.

        Raises:
            ValueError: they are longer or shorter.
        """
        before, self._metadata = self._metadata, dict(metadata)
        if len(self._header()) != self._start:
            self._metadata = before
            raise ValueError("the metadata are not as long as those that they replace")

    def write(self, key: str, data: bytes | memoryview, offset: int = 0) -> None:
        """``offset`` bytes after the part's first."""
        start, stop = self._parts[key].data_offsets
        self._file.seek(self._start + start + offset)
        self._file.write(data)
        self._missing[key] -= memoryview(data).nbytes
        self._checksums.pop(key, None)
        if memoryview(data).nbytes == stop - start:
            self._checksums[key] = checksum(data)


def _chunks(
    file: BinaryIO, start: int, entry: Entry, into: memoryview | None = None
) -> Iterator[memoryview]:
    """The bytes of a part, piece by piece, read into one buffer of its size or into a small one."""
    left = entry.data_offsets[1] - entry.data_offsets[0]
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, left))) if into is None else into
    file.seek(start + entry.data_offsets[0])
    place = 0
    while left:
        size = min(_CHUNK_BYTES, left)
        chunk = buffer[:size] if into is None else buffer[place : place + size]
        if not (count := file.readinto(chunk)):  # type: ignore[attr-defined]
            raise ValueError("it is cut short")
        yield chunk[:count]
        left, place = left - count, place + count


def _checksum_of(chunks: Iterator[memoryview]) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def map_tensor(path: Path, key: str) -> np.ndarray:
    """One part of a safetensors file, compared with its checksum and mapped; changes stay in memory.

    Raises:
        KeyError, OSError, ValueError: there is no such part, or the file is damaged.
    """
    header = read_header(path)
    entry = header.parts[key]
    if key in header.checksums:
        with path.open("rb", buffering=0) as file:
            if _checksum_of(_chunks(file, header.start, entry)) != header.checksums[key]:
                raise ValueError(f"its part {key!r} is not as it was written")
    start = header.start + entry.data_offsets[0]
    return np.memmap(path, np.dtype(NUMPY[entry.dtype]), "c", start, entry.shape)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Arrays by name as safetensors; ``about`` is anything that JSON can hold."""
    names = {np.dtype(kind): name for name, kind in NUMPY.items()}
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    parts = {name: (names[array.dtype], array.shape) for name, array in arrays.items()}

    def fill(partial: Path) -> None:
        with TensorFile(partial, parts, {"qsdm": json.dumps(about, allow_nan=False)}) as file:
            for name, array in arrays.items():
                file.write(name, array.reshape(-1).view(np.uint8).data)

    replace(path, fill)


def check_tensors(path: Path, remedy: str) -> None:
    """Compare every part of a file with its checksum.

    Raises:
        StoreError: it is damaged; ``remedy`` says what to do.
    """
    try:
        header = read_header(path)
        with path.open("rb", buffering=0) as file:
            for key, entry in header.parts.items():
                found = _checksum_of(_chunks(file, header.start, entry))
                if header.checksums.get(key, found) != found:
                    raise ValueError(f"its part {key!r} is not as it was written")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): {remedy}") from error


@overload
def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...
@overload
def read_tensors(
    path: Path, kind: type[T], remedy: str = ...
) -> tuple[dict[str, np.ndarray], T]: ...
def read_tensors(
    path: Path, kind: Any = dict, remedy: str = "remove it and make it again"
) -> tuple[dict[str, np.ndarray], Any]:
    """The inverse of `write_tensors`.

    Args:
        kind: what is known of the arrays, as a type that msgspec can read.
        remedy: what to do about a damaged file, for the error.

    Raises:
        StoreError: it is damaged or not ours.
    """
    try:
        header = read_header(path)
        if "qsdm" not in header.metadata:
            raise ValueError("it lacks what qsdm says of its files")
        about = decode(header.metadata["qsdm"].encode(), kind)
        return _load(path, header), about
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged or not ours ({error}): {remedy}") from error


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that anybody may have written, compared with their checksums if it has any.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    return _load(path, read_header(path))


def _load(path: Path, header: Header) -> dict[str, np.ndarray]:
    arrays = {}
    with path.open("rb", buffering=0) as file:
        for key, entry in header.parts.items():
            if entry.dtype not in NUMPY:
                raise ValueError(f"its part {key!r} is of the type {entry.dtype}")
            array: np.ndarray = np.empty(entry.shape, NUMPY[entry.dtype])
            into = array.reshape(-1).view(np.uint8).data
            found = _checksum_of(_chunks(file, header.start, entry, into))
            if header.checksums.get(key, found) != found:
                raise ValueError(f"its part {key!r} is not as it was written")
            arrays[key] = array
    return arrays
