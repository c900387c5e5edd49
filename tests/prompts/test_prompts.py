"""Prompt sets: fair samples of their files, the same everywhere; one sentence for a file that is
none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_files import (
    NUM_CLASSES,
    NUM_MJHQ,
    NUM_PARTI,
    NUM_PICTURES,
    write,
    write_coco,
    write_imagenet,
    write_mjhq,
    write_parti,
)

from qsdm.prompts import Captions, Coco, ImageNet, Label, Mjhq, Parti, PromptsError

SETS: list[Any] = [
    pytest.param(Coco, write_coco, "annotations/captions_val2017.json", NUM_PICTURES, id="coco"),
    pytest.param(Mjhq, write_mjhq, "meta_data.json", NUM_MJHQ, id="mjhq"),
    pytest.param(Parti, write_parti, "PartiPrompts.tsv", NUM_PARTI, id="parti"),
    pytest.param(ImageNet, write_imagenet, "imagenet_class_index.json", NUM_CLASSES, id="imagenet"),
]
every_set = pytest.mark.parametrize(("kind", "writer", "name", "count"), SETS)
Writer = Callable[..., None]


@every_set
def test_every_entry_is_read_once(
    kind: Any, writer: Writer, name: str, count: int, tmp_path: Path
) -> None:
    writer(tmp_path)
    prompts = kind(str(tmp_path)).read()
    assert len(prompts) == len(set(prompts)) == count
    assert prompts == kind(str(tmp_path / name)).read(), "a folder or the file itself"
    assert all(str(prompt) == " ".join(str(prompt).split()) for prompt in prompts)


@every_set
def test_the_seed_alone_decides_the_order(
    kind: Any,
    writer: Writer,
    name: str,
    count: int,
    tmp_path: Path,
) -> None:
    writer(tmp_path)
    prompts = kind(str(tmp_path)).read()
    assert prompts == kind(str(tmp_path)).read()
    other = kind(str(tmp_path / name), seed=1).read()
    assert other != prompts
    assert len(other) == count
    if kind is not Coco:
        assert set(other) == set(prompts)


@every_set
def test_a_wrong_file_is_named_in_one_sentence(
    kind: Any, writer: Writer, name: str, count: int, tmp_path: Path
) -> None:
    file, wanted = (
        tmp_path / name,
        rf"give prompts\.path=FILE, .*, or the folder that contains {name}$",
    )

    def refused(words: str) -> None:
        with pytest.raises(PromptsError, match=f"(?s){words}.*{wanted}") as caught:
            kind(str(tmp_path)).read()
        assert str(file) in str(caught.value)

    refused("no prompts in .*No such file")
    writer(tmp_path, count - 2)
    refused(f"truncated or of another kind .{count - 2:,} .*, not {count:,}")
    writer(tmp_path)
    text = file.read_bytes()
    file.write_bytes(text[: len(text) // 2])
    refused("is truncated or of another kind")
    for other in (
        b"",
        b"[]",
        b"{}",
        b"[1, 2]",
        b'{"images": 3, "a": "b"}',
        b"\xff\xfe\x00",
        b"null",
        b"Prompt\tNote\n",
    ):
        file.write_bytes(other)
        refused("is truncated or of another kind")
    file.unlink()
    file.mkdir()
    with pytest.raises(PromptsError, match="no prompts in"):
        kind(str(tmp_path)).read()


def test_coco_gives_each_picture_one_of_its_captions(tmp_path: Path) -> None:
    write_coco(tmp_path)
    prompts = Coco(str(tmp_path)).read()
    pictures, captions = zip(
        *(prompt.removeprefix("Picture ").split(", caption ") for prompt in prompts), strict=True
    )
    assert sorted(map(int, pictures)) == list(range(NUM_PICTURES))
    counts = Counter(captions)
    assert set(counts) == {"0.", "1.", "2."}
    assert all(abs(count - NUM_PICTURES / 3) < 200 for count in counts.values())  # six deviations


def test_coco_needs_a_caption_for_every_picture_and_refuses_other_annotations(
    tmp_path: Path,
) -> None:
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "captions_val2017.json"
    data = json.loads(file.read_text())
    write(
        file,
        data | {"annotations": [entry for entry in data["annotations"] if entry["image_id"] != 7]},
    )
    with pytest.raises(PromptsError, match=r"4,999 captioned pictures, not 5,000"):
        Coco(str(tmp_path)).read()
    boxes = [
        {"id": entry["id"], "image_id": entry["image_id"], "bbox": []}
        for entry in data["annotations"]
    ]
    write(file, data | {"annotations": boxes})
    with pytest.raises(PromptsError, match="its entries have another form"):
        Coco(str(tmp_path)).read()


def test_the_first_prompts_are_a_sample_of_all(tmp_path: Path) -> None:
    """Not the first of the ten categories that the file is sorted by."""
    write_mjhq(tmp_path)
    counts = Counter(prompt.split(",")[0] for prompt in Mjhq(str(tmp_path)).read()[:1_000])
    assert len(counts) == 10
    assert all(abs(count - 100) < 60 for count in counts.values())


def test_quotation_marks_belong_to_the_prompts(tmp_path: Path) -> None:
    write_parti(tmp_path)
    assert all(prompt.startswith('"G I G G L E" painted') for prompt in Parti(str(tmp_path)).read())


def test_a_class_has_an_index_and_a_name(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    labels = ImageNet(str(tmp_path)).read()
    assert sorted(label.index for label in labels) == list(range(NUM_CLASSES))
    assert all(str(label) == f"class {label.index}" for label in labels if label.name != "crane")
    assert labels[:3] != sorted(labels[:3], key=lambda label: label.index)

    plain = {str(i): f"tench {i}, Tinca tinca" for i in range(NUM_CLASSES)}
    for data in (plain, {"_class_name": "DiTPipeline", "id2label": plain}):
        write(tmp_path / "model_index.json", data)
        found = ImageNet(str(tmp_path / "model_index.json")).read()
        assert Label(5, "tench 5, Tinca tinca") in found


def test_captions_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    write(file, ["b ", "a", ""])
    assert Captions(str(file)).read() == ["b ", "a", ""]
    for wrong in ([], {}, ["a", 3], "a"):
        write(file, wrong)
        with pytest.raises(
            PromptsError, match=r"give prompts\.path=FILE, a JSON list of one or more captions$"
        ):
            Captions(str(file)).read()
    with pytest.raises(PromptsError, match="no prompts in"):
        Captions(str(tmp_path / "missing.json")).read()
