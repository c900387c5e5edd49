"""kept: the same workers for one command after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from qsdm.engine import Pool, Start
from qsdm.engine.kept import kept
from qsdm.engine.serial import Serial


@dataclass
class Noted:
    """The serial engine, with notes of what was opened and closed."""

    notes: list[str] = field(default_factory=list)
    num_workers: int = 1

    @contextmanager
    def open(self, start: Start) -> Iterator[Pool]:
        self.notes.append("open")
        with Serial().open(start) as pool:
            try:
                yield pool
            finally:
                self.notes.append("close")


def add_to(base: int) -> Callable[[int], int]:
    return base.__add__


def test_the_same_workers_serve_every_command_that_starts_them_in_the_same_way() -> None:
    engine = Noted()
    with kept(engine) as shared:
        for base in (1, 1, 2, 2):
            with shared.open(functools.partial(add_to, base)) as pool:
                assert dict(pool.map([10, 20])) == {0: 10 + base, 1: 20 + base}
        assert engine.notes == ["open", "close", "open"]
    assert engine.notes == ["open", "close", "open", "close"]


def test_after_an_error_workers_start_afresh() -> None:
    engine, start = Noted(), functools.partial(add_to, 1)
    with kept(engine) as shared:
        with pytest.raises(KeyboardInterrupt), shared.open(start):
            raise KeyboardInterrupt
        assert engine.notes == ["open", "close"]
        with shared.open(start) as pool:
            assert dict(pool.map([1])) == {0: 2}
    assert engine.notes == ["open", "close", "open", "close"]


def test_nothing_is_started_that_is_not_asked_for() -> None:
    engine = Noted()
    with kept(engine) as shared:
        assert shared.num_workers == 1
    assert engine.notes == []
