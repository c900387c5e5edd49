"""A made-up U-Net, its table of errors, and outcomes whose law we know; for tests of the predictor
and its readers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.denoisers import Model, pipeline_digest, source_digest, weights_digest
from qsdm.graph import Graph, Node, Op, Role, Weight, sorted_graph
from qsdm.outcome import Outcome, Protocol
from qsdm.qconfig import QuantConfig, Space, SpaceSpec, cost
from qsdm.qconfig.cost import MethodTable
from qsdm.store import Store
from qsdm.store.outcomes import OutcomeDatabase
from qsdm.store.schemas import GRAPH
from qsdm.store.tensors import write_tensors

METHODS = ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4", "kmeans_c-3", "kmeans_c-4")


def unet_graph(levels: int = 3, repeats: int = 2, base: int = 64) -> Graph:
    """ResNet blocks with time projection, attention on the lower levels, skip connections with
    split weights.
    """
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []

    def add(
        name: str,
        op: Op,
        *sources: int,
        role: Role = Role.NONE,
        shape: tuple[int, ...] | None = None,
        block: str = "",
    ) -> int:
        weight = Weight(name, f"{name.partition('#')[0]}.weight", shape) if shape else None
        macs = int(np.prod(shape)) * 16 if shape else 0
        stage = name.partition(".")[0]
        nodes.append(
            Node(
                name,
                op,
                role,
                stage,
                block or stage,
                weight,
                (1, shape[0] if shape else base, 8, 8),
                macs,
            )
        )
        edges.extend((source, len(nodes) - 1) for source in sources)
        return len(nodes) - 1

    sample, time, text = (
        add(name, Op.INPUT) for name in ("sample", "timestep", "encoder_hidden_states")
    )
    t = add("time.linear_1", Op.LINEAR, time, role=Role.COND_IN, shape=(4 * base, base))
    t = add("time.linear_2", Op.LINEAR, t, role=Role.COND_IN, shape=(4 * base, 4 * base))

    def resnet(name: str, x: list[int], out: int, inputs: list[int]) -> int:
        parts = [
            add(
                f"{name}.conv1#{k}" if len(x) > 1 else f"{name}.conv1",
                Op.CONV,
                source,
                role=Role.CONV,
                shape=(out, c, 3, 3),
                block=name,
            )
            for k, (source, c) in enumerate(zip(x, inputs, strict=True))
        ]
        joined = add(f"{name}.add1", Op.ADD, *parts) if len(parts) > 1 else parts[0]
        temb = add(
            f"{name}.time_emb_proj",
            Op.LINEAR,
            t,
            role=Role.COND_PROJ,
            shape=(out, 4 * base),
            block=name,
        )
        h = add(f"{name}.add_cond", Op.ADD_COND, joined, temb)
        h = add(f"{name}.norm2", Op.NORM, h)
        h = add(f"{name}.conv2", Op.CONV, h, role=Role.CONV, shape=(out, out, 3, 3), block=name)
        return add(f"{name}.add2", Op.ADD, h, x[0])

    def attention(name: str, x: int, width: int) -> int:
        n = add(f"{name}.norm", Op.NORM, x)
        q = add(f"{name}.to_q", Op.LINEAR, n, role=Role.ATTN_Q, shape=(width, width), block=name)
        k = add(f"{name}.to_k", Op.LINEAR, text, role=Role.ATTN_K, shape=(width, 96), block=name)
        v = add(f"{name}.to_v", Op.LINEAR, text, role=Role.ATTN_V, shape=(width, 96), block=name)
        a = add(f"{name}.sdpa", Op.SDPA, q, k, v)
        o = add(
            f"{name}.to_out", Op.LINEAR, a, role=Role.ATTN_OUT, shape=(width, width), block=name
        )
        x = add(f"{name}.add", Op.ADD, o, x)
        f = add(
            f"{name}.ff_in", Op.LINEAR, x, role=Role.FF_IN, shape=(4 * width, width), block=name
        )
        f = add(
            f"{name}.ff_out", Op.LINEAR, f, role=Role.FF_OUT, shape=(width, 4 * width), block=name
        )
        return add(f"{name}.add_ff", Op.ADD, f, x)

    x = add("conv_in", Op.CONV, sample, role=Role.CONV_IN, shape=(base, 4, 3, 3))
    skips, width = [(x, base)], base
    for level in range(levels):
        for i in range(repeats):
            out = base * (level + 1)
            x = resnet(f"down.{level}.resnets.{i}", [x], out, [width])
            width = out
            if level:
                x = attention(f"down.{level}.attentions.{i}", x, width)
            skips.append((x, width))
    x = resnet("mid.resnets.0", [x], width, [width])
    for level in reversed(range(levels)):
        for i in range(repeats):
            skip, channels = skips.pop()
            out = base * (level + 1)
            x = resnet(f"up.{level}.resnets.{i}", [x, skip], out, [width, channels])
            width = out
    x = add("conv_out", Op.CONV, x, role=Role.CONV_OUT, shape=(4, base, 3, 3))
    add("output", Op.OUTPUT, x)
    depth = np.zeros(len(nodes))
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        depth[b] = max(depth[b], depth[a] + 1)
    nodes = [
        dataclasses.replace(node, depth=float(d))
        for node, d in zip(nodes, depth / depth.max(), strict=True)
    ]
    return sorted_graph("toy_unet", nodes, edges)


def method_table(space: Space, seed: int = 0) -> MethodTable:
    """Errors as quantizers have them: a quarter per bit, K-Means below UAQ, each weight with a
    level of its own.
    """
    rng = np.random.default_rng(seed)
    factor = {"uaq": 1.0, "kmeans_a": 0.8, "kmeans_c": 0.45}
    weights = space.graph.weights
    level = np.exp(rng.normal(0, 0.35, len(weights)))
    error = np.full((len(weights), len(space.methods)), np.nan)
    size = np.zeros(error.shape, dtype=np.int64)
    for i, (weight, offered) in enumerate(zip(weights, space.options, strict=True)):
        for method in offered:
            j = space.methods.index(method)
            error[i, j] = (
                0.9
                * factor[method.name]
                * level[i]
                * 4.0**-method.bits
                * np.exp(rng.normal(0, 0.15))
                * 2
            )
            size[i, j] = method.size_bits(weight, space.full_bits) // 8
    return MethodTable(tuple(w.name for w in weights), space.methods, error, size)


@dataclass(frozen=True)
class Toy:
    """A space, its table, and the hidden law of its labels."""

    space: Space
    table: MethodTable
    sensitivity: np.ndarray

    def true_fd(self, qconfigs: list[QuantConfig]) -> np.ndarray:
        """Fréchet distance without noise: damage adds up, neighbours amplify each other, the sum
        saturates.
        """
        names = {weight.name: i for i, weight in enumerate(self.space.graph.weights)}
        pairs = [
            (names[a.weight.name], names[b.weight.name])
            for a, b in (
                (self.space.graph.nodes[i], self.space.graph.nodes[j])
                for i, j in self.space.graph.edges
            )
            if a.weight is not None and b.weight is not None
        ]
        error = np.stack([self.table.of(qconfig)[0] for qconfig in qconfigs])
        damage = self.sensitivity * error
        interaction = sum(np.sqrt(damage[:, a] * damage[:, b]) for a, b in pairs)
        total = damage.sum(axis=1) + 0.3 * interaction
        return 20 + 60 * total**0.8

    def outcomes(
        self, num: int, seed: int = 0, noise: float = 0.15
    ) -> tuple[list[Outcome], Protocol]:
        rng = np.random.default_rng(seed)
        qconfigs = [self.space.sample(rng) for _ in range(num)]
        fd = self.true_fd(qconfigs)
        sigma = noise * fd.std() * 2**0.5  # of a half
        halves = fd[:, None] + rng.normal(0, sigma, (num, 2))
        protocol = Protocol(
            "toy_unet",
            weights_digest(MODEL),
            "f",
            "Sampler",
            10,
            2.0,
            32,
            "float32",
            "p",
            0,
            64,
            pipeline=pipeline_digest(MODEL),
        )
        return [
            Outcome(
                qconfig,
                protocol.digest,
                {"fd_lite0": float(pair.mean())},
                64,
                {"fd_lite0": ((float(pair[0]), float(pair[1])),)},
            )
            for qconfig, pair in zip(qconfigs, halves, strict=True)
        ], protocol

    def avg_bits(self, qconfig: QuantConfig) -> float:
        return cost.avg_bits(self.space.graph, qconfig, self.space.full_bits)


def make_toy(seed: int = 0, **size: int) -> Toy:
    """Hidden sensitivities: log-normal, by role, depth and chance."""
    graph = unet_graph(**size)
    space = Space.of(graph, METHODS)
    rng = np.random.default_rng(seed)
    by_role = {role: rng.normal(0, 1.0) for role in Role}
    nodes = [graph.node_of(weight.name) for weight in graph.weights]
    log = [
        by_role[node.role] + 1.2 * (node.depth - 0.5) ** 2 * 4 + rng.normal(0, 1.2)
        for node in nodes
    ]
    return Toy(space, method_table(space, seed), np.exp(np.array(log)))


MODEL = Model(
    "toy_unet", "zoo", "UNet2DConditionModel", "unet", resolution_px=32, steps=10, guidance=2.0
)
SPACE = SpaceSpec("traced", METHODS, splits=".*")


@dataclass(frozen=True)
class Explained:
    """A store of the toy with a trained predictor and attributions; tests that write copy it."""

    root: Path
    result: dict[str, Any]
    printed: str

    def copy(self, target: Path) -> Path:
        shutil.copytree(self.root, target, dirs_exist_ok=True)
        return target


def explain(root: Path, toy: Toy) -> Explained:
    """Measure labels and each weight alone, train and attribute."""
    from qsdm.attribute import attribute
    from qsdm.measure import one_by_one
    from qsdm.outcome import Objective
    from qsdm.predictor import FitOptions
    from qsdm.sensitivity import AttributionOptions
    from qsdm.train import train
    from qsdm.workspace import Workspace

    store = fill_store(root, toy, 60)
    _, protocol = toy.outcomes(1)
    qconfigs = one_by_one(toy.space, "uaq-3")
    for qconfig, fd in zip(qconfigs, toy.true_fd(qconfigs), strict=True):
        outcome = Outcome(qconfig, protocol.digest, {"fd_lite0": float(fd)}, 64)
        OutcomeDatabase(store.path("outcomes.sqlite")).add(outcome, protocol)
    workspace, quality = Workspace(MODEL, SPACE, root), Objective({"fd_lite0": -1})
    quick = FitOptions(folds=2, width=16, hops=2, epochs=2)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train(workspace, quality, quick, num_images=64)
        result = attribute(workspace, quality, AttributionOptions(num_configs=12, steps=8))
    return Explained(root, result, printed.getvalue())


def fill_store(root: Path, toy: Toy, num: int, seed: int = 0) -> Store:
    """The artifacts of trace, calibrate (without weights) and measure."""
    from qsdm.quant.calibrated import SCHEMA

    store = Store(root, "toy_unet")
    GRAPH.write(store.path("graph.json"), toy.space.graph.to_json())
    about = {
        "schema": SCHEMA,
        "weights": list(toy.table.weights),
        "methods": [str(m) for m in toy.table.methods],
        "fitted": "made up",
        "source": source_digest(MODEL),
    }
    tensors = {"rel_error": toy.table.rel_error, "size_bytes": toy.table.size_bytes}
    write_tensors(store.path("calibration/traced/table.safetensors"), tensors, about)
    outcomes, protocol = toy.outcomes(num, seed)
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    full = Outcome(QuantConfig("toy_unet", {}), protocol.digest, {"fd_lite0": 20.0}, 64)
    for outcome in [full, *outcomes]:
        database.add(outcome, protocol)
    return store
