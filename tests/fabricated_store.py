"""A store with every artifact, made up without measuring, for tests of what reads stores."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from qsdm.graph import Graph, Node, Op, Role, Weight
from qsdm.metrics import description
from qsdm.metrics.clip_score import ClipScore
from qsdm.metrics.fidelity import Psnr
from qsdm.metrics.frechet import FrechetLite0
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, QuantMethod, Space, SpaceSpec
from qsdm.qconfig.cost import size_bytes
from qsdm.store import Store
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.provenance import provenance
from qsdm.store.schemas import (
    CERTIFICATE,
    CHOSEN,
    FRONT,
    GRAPH,
    REPORT,
    SENSITIVITIES,
    SUMMARY,
    digest_of_attributions,
)
from qsdm.store.tensors import write_tensors
from qsdm.strategies import Problem
from qsdm.strategies.evolution import Evolution
from qsdm.strategies.explorer import search_front
from qsdm.strategies.random import near

NAME = "fabricated"
SPEC = SpaceSpec(
    "traced", ["uaq-3", "uaq-4", "kmeans_c-3", "kmeans_c-4", "kmeans_a-3", "kmeans_a-4"], splits="#"
)
ROLES = [
    Role.CONV,
    Role.CONV,
    Role.COND_PROJ,
    Role.ATTN_Q,
    Role.ATTN_K,
    Role.ATTN_V,
    Role.ATTN_OUT,
    Role.FF_IN,
    Role.FF_OUT,
]


def graph_of(num_blocks: int = 6) -> Graph:
    """A chain of blocks with nine weights each, between a first and a last convolution."""
    nodes = [Node("sample", Op.INPUT)]
    nodes.append(weighted("conv_in", Op.CONV, Role.CONV_IN, "in", "conv_in", (32, 4, 3, 3)))
    for block in range(num_blocks):
        for i, role in enumerate(ROLES):
            op = Op.CONV if role == Role.CONV else Op.LINEAR
            shape = (
                (64 + 16 * (block % 3), 640)
                if op == Op.LINEAR
                else (48, 32 + 16 * (block % 3), 3, 3)
            )
            nodes.append(
                weighted(
                    f"blocks.{block}.{i}", op, role, f"stage{block // 2}", f"blocks.{block}", shape
                )
            )
        nodes.append(Node(f"blocks.{block}.add", Op.ADD, block=f"blocks.{block}"))
    nodes.append(weighted("conv_out", Op.CONV, Role.CONV_OUT, "out", "conv_out", (8, 32, 3, 3)))
    nodes.append(Node("out", Op.OUTPUT))
    return Graph(NAME, tuple(nodes), tuple((i, i + 1) for i in range(len(nodes) - 1)))


def weighted(name: str, op: Op, role: Role, stage: str, block: str, shape: tuple[int, ...]) -> Node:
    return Node(name, op, role, stage, block, Weight(name, f"{name}.weight", shape), macs=1000)


def problem_of(graph: Graph) -> Problem:
    space = SPEC.of(graph)
    rng = np.random.default_rng(0)
    error = np.full((len(space.options), 6), np.inf)
    for i, offered in enumerate(space.options):
        scale = {"uaq": 1.0, "kmeans_c": 0.8, "kmeans_a": 1.1}
        error[i, : len(offered)] = [
            4.0**-m.bits * scale[m.name] * rng.uniform(0.7, 1.3) for m in offered
        ]
    return Problem(space, error)


def quality(problem: Problem, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minus an fd_lite0 that some weights raise much and most a little, and a deviation."""
    num = genes.shape[1]
    sensitivity = np.random.default_rng(1).lognormal(0, 1.2, num)
    loss = (sensitivity * problem.error[np.arange(num), genes] * 256).sum(axis=1)
    return -250 - 3 * loss, 4 + 0.05 * loss


def fabricate(root: Path, num_outcomes: int = 60) -> Store:
    """Write every artifact of a denoiser called ``fabricated`` under ``root``."""
    store = Store(root, NAME)
    graph = graph_of()
    problem = problem_of(graph)
    GRAPH.write(store.path("graph.json"), graph.to_json())
    rng = np.random.default_rng(2)

    protocol = Protocol(
        NAME,
        "0" * 64,
        "fit 1",
        "DPMSolverMultistepScheduler",
        10,
        2.0,
        32,
        "float32",
        "1" * 64,
        0,
        256,
    )
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    genes = problem.sample(rng, num_outcomes)
    for row, value in zip(
        genes, quality(problem, genes)[0] + rng.normal(0, 3, num_outcomes), strict=True
    ):
        halves = {"fd_lite0": ((-value + 4, -value - 4),)}
        database.add(
            Outcome(problem.space.decode(row), protocol.digest, metrics(-value), 256, halves),
            protocol,
        )
    space = problem.space
    table = {
        "schema": "qsdm/calibration/1",
        "weights": [weight.name for weight in graph.weights],
        "methods": list(map(str, space.methods)),
    }
    error = np.array(
        [[0.1 if m in offered else np.nan for m in space.methods] for offered in space.options]
    )
    write_tensors(store.path("calibration/traced/table.safetensors"), {"rel_error": error}, table)
    wider = QuantConfig(NAME, {weight.name: QuantMethod("uaq", 8) for weight in graph.weights})
    database.add(Outcome(wider, protocol.digest, metrics(200), 256), protocol)
    for row in problem.sample(rng, 3):
        tested = Outcome(
            problem.space.decode(row),
            protocol.digest,
            metrics(300),
            256,
            provenance={"stage": "test"},
        )
        database.add(tested, protocol)

    front = search_front(lambda g: quality(problem, g), problem, Evolution(20, 20), evaluations=400)
    about = {"denoiser": NAME, "space": "traced", "objective": {"fd_lite0": -1.0}}
    about["provenance"] = provenance()
    FRONT.write(store.path("search/traced.json"), about | front | {"rounds": rounds_of(front)})
    chosen = QuantConfig.from_json(
        max((p for p in front["points"] if p["avg_bits"] <= 3.5), key=lambda p: p["predicted"])[
            "qconfig"
        ]
    )
    CHOSEN.write(store.path("chosen.json"), chosen.to_json())
    SUMMARY.write(
        store.path("summary.json"),
        about | summary(problem, graph, chosen, rng) | {"protocol": protocol.to_json()},
    )
    REPORT.write(
        store.path("predictor/traced/report.json"),
        about | predictor_report(num_outcomes) | {"protocol": protocol.digest},
    )
    SENSITIVITIES.write(store.path("sensitivity/traced.json"), about | sensitivity(problem, graph))
    attributions = store.read(SENSITIVITIES, "sensitivity/traced.json")
    CERTIFICATE.write(
        store.path("sensitivity/traced-certificate.json"),
        about | certificate(digest_of_attributions(attributions), protocol),
    )
    for name in ("fp", "uaq-4", "uaq-3", "kmeans_a-4", "kmeans_a-3", "ours", "comparison"):
        path = store.path(f"pictures/{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name))
    return store


def rounds_of(front: dict) -> dict:
    """Two rounds of two configurations, of which one was set aside."""
    before = [[3.1, -700.0], [3.5, -500.0], [3.9, -400.0]]

    def proposal(point: dict, measured: float | None) -> dict:
        keys = ("predicted", "std", "avg_bits", "size_bytes")
        return {key: point[key] for key in keys} | {"digest": "0" * 64, "measured": measured}

    rounds = []
    for number, points in enumerate((front["points"][:2], front["points"][2:4]), 1):
        first, second = points
        rounds.append(
            {
                "proposals": [
                    proposal(first, first["predicted"] - 6 / number),
                    proposal(second, None if number == 2 else second["predicted"] - 4),
                ],
                "num_images": 256 * (3 - number),
                "optimism": 5.0 if number == 1 else 3.0,
                "optimism_error": 1.0 if number == 1 else None,
                "volume": 200.0 + 10 * number,
                "gain": 10.0,
                "gain_error": 2.5,
                "front": [[bits, value + 20 * number] for bits, value in before],
            }
        )
    return {"avg_bits": 3.5, "front": before, "volume": 200.0, "rounds": rounds}


def metrics(fd_lite0: float, full: bool = False) -> dict[str, float | None]:
    return {
        "fd_lite0": float(fd_lite0),
        "clip_score": float(0.34 - fd_lite0 / 10_000),
        "psnr": None if full else float(30 - fd_lite0 / 50),
    }


def summary(problem: Problem, graph: Graph, chosen: QuantConfig, rng: np.random.Generator) -> dict:
    space: Space = problem.space
    configs = {name: space.uniform(name) for name in map(str, space.methods)} | {"ours": chosen}
    configs |= {f"random-{i}": near(space, size_bytes(graph, chosen), 0.01, rng) for i in range(5)}
    rows = [
        {
            "name": "fp",
            "avg_bits": 16.0,
            "size_bytes": 2 * graph.num_values,
            "metrics": metrics(245, full=True),
            "num_images": 256,
            "qconfig": QuantConfig(NAME, {}).digest,
        }
    ]
    for name, qconfig in configs.items():
        size = size_bytes(graph, qconfig)
        value = -quality(problem, space.encode(qconfig)[None])[0][0]
        rows.append(
            {
                "name": name,
                "avg_bits": 8 * size / graph.num_values,
                "size_bytes": size,
                "metrics": metrics(value),
                "num_images": 256,
                "qconfig": qconfig.digest,
            }
        )
    candidates = [
        dict(row, predicted=-row["metrics"]["fd_lite0"] - 20)
        for row in rows
        if row["name"] == "ours"
    ]
    return {
        "metrics": {m.name: description(m) for m in (FrechetLite0(), ClipScore(), Psnr())},
        "rows": rows,
        "candidates": candidates,
        "max_avg_bits": 3.5,
        "num_images": 256,
        "seed_set": 1,
        "label_seed_set": 0,
    }


def predictor_report(num_outcomes: int) -> dict:
    srcc = {"gnn": 0.91, "additive": 0.9, "ridge": 0.84, "error_sum": 0.8, "avg_bits": 0.71}
    scores = {
        name: {
            q: {"mean": value - drop, "std": 0.03, "folds": [value - drop] * 5}
            for q, drop in (("srcc", 0), ("ndcg_at_10", 0.1))
        }
        for name, value in srcc.items()
    }
    noise = {"halves": 0.9, "reliability": 0.947, "ceiling": 0.973}
    return {
        "predictor": {"folds": 5, "ranking": "hybrid"},
        "seed": 0,
        "seed_set": 0,
        "num_outcomes": num_outcomes,
        "cheap": None,
        "seconds": 1.0,
        "epochs": [10] * 5,
        "scores": scores,
        "noise": noise,
        "test": None,
        "held_out": {"qconfig": [], "measured": []},
    }


def certificate(attributions: str, protocol: Protocol, holds: bool = True) -> dict:
    """Curves of four orders, of which the attributions' are best."""
    curves = [
        {
            "order": order,
            "direction": direction,
            "number": 0,
            "area": area,
            "harms": [80.0, area, 0.0],
            "errors": [4.0, 3.0, 0.0],
        }
        for order, areas in (("attribution", (20.0, 60.0)), ("size", (35.0, 45.0)))
        for direction, area in zip(("most_first", "least_first"), areas, strict=True)
    ]
    curves.append({**curves[0], "order": "random", "area": 40.0, "harms": [80.0, 40.0, 0.0]})
    differences = [
        {"order": order, "direction": direction, "value": sign * 15.0, "standard_error": 2.0}
        | {"gain": 15.0, "sign": 1}
        for order in ("size", "random")
        for direction, sign in (("most_first", 1), ("least_first", -1))
    ]
    rule = ("better than random orders in both directions", "no other order is better")
    return {
        "attributions": attributions,
        "method": "uaq-3",
        "options": {"points": 3, "num_images": 256, "seed_set": 2, "method": None},
        "protocol": protocol.to_json(),
        "counts": [0, 28, 56],
        "curves": curves,
        "differences": differences,
        "folds": [0.9, 0.8],
        "label_counts": [[30, 0.75]],
        "shuffled": [0.03, -0.05],
        "conditions": [{"condition": condition, "holds": holds} for condition in rule],
        "holds": holds,
    }


def sensitivity(problem: Problem, graph: Graph) -> dict:
    scale = np.random.default_rng(1).lognormal(0, 1.2, len(graph.weights))
    names = [weight.name for weight in graph.weights]
    methods = [str(method) for method in problem.space.methods]
    scores: list[list[float | None]] = []
    for i, offered in enumerate(problem.space.options):
        harms = {str(m): float(768 * scale[i] * problem.error[i, o]) for o, m in enumerate(offered)}
        scores.append([harms.get(method) for method in methods])
    tables: dict[str, list[dict]] = {}
    for kind in ("role", "op", "block"):
        sums: dict[str, float] = {}
        for name, row in zip(names, scores, strict=True):
            group = str(getattr(graph.node_of(name), kind))
            sums[group] = sums.get(group, 0.0) + float(np.mean([v for v in row if v is not None]))
        share = {"num_weights": 1, "share_of_values": 1 / len(sums)}
        share |= dict.fromkeys(("per_weight", "to_full", "from_full", "hops"), 0.0)
        tables[kind] = [
            {"name": group, "integrated_gradients": value} | share for group, value in sums.items()
        ]
    alone = [
        {
            "weight": name,
            "method": methods[0],
            "measured": 0.9 * row[0] + 0.2,
            "integrated_gradients": row[0],
        }
        for name, row in zip(names, scores, strict=True)
        if row[0] is not None
    ]
    faith = {"interventions": 1.0, "interventions_srcc": 1.0}
    report = {"weights": names, "methods": methods, "scores": scores, "faithfulness": faith}
    report["attribution"] = "integrated_gradients"
    return {
        "attribution": {"num_configs": 48},
        "sensitivities": {"integrated_gradients": report},
        "hops": {},
        "interventions": alone,
        "tables": tables,
        "completeness": {"harm": 100.0, "gap": 0.002},
        "full_precision": {"predicted": -250.0, "measured": None},
    }


def picture(name: str) -> bytes:
    """A grid of discs, noisier the fewer the bits."""
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    tiles = []
    for _ in range(24):
        disc = ((x**2 + y**2) < rng.uniform(0.4, 0.9))[..., None]
        tiles.append(np.where(disc, rng.uniform(60, 240, 3), 255.0))
    grid = np.concatenate(
        [np.concatenate(tiles[i : i + 4], axis=1) for i in range(0, 24, 4)], axis=0
    )
    noise = {"p": 0, "4": 8, "s": 12, "3": 40, "n": 0}[name[-1]]
    grid = np.clip(grid + np.random.default_rng(1).normal(0, noise, grid.shape), 0, 255).astype(
        np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    import sys

    print(json.dumps(str(fabricate(Path(sys.argv[1])).root)))
