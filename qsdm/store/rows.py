"""Rows of stored outcomes: JSON with a checksum, and what the rows of earlier schemas mean today.

Rows of qsdm 0.1.0 have no checksum and are checked by their schema alone.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qsdm.graph import canonical
from qsdm.outcome import Outcome, Protocol, versions_in
from qsdm.store.checksum import KEY, checksum
from qsdm.store.files import decode, warn_once

T = TypeVar("T")

Former = dict[str, tuple[str, dict[str, str]]]
"""By digest of a protocol of the first schema: today's digest, and the versions of its metrics."""


def encode_row(content: Mapping[str, Any]) -> str:
    """JSON whose last entry is the checksum of the text without it.

    Args:
        content: an object that JSON can hold.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, allow_nan=False)
    return text[:-1] + _ending(text.encode())


def _ending(text: bytes) -> str:
    return f', "{KEY}": "{checksum(text)}"}}'


_LENGTH_OF_ENDING = len(_ending(b""))


def decode_row(text: object, build: Callable[[bytes], T]) -> T:
    """The inverse of `encode_row`.

    Args:
        text: bytes, or whatever a damaged row holds instead.
        build: turns the JSON into what it means, whatever else it holds; raises ValueError.

    Raises:
        ValueError: the row is damaged.
    """
    if not isinstance(text, bytes):
        raise ValueError(f"wanted a text, got {type(text).__name__}")
    start = len(text) - _LENGTH_OF_ENDING
    # Unlike elsewhere, the checksum is of the text as written, because encoding the content again
    # would take as long as decoding it.
    is_whole = text[start:] == _ending(text[:start] + b"}").encode()
    if not is_whole and decode(text, dict[str, Any]).get(KEY) is not None:
        raise ValueError("its content does not match its checksum")
    return build(text)


def decode_rows(
    texts: Iterable[object], build: Callable[[bytes], T | None], path: Path, noun: str
) -> list[T]:
    """Decode the undamaged rows, and warn about the others.

    Args:
        texts: see `decode_row`.
        build: see `decode_row`; None for a row that is not asked for.
        path: the file that holds them, in the model's folder.
        noun: what the rows are, in the plural, for the warning.
    """
    contents, num_left_out, num_damaged = [], 0, 0
    with _no_cycles_sought():
        for text in texts:
            try:
                content = decode_row(text, build)
            except ValueError:
                num_damaged += 1
                continue
            if content is None:
                num_left_out += 1
            else:
                contents.append(content)
    if num_damaged:
        warn_once(
            f"{num_damaged} of {len(contents) + num_left_out + num_damaged} {noun} in {path} are "
            f"damaged and were skipped: run python -m qsdm.measure +model={_model_of(path)} again"
        )
    return contents


@dataclass(frozen=True, slots=True)
class _Methods:
    methods: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Gist:
    """What of a row is decoded to see which part it belongs to."""

    qconfig: _Methods
    protocol: str
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """Mixed labels alone, or all other outcomes; rows of the other part are not decoded.

    Attributes:
        mixed_labels: which of both, see `Outcome.is_mixed_label`.
        others: outcomes of other files. Rows of the same configuration and protocol are merged with
            them and take their stage, so they are decoded in any case.
        protocols: digests of earlier schemas' protocols and of those that they are today. Their
            rows are merged with each other and are decoded in any case, too.
    """

    mixed_labels: bool
    others: Sequence[Outcome] = ()
    protocols: frozenset[str] = frozenset()
    _methods: dict[str, set[frozenset[tuple[str, str]]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        methods: dict[str, set[frozenset[tuple[str, str]]]] = {}  # of others, by their protocol
        for outcome in self.others:
            own = frozenset(outcome.qconfig.to_json()["methods"].items())
            methods.setdefault(outcome.protocol, set()).add(own)
        object.__setattr__(self, "_methods", methods)

    def outcome(self, text: bytes) -> Outcome | None:
        """Decode the outcome of a row that belongs to this part, or may.

        Args:
            text: of the row.

        Returns:
            The outcome; None if the row belongs to the other part.

        Raises:
            ValueError: it is not an outcome.
        """
        gist = decode(text, _Gist)
        methods, stage = gist.qconfig.methods, gist.provenance.get("stage", "measure")
        if (stage == "measure" and len(methods) > 1) == self.mixed_labels:
            return Outcome.from_json(text)
        merged = self._methods.get(gist.protocol)
        if merged is not None and frozenset(methods.items()) in merged:
            return Outcome.from_json(text)
        return Outcome.from_json(text) if gist.protocol in self.protocols else None


@contextmanager
def _no_cycles_sought() -> Iterator[None]:
    """Python would walk through all that was decoded again and again; it holds no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _model_of(path: Path) -> str:
    """A user's store lies in STORE/<model>, the shipped one in zoo/<model>/store."""
    folder = path.absolute().parent
    return folder.parent.name if path.suffix == ".parquet" else folder.name


def former_of(texts: Iterable[object]) -> Former:
    """The protocols of the first schema, which contained the metrics. Damaged rows are skipped.

    Args:
        texts: rows of protocols of any schema, see `decode_row`.
    """
    former: Former = {}
    for text in texts:
        with suppress(ValueError):
            data = decode_row(text, lambda row: decode(row, dict[str, Any]))
            data.pop(KEY, None)
            if "schema" not in data:
                digest = hashlib.sha256(canonical(data)).hexdigest()
                former[digest] = Protocol.from_json(data).digest, versions_in(data)
    return former


def of_today(outcome: Outcome, former: Former) -> Outcome:
    """Move the versions of the metrics from the protocol to the outcome.

    Args:
        outcome: as it was stored.
        former: protocols of the first schema.
    """
    if outcome.protocol not in former:
        return outcome
    digest, versions = former[outcome.protocol]
    measured = {name: versions[name] for name in outcome.metrics if name in versions}
    return dataclasses.replace(outcome, protocol=digest, versions=measured)


def merged(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Each pair of configuration and protocol once, with all of its measured metrics.

    Args:
        outcomes: in the order of their measurement.
    """
    by_key: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        earlier = by_key.get(outcome.key)
        by_key[outcome.key] = outcome if earlier is None else earlier.merged(outcome)
    return list(by_key.values())
