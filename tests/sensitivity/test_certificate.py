"""The certificate on pictures whose law we know: the toy's hidden damage stands for drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fabricated_store import fabricate
from toy_unet import Toy

from qsdm.outcome import Objective, Outcome
from qsdm.predictor import FitOptions, Predictor
from qsdm.predictor.informed import Lessons
from qsdm.predictor.mean import Priors
from qsdm.predictor.probes import probes_of_errors
from qsdm.qconfig import QuantConfig
from qsdm.qconfig.cost import size_bytes
from qsdm.sensitivity import Sensitivity
from qsdm.sensitivity.certificate import (
    CurveOptions,
    as_text,
    conditions,
    configurations,
    contents,
    start,
)
from qsdm.sensitivity.curves import (
    LEAST_FIRST,
    MOST_FIRST,
    RANDOM,
    AreaDifference,
    Curve,
    Way,
    along,
    area_differences,
    counts_of,
    curve,
    scores_of,
    ways,
)
from qsdm.sensitivity.stability import Stability, shuffled, stability
from qsdm.store.schemas import REPORT

QUALITY = Objective({"fd_lite0": -1.0})


def drawn(toy: Toy, qconfigs: Sequence[QuantConfig], noise: float = 2.0) -> list[Outcome]:
    """Outcomes whose halves share most of their noise, as those of the same seeds do."""
    common = np.random.default_rng(5).normal(0, 20, (8, 1))
    outcomes = []
    for i, (qconfig, fd) in enumerate(zip(qconfigs, toy.true_fd(list(qconfigs)), strict=True)):
        away = common + np.random.default_rng(i).normal(0, noise, (8, 1))
        halves = tuple((float(fd + d), float(fd - d)) for d in away[:, 0])
        outcomes.append(Outcome(qconfig, "p", {"fd_lite0": float(fd)}, 64, {"fd_lite0": halves}))
    return outcomes


def sensitivity_of(toy: Toy, harms: np.ndarray) -> Sensitivity:
    return Sensitivity(
        tuple(w.name for w in toy.space.graph.weights),
        toy.space.methods,
        np.where(np.isnan(toy.table.rel_error), np.nan, harms[:, None] * toy.table.rel_error),
        "integrated_gradients",
    )


def measured_curves(toy: Toy, harms: np.ndarray) -> list[Curve]:
    begin = start(toy.space, "uaq-3")
    scores = scores_of(begin, toy.space, toy.table, sensitivity_of(toy, harms), None)
    counts = counts_of(len(begin.methods), 8)
    return [
        curve(toy.space, QUALITY, way, counts, drawn(toy, along(begin, way, counts)))
        for way in ways(begin, scores, 4, seed=0)
    ]


def test_a_curve_leads_from_the_quantized_denoiser_to_full_precision(toy: Toy) -> None:
    begin = start(toy.space, None)
    sizes = {size_bytes(toy.space.graph, toy.space.uniform(str(m))) for m in toy.space.methods}
    assert size_bytes(toy.space.graph, begin) == min(sizes)
    names = tuple(begin.methods)
    counts = counts_of(len(names), 8)
    assert counts[0] == 0
    assert counts[-1] == len(names)
    assert len(counts) == 8
    path = along(begin, Way("size", MOST_FIRST, names), counts)
    assert path[0].methods == begin.methods
    assert not path[-1].methods
    assert [len(q.methods) for q in path] == [len(names) - c for c in counts.tolist()]
    assert set(names[: counts[1]]).isdisjoint(path[1].methods)
    assert counts_of(3, 8).tolist() == [0, 1, 2, 3]


def test_both_directions_restore_in_opposite_orders(toy: Toy) -> None:
    begin = start(toy.space, "uaq-3")
    values = np.arange(len(begin.methods), dtype=float)
    most, least, *random = ways(begin, {"size": values}, 3, seed=1)
    assert (most.direction, least.direction) == (MOST_FIRST, LEAST_FIRST)
    assert most.weights == tuple(reversed(list(begin.methods))) == least.weights[::-1]
    assert len({way.weights for way in random}) == 3
    assert all(set(way.weights) == set(begin.methods) for way in random)
    assert ways(begin, {}, 3, seed=1) == random
    # Shared ends are measured once, and full precision is first.
    listed = configurations(begin, [most, least, *random], counts_of(len(values), 8))
    assert not listed[0].methods
    assert len(listed) == len({q.digest for q in listed}) == 2 + 5 * 6


def test_the_true_order_is_certified_and_a_wrong_one_is_not(toy: Toy) -> None:
    right = area_differences(measured_curves(toy, toy.sensitivity))
    assert {(d.order, d.direction) for d in right} == {
        (order, direction)
        for order in ("weight_error", "size", RANDOM)
        for direction in (MOST_FIRST, LEAST_FIRST)
    }
    assert all(d.sign == 1 for d in right if d.order == RANDOM)
    steady = Stability(len(toy.sensitivity), [0.9], {20: 0.8}, [0.05, -0.1])
    assert all(rule["holds"] for rule in conditions(right, steady))
    wrong = area_differences(measured_curves(toy, 1 / toy.sensitivity))
    assert any(d.sign == -1 for d in wrong if d.order == RANDOM)
    first, second, third = conditions(wrong, steady)
    assert (first["holds"], second["holds"], third["holds"]) == (False, False, True)
    assert "weight error" in second["condition"]


def test_areas_are_paired(toy: Toy) -> None:
    """Noise that all pictures share cancels: 20 of it are in every half, and 2 are not."""
    curves = measured_curves(toy, toy.sensitivity)
    errors = curves[0].errors
    assert errors is not None
    assert errors[-1] == 0  # full precision against itself
    assert 1 < errors[:-1].mean() < 5
    (size,) = (
        d for d in area_differences(curves) if (d.order, d.direction) == ("size", MOST_FIRST)
    )
    assert size.standard_error is not None
    assert 0 < size.standard_error < 3
    own, other = curves[0], next(c for c in curves if c.way.order == "size")
    assert size.value == pytest.approx(other.area - own.area)


def test_areas_of_random_orders_vary_by_the_order_too() -> None:
    counts, halves = np.array([0, 1, 2]), np.zeros((2, 2, 3))

    def flat(order: str, direction: str, harm: float, number: int = 0) -> Curve:
        way = Way(order, direction, ("a", "b"), number)
        return Curve(way, np.full(3, harm), halves, counts)

    own = [flat("attribution", MOST_FIRST, 1.0), flat("attribution", LEAST_FIRST, 9.0)]
    random = [flat(RANDOM, MOST_FIRST, harm, i) for i, harm in enumerate((3.0, 5.0))]
    most, least = area_differences([*own, *random])
    assert (most.value, most.gain) == (3.0, 3.0)
    assert (least.value, least.gain) == (-5.0, 5.0)
    assert most.standard_error == pytest.approx(1.0)  # sqrt(variance 2 / 2 orders)


def test_without_halves_nothing_is_certified() -> None:
    unknown = [AreaDifference(RANDOM, d, 5.0, None) for d in (MOST_FIRST, LEAST_FIRST)]
    assert conditions(unknown, Stability(10))[0]["holds"] is False
    assert conditions(unknown, Stability(10))[2]["holds"] is None


def test_shuffled_measurements_must_teach_other_attributions() -> None:
    assert Stability(101, [0.8], {}, [0.1, 0.05]).is_of_measurements
    assert Stability(101, [0.8], {}, [0.3, 0.3]).is_of_measurements
    assert Stability(101, [0.8], {}, [0.5, 0.5]).is_of_measurements is False
    assert Stability(101, [0.8], {}, [-0.5, -0.5]).is_of_measurements is False


def test_a_certificate_is_told_and_stored(toy: Toy) -> None:
    from outcomes import PROTOCOL

    from qsdm.store.schemas import CERTIFICATE

    steady = Stability(len(toy.sensitivity), [0.9], {20: 0.8}, [0.05, -0.1])
    data = contents(
        measured_curves(toy, toy.sensitivity), steady, CurveOptions(num_random=4), PROTOCOL
    )
    printed = as_text(data)
    assert "the certificate holds" in printed
    assert "weight error" in printed
    assert "learned from 20 labels: 0.800" in printed
    about = {"denoiser": "toy", "space": "s", "objective": {"fd_lite0": -1.0}}
    built = CERTIFICATE.build(about | {"attributions": "0", "method": "uaq-3", **data})
    assert built["holds"]
    assert len(built["curves"]) == 3 * 2 + 4


def test_options_out_of_range_are_refused() -> None:
    for key, value in (("points", 2), ("num_images", 1), ("num_random", 1), ("seed_set", -1)):
        with pytest.raises(ValueError, match=f"wanted {key} of at least"):
            CurveOptions(**{key: value})


def test_attributions_of_folds_and_of_wrong_labels(toy: Toy, predictor: Predictor) -> None:
    outcomes, _ = toy.outcomes(40)
    genes = np.stack([toy.space.encode(outcome.qconfig) for outcome in outcomes])
    values = -np.array([outcome.metrics["fd_lite0"] for outcome in outcomes], dtype=np.float64)
    probes = probes_of_errors(toy.space, toy.table)
    lessons = Lessons(predictor.encoding, toy.table, QUALITY, genes, values, None, probes, -20.0)
    priors = Priors.of(lessons, {"other": probes_of_errors(toy.space, toy.table)})
    mixed, other = list(shuffled(priors, np.random.default_rng(0)).lessons.values())[:2]
    assert (mixed.values == other.values).all()
    assert (mixed.values != values).any()
    assert sorted(mixed.values) == sorted(values)
    assert mixed.probes is not None
    assert (mixed.probes.harm != probes.harm).any()
    assert (mixed.genes == genes).all()
    quick = FitOptions(folds=2, width=8, hops=1, epochs=1)
    result = stability(
        predictor, Priors.of(lessons, {}), quick, start(toy.space, "uaq-3"), trainings=1
    )
    assert len(result.folds) == 1
    assert sorted(result.label_counts) == [20]
    assert len(result.shuffled) == 1
    assert all(abs(v) <= 1 for v in (*result.folds, *result.label_counts.values()))


def test_what_was_trained_can_be_trained_again(tmp_path: Path) -> None:
    """Whole numbers of a report stay whole: there is no range of 5.0 folds."""
    report = fabricate(tmp_path).read(REPORT, "predictor/traced/report.json")
    options = FitOptions(**report["predictor"])  # type: ignore[arg-type]
    assert list(range(options.folds)) == [0, 1, 2, 3, 4]
