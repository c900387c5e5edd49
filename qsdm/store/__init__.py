"""Artifacts on disk: JSON, safetensors, Parquet and SQLite, written atomically; no pickles.

    store/<denoiser>/graph.json, graph.html       trace (calibrate adds the errors to the page)
    store/<denoiser>/calibration/<space>/         calibrate: table.safetensors, weights.safetensors
    store/<denoiser>/outcomes.sqlite              measure: one driver writes them as they arrive
    store/<denoiser>/predictor/<space>/           train: fold-K.safetensors, report.json
    store/<denoiser>/sensitivity/<space>.json     attribute; <space>-certificate.json
    store/<denoiser>/search/<space>.json          search
    store/<denoiser>/why/<configuration>.json     why: cards; pictures of swaps beside them
    store/<denoiser>/summary.json, report.html    realize
    store/<denoiser>/compare/<others>/            compare: compare.json, compare.html
    store/<denoiser>/stages.json                  the main job: stages that need no rerun

Some models ship with a store of their own (``qsdm/zoo/<denoiser>/store``). It is read for files
that the user's store lacks, and never written. A wheel leaves ``qsdm/zoo`` out; the environment
variable ``QSDM_ZOO`` names a copy of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from qsdm.graph import Graph
from qsdm.outcome import Outcome, Protocol
from qsdm.store.artifacts import Artifact
from qsdm.store.files import StoreError, read_json
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.parquet import read_outcomes_parquet
from qsdm.store.rows import Part, merged

__all__ = ["ZOO", "Store", "StoreError"]

T = TypeVar("T")
ZOO = Path(os.environ.get("QSDM_ZOO") or Path(__file__).parents[1] / "zoo").expanduser().absolute()


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of one denoiser.

    Example:
        >>> from pathlib import Path
        >>> from qsdm.store import Store
        >>> store = Store(Path("store"), "emoji_unet")  # a model that ships with measured outcomes
        >>> store.path("graph.json").as_posix()
        'store/emoji_unet/graph.json'
        >>> outcome = store.outcomes()[0]
        >>> outcome.qconfig.denoiser, outcome.num_images
        ('emoji_unet', 256)

    Attributes:
        root: the user's folder of stores, for reading and writing.
        denoiser: name of the model, and of its folder in ``root``.
        adopt: maps a protocol of qsdm 0.1.0, which did not record everything that makes a picture,
            to today's protocol if 0.1.0 could not tell them apart, else to itself. None: old
            outcomes keep their old protocols.
    """

    root: Path
    denoiser: str
    adopt: Callable[[Protocol], Protocol] | None = field(default=None, compare=False, repr=False)

    def path(self, name: str) -> Path:
        """The path to which an artifact is written.

        Args:
            name: path of the artifact in the model's folder, such as ``graph.json``.

        Returns:
            A path in the user's store, whether or not it exists.
        """
        return Path(self.root) / self.denoiser / name

    def find(self, name: str, command: str) -> Path:
        """The path of an existing artifact: in the user's store, or else in the shipped one.

        Args:
            name: path of the artifact in the model's folder, such as ``graph.json``.
            command: the command that writes it, for the error message.

        Raises:
            StoreError: neither store has it.
        """
        for path in (self.path(name), ZOO / self.denoiser / "store" / name):
            if path.exists():
                return path
        raise StoreError(
            f"no {name} for {self.denoiser!r} in {self.root}/: "
            f"run python -m qsdm.{command} +model={self.denoiser}"
        )

    def read(self, artifact: Artifact[T], name: str) -> T:
        """The content of a JSON artifact.

        Args:
            artifact: its kind, one of `qsdm.store.schemas`.
            name: its path in the model's folder.

        Raises:
            StoreError: it is missing or damaged; the message names the command that writes it.
        """
        return artifact.read(self.find(name, artifact.command), self.denoiser)

    def graph(self) -> Graph:
        """The graph that `qsdm.trace` wrote.

        Raises:
            StoreError: it is missing or damaged.
        """
        from qsdm.store.schemas import GRAPH

        return self.read(GRAPH, "graph.json")

    def outcomes(
        self,
        protocols: Protocol | Collection[str] | None = None,
        mixed_labels: bool | None = None,
    ) -> list[Outcome]:
        """Measured outcomes, shipped ones first, each pair of configuration and protocol once.

        Args:
            protocols: return only the outcomes of this protocol, or of several, by their digests.
                The others are not decoded. None: those of all protocols.
            mixed_labels: True: only mixed labels, see `Outcome.is_mixed_label`; False: only other
                outcomes. The others are not decoded. None: both.

        Raises:
            StoreError: a file of outcomes is damaged as a whole. Single damaged rows are skipped,
                with a warning.
        """
        from qsdm.store.manifest import check_shipped

        kept = [protocols.digest] if isinstance(protocols, Protocol) else protocols
        adopted = {old: today.digest for old, today in self._adopted(self._stored()).items()}
        if kept is not None:
            kept = {*kept, *(old for old, today in adopted.items() if today in kept)}
        stored: list[Outcome] = []
        shipped = ZOO / self.denoiser / "store" / "outcomes.parquet"
        if shipped.exists():
            check_shipped(shipped)
            stored += read_outcomes_parquet(shipped)
        if (path := self.path("outcomes.sqlite")).exists():
            part = None
            if mixed_labels is not None:
                part = Part(mixed_labels, stored, frozenset(adopted) | set(adopted.values()))
            stored += OutcomeDatabase(path).read(kept, part)
        outcomes = merged(
            replace(o, protocol=adopted[o.protocol]) if o.protocol in adopted else o
            for o in stored
            if kept is None or o.protocol in kept
        )
        return [o for o in outcomes if mixed_labels is None or o.is_mixed_label == mixed_labels]

    def counts(self) -> dict[str, int]:
        """Count the outcomes of each protocol without decoding them.

        Returns:
            By the protocol's digest at most so many: damaged ones count, and pairs of
            configuration and protocol that are stored twice.

        Raises:
            StoreError: a file of outcomes is damaged as a whole.
        """
        counts: Counter[str] = Counter()
        shipped = ZOO / self.denoiser / "store" / "outcomes.parquet"
        if shipped.exists():
            counts.update(o.protocol for o in read_outcomes_parquet(shipped))
        if (path := self.path("outcomes.sqlite")).exists():
            counts.update(OutcomeDatabase(path).counts())
        for old, today in self._adopted(self._stored()).items():
            counts[today.digest] += counts.pop(old, 0)
        return dict(counts)

    def measured(self, keep: Callable[[Protocol], bool]) -> dict[str, Outcome]:
        """What was measured under some protocols.

        Args:
            keep: whether outcomes of a protocol are wanted.

        Returns:
            Outcomes by the digest of their configuration; of several of one configuration, one.

        Raises:
            StoreError: a file of outcomes is damaged as a whole.
        """
        kept = {digest for digest, protocol in self.protocols().items() if keep(protocol)}
        return {o.qconfig.digest: o for o in self.outcomes(kept)}

    def protocols(self) -> dict[str, Protocol]:
        """The protocols of all stored outcomes.

        Returns:
            Protocol by its digest.

        Raises:
            StoreError: a file of outcomes is damaged as a whole.
        """
        stored = self._stored()
        adopted = self._adopted(stored)
        return {p.digest: p for p in (adopted.get(q.digest, q) for q in stored.values())}

    def _stored(self) -> dict[str, Protocol]:
        """Protocols by digest, as the files hold them."""
        from qsdm.store.manifest import check_shipped

        protocols: dict[str, Protocol] = {}
        shipped = ZOO / self.denoiser / "store" / "protocols.json"
        if shipped.exists():
            check_shipped(shipped)
            protocols |= {p.digest: p for p in map(Protocol.from_json, read_json(shipped))}
        if (path := self.path("outcomes.sqlite")).exists():
            protocols |= OutcomeDatabase(path).protocols()
        return protocols

    def _adopted(self, stored: Mapping[str, Protocol]) -> dict[str, Protocol]:
        """Today's protocol by the digest of its counterpart of qsdm 0.1.0."""
        if self.adopt is None:
            return {}
        return {
            digest: today
            for digest, protocol in stored.items()
            if not protocol.pipeline and (today := self.adopt(protocol)) != protocol
        }
