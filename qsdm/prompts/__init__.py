"""Prompt sets: what pictures are drawn of, one file each. ``conf/prompts`` lists them.

The files of the data sets are sorted by category, class or difficulty, and most protocols draw
fewer pictures than there are entries. So entries are ordered by a hash of seed and entry: for every
N, the first N are a random sample, the same one on every machine.

References:
    Microsoft COCO Captions: Data Collection and Evaluation Server (Chen et al., 2015).
    Playground v2.5 (Li et al., 2024), section 3.4: MJHQ-30K.
    Scaling Autoregressive Models for Content-Rich Text-to-Image Generation (Yu et al., 2022), §5.
    ImageNet Large Scale Visual Recognition Challenge (Russakovsky et al., 2015).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from qsdm.prompts.edits import Edit

T = TypeVar("T", int, str)

Prompt: TypeAlias = "str | Label | Edit"
"""What one picture is drawn of."""


class PromptsError(ValueError):
    """A prompt set cannot be read; the message says which file is needed."""


@dataclass(frozen=True, slots=True)
class Label:
    """A class of ImageNet or another data set.

    Attributes:
        index: what class-conditional pipelines draw.
        name: what everything else takes, such as metrics and reports.
    """

    index: int
    name: str

    def __str__(self) -> str:
        return self.name

    def to_json(self) -> list[Any]:
        """What decides the drawing: index and name."""
        return [self.index, self.name]


class Prompts(Protocol):
    """The contract of a prompt set, a frozen dataclass of a path and options."""

    def read(self) -> list[str] | list[Label] | list[Edit]:
        """Read the prompts.

        Returns:
            One or more, in the order of the pictures.

        Raises:
            PromptsError: the file is missing, truncated, of another kind, or has the wrong number
                of entries.
        """
        ...


@dataclass(frozen=True, slots=True)
class Captions:
    """A JSON list of captions, in its own order.

    Attributes:
        path: the file.

    Example:
        >>> from pathlib import Path
        >>> from qsdm.prompts import Captions
        >>> _ = Path("captions.json").write_text('["a red house", "two small fish"]')
        >>> Captions("captions.json").read()
        ['a red house', 'two small fish']
    """

    path: str

    def read(self) -> list[str]:
        """Read the prompts (see `Prompts.read`)."""
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
    """The validation captions of COCO 2017: one of about five for each of the 5,000 pictures.

    Attributes:
        path: folder that contains ``annotations/captions_val2017.json``, or that file.
        seed: of the choice and of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[str]:
        """Read the prompts (see `Prompts.read`)."""
        with reading(
            self.path, "the captions_val2017.json of COCO 2017", "annotations/captions_val2017.json"
        ) as text:
            data = json.loads(text)
            captions: dict[int, dict[int, str]] = {picture["id"]: {} for picture in data["images"]}
            for entry in data["annotations"]:
                captions[entry["image_id"]][entry["id"]] = entry["caption"]
            _count([texts for texts in captions.values() if texts], 5_000, "captioned pictures")
            chosen = [captions[picture] for picture in _shuffled(captions, self.seed)]
            return _texts(texts[_shuffled(texts, self.seed)[0]] for texts in chosen)


@dataclass(frozen=True, slots=True)
class Mjhq:
    """MJHQ-30K: 3,000 prompts of each of ten categories.

    Attributes:
        path: folder that contains ``meta_data.json``, or that file.
        seed: of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[str]:
        """Read the prompts (see `Prompts.read`)."""
        with reading(self.path, "the meta_data.json of MJHQ-30K", "meta_data.json") as text:
            data = json.loads(text)
            prompts = {name: data[name]["prompt"] for name in data}
            _count(prompts, 30_000, "prompts")
            return _texts(prompts[name] for name in _shuffled(prompts, self.seed))


@dataclass(frozen=True, slots=True)
class Parti:
    """PartiPrompts (P2): 1,632 prompts, from one word to a paragraph.

    Attributes:
        path: folder that contains ``PartiPrompts.tsv``, or that file.
        seed: of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[str]:
        """Read the prompts (see `Prompts.read`)."""
        with reading(self.path, "the PartiPrompts.tsv of Parti", "PartiPrompts.tsv") as text:
            # Not CSV: quotation marks belong to the prompts.
            header, *rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
            if header != ["Prompt", "Category", "Challenge", "Note"]:
                raise ValueError("it has other columns")
            _count([row for row in rows if len(row) == len(header)], 1_632, "prompts")
            return _texts(_shuffled([row[0] for row in rows], self.seed))


@dataclass(frozen=True, slots=True)
class ImageNet:
    """The 1,000 classes of ImageNet; a thousand pictures show one of each.

    Attributes:
        path: JSON file of names by index, or a folder that contains it. Accepted are
            ``imagenet_class_index.json`` of Keras ({"0": ["n01440764", "tench"], ...}), plain
            names by index, and a config with ``id2label``.
        seed: of the order.
    """

    path: str
    seed: int = 0

    def read(self) -> list[Label]:
        """Read the prompts (see `Prompts.read`)."""
        with reading(
            self.path, "a JSON of ImageNet's 1,000 class names", "imagenet_class_index.json"
        ) as text:
            data = json.loads(text)
            data = data.get("id2label", data)
            _count(data, 1_000, "classes")
            entries = [data[str(i)] for i in range(1_000)]
            names = _texts(name if isinstance(name, str) else name[1] for name in entries)
            return [
                Label(i, names[i].replace("_", " ")) for i in _shuffled(range(1_000), self.seed)
            ]


@contextmanager
def reading(path: str, kind: str, name: str = "") -> Iterator[str]:
    """Read a file, and turn whatever goes wrong inside the block into one sentence.

    Args:
        path: of the file, or of a folder that contains it.
        kind: of file that is needed, for the message.
        name: of the file in a folder; empty if a folder will not do.

    Yields:
        The text.

    Raises:
        PromptsError: the file cannot be read, or the block raised an error about its content.
    """
    file = Path(path).expanduser()
    file = file / name if name and file.is_dir() else file
    remedy = f"give prompts.path=FILE, {kind}" + (
        f", or the folder that contains {name}" if name else ""
    )
    try:
        yield file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptsError(f"no prompts in {file} ({error.strerror}): {remedy}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its entries have another form"
        raise PromptsError(
            f"{file} is truncated or of another kind ({reason}): {remedy}"
        ) from error


def _count(entries: Collection[Any], number: int, kind: str) -> None:
    if len(entries) != number:
        raise ValueError(f"{len(entries):,} {kind}, not {number:,}")


def _texts(prompts: Iterable[str]) -> list[str]:
    """Prompts without the line breaks and double spaces that some have."""
    texts = [" ".join(text.split()) for text in prompts]
    if not all(texts):
        raise ValueError("a prompt is empty")
    return texts


def _shuffled(entries: Iterable[T], seed: int) -> list[T]:
    """Numbers or texts in the order of their hashes."""
    return sorted(entries, key=lambda entry: hashlib.sha256(f"{seed} {entry}".encode()).digest())
