"""Memory and disk that a stage takes are asked for before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsdm.store import room
from qsdm.store.room import NoRoom, require_disk, require_memory
from qsdm.store.tensors import TensorFile


def test_a_file_that_the_disk_does_not_hold_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_disk", lambda _folder: 10_000)
    with TensorFile(tmp_path / "small.safetensors", {"x": ("U8", (1_000,))}, {}) as file:
        file.write("x", bytes(1_000))
    with pytest.raises(NoRoom, match=r"writing x\.safetensors takes .* kB of disk, and 10 kB are"):
        TensorFile(tmp_path / ".x.safetensors.7.partial", {"x": ("F32", (2_500,))}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


def test_the_disk_of_a_folder_that_will_be_made_is_known(tmp_path: Path) -> None:
    free = room.free_disk(tmp_path / "a" / "b")
    assert free is not None
    require_disk("nothing", 0, tmp_path / "a" / "b")
    with pytest.raises(NoRoom, match=r"are free at .*b: free some space or choose another store="):
        require_disk("too much", 2 * free + 10**15, tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("workers", "advice"), [(1, None), (2, "give engine.num_workers=1"), (4, "num_workers=1")]
)
def test_as_many_workers_as_have_memory_are_advised(
    monkeypatch: pytest.MonkeyPatch, workers: int, advice: str | None
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 15 * 10**9)
    if advice is None:
        require_memory("drawing", 10 * 10**9, workers)
        return
    needs = f"{10 * workers} GB of memory .10 GB for each of {workers} workers., and 15 GB are"
    with pytest.raises(NoRoom, match=f"{needs}.*{advice}"):
        require_memory("drawing", 10 * 10**9, workers)


def test_where_not_even_one_fits_another_advice_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 9)
    with pytest.raises(NoRoom, match=r"at least 10 Bytes of memory, and 9 Bytes .* or close it"):
        require_memory("drawing", 10, 1, "close it")
    monkeypatch.setattr(room, "free_memory", lambda: None)  # unknown: nothing is refused
    require_memory("drawing", 10**18)


def test_a_container_may_be_allowed_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   5000 kB\n", encoding="ascii")
    monkeypatch.setattr(room, "MEMINFO", meminfo)
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert room.free_memory() == 5_120_000
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 7\n", encoding="ascii")
    for limit, free in (("max", 5_120_000), ("3000", 2000), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
        assert room.free_memory() == free
