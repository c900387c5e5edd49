"""The loop of a search on a law that is known: it goes on where it was killed, and it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_unet import Toy, fill_store

from qsdm.measurement.labels import Bank
from qsdm.measurement.rounds import Journal, Limits, Loop, joined, line, region_of, table
from qsdm.measurement.worth import Worth
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.predictor.encode import encode
from qsdm.predictor.informed import Informed, Lessons
from qsdm.predictor.posterior import Posterior
from qsdm.predictor.update import Updated
from qsdm.qconfig import QuantConfig, Space
from qsdm.store import Store, StoreError
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.strategies import Problem
from qsdm.strategies.acquisition import Believer
from qsdm.strategies.choice import Tradeoff
from qsdm.text import ignore

QUALITY = Objective({"fd_lite0": -1})
MODEL: list[Informed] = []


class Killed(Exception):
    pass


@dataclasses.dataclass
class Workers:
    """A session that measures by the toy's law, and dies after some configurations."""

    toy: Toy
    store: Store
    lives: float = np.inf
    stages: list[str] = dataclasses.field(default_factory=list)
    drawn: list[str] = dataclasses.field(default_factory=list)
    broken: set[str] = dataclasses.field(default_factory=set)

    @property
    def space(self) -> Space:
        return self.toy.space

    def measure(
        self, qconfigs: Sequence[QuantConfig], protocol: Protocol, stage: str, log: Any
    ) -> None:
        database = OutcomeDatabase(self.store.path("outcomes.sqlite"))
        known = {outcome.qconfig.digest for outcome in self.store.outcomes(protocol)}
        for qconfig in qconfigs:
            if qconfig.digest in known | self.broken:
                continue
            if self.lives < 1:
                raise Killed
            self.lives -= 1
            value = float(self.toy.true_fd([qconfig])[0])
            halves = {"fd_lite0": ((value + 0.1, value - 0.1),)}
            about = {"stage": stage}
            metrics = {"fd_lite0": value}
            found = Outcome(qconfig, protocol.digest, metrics, 64, halves, provenance=about)
            database.add(with_psnr(self.space, found), protocol)
            self.drawn.append(qconfig.digest)
            self.stages.append(stage)


class Fidelity:
    """A fidelity that falls with each weight that has its first option, and is known exactly."""

    name, sign = "psnr", 1

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        return 30 - 10 * (genes == 0).mean(axis=1)


def with_psnr(space: Space, outcome: Outcome) -> Outcome:
    psnr = float(Fidelity()(space.encode(outcome.qconfig)[None])[0])
    halves = {**outcome.halves, "psnr": ((psnr, psnr),)}
    return dataclasses.replace(outcome, metrics={**outcome.metrics, "psnr": psnr}, halves=halves)


def loop_of(toy: Toy, root: Path, avg_bits: float | None = 3.5, lives: float = np.inf) -> Loop:
    store = Store(root, "toy_unet")
    if not store.path("graph.json").exists():
        fill_store(root, toy, 30)
    bank = Bank.read(store, toy.space)
    labels = bank.labels(QUALITY, num_images=64)
    encoding = encode(toy.space, toy.table)
    problem = Problem.of(toy.space, toy.table)
    lessons = Lessons(
        encoding, toy.table, QUALITY, labels.genes, labels.values, labels.halves, None, -20.0
    )
    if not MODEL:  # of the same labels in every test
        MODEL.append(lessons.model(np.arange(len(labels))))
    (model,) = MODEL

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return model.predict(encoding.one_hot(genes))

    def explore(predict: Believer) -> np.ndarray:
        genes = problem.sample(np.random.default_rng(7), 400)
        return genes[np.argsort(-predict(genes)[0])]

    return Loop(
        Workers(toy, store, lives),  # type: ignore[arg-type]
        QUALITY,
        labels,
        problem,
        region_of(toy.space, problem, labels, avg_bits),
        Journal(
            store.path("search/traced-rounds.json"),
            {
                "denoiser": "toy_unet",
                "space": "traced",
                "objective": {"fd_lite0": -1.0},
                "protocol": labels.protocol.digest,
            },
        ),
        lambda genes, values: Updated.of(predict, encoding, Posterior(model), genes, values),
        explore,
    )


@pytest.mark.parametrize("avg_bits", [None, 3.5])
def test_rounds_report_optimism_and_gain(toy: Toy, tmp_path: Path, avg_bits: float | None) -> None:
    loop = loop_of(toy, tmp_path, avg_bits)
    logged: list[dict] = []
    _, reports = loop.run(Limits(2, 3, patience=9), lambda row: logged.append(dict(row)))
    assert [len(report["proposals"]) for report in reports] == [3, 3]
    assert loop.ready.stages == ["rounds"] * 6  # type: ignore[attr-defined]
    proposed = loop.proposed()
    assert proposed is not None
    assert len(proposed) == 6
    first = reports[0]
    for entry in first["proposals"]:
        assert avg_bits is None or entry["avg_bits"] <= avg_bits
        (qconfig,) = [o.qconfig for o in proposed.outcomes if o.qconfig.digest == entry["digest"]]
        assert entry["measured"] == pytest.approx(-toy.true_fd([qconfig])[0])
    away = [p["predicted"] - p["measured"] for p in first["proposals"] if p["measured"]]
    assert first["optimism"] == pytest.approx(np.mean(away))
    assert first["optimism_error"] == pytest.approx(np.std(away, ddof=1) / 3**0.5)
    assert first["num_images"] == 3 * 64
    # Volumes add up, and the front of random configurations is beaten.
    before = loop.volume(loop.labels)
    assert first["volume"] == pytest.approx(before + first["gain"])
    assert reports[1]["volume"] == pytest.approx(loop.volume(joined(loop.labels, proposed)))
    assert reports[1]["volume"] > before
    bits, quality = zip(*reports[1]["front"], strict=True)
    assert list(bits) == sorted(bits)
    assert list(quality) == sorted(quality)
    if avg_bits is not None:  # of one size, the volume is how far the best lies above the worst
        everything = joined(loop.labels, proposed)
        small = loop.problem.size_of(everything.genes) <= loop.region.low_bytes
        best = everything.values[small].max()
        assert reports[1]["volume"] == pytest.approx(best - loop.labels.values.min())
    assert {"rounds/volume", "rounds/gain", "rounds/optimism"} <= set().union(*logged)
    summary = loop.report(avg_bits, reports)
    assert len(table(summary).splitlines()) == 2 + 1 + len(reports)
    assert line(1, first).startswith("round 1: optimism ")


def test_with_an_axis_of_fidelity_rounds_ask_for_the_largest_worth(
    toy: Toy, tmp_path: Path
) -> None:
    plain = loop_of(toy, tmp_path)
    worth = Worth(Tradeoff("psnr", 1, quality_span=500.0, metric_span=1.0, enough=-40.0), Fidelity)
    assert not len(worth.known(plain.labels))
    outcomes = [with_psnr(toy.space, outcome) for outcome in plain.labels.outcomes]
    labels = dataclasses.replace(plain.labels, outcomes=tuple(outcomes))
    assert len(worth.known(labels)) == len(labels)
    valued = worth.of_labels(labels)
    fidelity = Fidelity()(labels.genes)
    good = labels.values >= -40
    assert valued.values == pytest.approx(
        np.minimum(labels.values, -40) + 500 * fidelity + 500 * good
    )
    assert valued.halves is not None
    region = region_of(toy.space, plain.problem, valued, 3.5)
    loop = dataclasses.replace(plain, labels=labels, region=region, worth=worth)
    _, (report,) = loop.run(Limits(1, 1))
    (entry,) = report["proposals"]
    proposed = loop.proposed()
    assert proposed is not None
    # It is the nearest to full precision of those that fit, and optimism stays that of quality.
    tried = loop.explore(loop.model(None))
    fits = loop.problem.size_of(tried) <= loop.region.low_bytes
    predicted = loop.model(None)(tried)[0]
    wanted = worth.tradeoff.worth(predicted, Fidelity()(tried))
    assert Fidelity()(proposed.genes)[0] == Fidelity()(tried[fits][wanted[fits].argmax()][None])[0]
    assert entry["measured"] == pytest.approx(-toy.true_fd([proposed.outcomes[0].qconfig])[0])
    assert report["optimism"] == pytest.approx(entry["predicted"] - entry["measured"])
    small = loop.problem.size_of(labels.genes) <= loop.region.low_bytes
    best = [valued.values[small].max(), float(worth.of_labels(proposed).values[0])]
    assert report["gain"] == pytest.approx(max(best) - best[0])
    assert report["gain_error"] is not None


def test_a_killed_loop_goes_on_and_measures_nothing_twice(toy: Toy, tmp_path: Path) -> None:
    whole = loop_of(toy, tmp_path / "whole")
    _, expected = whole.run(Limits(3, 3, patience=9))
    for lives in (0, 1, 4, 8):
        root = tmp_path / str(lives)
        killed = loop_of(toy, root, lives=lives)
        with pytest.raises(Killed):
            killed.run(Limits(3, 3, patience=9))
        assert len(killed.journal.read()) == lives // 3 + 1  # written before it is measured
        again = loop_of(toy, root)
        _, reports = again.run(Limits(3, 3, patience=9))
        assert reports == expected
        assert len(again.ready.drawn) == 9 - lives  # type: ignore[attr-defined]
        _, same = loop_of(toy, root, lives=0).run(Limits(3, 3, patience=9))
        assert same == expected  # nothing is left to do
        _, more = (longer := loop_of(toy, root)).run(Limits(4, 3, patience=9))
        assert more[:3] == expected
        assert len(longer.ready.drawn) == 3  # type: ignore[attr-defined]


def test_the_budget_of_pictures_is_kept(toy: Toy, tmp_path: Path) -> None:
    loop = loop_of(toy, tmp_path)
    _, reports = loop.run(Limits(5, 3, 7, patience=9))
    assert [len(report["proposals"]) for report in reports] == [3, 3, 1]
    assert Limits(5, 3, max_configs=7).num_left(loop.journal.read()) == 0
    assert Limits(5, 3, max_configs=7).num_left([]) == 7
    assert Limits(2, 3).num_left([]) == 6
    assert Limits(2, 3).num_left(loop.journal.read()) == 0


def test_it_ends_when_the_front_has_stopped_improving(toy: Toy, tmp_path: Path) -> None:
    def report(gain: float, error: float | None) -> Any:
        return {"gain": gain, "gain_error": error}

    limits = Limits(9, 3, patience=2)
    assert not limits.has_stopped([])
    assert not limits.has_stopped([report(0, 1)])
    assert limits.has_stopped([report(5, 1), report(0.5, 1), report(1, 1)])
    assert not limits.has_stopped([report(0, 1), report(1.1, 1)])
    assert limits.has_stopped([report(0, None), report(0, None)])
    # Candidates end, too: all that the space offers was proposed.
    loop = loop_of(toy, tmp_path)
    few = loop.problem.sample(np.random.default_rng(3), 4)
    small = dataclasses.replace(loop, explore=lambda _: few)
    _, reports = small.run(Limits(50, 3, patience=50))
    assert 0 < sum(len(entry["proposals"]) for entry in reports) <= 4


def test_what_was_set_aside_is_not_proposed_again(toy: Toy, tmp_path: Path) -> None:
    first = loop_of(toy, tmp_path / "a").run(Limits(1, 2))[1][0]["proposals"]
    loop = loop_of(toy, tmp_path / "b")
    loop.ready.broken |= {first[0]["digest"]}  # type: ignore[attr-defined]
    _, reports = loop.run(Limits(3, 2, patience=9))
    assert reports[0]["proposals"][0]["measured"] is None
    digests = [entry["digest"] for report in reports for entry in report["proposals"]]
    assert len(digests) == len(set(digests)) == 6
    loop = loop_of(toy, tmp_path / "c")
    loop.ready.broken |= {entry["digest"] for entry in first}  # type: ignore[attr-defined]
    _, (report,) = loop.run(Limits(1, 2))
    assert report["optimism"] is None
    assert report["gain"] == 0
    assert "optimism -" in line(1, report)


def test_outcomes_of_proposals_are_no_labels_and_tests_are_no_proposals(
    toy: Toy, tmp_path: Path
) -> None:
    loop = loop_of(toy, tmp_path)
    loop.run(Limits(1, 2))
    store = loop.ready.store
    bank = Bank.read(store, toy.space)
    assert bank.labels(QUALITY, num_images=64).digests == loop.labels.digests
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    known = {*loop.labels.digests, *loop.proposed().digests}  # type: ignore[union-attr]
    model = loop.model(loop.proposed())
    offered = map(toy.space.decode, loop.explore(model))
    tested = Outcome(
        next(qconfig for qconfig in offered if qconfig.digest not in known),
        loop.protocol.digest,
        {"fd_lite0": 1.0},
        64,
        provenance={"stage": "test"},
    )
    database.add(tested, loop.protocol)
    assert loop.proposed() is not None
    assert tested.qconfig.digest not in loop.proposed().digests  # type: ignore[union-attr]
    _, reports = loop.run(Limits(4, 3, patience=9))
    digests = {entry["digest"] for report in reports for entry in report["proposals"]}
    assert tested.qconfig.digest not in digests


def test_rounds_of_another_objective_are_not_continued(toy: Toy, tmp_path: Path) -> None:
    loop = loop_of(toy, tmp_path)
    loop.run(Limits(1, 2))
    other = dataclasses.replace(
        loop.journal, about={**loop.journal.about, "objective": {"psnr": 1.0}}
    )
    assert other.read() == []
    assert len(loop.journal.read()) == 1
    text = loop.journal.path.read_text(encoding="utf-8")
    loop.journal.path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(StoreError, match="rounds"):
        loop.journal.read()


def test_outcomes_condition_the_next_round(toy: Toy, tmp_path: Path) -> None:
    """What was measured is predicted almost exactly afterward."""
    loop = loop_of(toy, tmp_path)
    before = loop.model(None)
    model, _ = loop.run(Limits(1, 3), ignore)
    proposed = loop.proposed()
    assert proposed is not None
    errors = [np.abs(m(proposed.genes)[0] - proposed.values).mean() for m in (before, model)]
    assert errors[1] < 0.6 * errors[0]
    assert (model(proposed.genes)[1] < before(proposed.genes)[1]).all()
