"""Prompt sets: fair samples of their files, the same everywhere; one sentence for a file that is none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsdm.prompts import Captions, Coco, ImageNet, Label, Mjhq, Parti, PromptsError

NUM_PICTURES, NUM_MJHQ, NUM_PARTI, NUM_CLASSES = 5_000, 30_000, 1_632, 1_000


def write_coco(folder: Path, num_pictures: int = NUM_PICTURES) -> None:
    """Three captions per picture, sorted by picture; with a line break at the end, as some have."""
    pictures = [{"id": 7 * i, "file_name": f"{7 * i:012}.jpg"} for i in range(num_pictures)]
    captions = [
        {"id": 10 * i + j, "image_id": 7 * i, "caption": f"Picture {i},  caption {j}.\n"}
        for i in range(num_pictures)
        for j in range(3)
    ]
    (folder / "annotations").mkdir(exist_ok=True)
    write(
        folder / "annotations" / "captions_val2017.json",
        {"images": pictures, "annotations": captions},
    )


def write_mjhq(folder: Path, num_prompts: int = NUM_MJHQ) -> None:
    """Sorted by category."""
    categories = [f"category {i}" for i in range(10)]
    entries = {
        f"{i:040x}": {
            "category": categories[i * 10 // num_prompts],
            "prompt": f"{categories[i * 10 // num_prompts]}, {i}",
        }
        for i in range(num_prompts)
    }
    write(folder / "meta_data.json", entries)


def write_parti(folder: Path, num_prompts: int = NUM_PARTI) -> None:
    """With quotation marks, as some prompts have them."""
    rows = [f'"G I G G L E" painted {i} times\tArtifacts\tBasic\t' for i in range(num_prompts)]
    text = "\n".join(["Prompt\tCategory\tChallenge\tNote", *rows, ""])
    (folder / "PartiPrompts.tsv").write_text(text, encoding="utf-8")


def write_imagenet(folder: Path, num_classes: int = NUM_CLASSES) -> None:
    """As in ImageNet, two classes have the same name."""
    names = {
        str(i): [f"n{i:08}", "crane" if i in (134, 517) else f"class_{i}"]
        for i in range(num_classes)
    }
    write(folder / "imagenet_class_index.json", names)


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


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
    kind: Any, writer: Writer, name: str, count: int, tmp_path: Path
) -> None:
    writer(tmp_path)
    prompts = kind(str(tmp_path)).read()
    assert prompts == kind(str(tmp_path)).read()
    other = kind(str(tmp_path), seed=1).read()
    assert other != prompts
    if kind is not Coco:
        assert set(other) == set(prompts)


@every_set
def test_a_wrong_file_is_named_in_one_sentence(
    kind: Any, writer: Writer, name: str, count: int, tmp_path: Path
) -> None:
    file, wanted = tmp_path / name, rf"give prompts\.path=FILE, .*, or the folder that has {name}$"

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
    with pytest.raises(PromptsError, match="its entries are of another form"):
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
