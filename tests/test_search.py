"""The search on a predictor whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_conf import compose

from qsdm.__main__ import main
from qsdm.denoisers import Model
from qsdm.graph import Graph, Node, Op, Weight
from qsdm.outcome import Objective
from qsdm.qconfig import QuantConfig, Space, SpaceSpec
from qsdm.run import keys
from qsdm.run.values import values_of
from qsdm.search import limits_of, search
from qsdm.store import StoreError
from qsdm.strategies import Problem
from qsdm.strategies.archive import Goal
from qsdm.strategies.constraints import Constraints, read_budget
from qsdm.strategies.evolution import Evolution
from qsdm.strategies.explorer import search_front
from qsdm.strategies.greedy import Greedy
from qsdm.strategies.random import Random
from qsdm.workspace import Workspace

METHODS = ["uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4"]
EVOLUTION = Evolution(population=40, offspring=40)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A chain of 16 layers whose weight errors say little of what is sensitive."""
    rng = np.random.default_rng(0)
    names = [f"layer{i}" for i in range(16)]
    nodes = [
        Node(name, Op.LINEAR, weight=Weight(name, f"{name}.weight", (16, int(n))))
        for name, n in zip(names, rng.integers(300, 900, 16), strict=True)
    ]
    space = Space.of(Graph("chain", tuple(nodes), tuple((i, i + 1) for i in range(15))), METHODS)
    error = np.full((16, 6), np.inf)
    for i, offered in enumerate(space.options):
        error[i, : len(offered)] = [4.0**-m.bits * rng.uniform(0.5, 2) for m in offered]
    return Problem(space, error)


@dataclasses.dataclass
class Additive:
    """A predictor with a sensitivity for each weight, and an interaction between neighbours."""

    problem: Problem
    calls: int = 0

    def __call__(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls += len(genes)
        num = genes.shape[1]
        sensitivity = np.random.default_rng(1).lognormal(0, 1.5, num)
        loss = sensitivity * self.problem.error[np.arange(num), genes] * 256
        mean = -loss.sum(axis=1) - 0.3 * np.sqrt(loss[:, 1:] * loss[:, :-1]).sum(axis=1)
        return mean, 0.1 + 0.1 * (genes % 2).mean(axis=1)


def run(problem: Problem, strategy=EVOLUTION, **options) -> dict:
    return search_front(Additive(problem), problem, strategy, **{"evaluations": 800, **options})


def at_most(problem: Problem, bits: float) -> Goal:
    return Goal(max_bytes=bits * problem.space.graph.num_values / 8)


def test_front_rises_and_can_be_read_back(problem):
    result = json.loads(json.dumps(run(problem), allow_nan=False))
    points = result["points"]
    assert len(points) > 5
    for a, b in itertools.pairwise(points):
        assert a["size_bytes"] < b["size_bytes"]
        assert a["predicted"] < b["predicted"]
    for point in points:
        genes = problem.space.encode(QuantConfig.from_json(point["qconfig"]))[None]
        assert problem.size_of(genes)[0] == point["size_bytes"]
        assert Additive(problem)(genes)[0][0] == point["predicted"]
        assert 8 * point["size_bytes"] / problem.space.graph.num_values == pytest.approx(
            point["avg_bits"]
        )


def test_no_baseline_has_more_volume_than_the_front_of_everything(problem):
    volume = run(problem)["hypervolume"]
    assert set(volume) == {"front", "strategy", "uniform", "random", "greedy", "greedy_error"}
    assert all(0 <= value <= volume["front"] <= 1 for value in volume.values())
    assert volume["greedy"] > volume["greedy_error"]  # errors do not know what is sensitive here
    assert volume["strategy"] >= volume["greedy"] - 0.01 > volume["uniform"]


def test_more_evaluations_find_no_smaller_volume(problem):
    few, many = (run(problem, evaluations=num)["hypervolume"]["strategy"] for num in (100, 2000))
    assert many >= few


@pytest.mark.parametrize(
    "strategy", [EVOLUTION, Random(50), Greedy(batch=50)], ids=lambda s: type(s).__name__
)
def test_limit_and_seed(problem, strategy):
    first, second = (
        run(problem, strategy, goal=at_most(problem, 3.5), evaluations=200, seed=3)
        for _ in range(2)
    )
    assert first == second
    assert max(point["avg_bits"] for point in first["points"]) <= 3.5
    assert first["strategy"]["name"] == type(strategy).__name__.lower()


def test_limit_concentrates_the_search_below_it(problem):
    def best(result):
        return max(point["predicted"] for point in result["points"] if point["avg_bits"] <= 3.4)

    assert best(run(problem, goal=at_most(problem, 3.4))) >= best(run(problem, Random(50)))


def test_aversion_to_risk_prefers_what_the_folds_agree_on(problem):
    bold, careful = run(problem, kappa=0.0), run(problem, kappa=50.0)
    assert np.mean([p["std"] for p in careful["points"]]) < np.mean(
        [p["std"] for p in bold["points"]]
    )


def test_stored_points_are_thinned_with_their_ends(problem):
    whole, few = run(problem), run(problem, max_points=5)
    assert len(few["points"]) == 5
    assert few["points"][0] == whole["points"][0]
    assert few["points"][-1] == whole["points"][-1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"evaluations": 0}, "evaluations"),
        ({"kappa": -1.0}, "kappa"),
        ({"max_points": 0}, "max_points"),
    ],
)
def test_values_out_of_range_are_refused(problem, bad, message):
    with pytest.raises(ValueError, match=message):
        run(problem, **bad)


def test_a_predictor_that_is_not_finite_is_refused(problem):
    def broken(genes):
        return np.full(len(genes), np.nan), np.zeros(len(genes))

    with pytest.raises(ValueError, match="not finite"):
        search_front(broken, problem, Random(10), evaluations=10)


def test_what_was_predicted_once_is_not_predicted_again(problem):
    predict = Additive(problem)
    result = search_front(predict, problem, EVOLUTION, evaluations=400)
    assert predict.calls == result["num_evaluations"]


def test_a_missing_stage_is_named_with_its_command(tmp_path):
    model = Model(
        "none", "zoo", "UNet2DConditionModel", "unet", resolution_px=32, steps=10, guidance=2.0
    )
    with pytest.raises(StoreError, match=r"run python -m qsdm\.trace \+model=none"):
        search(
            Workspace(model, SpaceSpec("traced", METHODS), tmp_path),
            Objective({"fd_lite0": -1}),
            EVOLUTION,
        )


def test_a_budget_of_pictures_becomes_one_of_configurations():
    labels = SimpleNamespace(protocol=SimpleNamespace(num_images=256))
    assert limits_of(labels, 3, 4, 1000, 2).max_configs == 3
    assert limits_of(labels, 3, 4, None, 2).max_configs is None
    with pytest.raises(ValueError, match=r"one configuration of 256 pictures.*\(got 255\)"):
        limits_of(labels, 3, 4, 255, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rounds": -1}, "rounds"),
        ({"rounds": 1, "per_round": 0}, "per_round"),
        ({"rounds": 1, "patience": 0}, "patience"),
        ({"rounds": 1, "avg_bits": 0.5}, "avg_bits"),
        ({"rounds": 1, "price_per_hour": -1.0}, "price_per_hour"),
    ],
)
def test_rounds_out_of_range_are_refused(bad, message, tmp_path):
    model = Model(
        "none", "zoo", "UNet2DConditionModel", "unet", resolution_px=32, steps=10, guidance=2.0
    )
    workspace = Workspace(model, SpaceSpec("traced", METHODS), tmp_path)
    with pytest.raises(ValueError, match=message):
        search(workspace, Objective({"fd_lite0": -1}), EVOLUTION, **bad)


def test_constraints_are_spelled_by_name() -> None:
    """Names of weights hold dots, ``#`` and wildcards, which Hydra's keys do not."""
    arguments = [
        "+model=emoji_unet",
        "budget.size_bytes=1.2e6",
        "limit.psnr=26",
        "limit.lora_retention=0.9",
        "lora=loras/my style.safetensors",
        "pin.up.0.conv1#0=uaq-4",
        "pin.*.to_q=uaq-3",
        "forbid=[kmeans_a,uaq-3]",
        "target=torchao",
    ]
    function, cfg = compose("search", keys.spelled(arguments, search))
    values = values_of(function, cfg)
    given = {name: values[name] for name in ("budget", "limit", "pin", "forbid", "target", "lora")}
    constraints = Constraints.of(**given)
    assert constraints == Constraints(
        size_bytes=1.2e6,
        limit={"psnr": 26, "lora_retention": 0.9},
        pin={"up.0.conv1#0": "uaq-4", "*.to_q": "uaq-3"},
        forbid=("kmeans_a", "uaq-3"),
        target="torchao",
        lora=Path("loras/my style.safetensors"),
    )
    function, cfg = compose("main", keys.spelled(["+model=emoji_unet", "budget=5000"], main))
    assert read_budget(values_of(function, cfg)["budget"]) == ({}, 5000)
