"""safetensors: arrays by name with what is known of them, one part mapped, and files filled in any order, larger than
memory if need be.

References:
    https://huggingface.co/docs/safetensors: 8 bytes of the header's length, the header as JSON, the data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.store.files import StoreError, replace

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

Part = tuple[str, tuple[int, ...]]  # a type as safetensors spells it, and a shape


class TensorFile:
    """Opened for writing; what is never written stays zero.

    Args:
        path: made anew.
        parts: type and shape by name.
        metadata: texts by name.
    """

    def __init__(self, path: Path, parts: Mapping[str, Part], metadata: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._places: dict[str, int] = {}
        end = 0
        # Large types first: then all are aligned.
        for key in sorted(parts, key=lambda key: (-ITEM_BYTES[parts[key][0]], key)):
            dtype, shape = parts[key]
            start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            self._places[key] = start
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._start = 8 + len(text)
        self._file.truncate(self._start + end)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, key: str, data: bytes | memoryview, offset: int = 0) -> None:
        """``offset`` bytes after the part's first."""
        self._file.seek(self._start + self._places[key] + offset)
        self._file.write(data)


def map_tensor(path: Path, key: str) -> np.ndarray:
    """One part of a safetensors file, read when it is looked at; changes stay in memory.

    Raises:
        KeyError, OSError, ValueError: there is no such part, or the file is not complete.
    """
    with path.open("rb") as file:
        length = file.read(8)
        start = 8 + struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        if not 8 < start <= path.stat().st_size:
            raise ValueError("it has no header")
        entry = json.loads(file.read(start - 8))[key]
    first, last = entry["data_offsets"]
    if start + last > path.stat().st_size:
        raise ValueError("it is cut short")
    dtype = np.dtype({"U8": np.uint8, "F32": np.float32}[entry["dtype"]])
    return np.memmap(path, dtype, "c", start + first, tuple(entry["shape"]))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Arrays by name as safetensors; ``about`` is anything that JSON can hold."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    data = save(arrays, metadata={"qsdm": json.dumps(about, allow_nan=False)})
    replace(path, lambda partial: partial.write_bytes(data))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The inverse of `write_tensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["qsdm"])
            return {name: file.get_tensor(name) for name in list(file.keys())}, about
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged or not ours ({error}): remove it and make it again"
        ) from error
