"""What was seen of configurations whose pictures are not all drawn yet: kept in files, so that a killed run goes on
within a configuration of many pictures.

    store/<denoiser>/shards/<protocol>/<configuration>-<first picture>.safetensors

A configuration of one shard never touches the disk. Once the outcome is stored, its shards are removed.
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
from qsdm.store.files import tell
from qsdm.store.tensors import read_tensors, write_tensors


class _ShardFile(TypedDict):
    schema: Literal[2]
    about: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Shards:
    """Of one protocol.

    Attributes:
        size: pictures per shard.
        versions: of the metrics that are asked for, by name.
    """

    store: Store
    protocol: Protocol
    size: int
    versions: Mapping[str, str]
    _seen: dict[tuple[str, int], ScoredShard] = field(default_factory=dict)

    def spans(self) -> Iterator[tuple[int, int]]:
        """First picture of each shard, and one after its last."""
        for start in range(0, self.protocol.num_images, self.size):
            yield start, min(start + self.size, self.protocol.num_images)

    def missing(self, qconfig: QuantConfig) -> list[tuple[int, int]]:
        """Spans that nobody has seen yet."""
        return [span for span in self.spans() if self._find(qconfig, *span) is None]

    def add(self, qconfig: QuantConfig, start: int, seen: ScoredShard) -> None:
        self._seen[qconfig.digest, start] = seen
        if self.size < self.protocol.num_images:
            about = {"schema": 2, "about": dict(seen.about), "versions": dict(self.versions)}
            write_tensors(
                self._path(qconfig, start), {"digests": seen.digests, **seen.features}, about
            )

    def collect(self, qconfig: QuantConfig) -> list[ScoredShard]:
        """All shards of a configuration, of which none is missing; they are forgotten."""
        found = []
        for start, stop in self.spans():
            seen = self._find(qconfig, start, stop)
            assert seen is not None
            found.append(seen)
            del self._seen[qconfig.digest, start]
        return found

    def remove(self, qconfig: QuantConfig) -> None:
        """The files of a configuration whose outcome is stored. Their folder stays: another driver may write there."""
        for start, _ in self.spans():
            self._path(qconfig, start).unlink(missing_ok=True)

    def _find(self, qconfig: QuantConfig, start: int, stop: int) -> ScoredShard | None:
        key = qconfig.digest, start
        if key not in self._seen and (path := self._path(qconfig, start)).exists():
            try:
                features, about = read_tensors(path, _ShardFile, "its pictures are drawn again")
            except StoreError as error:
                tell(str(error))
                return None
            digests = features.pop("digests", None)
            lengths = {len(array) for array in features.values()}
            if digests is None or lengths | {len(digests)} != {
                (stop - start) * self.protocol.frames
            }:
                return None
            if features.keys() == self.versions.keys() and about["versions"] == self.versions:
                self._seen[key] = ScoredShard(features, digests, about["about"])
        return self._seen.get(key)

    def _path(self, qconfig: QuantConfig, start: int) -> Path:
        return self.store.path(
            f"shards/{self.protocol.digest[:16]}/{qconfig.digest[:16]}-{start}.safetensors"
        )
