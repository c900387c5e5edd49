"""Damage is reported: a flipped bit anywhere in an artifact is an error, or changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.store import Store, StoreError
from qsdm.store.artifacts import Artifact, typed
from qsdm.store.checksum import is_whole
from qsdm.store.files import decode, write_json
from qsdm.store.header import read_header
from qsdm.store.schemas import CHOSEN, GRAPH
from qsdm.store.tensors import TensorFile, map_tensor, read_tensors, write_tensors

GRAPH_OF_TWO = Graph(
    "toy",
    (
        Node("in", Op.INPUT),
        Node("a", Op.LINEAR, weight=Weight("a", "a.weight", (4, 8)), depth=1.0),
    ),
    ((0, 1),),
)


class Score(TypedDict):
    name: str
    values: dict[str, float]


ONE = '{"schema": "qsdm/score/1", %s}'
SCORE: Artifact[Score] = Artifact("qsdm/score/1", "train", typed(Score))


Json = dict[str, Any]


def weight(graph: Json) -> Json:
    return graph["nodes"][1]["weight"]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_flipped_bits_of_a_json_artifact_are_told_or_change_nothing(tmp_path: Path) -> None:
    path, content = tmp_path / "score.json", {"name": "gnn", "values": {"srcc": 0.5}}
    SCORE.write(path, content)
    whole, messages = path.read_bytes(), list[str]()
    for bit in range(0, 8 * len(whole), 5):
        flip(path, bit)
        try:
            assert SCORE.read(path) == content
        except StoreError as error:
            messages.append(str(error))
        path.write_bytes(whole)
    assert all(text.startswith(f"{path} is damaged (") for text in messages)
    assert all(text.endswith("run python -m qsdm.train again") for text in messages)
    assert len(messages) > len(
        whole
    )  # of 8 / 5; what is left: spaces, letters of the checksum's key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "qsdm/score/2"}', r"wanted schema 'qsdm/score/1', got 'qsdm/score/2'"),
        ("[]", "wanted an object, got list"),
        (ONE % '"name": 1, "values": {}', r"wanted `str`, got `int` at `\$\.name`"),
        (ONE % '"name": ""', "missing required field `values`"),
        (ONE % '"name": "", "values": {"a": NaN}', "malformed"),
        (ONE % '"name": "", "values": {"a": 1e999}', "out of range"),
        (ONE % '"name": "", "values": {"a": null}', r"got `null` at `\$\.values"),
        ("[" * 100_000, "nested too deeply"),
        ("", "truncated"),
        ('{"schema": "\xff"}', "utf-8"),
    ],
)  # fmt: skip
def test_wrong_json_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "score.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=message) as caught:
        SCORE.read(path, "toy")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("run python -m qsdm.train +model=toy again")


def test_what_the_schema_refuses_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted `str`, got `int`"):
        SCORE.write(tmp_path / "score.json", {"name": 1, "values": {}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        SCORE.write(tmp_path / "score.json", {"name": "", "values": {"a": float("nan")}})
    assert not list(tmp_path.iterdir())


def test_files_of_the_first_version_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "graph.json", GRAPH_OF_TWO.to_json())
    assert GRAPH.read(tmp_path / "graph.json") == GRAPH_OF_TWO
    from safetensors.numpy import save_file

    save_file({"x": np.arange(3.0)}, tmp_path / "a.safetensors", {"qsdm": json.dumps({"a": 1})})
    arrays, about = read_tensors(tmp_path / "a.safetensors")
    assert arrays["x"].tolist() == [0, 1, 2]
    assert about == {"a": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["edges"].append([1, 0]), "topologically sorted"),
        (lambda g: g["edges"].append([0, 7]), "topologically sorted"),
        (lambda g: g["edges"].append([0, 1.5]), r"wanted `int`, got `float` at `\$\.edges\[1\]"),
        (lambda g: g["edges"].append([0]), r"at `\$\.edges\[1\]`"),
        (lambda g: g["nodes"][0].update(name="a"), "names must be unique"),
        (lambda g: g["nodes"][0].update(op="none"), r"'none' at `\$\.nodes\[0\]\.op`"),
        (lambda g: weight(g).update(shape=[4, 0]), r"positive sizes.*at `\$\.nodes\[1\]\.weight`"),
        (lambda g: weight(g).pop("shape"), "missing required field `shape`"),
        (lambda g: g["nodes"][0].update(macs=-1), r"not negative.*at `\$\.nodes\[0\]`"),
        (lambda g: g["nodes"][0].update(depth=1e300), r"depth from 0 to 1"),
        (lambda g: g["nodes"][0].update(weight=weight(g) | {"start": 1}), "two weights are called"),
        (lambda g: g.update(nodes={}), r"wanted `array`, got `object` at `\$\.nodes`"),
    ],
)  # fmt: skip
def test_a_damaged_graph_names_the_field(
    tmp_path: Path, change: Callable[[Json], object], message: str
) -> None:
    """Also where there is no checksum, as in stores of version 0.1.0."""
    data = json.loads(json.dumps(GRAPH_OF_TWO.to_json()))
    change(data)
    store = Store(tmp_path, "toy")
    write_json(store.path("graph.json"), data)
    with pytest.raises(StoreError, match=message) as caught:
        store.graph()
    assert str(caught.value).endswith("run python -m qsdm.trace +model=toy again")


def test_a_configuration_changed_by_hand_is_taken_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, chosen = tmp_path / "chosen.json", QuantConfig("toy", {"a": QuantMethod("uaq", 4)})
    CHOSEN.write(path, chosen.to_json())
    path.write_text(path.read_text().replace("uaq-4", "uaq-3"))
    assert CHOSEN.read(path).methods == {"a": QuantMethod("uaq", 3)}
    assert f"{path} was edited after it was written" in capsys.readouterr().err
    path.write_text(path.read_text().replace("uaq-3", "uaq-99"))
    with pytest.raises(StoreError, match="has 2, 3, 4, 5, 6, 7, 8 bits"):
        CHOSEN.read(path)


def test_a_checksum_ignores_how_json_is_laid_out(tmp_path: Path) -> None:
    SCORE.write(tmp_path / "a.json", {"name": "é", "values": {"b": 0.1, "a": 1e-300}})
    data = json.loads((tmp_path / "a.json").read_text())
    assert is_whole(data)
    assert is_whole(dict(reversed(data.items())))
    assert not is_whole(data | {"name": "e"})
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(data, ensure_ascii=False))
    assert SCORE.read(tmp_path / "a.json")["name"] == "é"


def test_flipped_bits_of_tensors_are_told_or_change_nothing(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.safetensors", {"x": np.arange(6.0), "y": np.arange(3) > 1}
    write_tensors(path, arrays, {"mean": 0.5})
    whole = path.read_bytes()
    header_bits, messages = 8 * read_header(path).start, list[str]()
    for bit in range(0, 8 * len(whole), 5):
        flip(path, bit)
        try:
            arrays_read, about = read_tensors(
                path, remedy="run python -m qsdm.calibrate again", kind=dict
            )
            assert bit < header_bits, "data is compared bit by bit"
            assert about == {"mean": 0.5}
            assert all(np.array_equal(arrays_read[name], arrays[name]) for name in arrays)
            assert arrays_read.keys() == arrays.keys()
        except StoreError as error:
            messages.append(str(error))
        path.write_bytes(whole)
    assert all(text.endswith("run python -m qsdm.calibrate again") for text in messages)


def test_parts_written_in_pieces_in_any_order_have_their_checksums(tmp_path: Path) -> None:
    path, data = tmp_path / "a.safetensors", np.random.default_rng(0).bytes(600_000)
    parts = {"pieces": ("U8", (600_000,)), "whole": ("F32", (2,)), "never": ("I64", (2, 0, 3))}
    with TensorFile(path, parts, {"a": "b"}) as file:
        file.write("pieces", data[400_000:], 400_000)
        file.write("whole", np.float32([1, 2]).tobytes())
        file.write("pieces", data[:400_000])
    header = read_header(path)
    assert header.metadata == {"a": "b"}
    for key, part in (
        ("pieces", data),
        ("whole", np.float32([1, 2]).tobytes()),
        ("never", b""),
    ):
        header.check(key, part)
    assert map_tensor(path, "pieces").tobytes() == data
    from safetensors.numpy import load_file

    assert load_file(path)["pieces"].tobytes() == data  # the library reads what we write
    flip(path, 8 * (header.start + 100_000))
    assert map_tensor(path, "whole").tolist() == [1, 2]
    with pytest.raises(ValueError, match="part 'pieces' was changed after it was written"):
        map_tensor(path, "pieces")


@pytest.mark.parametrize("size", [0, 3, 8, 20, -1])
def test_cut_tensors_are_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": np.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreError, match=r"a\.safetensors is damaged or was not written by qsdm"):
        read_tensors(path)


def test_decoding_says_where() -> None:
    with pytest.raises(ValueError, match=r"wanted `int`, got `str` at `\$\[1\]`"):
        decode(b'[1, "2"]', list[int])
