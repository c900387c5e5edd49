"""Captions with pictures, masks and control pictures, from which edits and inpaintings start.

A folder holds ``NAME.png`` (or .jpg, .jpeg, .webp, .bmp, .tif, .tiff), ``NAME.mask.png``,
``NAME.control.png`` and the caption ``NAME.txt``, as far as they exist. A JSON file holds a list of
``{"prompt": .., "image": .., "mask_image": .., "control_image": ..}`` with paths relative to it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.prompts import PromptsError, reading

if TYPE_CHECKING:
    from PIL import Image

PICTURES = ("image", "mask_image", "control_image")  # fields of an Edit that hold a file
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ENDINGS = {".mask": "mask_image", ".control": "control_image"}  # of a name before its suffix
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits per channel or less


@dataclass(frozen=True, slots=True)
class Edit:
    """One entry: a caption, and files of the pictures that the drawing starts from.

    Attributes:
        prompt: the caption; None if there is none.
        image: the picture that is edited, varied, enlarged or filled.
        mask_image: white where the picture is redrawn; it has the size of the picture.
        control_image: edges, depth, poses or the like that the drawing follows.
        origin: where the entry comes from, for messages.
    """

    prompt: str | None = None
    image: str | None = None
    mask_image: str | None = None
    control_image: str | None = None
    origin: str = ""

    def __str__(self) -> str:
        return self.prompt or ""

    def to_json(self) -> dict[str, Any]:
        """What decides the drawing: the caption, and digests of the files' contents.

        Raises:
            PromptsError: a file is missing or not a picture.
        """
        files = {name: getattr(self, name) for name in PICTURES}
        digests = {name: picture_digest(Path(file)) for name, file in files.items() if file}
        return {"prompt": self.prompt, **digests}


@dataclass(frozen=True, slots=True)
class Edits:
    """Captions with pictures: from a JSON file in its order, or from a folder by name.

    Attributes:
        path: the JSON file or the folder.

    Example:
        >>> from PIL import Image
        >>> from qsdm.prompts.edits import Edits
        >>> Image.new("RGB", (64, 64)).save("house.png")
        >>> [edit.image for edit in Edits(".").read()]
        ['house.png']
    """

    path: str

    def read(self) -> list[Edit]:
        """Read the entries; their pictures are only opened when they are used.

        Returns:
            One or more entries, in the order of the pictures.

        Raises:
            PromptsError: there are none, an entry has no picture, or a file is missing.
        """
        root = Path(self.path).expanduser()
        entries = _of_folder(root) if root.is_dir() else _of_json(root)
        for edit in entries:
            files = [file for name in PICTURES if (file := getattr(edit, name))]
            if not files:
                raise PromptsError(
                    f"{edit.origin} has no picture: give it an image, a mask_image or a "
                    "control_image"
                )
            if missing := [file for file in files if not Path(file).is_file()]:
                raise PromptsError(f"no file {missing[0]}, which {edit.origin} names: restore it")
        return entries


def _of_folder(folder: Path) -> list[Edit]:
    entries: dict[str, dict[str, str]] = {}
    for file in sorted(folder.iterdir()):
        suffix = file.suffix.lower()
        if file.name.startswith(".") or not (suffix in SUFFIXES or suffix == ".txt"):
            continue
        name, field = file.name[: -len(file.suffix)], "image" if suffix in SUFFIXES else "prompt"
        ending = Path(name).suffix
        if field == "image" and ending in ENDINGS:
            name, field = name[: -len(ending)], ENDINGS[ending]
        entry = entries.setdefault(name, {})
        if field in entry:
            raise PromptsError(f"{folder} has two files of {name!r} for its {field}: remove one")
        entry[field] = str(file)
    if not entries:
        raise PromptsError(
            f"no pictures in {folder}: give prompts.path=FOLDER of NAME.png, NAME.mask.png, "
            "NAME.control.png and NAME.txt, or a JSON file"
        )
    for entry in entries.values():
        if file_of_text := entry.get("prompt"):
            with reading(file_of_text, "a caption") as text:
                entry["prompt"] = " ".join(text.split())
    return [
        Edit(**entry, origin=f"{name!r} in {folder}") for name, entry in sorted(entries.items())
    ]


def _of_json(file: Path) -> list[Edit]:
    kind = "a folder of pictures or a JSON list of {prompt, image, mask_image, control_image}"
    with reading(str(file), kind) as text:
        data = json.loads(text)
        if not (isinstance(data, list) and data):
            raise ValueError("it does not hold a list of entries")
        return [_entry(row, i, file) for i, row in enumerate(data)]


def _entry(row: Any, i: int, file: Path) -> Edit:
    takes = ("prompt", *PICTURES)
    if not isinstance(row, Mapping):
        raise ValueError(f"entry {i} is not a mapping")
    if unknown := [key for key in row if key not in takes]:
        raise ValueError(f"entry {i} has a {unknown[0]!r}, but takes {', '.join(takes)}")
    values = {key: value for key, value in row.items() if value is not None}
    if wrong := [key for key, value in values.items() if not isinstance(value, str)]:
        raise ValueError(f"the {wrong[0]} of entry {i} is not a string")
    files = {key: str(file.parent / values[key]) for key in PICTURES if values.get(key)}
    return Edit(values.get("prompt"), **files, origin=f"entry {i} of {file}")


def picture_digest(path: Path) -> str:
    """Digest a picture's file, which is decoded once to make sure that it is a picture.

    Args:
        path: of the file.

    Returns:
        sha256.

    Raises:
        PromptsError: there is no such file, or it is not a picture with 8 bits per channel.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise PromptsError(f"no picture {path} ({error.strerror}): restore it") from error
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 16)
def _digest(path: Path, _changed: int, _size: int) -> str:
    content = path.read_bytes()
    _decoded(path, content)
    return hashlib.sha256(content).hexdigest()


def read_picture(path: Path, size_px: int, mode: str = "RGB") -> Image.Image:
    """Read the middle square of a picture, upright.

    Args:
        path: of the file.
        size_px: edge of the result in px.
        mode: RGB, or L for masks, which are resized to the nearest pixel.

    Returns:
        The picture.

    Raises:
        PromptsError: it cannot be read.
    """
    from PIL import Image

    resample = Image.Resampling.NEAREST if mode == "L" else Image.Resampling.LANCZOS
    picture = _decoded(path, path.read_bytes()).convert(mode)
    edge = min(picture.size)
    left, top = ((size - edge) // 2 for size in picture.size)
    # Cut first: a resized part of a picture takes its margins from what is around it.
    square = picture.crop((left, top, left + edge, top + edge))
    return square.resize((size_px, size_px), resample)


def size_of(path: Path) -> tuple[int, int]:
    """Measure a picture as it is seen.

    Args:
        path: of the file.

    Returns:
        Width and height in px.

    Raises:
        PromptsError: it cannot be read.
    """
    return _decoded(path, path.read_bytes()).size


def _decoded(path: Path, content: bytes) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as picture:
            upright = ImageOps.exif_transpose(picture)
            upright.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).partition("<_io")[0].strip() or type(error).__name__
        raise PromptsError(
            f"{path} cannot be read as a picture ({reason}): restore or remove it"
        ) from error
    if upright.mode not in MODES:
        raise PromptsError(
            f"{path} has more than 8 bits per channel (mode {upright.mode}): save it with 8"
        )
    return upright
