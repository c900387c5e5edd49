"""Hold the paper's seven findings against the shipped banks.

    for m in emoji_unet emoji_mmdit emoji_pixart; do python -m qsdm.trace +model=$m; done
    python experiments/findings_of_the_paper/study.py --store store

Runs in seconds: everything was measured before. Prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.graph import Graph, Role
from qsdm.measurement.paired import Difference
from qsdm.outcome import Outcome, error_of_halves
from qsdm.workspace import Workspace, named

ZOO = ("emoji_unet", "emoji_mmdit", "emoji_pixart")
METRIC = "fd_lite0"
SEED_SET, PICTURES = 0, 256
TIME = re.compile(r"(^|\.)(time_embedding|timestep_embedder)(\.|$)")


@dataclass(frozen=True)
class Evidence:
    """What a bank says of a denoiser.

    Attributes:
        graph: of the denoiser.
        alone: outcome of each weight quantized alone to 3 bits, by name.
        full: outcome of full precision.
        labels: random configurations.
    """

    graph: Graph
    alone: dict[str, Outcome]
    full: Outcome
    labels: list[Outcome]

    @staticmethod
    def read(workspace: Workspace) -> Evidence:
        store = workspace.store
        seeds = {
            p.digest: p.seed_set for p in store.protocols().values() if p.num_images == PICTURES
        }
        measured = [o for o in store.outcomes() if METRIC in o.halves]
        outcomes = [o for o in measured if seeds.get(o.protocol) == SEED_SET]
        alone, labels, full = {}, [], None
        names = {weight.name for weight in workspace.space.graph.weights}
        for outcome in outcomes:
            low = {n: m for n, m in outcome.qconfig.methods.items() if not m.is_full}
            if not low:
                full = outcome
            elif len(low) == 1:
                alone[next(iter(low))] = outcome
            elif set(low) == names and {m.bits for m in low.values()} <= {3, 4}:
                labels.append(outcome)
        assert full is not None
        return Evidence(workspace.space.graph, alone, full, labels)

    def named(self, select: Callable[[str], bool]) -> list[Outcome]:
        return [outcome for name, outcome in self.alone.items() if select(name)]

    def role(self, *roles: Role) -> list[Outcome]:
        return self.named(lambda name: self.graph.node_of(name).role in roles)


def contrast(first: Sequence[Outcome], second: Sequence[Outcome]) -> Difference:
    """Mean harm per weight of one group minus that of another, on the same pictures."""

    def mean(outcomes: Sequence[Outcome], split: int, side: int) -> float:
        return statistics.fmean(o.halves[METRIC][split][side] for o in outcomes)

    value = statistics.fmean(float(o.metrics[METRIC] or 0) for o in first)
    value -= statistics.fmean(float(o.metrics[METRIC] or 0) for o in second)
    pairs = [
        tuple(mean(first, s, side) - mean(second, s, side) for side in (0, 1))
        for s in range(len(first[0].halves[METRIC]))
    ]
    return Difference(value, error_of_halves(pairs))  # type: ignore[arg-type]


def families(evidence: Evidence, bits: int) -> Difference:
    """Harm of UAQ for all weights minus that of K-Means of the same bits, in a random design.

    Every label draws the method of each weight at random. A linear model of the six methods, in
    which each weight counts by its harm alone at 3 bits, tells what a method does; the difference
    is that of configurations with one method for all weights.
    """
    methods = [f"{name}-{b}" for b in (3, 4) for name in ("uaq", "kmeans_a", "kmeans_c")]
    base = float(evidence.full.metrics[METRIC] or 0)
    harm = {n: max(float(o.metrics[METRIC] or 0) - base, 0) for n, o in evidence.alone.items()}
    total = sum(harm.values())
    design = np.array(
        [
            [
                sum(harm[n] for n, m in o.qconfig.methods.items() if str(m) == one) / total
                for one in methods
            ]
            for o in evidence.labels
        ]
    )
    values = np.array([float(o.metrics[METRIC] or 0) - base for o in evidence.labels])
    inverse = np.linalg.inv(design.T @ design)
    weights = inverse @ design.T @ values
    residual = values - design @ weights
    variance = residual @ residual / (len(values) - len(methods))
    c = np.zeros(len(methods))
    c[methods.index(f"uaq-{bits}")] = 1
    c[[methods.index(f"kmeans_{kind}-{bits}") for kind in "ac"]] = -0.5
    return Difference(float(c @ weights), float(math.sqrt(variance * (c @ inverse @ c))))


def cell(difference: Difference, expected: int) -> str:
    """A verdict with its figures."""
    assert difference.interval is not None
    low, high = difference.interval
    word = {expected: "confirmed", -expected: "**contradicted**", 0: "not seen"}[difference.sign]
    return f"{word}: {difference.value:+.2f} ({low:+.2f} to {high:+.2f})"


def table(everything: dict[str, Evidence]) -> str:
    rows: list[tuple[str, str, Callable[[str, Evidence], str]]] = []

    def time(_: str, e: Evidence) -> str:
        return cell(contrast(*split(e, lambda name: bool(TIME.search(name)))), 1)

    def split(e: Evidence, select: Callable[[str], bool]) -> tuple[list[Outcome], list[Outcome]]:
        return e.named(select), e.named(lambda name: not select(name))

    def resnets(name: str, e: Evidence) -> str:
        if name != "emoji_unet":
            return "no ResNet"
        inside = e.named(lambda w: ".resnets." in w)
        others = e.named(lambda w: ".attentions." in w)
        return cell(contrast(inside, others), 1)

    unet = everything["emoji_unet"]
    out = unet.role(Role.CONV_OUT)

    def output(name: str, e: Evidence) -> str:
        own = out if name == "emoji_unet" else e.role(Role.PROJ_OUT)
        harm = contrast(own, [e.full])
        assert harm.interval is not None
        low, high = harm.interval
        if name == "emoji_unet":
            return f"conv_out alone: {harm.value:+.2f} ({low:+.2f} to {high:+.2f})"
        base = contrast(out, [unet.full])
        both = math.hypot(harm.standard_error or 0, base.standard_error or 0)
        return cell(Difference(harm.value - base.value, both), 1)

    def prefers(bits: int) -> Callable[[str, Evidence], str]:
        return lambda name, e: cell(families(e, bits), -1 if name == "emoji_unet" else 1)

    def queries(_: str, e: Evidence) -> str:
        return cell(contrast(e.role(Role.ATTN_K), e.role(Role.ATTN_Q)), 1)

    rows = [
        ("the time embedding is sensitive everywhere", "its weights minus all others", time),
        ("ResNet blocks suffer more than attention and feed-forward", "per weight", resnets),
        (
            "a DiT's output projection suffers more than a U-Net's conv_out",
            "minus conv_out",
            output,
        ),
        ("U-Nets prefer UAQ, DiTs K-Means (two findings)", "UAQ-3 minus K-Means-3", prefers(3)),
        ("the same at 4 bits", "UAQ-4 minus K-Means-4", prefers(4)),
        ("attention's Q bears 3 bits better than K", "K minus Q, per weight", queries),
        (
            "a choice by block beats one by op",
            "",
            lambda *_: "not tested: the choice by block was made, not measured",
        ),
    ]
    lines = [
        "| finding | measured by | " + " | ".join(f"`{name}`" for name in everything) + " |",
        "|---" * (2 + len(everything)) + "|",
    ]
    for finding, how, verdict in rows:
        cells = [verdict(name, evidence) for name, evidence in everything.items()]
        lines.append(f"| {finding} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="store")
    args = parser.parse_args()
    everything = {name: Evidence.read(named(name, "traced", args.store)) for name in ZOO}
    for name, evidence in everything.items():
        print(f"{name}: {len(evidence.alone)} weights alone, {len(evidence.labels)} labels")
    print(table(everything))


if __name__ == "__main__":
    main()
