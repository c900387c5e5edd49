"""Checksums of artifacts: a flipped bit is reported instead of computed with.

xxh3_128 is faster than memory and detects accidental damage as well as any 128-bit hash. It does
not protect against forgery.

References:
    https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md: XXH3, 128 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.graph import canonical

KEY = "checksum"
NUM_DIGITS = 32
_CHUNK_BYTES = 1 << 18  # hashed while it is still in the cores' caches


def checksum(data: bytes | memoryview) -> str:
    """The checksum of bytes in memory.

    Args:
        data: any number of bytes.

    Returns:
        `NUM_DIGITS` hexadecimal digits.
    """
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def checksum_of_file(path: Path) -> str:
    """The checksum of all bytes of a file.

    Args:
        path: the file.

    Returns:
        `NUM_DIGITS` hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    import xxhash

    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum of the content's canonical JSON under `KEY`.

    Args:
        content: an object that JSON can hold.
    """
    return {**content, KEY: checksum(canonical(content))}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether the content matches its checksum, or carries none.

    Args:
        content: what `with_checksum` returned, or an object without a checksum.
    """
    bare = {key: value for key, value in content.items() if key != KEY}
    return KEY not in content or content[KEY] == checksum(canonical(bare))
