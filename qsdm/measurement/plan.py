"""What a measurement is going to do: configurations, pictures, time and money, before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig

NUM_RECENT = 50  # outcomes that tell the speed: the store gives shipped ones first, which another machine drew


@dataclass(frozen=True, slots=True)
class Plan:
    """What is missing, and what it takes.

    Attributes:
        num_configs: configurations without an outcome, full precision apart.
        num_images: pictures of each.
        num_full: pictures of full precision that are to be drawn.
        picture_s: seconds that one worker draws and scores one picture; None if no outcome tells.
        num_workers: of the engine; None if it does not tell.
        price_per_hour: of one worker, in the user's currency.

    Raises:
        ValueError: the price is not positive.
    """

    num_configs: int
    num_images: int
    num_full: int = 0
    picture_s: float | None = None
    num_workers: int | None = None
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        if (price := self.price_per_hour) is not None and not (math.isfinite(price) and price > 0):
            raise ValueError(
                f"price_per_hour must be positive, the price of one worker for an hour (got {price})"
            )

    @property
    def num_pictures(self) -> int:
        """To be drawn, those of full precision included."""
        return self.num_configs * self.num_images + self.num_full

    @property
    def seconds(self) -> float | None:
        """Until the end: each worker takes one configuration at a time, and they share full precision."""
        if self.picture_s is None:
            return None
        workers = self.num_workers or 1
        return self.picture_s * (
            math.ceil(self.num_configs / workers) * self.num_images + self.num_full / workers
        )

    @property
    def price(self) -> float | None:
        """Of the hours in which workers are at work."""
        if self.picture_s is None or self.price_per_hour is None:
            return None
        return self.picture_s * self.num_pictures / 3600 * self.price_per_hour

    def __str__(self) -> str:
        if not self.num_pictures:
            return "plan: no picture is missing"
        configs = f"{self.num_configs:,} configuration{'s' * (self.num_configs != 1)}"
        drawn = f"plan: {configs} x {self.num_images:,} pictures = {self.num_configs * self.num_images:,}"
        if self.num_full:
            drawn += f", and {self.num_full:,} of full precision"
        if self.picture_s is None or self.seconds is None:
            return f"{drawn}; the first configuration will tell how long it takes"
        workers = f"on {self.num_workers} worker{'s' * (self.num_workers != 1)}"
        if self.num_workers is None:
            workers = "on one worker, less on more"
        told = (
            f"{drawn}; about {duration(self.seconds)} {workers} ({self.picture_s:.2g} s a picture)"
        )
        if self.price is not None:
            told += f"; about {self.price:,.2f} at {self.price_per_hour:,.2f} per worker and hour"
        return told


def plan_of(
    wanted: Sequence[QuantConfig],
    protocol: Protocol,
    outcomes: Sequence[Outcome],
    protocols: Mapping[str, Protocol],
    has_full: bool,
    versions: Mapping[str, str],
    num_workers: int | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """The plan of measuring ``wanted`` under ``protocol``.

    Args:
        wanted: may name one twice, and full precision.
        outcomes: all of the model, in the order of the store.
        protocols: of the outcomes, by digest.
        has_full: the pictures of full precision are there.
        versions: of the metrics that are asked for, by name.
    """
    known = {
        outcome.qconfig.digest
        for outcome in outcomes
        if outcome.protocol == protocol.digest and not outcome.lacks(versions)
    }
    missing = {qconfig.digest: qconfig for qconfig in wanted if qconfig.digest not in known}
    return Plan(
        sum(bool(qconfig.methods) for qconfig in missing.values()),
        protocol.num_images,
        protocol.num_images if missing and not has_full else 0,
        picture_s(protocol, outcomes, protocols, versions),
        num_workers,
        price_per_hour,
    )


def picture_s(
    protocol: Protocol,
    outcomes: Sequence[Outcome],
    protocols: Mapping[str, Protocol],
    metrics: Collection[str],
) -> float | None:
    """Seconds to draw and score one picture: the median of the last outcomes that drew in the same way, whatever
    their seeds and number of pictures; of those with the same metrics, if there are any."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for outcome in outcomes:
        about, other = outcome.provenance, protocols.get(outcome.protocol)
        # Full precision draws nothing: its pictures were there.
        if (
            other is None
            or not outcome.qconfig.methods
            or not {"drawing_s", "scoring_s"} <= set(about)
        ):
            continue
        if way_of(other) == way_of(protocol):
            seconds = (about["drawing_s"] + about["scoring_s"]) / outcome.num_images
            found[set(outcome.metrics) == set(metrics)].append(seconds)
    chosen = found[True] or found[False]
    return median(chosen[-NUM_RECENT:]) if chosen else None


def way_of(protocol: Protocol) -> tuple[object, ...]:
    """What of a protocol decides how long a picture takes; guidance runs the denoiser twice."""
    return (
        protocol.denoiser,
        protocol.steps,
        protocol.resolution_px,
        protocol.dtype,
        protocol.guidance > 1,
    )


def duration(seconds: float) -> str:
    """As people say it: 40 s, 41 min, 8.3 h, 3.5 days."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
