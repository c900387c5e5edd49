"""Checksums of artifacts: a flipped bit is reported instead of computed with.

xxh3_128 is faster than memory and detects accidental damage as well as any 128-bit hash. It does
not protect against forgery. Large files are hashed on a thread while the caller reads on, which
costs no time where a core is idle.

References:
    https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md: XXH3, 128 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
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


def checksums(pieces: Iterable[tuple[str, memoryview]]) -> dict[str, str]:
    """The checksums of several parts.

    Args:
        pieces: name of a part, and the next of its bytes; those of a part follow one another.

    Returns:
        `NUM_DIGITS` hexadecimal digits by name, in the order of the parts.
    """
    import xxhash

    states: dict[str, Any] = {}
    for name, piece in pieces:
        if name not in states:
            states[name] = xxhash.xxh3_128()
        states[name].update(piece)
    return {name: state.hexdigest() for name, state in states.items()}


def checksums_beside(pieces: Iterable[tuple[str, memoryview]]) -> dict[str, str]:
    """As `checksums`, computed on a thread while ``pieces`` goes on to the next.

    Args:
        pieces: see `checksums`; bytes that stay as they are until this returns.

    Returns:
        See `checksums`.
    """
    queue: SimpleQueue[tuple[str, memoryview] | None] = SimpleQueue()
    with ThreadPoolExecutor(1, "checksums") as executor:
        result = executor.submit(checksums, iter(queue.get, None))  # type: ignore[arg-type]
        try:
            for piece in pieces:
                queue.put(piece)
        finally:
            queue.put(None)
        return result.result()


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
