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

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qsdm.graph import Graph
from qsdm.outcome import Outcome, Protocol
from qsdm.store.artifacts import Artifact
from qsdm.store.files import StoreError, read_json
from qsdm.store.outcomes import OutcomeDatabase, read_outcomes_parquet

__all__ = ["ZOO", "Store", "StoreError"]

T = TypeVar("T")
ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of one denoiser.

    Attributes:
        root: the user's store, for reading and writing.
        denoiser: name of the model.
    """

    root: Path
    denoiser: str

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
        """Measured outcomes, shipped ones first, each (configuration, protocol) once; of ``protocol`` only, if one is
        given."""
        found: dict[tuple[str, str], Outcome] = {}
        shipped = ZOO / self.denoiser / "store" / "outcomes.parquet"
        if shipped.exists():
            found |= {outcome.key: outcome for outcome in read_outcomes_parquet(shipped)}
        if (path := self.path("outcomes.sqlite")).exists():
            found |= {outcome.key: outcome for outcome in OutcomeDatabase(path).read()}
        return [
            outcome
            for outcome in found.values()
            if protocol is None or outcome.protocol == protocol.digest
        ]

    def protocols(self) -> dict[str, Protocol]:
        """Protocols by digest, of all stored outcomes."""
        found: dict[str, Protocol] = {}
        shipped = ZOO / self.denoiser / "store" / "protocols.json"
        if shipped.exists():
            found |= {p.digest: p for p in map(Protocol.from_json, read_json(shipped))}
        if (path := self.path("outcomes.sqlite")).exists():
            found |= OutcomeDatabase(path).protocols()
        return found
