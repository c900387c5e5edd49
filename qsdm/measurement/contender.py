"""A pipeline that is compared with others, quantized by whatever library or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsdm.denoisers import Model, ModelError
from qsdm.denoisers.files import component_files, pipeline_files, pipeline_folder
from qsdm.measurement.protocol import prompts_digest, protocol_of
from qsdm.outcome import Protocol
from qsdm.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Contender:
    """What is loaded, and how it draws.

    Attributes:
        name: in tables, unique in a comparison.
        model: whose pipeline is loaded.
        denoiser: a GGUF file, or a folder of the denoiser alone, which takes the place of the
            pipeline's own; None for the pipeline's.
        load: further arguments of from_pretrained for that denoiser.
    """

    name: str
    model: Model
    denoiser: Path | None = None
    load: Mapping[str, Any] = field(default_factory=dict)

    def protocol(self, prompts: Sequence[Prompt], seed_set: int, num_images: int) -> Protocol:
        """Describe how its pictures are drawn.

        Args:
            prompts: as many as there are.
            seed_set: of the starting noise.
            num_images: drawings.

        Returns:
            The protocol.

        Raises:
            ModelError: files are missing.
        """
        if self.denoiser is None:
            return protocol_of(self.model, prompts, seed_set, num_images)
        rest = dataclasses.replace(self.model, load={**self.model.load, self.model.component: None})
        protocol = protocol_of(rest, prompts, seed_set, num_images)
        digest = hashlib.sha256(protocol.weights.encode())
        for path in self._denoiser_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return dataclasses.replace(protocol, weights=digest.hexdigest())

    @property
    def size_bytes(self) -> int | None:
        """Bytes of the denoiser's weight files; None if they are not on this machine.

        A single file counts as a whole, with all that it holds.
        """
        try:
            if self.denoiser is not None:
                files = [path for path in self._denoiser_files() if path.suffix != ".json"]
            elif self.model.file is not None:
                files = [self.model.file]
            else:
                folder = pipeline_folder(self.model)
                files = pipeline_files(folder, self.model.load)[self.model.component]
        except (ModelError, KeyError):
            return None
        return sum(path.stat().st_size for path in files)

    def _denoiser_files(self) -> list[Path]:
        assert self.denoiser is not None
        if self.denoiser.is_file():
            return [self.denoiser]
        folder = self.denoiser.resolve()
        weights = component_files(folder.parent, folder.name, "diffusers", self.load)
        return [folder / "config.json", *weights]


def drawing_key(protocol: Protocol, prompts: Sequence[Prompt]) -> str:
    """Name the pictures of a protocol, however many of them are drawn.

    Args:
        protocol: of the pictures.
        prompts: as many as there are; from the first again after the last.

    Returns:
        16 hexadecimal digits.
    """
    open_ended = dataclasses.replace(
        protocol, prompts=prompts_digest(prompts), num_images=2, quantizer_version=""
    )
    return open_ended.digest[:16]
