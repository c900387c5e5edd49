from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from toy_unet import Toy

from qsdm.outcome import Objective, Outcome
from qsdm.predictor.encode import Encoding
from qsdm.predictor.interactions import (
    MOST_PAIRS_OF_A_GROUP,
    blocks,
    candidates,
    interactions_of,
)
from qsdm.predictor.probes import PAIRS, STAGE
from qsdm.qconfig import QuantConfig

QUALITY = Objective({"fd_lite0": -1})


class Law:
    """A label with known contributions of single weights and of pairs, the same for all methods."""

    def __init__(self, encoding: Encoding, pairs: dict[tuple[int, int], float]) -> None:
        self.encoding, self.pairs = encoding, pairs
        self.harm = np.linspace(1, 2, encoding.num_weights)

    def by_fold(self, configurations: torch.Tensor) -> torch.Tensor:
        quantized = 1 - configurations[..., -1].double()  # [B, W]
        harm = quantized @ torch.from_numpy(self.harm)
        for (a, b), excess in self.pairs.items():
            harm = harm + excess * quantized[:, a] * quantized[:, b]
        return torch.stack([-harm - 7, -harm + 9])  # folds of other offsets


def test_candidates_are_the_pairs_of_the_largest_second_difference(
    toy: Toy, encoding: Encoding
) -> None:
    law = Law(encoding, {(3, 5): 4.0, (8, 20): -6.0, (0, 1): 0.5})
    found = candidates(law, toy.space.uniform("uaq-3"), 3)  # type: ignore[arg-type]
    names = [weight.name for weight in toy.space.graph.weights]
    assert [one.groups for one in found] == [
        ((names[8],), (names[20],)),
        ((names[3],), (names[5],)),
        ((names[0],), (names[1],)),
    ]
    np.testing.assert_allclose([one.excess for one in found], [-6, 4, 0.5], atol=1e-9)


def test_shapley_interactions_are_averages_over_what_else_is_quantized(
    toy: Toy, encoding: Encoding
) -> None:
    pytest.importorskip("shapiq")
    groups = [(weight.name,) for weight in toy.space.graph.weights][:8]

    class Triple(Law):
        """Three weights that do harm only together: half of it falls on each pair of them."""

        def by_fold(self, configurations: torch.Tensor) -> torch.Tensor:
            quantized = 1 - configurations[..., -1].double()
            return super().by_fold(configurations) - 6 * quantized[:, [1, 4, 6]].prod(dim=1)

    law = Triple(encoding, {(2, 5): 4.0})
    qconfig = toy.space.uniform("uaq-3")
    proposed = candidates(law, qconfig, 4, groups, by="shapley")  # type: ignore[arg-type]
    excess = {frozenset(one.groups): one.excess for one in proposed}
    assert excess.pop(frozenset({groups[2], groups[5]})) == pytest.approx(4, abs=1e-4)
    triple = [groups[i] for i in (1, 4, 6)]
    assert set(excess) == {frozenset({a, b}) for a, b in combinations(triple, 2)}
    assert list(excess.values()) == pytest.approx([3, 3, 3], abs=1e-4)
    (one, *_) = candidates(law, qconfig, 4, groups)  # type: ignore[arg-type]
    assert one.excess == pytest.approx(4)


def test_ways_to_propose_pairs_are_checked(
    toy: Toy, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    law, qconfig = Law(encoding, {}), toy.space.uniform("uaq-3")
    with pytest.raises(ValueError, match="by difference or shapley"):
        candidates(law, qconfig, 1, by="guess")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "shapiq.approximator", None)
    with pytest.raises(ValueError, match=r"pip install 'qsdm\[shapley\]'"):
        candidates(law, qconfig, 1, by="shapley")  # type: ignore[arg-type]


def test_no_weight_takes_all_candidates(toy: Toy, encoding: Encoding) -> None:
    law = Law(encoding, {(2, b): 10.0 + b for b in range(3, 12)})
    found = candidates(law, toy.space.uniform("uaq-3"), 6)  # type: ignore[arg-type]
    names = [weight.name for weight in toy.space.graph.weights]
    assert len(found) == 6
    most = [one.groups for one in found if (names[2],) in one.groups]
    assert most == [((names[2],), (names[b],)) for b in (11, 10, 9)]
    assert len(most) == MOST_PAIRS_OF_A_GROUP
    every = candidates(law, toy.space.uniform("uaq-3"), 10_000)  # type: ignore[arg-type]
    assert 6 < len(every) <= MOST_PAIRS_OF_A_GROUP * len(names) // 2


def test_blocks_interact_by_all_pairs_between_them(toy: Toy, encoding: Encoding) -> None:
    groups = blocks(toy.space.graph)
    names = [weight.name for weight in toy.space.graph.weights]
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert len(groups) < len(names)
    first, second = groups[1], groups[3]
    within = (names.index(first[0]), names.index(first[-1]))
    across = {(names.index(a), names.index(b)): 0.5 for a in first for b in second}
    law = Law(encoding, across | {within: 99.0})
    (found,) = candidates(law, toy.space.uniform("uaq-3"), 1, groups)  # type: ignore[arg-type]
    assert found.groups == (first, second)
    assert found.excess == pytest.approx(0.5 * len(across))


def measured(
    names: Sequence[str], value: float, halves: Sequence[tuple[float, float]], stage: str
) -> Outcome:
    qconfig = QuantConfig.from_json(
        {"schema": "qsdm/qconfig/1", "denoiser": "d", "methods": dict.fromkeys(names, "uaq-3")}
    )
    return Outcome(
        qconfig, "p", {"fd_lite0": value}, 256, {"fd_lite0": tuple(halves)},
        provenance={"stage": stage},
    )  # fmt: skip


def test_what_two_weights_do_beyond_the_sum_has_a_paired_error() -> None:
    """What all four configurations' halves have in common is no error of the excess."""
    outcomes = [
        measured([], 100.0, [(90, 110), (120, 80)], "measure"),
        measured(["a"], 103.0, [(93, 113), (123, 83)], STAGE),
        measured(["b"], 105.0, [(95, 115), (125, 85)], STAGE),
        measured(["a", "b"], 112.0, [(101, 121), (132, 94)], PAIRS),
        measured(["a", "c"], 112.0, [(101, 121), (132, 94)], PAIRS),  # c was not measured alone
        measured(["b", "a"], 112.0, [(101, 121), (132, 94)], STAGE),  # a group that was probed
    ]
    (one,) = interactions_of(outcomes, QUALITY)
    assert (one.harms, one.joint, one.excess) == ((3.0, 5.0), 12.0, 4.0)
    assert one.groups == (("a",), ("b",))
    # Halves' excess: 101 - 93 - 95 + 90 = 3 and 3; 132 - 123 - 125 + 120 = 4 and 6.
    assert one.standard_error == pytest.approx(np.sqrt((0 + 1) / 2))
    assert one.is_confirmed
    (scaled,) = interactions_of(outcomes, Objective({"fd_lite0": -2, "avg_bits": -150}))
    assert (scaled.excess, scaled.standard_error) == (8.0, pytest.approx(2 * one.standard_error))


def test_the_parts_of_a_pair_may_be_groups() -> None:
    halves = [(100, 100)]
    outcomes = [
        measured([], 100.0, halves, "measure"),
        measured(["a", "b"], 103.0, halves, STAGE),
        measured(["a"], 101.0, halves, STAGE),  # what is left was not measured
        measured(["c", "d"], 104.0, halves, STAGE),
        measured(["a", "b", "c", "d"], 106.0, halves, PAIRS),
    ]
    (one,) = interactions_of(outcomes, QUALITY)
    assert (one.groups, one.harms, one.excess) == ((("a", "b"), ("c", "d")), (3.0, 4.0), -1.0)


@pytest.mark.parametrize(("joint", "confirmed"), [(9.0, False), (6.0, True)])
def test_only_an_interval_that_excludes_0_confirms(joint: float, confirmed: bool) -> None:
    outcomes = [
        measured([], 100.0, [(100, 100)], "measure"),
        measured(["a"], 103.0, [(103, 103)], STAGE),
        measured(["b"], 105.0, [(105, 105)], STAGE),
        measured(["a", "b"], 100 + joint, [(100 + joint, 101.2 + joint)], PAIRS),
    ]
    (one,) = interactions_of(outcomes, QUALITY)
    assert one.standard_error == pytest.approx(0.6)
    assert one.is_confirmed == confirmed
