"""JSON artifacts: each kind has a schema for reading and writing, and a checksum.

    FRONT.write(store.path(name), front)
    FRONT.read(store.find(name, FRONT.command), store.denoiser)

The schema is a type that msgspec can decode. A file holds the content, ``schema`` (name and
version) and ``checksum``. Files without a checksum, as qsdm 0.1.0 wrote them, are checked by their
schema alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from qsdm.store.checksum import KEY, is_whole, with_checksum
from qsdm.store.files import StoreError, decode, warn_once, write_text

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Artifact(Generic[T]):
    """One kind of JSON artifact.

    Attributes:
        schema: its name and version.
        later: further schemas that ``build`` reads, which content may name as its own.
        command: the command that writes it.
        build: turns the JSON content into what it means; raises ValueError.
        by_hand: whether users may edit it, so that a wrong checksum is a warning, not an error.
        unversioned: turns the content of a file without a schema, as qsdm 0.1.0 wrote it, into what
            ``build`` takes.
    """

    schema: str
    command: str
    build: Callable[[Any], T]
    by_hand: bool = False
    unversioned: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    later: tuple[str, ...] = ()

    def read(self, path: Path, denoiser: str = "") -> T:
        """The content of a file.

        Args:
            path: the file.
            denoiser: name of the model, for the error message.

        Raises:
            StoreError: it is damaged, of another kind or of another version.
        """
        try:
            return self.parse(path.read_bytes(), path)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is damaged ({error}): {self.remedy(denoiser)}") from error

    def parse(self, text: bytes, path: Path) -> T:
        """The content of a file whose text has been read.

        Args:
            text: of the file, UTF-8.
            path: the file, for the warning about an edited file.

        Raises:
            ValueError: it is damaged, of another kind or of another version.
        """
        data = decode(text, object)
        if not isinstance(data, dict):
            raise ValueError(f"wanted an object, got {type(data).__name__}")
        if self.unversioned is not None and "schema" not in data:
            data = {"schema": self.schema, **self.unversioned(data)}
        if data.get("schema") not in (self.schema, *self.later):
            raise ValueError(f"wanted schema {self.schema!r}, got {data.get('schema')!r}")
        content = self.build({key: value for key, value in data.items() if key != KEY})
        if not is_whole(data):
            if not self.by_hand:
                raise ValueError("its content does not match its checksum")
            warn_once(f"{path} was edited after it was written; it is used as it is")
        return content

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write what `read` gives back.

        Args:
            path: the file, replaced if it exists.
            content: as the schema describes it, without ``schema`` and ``checksum``.

        Raises:
            StoreError: it cannot be written.
            ValueError: the content does not fit the schema.
        """
        data = with_checksum({"schema": self.schema, **content})
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        self.parse(text.encode(), path)
        write_text(path, text)

    def remedy(self, denoiser: str = "") -> str:
        """What to do about a damaged file.

        Args:
            denoiser: name of the model; empty if it is not known.
        """
        model = f" +model={denoiser}" if denoiser else ""
        package = "qsdm" if self.command == "qsdm" else f"qsdm.{self.command}"
        return f"remove it and run python -m {package}{model} again"


def typed(kind: Any) -> Callable[[Any], Any]:
    """The `Artifact.build` of content that is plain data.

    Args:
        kind: a type that msgspec can decode, such as a TypedDict.
    """
    return lambda data: decode(data, kind)
