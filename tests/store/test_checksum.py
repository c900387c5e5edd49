"""Checksums on a thread: the same values, every error arrives, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qsdm.store.checksum import checksum, checksums, checksums_beside
from qsdm.store.header import read_header
from qsdm.store.tensors import load_tensors, write_tensors

Pieces = Iterator[tuple[str, memoryview]]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("checksums"):
            thread.join(10)
            assert not thread.is_alive()


def pieces(fail_after: int = -1) -> Pieces:
    data = np.random.default_rng(0).bytes(1 << 20)
    for number in range(8):
        if number == fail_after:
            raise ValueError("it is truncated")
        yield f"part {number // 3}", memoryview(data)[number * 1000 : number * 100_000]
    yield "empty", memoryview(b"")


def test_pieces_have_the_checksum_of_the_whole() -> None:
    whole: dict[str, bytes] = {}
    for name, piece in pieces():
        whole[name] = whole.get(name, b"") + bytes(piece)
    expected = {name: checksum(data) for name, data in whole.items()}
    assert checksums(pieces()) == checksums_beside(pieces()) == expected
    assert list(checksums_beside(pieces())) == ["part 0", "part 1", "part 2", "empty"]


@pytest.mark.parametrize("compute", [checksums, checksums_beside])
def test_what_is_raised_between_pieces_arrives(compute: object) -> None:
    for number in (0, 5):
        with pytest.raises(ValueError, match="truncated"):
            compute(pieces(fail_after=number))  # type: ignore[operator]


def test_what_is_raised_by_hashing_arrives() -> None:
    def wrong() -> Iterator:
        yield "a", memoryview(b"1")
        yield "a", "text"
        yield from pieces()

    with pytest.raises(TypeError):
        checksums_beside(wrong())


@pytest.mark.parametrize("num_values", [1000, 1_500_000])  # 12 MB: hashed on a thread
def test_a_flipped_bit_of_any_part_is_told_by_its_name(tmp_path: Path, num_values: int) -> None:
    path, values = tmp_path / "a.safetensors", np.arange(num_values, dtype=np.float32)
    tensors = {"first": values, "none": values[:0], "second": values[::-1].copy()}
    write_tensors(path, tensors, {})
    whole, header = path.read_bytes(), read_header(path)
    for name in ("first", "second"):
        for place in (0, -1):
            data = bytearray(whole)
            data[header.start + header.parts[name].data_offsets[bool(place)] + place] ^= 4
            path.write_bytes(data)
            with pytest.raises(ValueError, match=f"its part '{name}' was changed"):
                load_tensors(path)
    path.write_bytes(whole)
    for name, array in load_tensors(path).items():
        np.testing.assert_array_equal(array, tensors[name])
