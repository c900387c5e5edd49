from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from toy_unet import Toy

from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.predictor.encode import errors
from qsdm.predictor.probes import ProbeError, Probes, probes_of
from qsdm.qconfig import QuantConfig, QuantMethod, Space

QUALITY = Objective({"fd_lite0": -1})


PROTOCOL = Protocol("toy_unet", "w", "q", "Sampler", 10, 2.0, 32, "float32", "captions", 0, 64)
OTHER = dataclasses.replace(PROTOCOL, weights="others", steps=12)


def outcomes_of(toy: Toy, methods: tuple[str, ...] = ("uaq-3",)) -> list[Outcome]:
    """Full precision and each weight alone; harm is sensitivity × error, exactly."""
    names = [weight.name for weight in toy.space.graph.weights]
    error, columns = errors(toy.space, toy.table), toy.space.methods

    def outcome(methods_by_name: dict[str, QuantMethod], fd: float) -> Outcome:
        noise = np.linspace(0.5, 1.5, 4)
        halves = tuple((fd - e, fd + e) for e in noise * (1.0 if methods_by_name else 0.2))
        first = {16: {"fd_lite0": fd + 1.0}}
        qconfig = QuantConfig("toy_unet", methods_by_name)
        return Outcome(qconfig, PROTOCOL.digest, {"fd_lite0": fd}, 64, {"fd_lite0": halves}, first)

    found = [outcome({}, 20.0)]
    for w, name in enumerate(names):
        for method in map(QuantMethod.parse, methods):
            harm = toy.sensitivity[w] * error[w, columns.index(method)]
            found.append(outcome({name: method}, 20.0 + float(harm)))
    return found


def test_harm_is_what_full_precision_loses(toy: Toy) -> None:
    probes = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)
    error = errors(toy.space, toy.table)[:, toy.space.methods.index(QuantMethod("uaq", 3))]
    np.testing.assert_allclose(probes.harm[:, 0], toy.sensitivity * error)
    np.testing.assert_allclose(probes.error[:, 0], error)
    assert (probes.num_images, probes.fidelity, probes.protocol) == (64, "full", PROTOCOL)
    # Captions and noise are shared: what full precision varies by, too, is no error of the harm.
    spread = 0.8 * np.sqrt(np.mean(np.linspace(0.5, 1.5, 4) ** 2))
    np.testing.assert_allclose(probes.standard_error, spread)


def test_the_first_pictures_make_probes_of_their_own(toy: Toy) -> None:
    whole = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)
    few = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY, num_images=16)
    np.testing.assert_allclose(few.harm, whole.harm)  # each, and full precision, is greater by 1
    np.testing.assert_allclose(few.standard_error, 2 * whole.standard_error)
    assert few.num_images == 16
    with pytest.raises(ProbeError, match="has no fd_lite0 of 32 pictures"):
        probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY, num_images=32)


@pytest.mark.parametrize("methods", [("uaq-3",), ("uaq-3", "uaq-4"), ("uaq-4", "kmeans_a-3")])
def test_harm_in_proportion_to_error_is_predicted_exactly(
    toy: Toy, methods: tuple[str, ...]
) -> None:
    """Whichever methods were probed, in whichever order."""
    given = outcomes_of(toy, methods)[::-1]
    damage = probes_of(toy.space, toy.table, given, PROTOCOL, QUALITY).damage(toy.space, toy.table)
    error = np.nan_to_num(errors(toy.space, toy.table))  # 0 where a method is not on offer
    np.testing.assert_allclose(damage[:, :-1], toy.sensitivity[:, None] * error)
    assert (damage[:, -1] == 0).all()


def test_harm_is_interpolated_between_probed_methods(toy: Toy) -> None:
    """A probed method has its measured harm, even where harm is not linear in the error."""
    probes = probes_of(
        toy.space, toy.table, outcomes_of(toy, ("uaq-3", "uaq-4")), PROTOCOL, QUALITY
    )
    bent = dataclasses.replace(probes, harm=probes.error**1.5)
    damage, error = bent.damage(toy.space, toy.table), errors(toy.space, toy.table)
    for method in ("uaq-3", "uaq-4"):
        column = toy.space.methods.index(QuantMethod.parse(method))
        np.testing.assert_allclose(damage[:, column], error[:, column] ** 1.5)
    between = (error > bent.error.min(1, keepdims=True)) & (
        error < bent.error.max(1, keepdims=True)
    )
    low, high = damage[:, :-1] >= error**1.5, damage[:, :-1] <= bent.harm.max(1, keepdims=True)
    assert (low & high)[between].all()


def test_a_weight_without_error_does_no_harm(toy: Toy) -> None:
    probes = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)
    error = probes.error.copy()
    error[3] = 0
    assert (dataclasses.replace(probes, error=error).damage(toy.space, toy.table)[3] == 0).all()


def replaced(outcome: Outcome, **changes: object) -> Outcome:
    return dataclasses.replace(outcome, **changes)  # type: ignore[arg-type]


def test_bad_probes_are_told_in_one_sentence(toy: Toy) -> None:
    good = outcomes_of(toy)
    other = QuantConfig("toy_unet", {"elsewhere": QuantMethod("uaq", 3)})
    twice = outcomes_of(toy, ("uaq-3", "uaq-4"))
    cases = {
        "no weight of 'toy_unet' was measured alone: run python -m qsdm.probe": good[:1],
        "full precision was not measured beside": good[1:],
        "3 of 27 weights were not probed ('": good[:-3],
        "'toy_unet' has no 'elsewhere' in this space": [*good, replaced(good[1], qconfig=other)],
        "1 of 27 weights were not probed": [*good[:-1], replaced(good[-1], protocol=OTHER.digest)],
        "was probed under 1 methods and other weights under 2": twice[:-1],
        "a probe has no fd_lite0 of all pictures": [
            *good[:-1],
            replaced(good[-1], metrics={"psnr": 1.0}),
        ],
    }
    for message, given in cases.items():
        with pytest.raises(ProbeError, match=re.escape(message)) as raised:
            probes_of(toy.space, toy.table, given, PROTOCOL, QUALITY)
        assert "\n" not in str(raised.value)


def test_probes_that_are_not_finite_or_of_another_shape_are_refused(toy: Toy) -> None:
    probes = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)
    harm = probes.harm.copy()
    harm[2] = np.nan
    name = re.escape(probes.weights[2])
    with pytest.raises(ProbeError, match=f"the harm of the probe of '{name}' is not finite"):
        dataclasses.replace(probes, harm=harm)
    with pytest.raises(ProbeError, match="the standard error of the probe"):
        dataclasses.replace(probes, standard_error=harm)
    with pytest.raises(ProbeError, match="wanted harm of shape"):
        dataclasses.replace(probes, harm=harm[:5])
    with pytest.raises(ProbeError, match="wanted error of shape"):
        dataclasses.replace(probes, error=harm[:, [0, 0]])
    with pytest.raises(ProbeError, match="fidelity must be one of"):
        dataclasses.replace(probes, fidelity="guessed")


def test_probes_fit_the_space_and_the_protocol_of_the_labels(toy: Toy) -> None:
    probes = probes_of(toy.space, toy.table, outcomes_of(toy), PROTOCOL, QUALITY)
    probes.require(toy.space, PROTOCOL)
    free = dataclasses.replace(PROTOCOL, prompts="others", seed_set=1, num_images=256)
    probes.require(toy.space, free)
    with pytest.raises(ProbeError, match="with other weights, steps than the labels: run python"):
        probes.require(toy.space, OTHER)
    foreign = Probes(
        ("a", *probes.weights[1:]),
        probes.harm,
        probes.standard_error,
        probes.error,
        64,
        "full",
        "p",
    )
    with pytest.raises(ProbeError, match="other weights"):
        foreign.damage(toy.space, toy.table)
    fewer = Space(toy.space.graph, toy.space.options[:1] * len(toy.space.options))
    assert probes.interpolation(fewer, toy.table).shape == (27, len(fewer.methods) + 1, 1)


def test_distances_are_probes_without_full_precision(toy: Toy) -> None:
    """Of squared pixels for a PSNR; full precision has no distance to itself."""
    given = [
        replaced(o, metrics={"psnr": 20.0 + i}, halves={}, prefixes={})
        for i, o in enumerate(outcomes_of(toy)[1:])
    ]
    probes = probes_of(toy.space, toy.table, given, PROTOCOL, "psnr")
    np.testing.assert_allclose(probes.harm[:, 0], 10 ** (-2 - np.arange(27) / 10))
    assert (probes.fidelity, probes.num_images) == ("drawn", 64)
    assert (probes.standard_error == 0).all()
    outputs = [replaced(o, metrics={"output_error": 0.1}, halves={}) for o in given]
    forward = probes_of(toy.space, toy.table, outputs, PROTOCOL, "output_error")
    assert (forward.fidelity, forward.num_images) == ("forward", 0)


def test_a_group_lends_its_weights_shares_by_error(toy: Toy) -> None:
    """Where a weight was probed alone, too, that counts."""
    alone = outcomes_of(toy)
    names = [weight.name for weight in toy.space.graph.weights]
    group = QuantConfig(
        "toy_unet", {name: method for o in alone[4:8] for name, method in o.qconfig.methods.items()}
    )
    marked = replaced(
        alone[4], qconfig=group, metrics={"fd_lite0": 30.0}, provenance={"stage": "probe"}
    )
    given = [o for i, o in enumerate(alone) if i not in (4, 5, 6)] + [marked]
    probes = probes_of(toy.space, toy.table, given, PROTOCOL, QUALITY)
    whole = probes_of(toy.space, toy.table, alone, PROTOCOL, QUALITY)
    members = [names.index(name) for name in group.methods]
    shares = whole.error[members, 0] / whole.error[members, 0].sum()
    np.testing.assert_allclose(probes.harm[members[:3], 0], 10 * shares[:3])
    np.testing.assert_allclose(probes.harm[members[3]], whole.harm[members[3]])
    assert len(members) == 4
    label = replaced(marked, provenance={"stage": "measure"})  # no probe: a configuration
    with pytest.raises(ProbeError, match="3 of 27 weights were not probed"):
        probes_of(toy.space, toy.table, [*given[:-1], label], PROTOCOL, QUALITY)
