"""Sizes, durations and tables as people read them."""

from __future__ import annotations

import pytest

from qsdm.text import duration, size, table


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 Bytes"),
        (999, "999 Bytes"),
        (1000, "1 kB"),
        (1_696_864, "1.7 MB"),
        (7_777_024, "7.78 MB"),
        (999_600, "1 MB"),
        (15_300_000_000, "15.3 GB"),
    ],
)
def test_a_size_has_three_digits(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1, "1 second"),
        (89, "1 minute and 29 seconds"),
        (2534, "42 minutes"),
        (5017, "1 hour and 24 minutes"),
        (30_000, "8 hours and 20 minutes"),
        (300_000, "3 days and 11 hours"),
    ],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_are_as_wide_as_their_cells_and_names_are_no_numbers() -> None:
    lines = table(["method", "bytes", "error"], [["1e5", 2_014_352, 0.5], ["uaq-4", 1, None]])
    first, second, third = lines.splitlines()
    assert second.startswith("1e5 ")
    assert second.endswith("2,014,352   0.5000")
    assert third.endswith("1        -")
    assert len(first) == len(second) == len(third)


def test_numbers_of_the_first_column_have_their_format() -> None:
    lines = table(["bits", "bytes"], [[3.0041805194377695, 1_460_224], ["3.50", 1]], (".3f", ""))
    assert [line.split() for line in lines.splitlines()[1:]] == [
        ["3.004", "1,460,224"],
        ["3.50", "1"],
    ]


def test_a_table_without_rows_is_its_heads() -> None:
    assert table(["method", "bytes"], []).split() == ["method", "bytes"]


def test_texts_that_look_like_numbers_are_shown_as_they_are() -> None:
    shown = table(["", "a"], [["x", "+0.50"], ["y", None]], are_texts=True)
    assert [line.split() for line in shown.splitlines()] == [["a"], ["x", "+0.50"], ["y", "-"]]
