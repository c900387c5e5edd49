"""Importance matrices of stable-diffusion.cpp."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.recipes import RecipeError
from qsdm.recipes.imatrix import importances, read

GRAPH = Graph(
    "toy",
    tuple(
        Node(weight.name, Op.LINEAR, weight=weight)
        for weight in (
            Weight("a", "a.weight", (4, 3)),
            Weight("b#0", "b.weight", (4, 2)),
            Weight("b#1", "b.weight", (4, 3), start=2),
            Weight("c", "c.weight", (4, 3, 3, 3)),
        )
    ),
    (),
)
A, B = np.float32([1, 0, 4]), np.float32([5, 6, 7, 8, 9])


def packed(entries: dict[str, np.ndarray], calls: int = 8) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        parts += [
            struct.pack("<i", len(name)),
            name.encode(),
            struct.pack("<ii", calls, len(values)),
        ]
        parts.append((values * calls).astype("<f4").tobytes())
    return b"".join([*parts, struct.pack("<i", calls)])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_entries_are_matched_by_names(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(packed({f"{prefix}a.weight": A, f"{prefix}b.weight": B}))
    matched = importances(GRAPH, read(path), {})
    assert {name: values.tolist() for name, values in matched.items()} == {
        "a": [1, 0, 4],
        "b#0": [5, 6],
        "b#1": [7, 8, 9],
    }
    path.write_bytes(packed({f"{prefix}layers.0": A}))
    assert list(importances(GRAPH, read(path), {"a.weight": "layers.0"})) == ["a"]


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    data = packed({"a.weight": B})
    no_values = data[:16] + struct.pack("<ii", 8, -1) + data[24:]
    for damaged in (b"", data[:20], data[:4] + b"\xff" * 8, no_values, packed({"a.weight": -A})):
        path.write_bytes(damaged)
        with pytest.raises(
            RecipeError, match=r"imatrix\.dat is damaged or no imatrix\.dat|no weight"
        ):
            importances(GRAPH, read(path), {})
    path.write_bytes(b"GGUF" + data)
    with pytest.raises(RecipeError, match="--output-format dat"):
        read(path)
    with pytest.raises(RecipeError, match="No such file"):
        read(tmp_path / "none.dat")
    path.write_bytes(packed({"a.weight": A[:2]}))
    with pytest.raises(RecipeError, match=r"'a\.weight' has 2 input channels, but 'a' has 3"):
        importances(GRAPH, read(path), {})
    path.write_bytes(packed({"other.weight": A}))
    with pytest.raises(RecipeError, match=r"no weight of 'toy' .* got 'other\.weight'"):
        importances(GRAPH, read(path), {})
