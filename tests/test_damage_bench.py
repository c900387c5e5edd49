"""A few damaged copies of each artifact: the short form of experiments/bench/damage.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fabricated_store import fabricate

from experiments.bench import damage
from qsdm.report import results
from qsdm.store import Store
from qsdm.store.__main__ import main

NAMES = (
    "graph.json",
    "outcomes.sqlite",
    "chosen.json",
    "summary.json",
    "search/traced.json",
    "sensitivity/traced.json",
    "sensitivity/traced-certificate.json",
    "predictor/traced/report.json",
    "calibration/traced/table.safetensors",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fabricate(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_never_drawn_from_damaged_data_without_a_word(store: Store, name: str) -> None:
    def read() -> object:
        found = results.read(store)
        return [getattr(found, field) for field in type(found).__slots__]

    case = damage.Case(name, store.path(name), read)
    expected, whole = damage.flat(read()), case.path.read_bytes()
    answers = []
    try:
        for i in range(6):
            done = damage.damage(case.path, random.Random(f"{name} {i}"))
            answers.append((*damage.answer(case, expected), done))
            damage.restore(case.path, whole)
    finally:
        damage.restore(case.path, whole)
    assert {kind for kind, _, _ in answers} <= {"sentence", "harmless"}, answers
    assert damage.flat(read()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("num", [10, pytest.param(90, marks=pytest.mark.soak)])
def test_damaged_copies_of_every_artifact_of_a_real_store(tmp_path: Path, num: int) -> None:
    damage.build(tmp_path / "bench")
    counts = damage.run(tmp_path / "bench", num=num, seed=7)
    assert {kind for _, kind in counts} <= {"sentence", "harmless"}, counts
    assert sum(counts.values()) == num
    assert damage.run(tmp_path / "bench", num=num, seed=7) == counts  # nothing is done again


def test_the_check_of_a_store_names_what_is_damaged(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m qsdm.store FOLDER``."""
    folder = store.path("graph.json").parent
    assert main([str(folder)]) == 0
    assert f"{folder}: {len(NAMES)} artifacts, 0 damaged" in capsys.readouterr().out
    for name in NAMES:
        whole = store.path(name).read_bytes()
        store.path(name).write_bytes(whole[: len(whole) // 2])
        try:
            assert main([str(folder)]) == 1
        finally:
            damage.restore(store.path(name), whole)
        told = capsys.readouterr().out
        assert str(store.path(name)) in told
        assert "run python -m qsdm." in told
    assert main([str(folder)]) == 0
