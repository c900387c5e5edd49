"""What a measurement says before it begins: configurations, pictures, time, money."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.measure import measure
from qsdm.measurement.plan import NUM_RECENT, History, Plan, plan_of
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec
from qsdm.store import Store
from qsdm.trace import trace
from qsdm.workspace import Workspace

PROTOCOL = Protocol("a", "0", "1", "DDIM", 10, 2.0, 32, "float32", "1", 0, 256)
CONFIGS = [QuantConfig("a", {"w": QuantMethod("uaq", bits)}) for bits in (2, 3, 4, 5)]
FULL = QuantConfig("a", {})


def outcome(
    qconfig: QuantConfig, protocol: Protocol = PROTOCOL, seconds: float | None = None
) -> Outcome:
    about = {} if seconds is None else {"drawing_s": 0.75 * seconds, "scoring_s": 0.25 * seconds}
    return Outcome(qconfig, protocol.digest, {"psnr": 20.0}, protocol.num_images, provenance=about)


def plan(
    *outcomes: Outcome,
    others: tuple[Protocol, ...] = (),
    versions: dict[str, str] | None = None,
    has_full: bool = False,
) -> Plan:
    protocols = {protocol.digest: protocol for protocol in (PROTOCOL, *others)}
    history = History(outcomes, protocols)
    return plan_of(history, [FULL, *CONFIGS], PROTOCOL, versions or {}, has_full)


def test_counts_what_is_missing() -> None:
    assert plan() == Plan(4, 256, 256)
    assert plan(has_full=True) == Plan(4, 256, 0)
    assert plan(outcome(CONFIGS[0]), outcome(FULL), has_full=True) == Plan(3, 256, 0)
    done = plan(*map(outcome, [FULL, *CONFIGS]))
    assert done.num_pictures == 0  # full precision is needed for others only
    assert str(done) == "plan: no picture is missing"
    other = dataclasses.replace(PROTOCOL, seed_set=1)
    assert plan(outcome(CONFIGS[0], other), others=(other,)) == Plan(4, 256, 256)
    assert plan_of(History([], {}), [*CONFIGS, *CONFIGS], PROTOCOL, {}, True).num_configs == 4


def test_the_speed_is_that_of_pictures_drawn_in_the_same_way() -> None:
    few = dataclasses.replace(PROTOCOL, seed_set=3, num_images=16)
    slow = dataclasses.replace(PROTOCOL, steps=50)
    large = dataclasses.replace(PROTOCOL, resolution_px=64)
    kept = [
        outcome(qconfig, few, 16 * s) for qconfig, s in zip(CONFIGS, (1.0, 2.0, 9.0), strict=False)
    ]
    ignored = [
        outcome(CONFIGS[0], slow, 5000),
        outcome(CONFIGS[0], large, 5000),
        outcome(FULL, PROTOCOL, 0.1),
    ]
    several = plan(*kept, *ignored, outcome(CONFIGS[3], few), others=(few, slow, large))
    assert several.picture_s == 2.0
    assert plan(*ignored, others=(slow, large)).picture_s is None
    assert plan(kept[0]).picture_s is None  # its protocol is not known
    recent = [outcome(CONFIGS[0], few, 160)] * NUM_RECENT  # here; before, on a faster machine
    assert plan(*kept * 40, *recent, others=(few,)).picture_s == 10
    scored = dataclasses.replace(
        outcome(CONFIGS[0], PROTOCOL, 2560), metrics={"psnr": 20.0, "fid": 3.0}
    )
    assert plan(scored).picture_s == 10
    versions = {"psnr": "1"}
    assert plan(outcome(CONFIGS[1], PROTOCOL, 256), scored, versions=versions).picture_s == 1


def test_outcomes_without_a_metric_that_is_asked_for_are_drawn_again() -> None:
    here = dataclasses.replace(outcome(CONFIGS[0]), versions={"psnr": "1"})
    for versions, number in (
        ({}, 3),
        ({"psnr": "1"}, 3),
        ({"psnr": "2"}, 4),
        ({"psnr": "1", "fid": "1"}, 4),
    ):
        assert plan(here, has_full=True, versions=versions).num_configs == number


def test_workers_share_the_time_but_not_the_money() -> None:
    one, two = (Plan(97, 256, 256, 1.2, workers, 2.5) for workers in (1, 2))
    assert one.seconds == pytest.approx(1.2 * 98 * 256)
    assert two.seconds == pytest.approx(1.2 * 49.5 * 256)  # 49 rounds, and half of full precision
    assert one.price == two.price == pytest.approx(1.2 * 98 * 256 / 3600 * 2.5)
    assert Plan(1, 256, 0, 1.2, 8).seconds == Plan(1, 256, 0, 1.2, 1).seconds


def test_says_it_in_a_line() -> None:
    drawn = "plan: 97 configurations x 256 pictures = 24,832, and 256 of full precision"
    assert (
        str(Plan(97, 256, 256)) == f"{drawn}; the first configuration will tell how long it takes"
    )
    assert str(Plan(97, 256, 256, None, 2, 2.5)) == str(Plan(97, 256, 256))
    assert (
        str(Plan(97, 256, 256, 0.2, 2))
        == f"{drawn}; about 42 minutes on 2 workers (0.2 s a picture)"
    )
    told = str(Plan(97, 256, 256, 0.2, None, 2.5))
    assert told.startswith(
        f"{drawn}; about 1 hour and 24 minutes on one worker, less on more (0.2 s a picture)"
    )
    assert told.endswith("about 3.48 at 2.50 per worker and hour")
    assert (
        str(Plan(1, 16, 0, 0.01, 1))
        == "plan: 1 configuration x 16 pictures = 16; about 1 second on 1 worker (0.01 s a picture)"
    )


@pytest.mark.parametrize("price", [0, -1.0, float("nan"), float("inf")])
def test_a_price_is_positive(price: float) -> None:
    with pytest.raises(ValueError, match=rf"price_per_hour must be positive.*\(got {price}\)"):
        Plan(1, 4, price_per_hour=price)


SPACE = SpaceSpec("small", ("uaq-3", "uaq-4"))


def test_measure_tells_its_plan_first(
    tiny_model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace(Workspace(tiny_model, root=tmp_path))
    calibrate(Workspace(tiny_model, SPACE, tmp_path))
    arguments = {"num_images": 4, "batch_size": 4, "engine": Serial()}

    def lines(**given) -> tuple[list[Outcome], list[str]]:
        capsys.readouterr()
        found = measure(Workspace(tiny_model, SPACE, tmp_path), **{**arguments, **given})
        return found, capsys.readouterr().out.splitlines()

    # A plan alone measures nothing, writes nothing, starts no workers.
    with monkeypatch.context() as patched:
        patched.setattr(Local, "open", None)
        nothing, (told, memory) = lines(num_configs=2, plan=True, engine=Local(2))
    assert nothing == []
    assert told == (
        "plan: 2 configurations x 4 pictures = 8, and 4 of full precision; "
        "the first configuration will tell how long it takes"
    )
    assert memory.startswith("memory: denoiser ")
    assert " (packed " in memory
    assert " at batch 4 about " in memory
    store = Store(tmp_path, tiny_model.name)
    assert not store.path("outcomes.sqlite").exists()
    assert not store.path("pictures").exists()

    with pytest.raises(ValueError, match="price_per_hour must be positive"):
        measure(
            Workspace(tiny_model, SPACE, tmp_path), num_configs=2, price_per_hour=0, **arguments
        )
    assert not store.path("outcomes.sqlite").exists()

    first, printed = lines(num_configs=2)
    assert printed[0] == told
    there, (told, _) = lines(num_configs=3, plan=True, price_per_hour=1e6)
    assert there == first
    assert re.match(
        r"plan: 1 configuration x 4 pictures = 4; about \d+ (second|minute)s? on 1 worker \(", told
    )
    assert told.endswith(" at 1,000,000.00 per worker and hour")
    assert len(store.outcomes()) == 3
    assert lines(num_configs=2)[1][:2] == [
        "plan: no picture is missing",
        printed[2],
    ]  # then the table, as before
