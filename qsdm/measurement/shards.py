"""Scored pictures of configurations that are not complete yet, in files.

A killed run continues within a configuration of many pictures.

    store/<denoiser>/shards/<protocol>/<configuration>-<first picture>.safetensors

A configuration of one shard never touches the disk. Once the outcome is stored, its shards are
removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from qsdm.measurement.scoring import ScoredShard
from qsdm.outcome import Protocol
from qsdm.qconfig import QuantConfig
from qsdm.store import Store, StoreError
from qsdm.store.files import warn_once
from qsdm.store.tensors import read_tensors, write_tensors


class _ShardFile(TypedDict):
    schema: Literal[2]
    about: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Shards:
    """Scored pictures of one protocol.

    Attributes:
        store: of the model.
        protocol: of the pictures.
        size: drawings per shard.
        versions: of the metrics that are asked for, by name.
    """

    store: Store
    protocol: Protocol
    size: int
    versions: Mapping[str, str]
    _scored: dict[tuple[str, int], ScoredShard] = field(default_factory=dict)

    @property
    def _folder(self) -> Path:
        return self.store.path(f"shards/{self.protocol.digest[:16]}")

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the number of each shard's first drawing, and one after its last."""
        for start in range(0, self.protocol.num_images, self.size):
            yield start, min(start + self.size, self.protocol.num_images)

    def missing(self, qconfig: QuantConfig) -> list[tuple[int, int]]:
        """List the spans that were not drawn yet.

        Args:
            qconfig: the configuration.
        """
        return [span for span in self.spans() if self._find(qconfig, *span) is None]

    def add(self, qconfig: QuantConfig, start: int, shard: ScoredShard) -> None:
        """Keep a shard.

        Args:
            qconfig: the configuration.
            start: number of the first drawing.
            shard: what the metrics need of its pictures.

        Raises:
            StoreError: it cannot be written.
        """
        self._scored[qconfig.digest, start] = shard
        if self.size < self.protocol.num_images:
            about = {"schema": 2, "about": dict(shard.about), "versions": dict(self.versions)}
            tensors = {"digests": shard.digests, **shard.features}
            write_tensors(self._path(qconfig, start), tensors, about)

    def collect(self, qconfig: QuantConfig) -> list[ScoredShard]:
        """Take all shards of a configuration out of memory, in their order.

        Args:
            qconfig: the configuration; none of its shards is missing.
        """
        shards = []
        for start, stop in self.spans():
            shard = self._find(qconfig, start, stop)
            assert shard is not None
            shards.append(shard)
            del self._scored[qconfig.digest, start]
        return shards

    def begun(self) -> set[str]:
        """List the configurations that have files, by the first digits of their digests."""
        return {path.name.partition("-")[0] for path in self._folder.glob("*-*.safetensors")}

    def remove(self, qconfig: QuantConfig) -> None:
        """Remove the files of a configuration whose outcome is stored.

        Their folder stays: another driver may write there.

        Args:
            qconfig: the configuration.
        """
        for path in self._folder.glob(f"{qconfig.digest[:16]}-*.safetensors"):
            path.unlink(missing_ok=True)  # also of runs with other shards

    def _find(self, qconfig: QuantConfig, start: int, stop: int) -> ScoredShard | None:
        key = qconfig.digest, start
        if key not in self._scored and (path := self._path(qconfig, start)).exists():
            try:
                features, about = read_tensors(path, _ShardFile, "its pictures are drawn again")
            except StoreError as error:
                warn_once(str(error))
                return None
            digests = features.pop("digests", None)
            lengths = {len(array) for array in features.values()}
            num_pictures = (stop - start) * self.protocol.frames
            if digests is None or lengths | {len(digests)} != {num_pictures}:
                return None
            if features.keys() == self.versions.keys() and about["versions"] == self.versions:
                self._scored[key] = ScoredShard(features, digests, about["about"])
        return self._scored.get(key)

    def _path(self, qconfig: QuantConfig, start: int) -> Path:
        return self._folder / f"{qconfig.digest[:16]}-{start}.safetensors"
