"""Laws of the strategies, on spaces small enough to know the answer."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import Space
from qsdm.qconfig.cost import size_bytes
from qsdm.strategies import Problem
from qsdm.strategies.argmax import ArgMax, Block, settings_of
from qsdm.strategies.evolution import Evolution
from qsdm.strategies.front import front, hypervolume
from qsdm.strategies.greedy import Greedy, filled, path, spread
from qsdm.strategies.local import Swaps
from qsdm.strategies.random import Random, near

METHODS = ["uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4"]
STRATEGIES = [Evolution(population=20, offspring=20), Random(batch=20), Greedy(batch=20)]


def chain(num: int) -> Space:
    """Linear layers of different sizes; the last one is too small for K-Means-C."""
    shapes = [(8 + 4 * (i % 3), 640 + 64 * (i % 5)) for i in range(num - 1)] + [(8, 48)]
    nodes = [
        Node(f"layer{i}", Op.LINEAR, weight=Weight(f"layer{i}", f"layer{i}.weight", shape))
        for i, shape in enumerate(shapes)
    ]
    return Space.of(
        Graph("chain", tuple(nodes), tuple((i, i + 1) for i in range(num - 1))), METHODS
    )


def toy(num: int, seed: int = 0) -> Problem:
    space = chain(num)
    rng = np.random.default_rng(seed)
    error = np.full((num, max(map(len, space.options))), np.inf)
    for i, offered in enumerate(space.options):
        error[i, : len(offered)] = (
            rng.uniform(0.1, 1)
            * np.array([4.0**-m.bits for m in offered])
            * rng.uniform(0.8, 1.2, len(offered))
        )
    return Problem(space, error)


def values_of(problem: Problem, genes: np.ndarray) -> np.ndarray:
    """A separable problem: the sum of errors, and bytes."""
    rows = np.arange(genes.shape[1])
    return np.stack(
        [problem.error[rows, genes].sum(axis=1), problem.size_of(genes).astype(float)], axis=1
    )


def everything(problem: Problem) -> np.ndarray:
    return np.array(list(itertools.product(*map(range, problem.num_options))), dtype=np.int64)


def no_seeds(problem: Problem) -> np.ndarray:
    return np.empty((0, len(problem.num_options)), dtype=np.int64)


def test_sizes_are_those_of_cost():
    problem = toy(6)
    genes = problem.sample(np.random.default_rng(0), 10)
    assert problem.size_of(genes).tolist() == [
        size_bytes(problem.space.graph, problem.space.decode(row)) for row in genes
    ]


def test_many_samples_follow_the_rule_of_the_space():
    problem = toy(30)
    rng = np.random.default_rng(0)
    many = problem.size_of(problem.sample(rng, 2000))
    one_by_one = problem.size_of(
        np.array([problem.space.encode(problem.space.sample(rng)) for _ in range(400)])
    )
    span = np.ptp(many)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert np.quantile(many, share) == pytest.approx(
            np.quantile(one_by_one, share), abs=0.1 * span
        )


def test_front_holds_exactly_what_nothing_dominates():
    values = np.random.default_rng(0).integers(0, 12, size=(60, 2)).astype(float)
    points = values[front(values)]
    for point in points:
        assert not ((values <= point).all(axis=1) & (values < point).any(axis=1)).any()
    for value in values:
        assert (points <= value).all(axis=1).any()
    assert (np.diff(points[:, 1]) > 0).all()
    assert (np.diff(points[:, 0]) < 0).all()


def test_hypervolume_is_the_dominated_share_of_the_box():
    rng = np.random.default_rng(0)
    values = rng.random((8, 2))
    darts = rng.random((40_000, 2))
    share = (values[None] <= darts[:, None]).all(axis=2).any(axis=1).mean()
    assert hypervolume(values, np.ones(2)) == pytest.approx(share, abs=0.01)
    assert hypervolume(values[:0], np.ones(2)) == 0


def test_greedy_path_is_the_best_of_each_of_its_sizes():
    problem = toy(5)
    genes = path(problem, problem.error)
    every = values_of(problem, everything(problem))
    walked = values_of(problem, genes)
    assert (np.diff(walked[:, 1]) < 0).all()
    for harm, size in walked:
        assert harm <= every[every[:, 1] <= size, 0].min() + 1e-12
    assert walked[-1, 1] == every[:, 1].min()


def test_greedy_refuses_a_harm_that_is_not_finite():
    problem = toy(4)
    harm = problem.error.copy()
    harm[1, 0] = np.nan
    with pytest.raises(ValueError, match="finite harm"):
        path(problem, harm)


def test_spread_keeps_the_ends():
    genes = np.arange(40).reshape(20, 2)
    five = spread(genes, 5)
    assert len(five) == 5
    assert five[0].tolist() == genes[0].tolist()
    assert five[-1].tolist() == genes[-1].tolist()
    assert spread(genes, 50) is genes


@pytest.mark.parametrize("options", STRATEGIES, ids=lambda o: type(o).__name__)
def test_what_is_asked_lies_in_the_space_and_follows_the_seed(options):
    problem = toy(12)
    runs = []
    for _ in range(2):
        search = options.start(problem, path(problem, problem.error)[:5], np.random.default_rng(7))
        proposals = []
        for _ in range(4):
            genes = search.ask()
            assert genes.dtype == np.int64
            assert genes.shape[1] == 12
            assert ((genes >= 0) & (genes < problem.num_options)).all()
            search.tell(genes, values_of(problem, genes))
            proposals.append(genes)
        runs.append(np.concatenate(proposals))
    assert np.array_equal(*runs)


def test_evolution_finds_the_optimum_of_a_separable_toy():
    problem = toy(5)
    every = values_of(problem, everything(problem))
    reference = every.max(axis=0) * 1.01
    search = Evolution(population=40, offspring=40).start(
        problem, no_seeds(problem), np.random.default_rng(0)
    )
    proposals = []
    for _ in range(40):
        genes = search.ask()
        proposals.append(values_of(problem, genes))
        search.tell(genes, proposals[-1])
    reached = hypervolume(np.concatenate(proposals), reference) / hypervolume(every, reference)
    assert reached > 0.995


def test_evolution_proposes_no_configuration_twice_among_parents_and_children():
    problem = toy(12)
    search = Evolution(population=20, offspring=20).start(
        problem, no_seeds(problem), np.random.default_rng(0)
    )
    for _ in range(5):
        genes = search.ask()
        assert len(np.unique(genes, axis=0)) == len(genes)
        search.tell(genes, values_of(problem, genes))


def test_evolution_begins_with_its_seeds():
    problem = toy(12)
    seeds = path(problem, problem.error)
    first = Evolution(population=40).start(problem, seeds, np.random.default_rng(0)).ask()
    assert {row.tobytes() for row in seeds} <= {row.tobytes() for row in first}
    assert len(first) >= len(seeds)


def test_evolution_learns_only_of_what_it_asked():
    problem = toy(6)
    search = Evolution(population=8, offspring=8).start(
        problem, no_seeds(problem), np.random.default_rng(0)
    )
    genes = search.ask()
    with pytest.raises(ValueError, match="last ask"):
        search.tell(genes[::-1], values_of(problem, genes))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_near_has_the_size_that_is_asked_for(share):
    space = chain(40)
    problem = toy(40)
    sizes = problem.size_of(problem.sample(np.random.default_rng(0), 200))
    target = int(np.quantile(sizes, share))
    rng = np.random.default_rng(1)
    drawn = [near(space, target, 0.005, rng) for _ in range(20)]
    for qconfig in drawn:
        assert size_bytes(space.graph, qconfig) == pytest.approx(target, rel=0.005)
    assert len({qconfig.digest for qconfig in drawn}) == 20


def test_near_draws_methods_evenly():
    space = chain(40)
    middle = int(np.median(toy(40).size_of(toy(40).sample(np.random.default_rng(0), 200))))
    rng = np.random.default_rng(2)
    names = [m.name for _ in range(50) for m in near(space, middle, 0.01, rng).methods.values()]
    for name in ("uaq", "kmeans_c", "kmeans_a"):
        assert names.count(name) / len(names) == pytest.approx(1 / 3, abs=0.05)


def test_near_says_what_the_space_reaches():
    space = chain(8)
    with pytest.raises(ValueError, match="reaches from"):
        near(space, 10, 0.01, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [{"population": 2}, {"mutation": 0.0}, {"crossover": 1.5}])
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="got"):
        Evolution(**bad)


def additive(problem: Problem) -> np.ndarray:
    """Harm of single changes on a problem whose values are their sum."""
    rows = np.where(np.isfinite(problem.error), problem.error, 0)
    return (rows - problem.error.min(axis=1, keepdims=True))[None]


def drive(options, problem: Problem, values, evaluations: int) -> tuple[np.ndarray, np.ndarray]:
    search = options.start(problem, no_seeds(problem), np.random.default_rng(0))
    asked: list[np.ndarray] = []
    while sum(map(len, asked)) < evaluations and len(genes := search.ask()):
        asked.append(genes)
        search.tell(genes, values(problem, genes))
    genes = np.concatenate(asked)
    return genes, values(problem, genes)


def test_swaps_find_what_single_changes_do_not_tell():
    """Two weights that hurt each other: the greedy path does not know it, swaps find out."""

    def interacting(problem: Problem, genes: np.ndarray) -> np.ndarray:
        values = values_of(problem, genes)
        low = problem.error[np.arange(genes.shape[1]), genes] > np.median(problem.error[:, :2])
        values[:, 0] += 0.02 * low[:, 0] * low[:, 1]
        return values

    problem = toy(6)
    known = dataclasses.replace(problem, harm=additive(problem))
    every = interacting(problem, everything(problem))
    genes, values = drive(Swaps(points=30, batch=50), known, interacting, 3000)
    walked = interacting(problem, path(problem, problem.error))
    reference = every.max(axis=0) * 1.01
    assert hypervolume(values, reference) > hypervolume(walked, reference)
    assert hypervolume(values, reference) > 0.998 * hypervolume(every, reference)
    assert len(np.unique(genes, axis=0)) > 0.8 * len(genes)


def test_swaps_keep_the_bytes_of_the_budget():
    problem = toy(8)
    sizes = problem.size_of(path(problem, problem.error))
    limited = dataclasses.replace(
        problem, harm=additive(problem), max_bytes=float(np.median(sizes)) + 3
    )
    genes, values = drive(Swaps(points=20, batch=40), limited, values_of, 2000)
    assert problem.size_of(genes).max() <= limited.max_bytes
    best = values[:, 0].min()
    walked = values_of(problem, path(problem, problem.error))
    assert best <= walked[walked[:, 1] <= limited.max_bytes, 0].min()


def test_greedy_walks_its_whole_path_and_ends():
    problem = dataclasses.replace(toy(6), harm=additive(toy(6)))
    genes, _ = drive(Greedy(), problem, values_of, 10**6)
    walked = path(problem, problem.harm[0])
    assert len(genes) == len(walked)
    assert {row.tobytes() for row in genes} == {row.tobytes() for row in walked}


@pytest.mark.parametrize("seed", range(4))
def test_greedy_uses_up_the_budget(seed):
    """Between two points of the path, no single change that still fits is left to improve."""
    problem = toy(6, seed)
    walked = path(problem, problem.error)
    sizes = problem.size_of(walked)
    steps = np.argmax(-np.diff(sizes))  # the widest gap
    budget = float(sizes[steps] - 1)
    limited = dataclasses.replace(problem, harm=additive(problem), max_bytes=budget)
    genes, values = drive(Greedy(), limited, values_of, 10**6)
    assert values[:, 1].max() <= budget
    every = everything(problem)
    best = genes[values[:, 0].argmin()]
    near = every[(every != best).sum(axis=1) <= 1]
    near = near[problem.size_of(near) <= budget]
    assert values[:, 0].min() == values_of(problem, near)[:, 0].min()
    below = walked[sizes <= budget]
    assert values[:, 0].min() < values_of(problem, below)[:, 0].min()
    assert np.array_equal(filled(problem, problem.error, below[0], budget), best)


def test_greedy_keeps_a_limit_with_little_loss():
    """The path of quality alone breaks the limit, that of the metric alone is needlessly bad."""
    problem = toy(6)
    scale = np.random.default_rng(4).lognormal(0, 1.5, (6, 1))
    metric = np.where(np.isfinite(problem.error), problem.error, 0) * scale
    known = dataclasses.replace(problem, harm=additive(problem), limited=metric[None])
    genes, _ = drive(Greedy(), known, values_of, 10**6)
    every = everything(problem)
    budget = np.quantile(problem.size_of(every), 0.7)
    within = every[problem.size_of(every) <= budget]
    limit = np.quantile(metric[np.arange(6), within].sum(axis=1), 0.1)

    def best(genes: np.ndarray) -> float:
        kept = (metric[np.arange(6), genes].sum(axis=1) <= limit) & (
            problem.size_of(genes) <= budget
        )
        return float(values_of(problem, genes)[kept, 0].min(initial=np.inf))

    exact = best(every)
    assert best(path(problem, problem.error)) == np.inf
    assert best(path(problem, metric)) > 1.1 * exact
    assert exact <= best(genes) < 1.01 * exact


def test_three_objectives_are_searched_as_a_surface():
    problem = toy(6)
    other = problem.error[:, ::-1]
    harm = np.stack([additive(problem)[0], other])
    known = dataclasses.replace(problem, harm=np.where(np.isfinite(harm), harm, 0))

    def three(of: Problem, genes: np.ndarray) -> np.ndarray:
        third = np.nan_to_num(other[np.arange(6), genes], posinf=1.0).sum(axis=1)
        return np.column_stack([values_of(of, genes), third])

    for options in (Greedy(), Swaps(points=40, batch=40), Evolution(population=40, offspring=40)):
        _, values = drive(options, known, three, 800)
        kept = values[front(values)]
        assert kept.shape[1] == 3
        assert len(kept) > 20
        for row in values:
            assert (kept <= row).all(axis=1).any()


def test_arg_max_of_weights_is_the_greedy_path():
    problem = dataclasses.replace(toy(6), harm=additive(toy(6)))
    genes, _ = drive(ArgMax(), problem, values_of, 10**6)
    assert {row.tobytes() for row in genes} == {
        row.tobytes() for row in path(problem, problem.harm[0])
    }


def combined(blocks: list[Block], settings: np.ndarray) -> np.ndarray:
    genes = np.empty(sum(len(block.weights) for block in blocks), dtype=np.int64)
    for block, setting in zip(blocks, settings, strict=True):
        genes[block.weights] = block.genes[setting]
    return genes


def test_arg_max_of_blocks_gives_a_block_one_method_and_is_the_best_of_its_size():
    space = chain(6)
    nodes = tuple(
        dataclasses.replace(node, block=f"block{i // 3}")
        for i, node in enumerate(space.graph.nodes)
    )
    blocks = Space.of(Graph("chain", nodes, space.graph.edges), METHODS)
    problem = Problem(blocks, toy(6).error)
    genes, values = drive(ArgMax("block"), problem, values_of, 10**6)
    scored = 4 * sum(len(block.genes) for block in settings_of(problem))  # in four contexts
    chosen = genes[scored:]
    assert len(chosen) > 2
    for row in chosen:
        methods = list(blocks.decode(row).methods.values())
        for part in (methods[:3], methods[3:5]):
            assert len(set(part)) == 1
    every = np.array(list(itertools.product(*(range(len(b.genes)) for b in settings_of(problem)))))
    joint = np.stack([combined(settings_of(problem), row) for row in every])
    all_values = values_of(problem, joint)
    for value, size in values[scored:]:
        assert value <= all_values[all_values[:, 1] <= size, 0].min() + 1e-12
    with pytest.raises(ValueError, match="level must be one of op, block"):
        ArgMax("layer")
