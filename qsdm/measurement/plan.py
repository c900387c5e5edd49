"""What a measurement is going to do: configurations, pictures, time and money."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig
from qsdm.text import duration

if TYPE_CHECKING:
    from qsdm.measurement.rounds import Limits
    from qsdm.measurement.session import Session
    from qsdm.store.schemas import FrontPoint

# Outcomes that tell the speed: the store lists shipped ones first, which another machine drew.
NUM_RECENT = 50


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
                "price_per_hour must be positive, the price of one worker for an hour "
                f"(got {price})"
            )

    @property
    def num_pictures(self) -> int:
        """Number of pictures to draw, including those of full precision."""
        return self.num_configs * self.num_images + self.num_full

    @property
    def seconds(self) -> float | None:
        """Until the end: a worker takes one configuration at a time, all share full precision."""
        if self.picture_s is None:
            return None
        workers = self.num_workers or 1
        return self.picture_s * (
            math.ceil(self.num_configs / workers) * self.num_images + self.num_full / workers
        )

    @property
    def price(self) -> float | None:
        """Price of the hours in which workers work."""
        if self.picture_s is None or self.price_per_hour is None:
            return None
        return self.picture_s * self.num_pictures / 3600 * self.price_per_hour

    def __str__(self) -> str:
        if not self.num_pictures:
            return "plan: no picture is missing"
        configs = f"{self.num_configs:,} configuration{'s' * (self.num_configs != 1)}"
        num_quantized = self.num_configs * self.num_images
        drawn = f"plan: {configs} x {self.num_images:,} pictures = {num_quantized:,}"
        if self.num_full:
            drawn += f", and {self.num_full:,} of full precision"
        if self.picture_s is None or self.seconds is None:
            return f"{drawn}; the first configuration will tell how long it takes"
        workers = f"on {self.num_workers} worker{'s' * (self.num_workers != 1)}"
        if self.num_workers is None:
            workers = "on one worker, less on more"
        text = (
            f"{drawn}; about {duration(self.seconds)} {workers} ({self.picture_s:.2g} s a picture)"
        )
        if self.price is not None:
            text += f"; about {self.price:,.2f} at {self.price_per_hour:,.2f} per worker and hour"
        return text


@dataclass(frozen=True, slots=True)
class History:
    """What was measured of a model so far.

    Attributes:
        outcomes: in the order of the store.
        protocols: of the outcomes, by digest.
    """

    outcomes: Sequence[Outcome]
    protocols: Mapping[str, Protocol]

    def picture_s(self, protocol: Protocol, metrics: Collection[str]) -> float | None:
        """Estimate how long it takes to draw and score one picture.

        Args:
            protocol: how pictures are drawn.
            metrics: names of those that are scored.

        Returns:
            Seconds: the median of the last outcomes that were drawn in the same way, whatever their
            seeds and number of pictures; of those with the same metrics, if there are any. None if
            no outcome tells.
        """
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for outcome in self.outcomes:
            about, other = outcome.provenance, self.protocols.get(outcome.protocol)
            if other is None or not {"drawing_s", "scoring_s"} <= set(about):
                continue
            # For full precision nothing was drawn: its pictures were there.
            if not outcome.qconfig.is_full and way_of(other) == way_of(protocol):
                each = (about["drawing_s"] + about["scoring_s"]) / outcome.num_images
                seconds[set(outcome.metrics) == set(metrics)].append(each)
        chosen = seconds[True] or seconds[False]
        return median(chosen[-NUM_RECENT:]) if chosen else None


def plan_of(
    history: History,
    qconfigs: Sequence[QuantConfig],
    protocol: Protocol,
    versions: Mapping[str, str],
    has_full: bool = False,
) -> Plan:
    """Plan a measurement on one worker, without a price.

    Args:
        history: what was measured so far.
        qconfigs: configurations, full precision among them; one may occur twice.
        protocol: how their pictures are drawn.
        versions: of the metrics that are asked for, by name.
        has_full: whether the pictures of full precision are there.

    Returns:
        What is missing.
    """
    complete = {
        outcome.qconfig.digest
        for outcome in history.outcomes
        if outcome.protocol == protocol.digest and not outcome.lacks(versions)
    }
    missing = {qconfig.digest: qconfig for qconfig in qconfigs if qconfig.digest not in complete}
    return Plan(
        sum(not qconfig.is_full for qconfig in missing.values()),
        protocol.num_images,
        protocol.num_images if missing and not has_full else 0,
        history.picture_s(protocol, versions),
    )


def plan_session(ready: Session, qconfigs: Sequence[QuantConfig], protocol: Protocol) -> Plan:
    """Plan what a session measures, on one worker, without a price.

    Args:
        ready: the running session.
        qconfigs: configurations that are to be measured, full precision among them.
        protocol: how their pictures are drawn.

    Returns:
        What is missing.
    """
    from qsdm.measurement.session import full_name

    history = History(ready.store.outcomes(), ready.store.protocols())
    has_full = ready.store.path(full_name(protocol)).exists()
    return plan_of(history, qconfigs, protocol, ready.versions, has_full)


def way_of(protocol: Protocol) -> tuple[object, ...]:
    """What of a protocol decides how long a picture takes; guidance runs the denoiser twice.

    Args:
        protocol: how pictures are drawn.
    """
    return (
        protocol.denoiser,
        protocol.steps,
        protocol.resolution_px,
        protocol.dtype,
        protocol.guidance > 1,
    )


def plan_rounds(
    ready: Session, protocol: Protocol, rounds: Sequence[list[FrontPoint]], limits: Limits
) -> Plan:
    """Plan the rounds of a search on one worker, without a price.

    Args:
        ready: the running session.
        protocol: of the labels.
        rounds: what was proposed before.
        limits: when rounds end.

    Returns:
        What may be drawn at most.
    """
    from qsdm.measurement.session import full_name

    history = History(ready.store.outcomes(), ready.store.protocols())
    has_full = ready.store.path(full_name(protocol)).exists()
    earlier = [QuantConfig.from_json(point["qconfig"]) for points in rounds for point in points]
    planned = plan_of(history, earlier, protocol, ready.versions, has_full)
    num = planned.num_configs + limits.num_left(rounds)
    num_full = protocol.num_images if num and not has_full else 0
    return replace(planned, num_configs=num, num_full=num_full)
