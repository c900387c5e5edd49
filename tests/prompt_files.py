"""Files of published prompt sets, made up: as large and of the same form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
