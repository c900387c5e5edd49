"""Where artifacts lie, and how they are written: atomically, as JSON, safetensors, Parquet and SQLite, never as a
pickle.

    store/<denoiser>/graph.json, graph.html           trace (calibrate adds the errors to the page)
    store/<denoiser>/calibration/<space>/             calibrate: table.safetensors, weights.safetensors
    store/<denoiser>/outcomes.sqlite                  measure (one driver writes, as outcomes come)
    store/<denoiser>/predictor/<space>/               train: fold-K.safetensors, report.json
    store/<denoiser>/sensitivity/<space>.json         attribute
    store/<denoiser>/search/<space>.json              search
    store/<denoiser>/summary.json, report.html        realize
    store/<denoiser>/stages.json                      the main job: what it need not repeat

Some models ship a store of their own (``qsdm/zoo/<denoiser>/store``). It is read where the user's store lacks a file,
and never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from qsdm.graph import Graph
from qsdm.outcome import Outcome, Protocol
from qsdm.store.artifacts import Artifact
from qsdm.store.files import StoreError, read_json
from qsdm.store.outcomes import OutcomeDatabase, merged, read_outcomes_parquet

__all__ = ["ZOO", "Store", "StoreError"]

T = TypeVar("T")
ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of one denoiser.

    Attributes:
        root: the user's store, for reading and writing.
        denoiser: name of the model.
        adopt: protocol of qsdm 0.1.0, which did not keep all that makes a picture => today's, if 0.1.0 would have taken
            them for the same; else what was given. None: they stay apart.
    """

    root: Path
    denoiser: str
    adopt: Callable[[Protocol], Protocol] | None = field(default=None, compare=False, repr=False)

    def path(self, name: str) -> Path:
        """Where to write the artifact ``name``."""
        return Path(self.root) / self.denoiser / name

    def find(self, name: str, made_by: str) -> Path:
        """Where the artifact ``name`` is: in the user's store, else in the shipped one.

        Args:
            made_by: the command that makes it, for the error.
        """
        for path in (self.path(name), ZOO / self.denoiser / "store" / name):
            if path.exists():
                return path
        raise StoreError(
            f"no {name} for {self.denoiser!r} in {self.root}/: run python -m qsdm.{made_by} +model={self.denoiser}"
        )

    def read(self, artifact: Artifact[T], name: str) -> T:
        """What the JSON artifact ``name`` holds.

        Raises:
            StoreError: it is missing or damaged; the message says which command makes it.
        """
        return artifact.read(self.find(name, artifact.command), self.denoiser)

    def graph(self) -> Graph:
        """The graph that `trace` wrote.

        Raises:
            StoreError: it is missing or damaged.
        """
        from qsdm.store.schemas import GRAPH

        return self.read(GRAPH, "graph.json")

    def outcomes(self, protocol: Protocol | None = None) -> list[Outcome]:
        """Measured outcomes, shipped ones first, each (configuration, protocol) once.

        Args:
            protocol: only its outcomes, if it is given.
        """
        from qsdm.store.manifest import check_shipped

        stored: list[Outcome] = []
        shipped = ZOO / self.denoiser / "store" / "outcomes.parquet"
        if shipped.exists():
            check_shipped(shipped)
            stored += read_outcomes_parquet(shipped)
        if (path := self.path("outcomes.sqlite")).exists():
            stored += OutcomeDatabase(path).read()
        adopted = {before: now.digest for before, now in self._adopted(self._stored()).items()}
        return [
            outcome
            for outcome in merged(
                replace(o, protocol=adopted[o.protocol]) if o.protocol in adopted else o
                for o in stored
            )
            if protocol is None or outcome.protocol == protocol.digest
        ]

    def protocols(self) -> dict[str, Protocol]:
        """Protocols by digest, of all stored outcomes."""
        stored = self._stored()
        adopted = self._adopted(stored)
        return {p.digest: p for p in (adopted.get(q.digest, q) for q in stored.values())}

    def _stored(self) -> dict[str, Protocol]:
        from qsdm.store.manifest import check_shipped

        found: dict[str, Protocol] = {}
        shipped = ZOO / self.denoiser / "store" / "protocols.json"
        if shipped.exists():
            check_shipped(shipped)
            found |= {p.digest: p for p in map(Protocol.from_json, read_json(shipped))}
        if (path := self.path("outcomes.sqlite")).exists():
            found |= OutcomeDatabase(path).protocols()
        return found

    def _adopted(self, stored: Mapping[str, Protocol]) -> dict[str, Protocol]:
        """Today's protocol by the digest of one of qsdm 0.1.0."""
        if self.adopt is None:
            return {}
        return {
            digest: now
            for digest, protocol in stored.items()
            if not protocol.pipeline and (now := self.adopt(protocol)) != protocol
        }
