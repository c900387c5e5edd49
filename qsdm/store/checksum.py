"""Checksums that artifacts carry, so that a flipped bit is told instead of computed with.

xxh3_128: faster than memory, and as good as chance at telling damage apart. It guards against damage, not against
forgers.

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


def checksum(data: bytes | memoryview) -> str:
    """32 hexadecimal digits."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def checksum_of_file(path: Path) -> str:
    """Of all bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    import xxhash

    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(1 << 18))
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold, with the checksum of its canonical text under `KEY`."""
    return {**content, KEY: checksum(canonical(content))}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether the content is what its checksum says, or carries none."""
    bare = {key: value for key, value in content.items() if key != KEY}
    return KEY not in content or content[KEY] == checksum(canonical(bare))
