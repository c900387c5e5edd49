"""memo: files that are written again only if something changed."""

from __future__ import annotations

from pathlib import Path

from qsdm.store.memo import recall, remember


def test_recalls_until_something_changes(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (folder / "part").mkdir(parents=True)
    file = folder / "part" / "a.txt"
    assert recall(folder, "x") is None  # nothing was remembered
    file.write_text("a")
    remember(folder, "x", {"bytes": 1})
    assert recall(folder, "x") == {"bytes": 1}
    assert recall(folder, "y") is None
    file.write_text("ab")
    assert recall(folder, "x") is None
    remember(folder, "x", {"bytes": 2})
    (folder / "more.txt").touch()
    assert recall(folder, "x") is None
    (folder / "more.txt").unlink()
    assert recall(folder, "x") == {"bytes": 2}
    file.unlink()
    assert recall(folder, "x") is None


def test_a_damaged_memo_is_as_good_as_none(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    remember(folder, "x", {"bytes": 1})
    memo = tmp_path / "made.json"
    for damaged in (memo.read_text().replace('"x"', '"y"'), "", "[]"):
        memo.write_text(damaged)
        assert recall(folder, "y") is recall(folder, "x") is None
