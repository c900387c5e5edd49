"""What pictures are drawn of: prompt sets, each read from a path that the user gives. ``conf/prompts`` names them.

The files of the data sets are sorted, by category, class or difficulty, and most protocols draw fewer pictures than
they have entries. So entries are ordered by a hash of seed and entry: the first N are a random sample, of each N and
on every machine the same.

References:
    Microsoft COCO Captions: Data Collection and Evaluation Server (Chen et al., 2015).
    Playground v2.5 (Li et al., 2024), section 3.4: MJHQ-30K.
    Scaling Autoregressive Models for Content-Rich Text-to-Image Generation (Yu et al., 2022), section 5: PartiPrompts.
    ImageNet Large Scale Visual Recognition Challenge (Russakovsky et al., 2015).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from qsdm.prompts.edits import Edit

Prompt: TypeAlias = "str | Label | Edit"
"""What one picture is drawn of."""


class PromptsError(ValueError):
    """A prompt set cannot be read; the message says which file it wants."""


@dataclass(frozen=True, slots=True)
class Label:
    """A class: pipelines that are conditioned on classes draw ``index``, all else (metrics, texts) takes ``name``."""

    index: int
    name: str

    def __str__(self) -> str:
        return self.name

    def to_json(self) -> list[Any]:
        return [self.index, self.name]


class Prompts(Protocol):
    """The contract of a prompt set, a frozen dataclass of a path and options."""

    def read(self) -> list[str] | list[Label] | list[Edit]:
        """Its prompts, one or more, in the order of the pictures.

        Raises:
            PromptsError: the file is missing, of another kind, truncated, or has the wrong number of entries.
        """
        ...


@dataclass(frozen=True, slots=True)
class Captions:
    """A JSON list of captions, in its own order.

    Attributes:
        path: the file.
    """

    path: str

    def read(self) -> list[str]:
        with reading(self.path, "a JSON list of one or more captions") as text:
            captions = json.loads(text)
            if not (
                isinstance(captions, list)
                and captions
                and all(isinstance(entry, str) for entry in captions)
            ):
                raise ValueError("it holds something else")
            return captions


@dataclass(frozen=True, slots=True)
class Coco:
    """COCO-2017's validation captions: one of the five or so of each of the 5,000 pictures.

    Attributes:
        path: folder that has ``annotations/captions_val2017.json``, or that file.
        seed: of the choice and the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[str]:
        with reading(
            self.path, "the captions_val2017.json of COCO 2017", "annotations/captions_val2017.json"
        ) as text:
            data = json.loads(text)
            captions: dict[int, dict[int, str]] = {picture["id"]: {} for picture in data["images"]}
            for entry in data["annotations"]:
                captions[entry["image_id"]][entry["id"]] = entry["caption"]
            _count([found for found in captions.values() if found], 5_000, "captioned pictures")
            chosen = [captions[picture] for picture in _shuffled(captions, self.seed)]
            return _texts(found[_shuffled(found, self.seed)[0]] for found in chosen)


@dataclass(frozen=True, slots=True)
class Mjhq:
    """MJHQ-30K: 3,000 prompts of each of ten categories.

    Attributes:
        path: folder that has ``meta_data.json``, or that file.
        seed: of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[str]:
        with reading(self.path, "the meta_data.json of MJHQ-30K", "meta_data.json") as text:
            data = json.loads(text)
            prompts = {name: data[name]["prompt"] for name in data}
            _count(prompts, 30_000, "prompts")
            return _texts(prompts[name] for name in _shuffled(prompts, self.seed))


@dataclass(frozen=True, slots=True)
class Parti:
    """PartiPrompts (P2): 1,632 prompts, from one word to a paragraph.

    Attributes:
        path: folder that has ``PartiPrompts.tsv``, or that file.
        seed: of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[str]:
        with reading(self.path, "the PartiPrompts.tsv of Parti", "PartiPrompts.tsv") as text:
            # Quotation marks belong to the prompts: this is no CSV.
            header, *rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
            if header != ["Prompt", "Category", "Challenge", "Note"]:
                raise ValueError("its columns are others")
            _count([row for row in rows if len(row) == len(header)], 1_632, "prompts")
            return _texts(_shuffled([row[0] for row in rows], self.seed))


@dataclass(frozen=True, slots=True)
class ImageNet:
    """ImageNet's 1,000 classes: a thousand pictures are one of each.

    Attributes:
        path: JSON file of names by index, as ``imagenet_class_index.json`` of Keras has them ({"0": ["n01440764",
            "tench"], ...}), or a folder that has it. Plain names by index and the ``id2label`` of a config do as well.
        seed: of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[Label]:
        with reading(
            self.path, "a JSON of ImageNet's 1,000 class names", "imagenet_class_index.json"
        ) as text:
            data = json.loads(text)
            data = data.get("id2label", data)
            _count(data, 1_000, "classes")
            given = [data[str(i)] for i in range(1_000)]
            names = _texts(name if isinstance(name, str) else name[1] for name in given)
            return [
                Label(i, names[i].replace("_", " ")) for i in _shuffled(range(1_000), self.seed)
            ]


@contextmanager
def reading(path: str, kind: str, name: str = "") -> Iterator[str]:
    """The text of a file, or of the one called ``name`` in a folder; what goes wrong with it becomes one sentence."""
    file = Path(path).expanduser()
    file = file / name if name and file.is_dir() else file
    remedy = f"give prompts.path=FILE, {kind}" + (
        f", or the folder that has {name}" if name else ""
    )
    try:
        yield file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptsError(f"no prompts in {file} ({error.strerror}): {remedy}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its entries are of another form"
        raise PromptsError(
            f"{file} is truncated or of another kind ({reason}): {remedy}"
        ) from error


def _count(found: Collection[Any], wanted: int, what: str) -> None:
    if len(found) != wanted:
        raise ValueError(f"{len(found):,} {what}, not {wanted:,}")


def _texts(found: Iterable[Any]) -> list[str]:
    """Prompts without the line breaks and doubled blanks that some have."""
    texts = [" ".join(text.split()) for text in found]
    if not all(texts):
        raise ValueError("a prompt is empty")
    return texts


def _shuffled(found: Iterable[Any], seed: int) -> list[Any]:
    """Numbers or texts in the order of their hashes."""
    return sorted(found, key=lambda entry: hashlib.sha256(f"{seed} {entry}".encode()).digest())
