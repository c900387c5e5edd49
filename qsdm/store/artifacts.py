"""JSON artifacts: each has one schema, by which it is read and written, and a checksum of its content.

    FRONT.write(store.path(name), front)
    FRONT.read(store.find(name, FRONT.command), store.denoiser)

The schema is a type that msgspec can read. What is stored is the content, ``schema`` (the name of its version) and
``checksum``. Files without a checksum, as version 0.1.0 wrote, are checked by their schema alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from qsdm.store.checksum import KEY, is_whole, with_checksum
from qsdm.store.files import StoreError, decode, tell, write_text

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Artifact(Generic[T]):
    """One kind of JSON artifact.

    Attributes:
        schema: name and version.
        command: that makes it.
        build: what the file holds => what it means; raises ValueError.
        by_hand: whether users may change it, so that another checksum is told, but no error.
        unversioned: what version 0.1.0 wrote without a schema => what ``build`` takes.
    """

    schema: str
    command: str
    build: Callable[[Any], T]
    by_hand: bool = False
    unversioned: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def read(self, path: Path, denoiser: str = "") -> T:
        """What ``path`` holds.

        Args:
            denoiser: name of the model, for the error.

        Raises:
            StoreError: it is damaged, of another kind or of another version.
        """
        try:
            return self.parse(path.read_bytes(), path)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is damaged ({error}): {self.remedy(denoiser)}") from error

    def parse(self, text: bytes, path: Path) -> T:
        """What the text of a file means.

        Raises:
            ValueError: it is damaged, of another kind or of another version.
        """
        data = decode(text, object)
        if not isinstance(data, dict):
            raise ValueError(f"wanted an object, got {type(data).__name__}")
        if self.unversioned is not None and "schema" not in data:
            data = {"schema": self.schema, **self.unversioned(data)}
        if data.get("schema") != self.schema:
            raise ValueError(f"wanted schema {self.schema!r}, got {data.get('schema')!r}")
        found = self.build({key: value for key, value in data.items() if key != KEY})
        if not is_whole(data):
            if not self.by_hand:
                raise ValueError("its content is not what its checksum says")
            tell(f"{path} was changed after it was written; it is taken as it is")
        return found

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Store what `read` gives back.

        Raises:
            StoreError: it cannot be written.
            ValueError: it is not what the schema says.
        """
        data = with_checksum({"schema": self.schema, **content})
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        self.parse(text.encode(), path)
        write_text(path, text)

    def remedy(self, denoiser: str = "") -> str:
        model = f" +model={denoiser}" if denoiser else ""
        package = "qsdm" if self.command == "qsdm" else f"qsdm.{self.command}"
        return f"remove it and run python -m {package}{model} again"


def typed(kind: Any) -> Callable[[Any], Any]:
    """The `Artifact.build` of a plain type."""
    return lambda data: decode(data, kind)
