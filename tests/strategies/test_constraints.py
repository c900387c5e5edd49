"""Budgets, limits, pins, forbidden methods and targets: what they leave, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import QuantConfig, QuantMethod, Space, SpaceSpec
from qsdm.qconfig.cost import avg_bits, size_bytes, tera_bops
from qsdm.recipes.targets import TARGETS, held_by
from qsdm.strategies import Problem
from qsdm.strategies.archive import Archive, Goal
from qsdm.strategies.choice import Tradeoff, choose
from qsdm.strategies.constraints import (
    BitOperations,
    Constraints,
    Infeasible,
    reach,
    read_budget,
    with_bytes,
)
from qsdm.strategies.explorer import search_front, uniform_genes
from qsdm.strategies.feasible import least_bytes, reachable
from qsdm.strategies.greedy import Greedy
from qsdm.strategies.random import Random

METHODS = ["uaq-3", "uaq-4", "kmeans_c-3", "kmeans_a-3", "uaq_g64-4", "nf4_g64-4"]


def space_of(*shapes: tuple[int, ...], methods: list[str] = METHODS) -> Space:
    names = ["conv_in", "up.conv1#0", "up.conv1#1", "mid.to_q", "mid.to_k", "proj"][: len(shapes)]
    nodes = [
        Node(name, Op.LINEAR, weight=Weight(name, f"{name.partition('#')[0]}.{i}", shape))
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
    ]
    return Space.of(Graph("chain", tuple(nodes), ()), methods)


SPACE = space_of(*[(32, 512)] * 6)


def offered(constraints: Constraints, space: Space = SPACE) -> list[list[str]]:
    held = held_by(constraints.target, space.graph)
    return [list(map(str, o)) for o in constraints.restrict(space, held).space.options]


def test_pins_leave_one_method_and_names_beat_patterns() -> None:
    left = offered(Constraints.of(pin={"mid.*": "uaq-4", "mid.to_k": "uaq-3", "up.conv1": "uaq-4"}))
    assert left[1:5] == [["uaq-4"], ["uaq-4"], ["uaq-4"], ["uaq-3"]]
    assert len(left[0]) == len(left[5]) == len(METHODS)
    spelled = (["mid.*=uaq-4", "mid.to_k=uaq-3"], {"mid": {"*": "uaq-4", "to_k": "uaq-3"}})
    assert len({str(offered(Constraints.of(pin=pin))) for pin in spelled}) == 1


def test_forbidden_methods_are_left_out_with_or_without_bits() -> None:
    (left, *_) = offered(Constraints.of(forbid=["uaq-3", "kmeans_c"]))
    assert set(left) == set(METHODS) - {"uaq-3", "kmeans_c-3"}
    assert offered(Constraints.of(forbid="uaq"))[0] == [
        m for m in offered(Constraints())[0] if not m.startswith("uaq-")
    ]


def test_genes_of_the_part_mean_the_same_in_the_whole() -> None:
    restriction = Constraints.of(pin={"mid.*": "uaq-4"}, forbid="uaq-3").restrict(SPACE)
    genes = Problem(restriction.space, np.ones(restriction.columns.shape)).sample(
        np.random.default_rng(0), 20
    )
    for part, whole in zip(genes, restriction.whole(genes), strict=True):
        assert restriction.space.decode(part) == SPACE.decode(whole)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_gets_what_it_stores_as_it_is(target: str) -> None:
    """Formats substitute a uniform grid where they have no codebook or table."""
    (left, *_) = offered(Constraints(target=target))
    codebooks = {"kmeans_c-3", "kmeans_a-3"}
    uniform = {"uaq-3", "uaq-4", "uaq_g64-4"}
    expected = {
        "qsdm": set(METHODS),
        "torchao": uniform,
        "gguf": uniform,  # 512 values are two blocks of 256
        "sdnq": uniform | codebooks,
    }
    assert set(left) == expected[target]


def test_gguf_holds_three_bits_only_in_rows_of_whole_blocks_and_no_convolution() -> None:
    narrow = space_of((32, 320), methods=["uaq-3", "uaq-4"])
    assert offered(Constraints(target="gguf"), narrow) == [["uaq-4"]]
    conv = space_of((32, 64, 3, 3), methods=["uaq-3", "fp-16"])
    assert offered(Constraints(target="gguf"), conv) == [["fp-16"]]
    assert offered(Constraints(target="torchao"), conv) == [["uaq-3", "fp-16"]]


def test_budgets_in_bytes_and_in_bits_agree() -> None:
    num = SPACE.graph.num_values
    assert Constraints.of({"avg_bits": 3.5}).max_bytes(num) == 3.5 * num / 8
    assert Constraints.of({"size_bytes": 1e6}).max_bytes(num) == 1e6
    assert Constraints.of({"size_bytes": 1e6, "avg_bits": 3.5}).max_bytes(num) == 3.5 * num / 8
    assert np.isinf(Constraints().max_bytes(num))


def test_the_reachable_range_is_that_of_the_extreme_configurations() -> None:
    low, high = reach(SPACE)
    genes = Problem(SPACE, np.ones((6, len(METHODS)))).sample(np.random.default_rng(1), 200)
    sizes = [size_bytes(SPACE.graph, SPACE.decode(row)) for row in genes]
    assert low <= min(sizes) <= max(sizes) <= high
    assert low == size_bytes(SPACE.graph, SPACE.uniform("kmeans_a-3"))
    result, lines = reachable(SPACE, None, Constraints.of({"avg_bits": 3.01}, forbid="kmeans_a"))
    smallest = SPACE.uniform("uaq-3")
    assert result["min_bytes"] == size_bytes(SPACE.graph, smallest)
    assert result["min_bits"] == avg_bits(SPACE.graph, smallest)
    assert f"{result['min_bytes']:,} to {result['max_bytes']:,} bytes" in lines[1]
    assert lines[2] == "budget.avg_bits=3.01: out of reach"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": {"bytes": 3}}, r"no budget\.bytes: give budget\.size_bytes=BYTES, budget"),
        ({"budget": {"avg_bits": "3.5x"}}, r"budget\.avg_bits of at least 1 \(got '3\.5x'\)"),
        ({"budget": {"size_bytes": -1}}, r"budget\.size_bytes of at least 1 \(got -1\)"),
        ({"budget": {"avg_bits": float("nan")}}, r"budget\.avg_bits"),
        ({"limit": {"psnr": True}}, r"limit\.psnr: wanted a finite number \(got True\)"),
        ({"pin": {"mid.to_v": "uaq-4"}}, r"pin\.mid\.to_v matches none of the 6 .*mid\.to_"),
        ({"pin": {"mid.to_q": "uaq-9"}}, r"uaq has 2, 3, 4.* bits \(got 9\)"),
        ({"pin": {"mid.to_q": "uaq"}}, "wanted a method and its bits"),
        ({"pin": ["mid.to_q"]}, r"wanted pin\.WEIGHT=METHOD"),
        ({"pin": {"proj": "uaq-8"}}, r"uaq-8 is not on offer for 'proj' \(offered: uaq-3"),
        ({"forbid": ["uaq-5"]}, r"offers no 'uaq-5' \(it offers .*uaq-3"),
        ({"forbid": "uaq", "pin": {"proj": "uaq-4"}}, "pin and forbid leave 'proj' no method"),
        ({"target": "gguff"}, r"wanted one of qsdm, torchao, gguf, sdnq .*mean 'gguf'"),
        ({"target": "torchao", "forbid": ["uaq", "uaq_g64"]}, "leave 'conv_in' no method"),
        ({"limit": {"lora_retention": 90}}, r"at most 1, as 0\.9 \(got 90\)"),
        ({"limit": {"lora_retention": 0.0}}, r"above 0 and at most 1, as 0\.9 \(got 0\)"),
        ({"limit": {"lora_retention": 0.9}}, r"about one adapter: give lora=FILE to search and"),
        ({"lora": Path("a.safetensors")}, r"is for a limit: give limit\.lora_retention=0\.9"),
        (
            {"budget": {"avg_bits": 2.5}},
            r"budget\.avg_bits=2\.5 cannot be met: .* from 3\.0\d\d to",
        ),
        ({"budget": {"size_bytes": 10}}, r"size_bytes=10 cannot be met.* [\d,]+ to [\d,]+ bytes$"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        offered(Constraints.of(**given))
    assert "\n" not in str(caught.value)


def test_old_spellings_are_read() -> None:
    assert read_budget(5000, 10_000) == ({}, 5000)
    assert read_budget(None, 7, max_bits=3.5) == ({"avg_bits": 3.5}, 7)
    assert read_budget({"size_bytes": 9.0}, 7, avg_bits=None) == ({"size_bytes": 9.0}, 7)
    with pytest.raises(ValueError, match="max_bits is the old spelling"):
        read_budget({"avg_bits": 3.0}, 7, max_bits=3.5)
    for wrong in (3.5, True, "3.5"):
        with pytest.raises(ValueError, match="budget"):
            read_budget(wrong, 7)  # type: ignore[arg-type]


def problem() -> Problem:
    rng = np.random.default_rng(0)
    error = np.stack([[4.0**-m.bits * rng.uniform(0.5, 2) for m in o] for o in SPACE.options])
    return Problem(SPACE, error)


class Distance:
    """A metric of which more is worse: the sum of errors, with other sensitivities."""

    name, sign = "distance", -1

    def __init__(self, of: Problem) -> None:
        self.table = of.error * np.random.default_rng(5).lognormal(0, 1.5, (len(of.error), 1)) * 1e3

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        return self.table[np.arange(genes.shape[1]), genes].sum(axis=1)


def quality(of: Problem):
    scale = np.random.default_rng(6).lognormal(0, 1.5, (len(of.error), 1)) * 1e3

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loss = (of.error * scale)[np.arange(genes.shape[1]), genes].sum(axis=1)
        return -loss, np.zeros(len(genes))

    return predict


def test_every_point_keeps_budget_and_limits_and_says_what_is_predicted() -> None:
    of = problem()
    distance = Distance(of)
    all_values = distance(of.sample(np.random.default_rng(0), 200))
    limit, max_bytes = float(np.median(all_values)), 3.6 * SPACE.graph.num_values / 8
    goal = Goal((distance,), (), {"distance": limit}, max_bytes)
    front = search_front(quality(of), of, Random(50), goal=goal, evaluations=300)
    assert front["points"]
    for point in front["points"]:
        assert point["size_bytes"] <= max_bytes
        assert point["metrics"]["distance"] <= limit
    goal = Goal((distance,), (), {"distance": 1e-9}, max_bytes)
    with pytest.raises(Infeasible, match=r"limit\.distance=1e-09 cannot be met .* predicted there"):
        search_front(quality(of), of, Random(50), goal=goal, evaluations=100)


def test_bit_operations_are_a_budget_of_their_own() -> None:
    """Inputs cost no bytes, and the path along bytes alone would never round them."""
    weights = [Weight(f"w{i}", f"w{i}.weight", (32, 512)) for i in range(6)]
    nodes = [Node(w.name, Op.LINEAR, weight=w, macs=10**9 * (i + 1)) for i, w in enumerate(weights)]
    graph = Graph("chain", tuple(nodes), ())
    space = SpaceSpec("rounded", ["uaq-3", "uaq-4"], activations=[16, 8, 6]).of(graph)
    operations = BitOperations.of(space)
    genes = np.random.default_rng(0).integers(0, 6, (50, 6))
    measured = [tera_bops(graph, space.decode(row)) for row in genes]
    np.testing.assert_allclose(operations(genes), measured)
    assert operations.least == tera_bops(graph, space.uniform("uaq-3+a6"))
    rng = np.random.default_rng(0)
    error = np.stack([[4.0**-m.bits * rng.uniform(0.5, 2) for m in o] for o in space.options])
    harm = error + np.array([[4.0**-m.inputs for m in o] for o in space.options])

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -1e3 * harm[np.arange(6), genes].sum(axis=1), np.zeros(len(genes))

    most = float(np.median(measured))
    assert Constraints.of({"tera_bops": most}).restrict(space).space == space
    goal = Goal((operations,), (), {"tera_bops": most})
    front = search_front(predict, Problem(space, error), Greedy(), goal=goal, evaluations=2000)
    chosen = [QuantConfig.from_json(point["qconfig"]) for point in front["points"]]
    assert all(tera_bops(graph, qconfig) <= most for qconfig in chosen)
    best = max(point["predicted"] for point in front["points"])
    every = np.stack(np.meshgrid(*map(np.arange, [6] * 6)), axis=-1).reshape(-1, 6)
    exact = predict(every[operations(every) <= most])[0].max()
    assert best >= 1.05 * exact  # both are negative: 5 % more harm than the best of all 46,656
    assert {bits for qconfig in chosen for bits in qconfig.inputs.values()} == {6, 8}
    little = {"tera_bops": 0.9 * operations.least}
    with pytest.raises(Infeasible, match=r"budget\.tera_bops=0\.\d+ cannot be met: .* at least"):
        Constraints.of(little).restrict(space)
    with pytest.raises(ValueError, match=r"wanted a positive budget\.tera_bops \(got 0\)"):
        Constraints.of({"tera_bops": 0})
    assert with_bytes(little) == {"avg_bits": 3.5, **little}
    forbidden = Constraints.of(forbid=["uaq-4", "uaq-3+a6"]).restrict(space).space
    assert {str(m) for m in forbidden.methods} == {"uaq-3", "uaq-3+a8"}
    held = held_by("torchao", graph)
    assert {m.inputs for m in Constraints().restrict(space, held).space.methods} == {16}


def test_the_least_bytes_of_a_limit_are_those_of_the_smallest_that_keeps_it() -> None:
    of = problem()
    distance = Distance(of)
    every = np.stack(np.meshgrid(*map(np.arange, of.num_options)), axis=-1).reshape(-1, 6)
    for limit in np.quantile(distance(every), (0.1, 0.5)):
        exact = of.size_of(every[distance(every) <= limit]).min()
        least = least_bytes(of, distance, limit)
        assert exact <= least <= 1.03 * exact  # the path is exact for its own sizes alone
    assert least_bytes(of, distance, -1.0) is None


def test_uniform_configurations_of_a_part_take_the_nearest_bits() -> None:
    part = Constraints.of(pin={"proj": "uaq-4"}).restrict(SPACE).space
    rows = [part.decode(genes).methods for genes in uniform_genes(part)]
    assert {row["proj"] for row in rows} == {QuantMethod("uaq", 4)}
    assert {row["conv_in"] for row in rows} == set(SPACE.options[0])


def test_the_surface_holds_the_front_of_each_pair_of_objectives() -> None:
    of = problem()
    goal = Goal((Distance(of),), ("distance",))
    archive = Archive(of, quality(of), 0.0, goal)
    archive.evaluate(of.sample(np.random.default_rng(2), 400))
    values = archive.values
    assert values.shape[1] == 3
    points = archive.points(max_points=10**6)
    kept = np.array([[-p["predicted"], p["size_bytes"], p["metrics"]["distance"]] for p in points])
    for row in kept:
        assert not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
    for row in values:
        assert (kept <= row).all(axis=1).any()
    assert (np.diff(kept[:, 1]) >= 0).all()


def test_the_knee_is_farthest_from_the_line_between_the_ends() -> None:
    quality_of, distance = np.array([0.0, 8.0, 10.0, 9.0]), np.array([10.0, 12.0, 30.0, 40.0])
    tradeoff = Tradeoff.of("distance", -1, quality_of, distance)
    assert (tradeoff.quality_span, tradeoff.metric_span) == (10.0, 20.0)
    metrics = [{"distance": value, "psnr": 20.0 + i} for i, value in enumerate(distance)]
    signs = {"psnr": 1, "distance": -1}
    choice = choose(quality_of.tolist(), metrics, signs, {}, tradeoff)
    assert choice.index == 1
    assert "knee of the objective (8; the best has 10) and distance (12; there 30)" in choice.why
    assert choose(quality_of.tolist(), metrics, signs, {}).index == 2
    limited = choose(quality_of.tolist(), metrics, signs, {"distance": 15})
    assert limited.index == 1
    assert "best objective, 8, of 2 of 4 measured candidates that keep limit.distance=15" in (
        limited.why
    )
    with pytest.raises(ValueError, match=r"none of 4 .*\(limit\.psnr=25, the best has 23\)"):
        choose(quality_of.tolist(), metrics, signs, {"psnr": 25})


def test_quality_beyond_full_precision_buys_no_distance() -> None:
    quality_of, distance = np.array([0.0, 7.0, 12.0, 20.0]), np.array([10.0, 11.0, 13.0, 20.0])
    metrics = [{"distance": value} for value in distance]
    for enough, chosen in ((np.inf, 2), (6.0, 1), (-1.0, 0)):
        tradeoff = Tradeoff.of("distance", -1, quality_of, distance, enough)
        assert (tradeoff.quality_span, tradeoff.metric_span) == (20.0, 10.0)
        choice = choose(quality_of.tolist(), metrics, {"distance": -1}, {}, tradeoff)
        assert choice.index == chosen
        told = f"best objective, 20, has 20) of what reaches full precision's objective, {enough:g}"
        assert (told in choice.why) == np.isfinite(enough)
