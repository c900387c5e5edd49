"""What is expected of a label before any is measured: full precision, less damage, plus costs.

Damage is that of the probes (`qsdm.predictor.probes`). A probe that improves on full precision
counts as harmless: labels must show that quantization does good. Damages of probes that are no
quality (a distance, or the weights' errors alone) get the scale that fits the labels best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsdm.graph import Graph
from qsdm.outcome import Objective
from qsdm.predictor.encode import Encoding, errors
from qsdm.predictor.kernels import Pairs, Part, Sums, neighbors, within
from qsdm.predictor.probes import Probes, probes_of_errors
from qsdm.qconfig import QuantMethod, Space
from qsdm.qconfig.cost import MethodTable


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Expectations, and what labels may change about them.

    Attributes:
        offset: label of full precision, without its costs.
        costs: float64 [W, M + 1], what the objective charges for each decision whatever the
            pictures; its sum over weights is part of a label.
        damage: float64 [W, M + 1], expected loss of quality, not negative; 0 for full precision.
        uncertainty: float64 [W, M + 1], standard error of the damage.
        error: float64 [W, M + 1], relative error of each decision, in units of the typical one.
        typical: damage of a typical configuration, positive.
        anchored: whether the label of full precision is known.
        roles: int64 [W].
        blocks: int64 [W].
        edges: int64 [P, 2], weights of which one feeds the other.
    """

    offset: float
    costs: np.ndarray
    damage: np.ndarray
    uncertainty: np.ndarray
    error: np.ndarray
    typical: float
    anchored: bool
    roles: np.ndarray
    blocks: np.ndarray
    edges: np.ndarray

    @property
    def contributions(self) -> np.ndarray:
        """What each decision is expected to add to the offset, float64 [W, M + 1]."""
        return self.costs - self.damage

    @property
    def amplitude(self) -> np.ndarray:
        """Root of the damage, float64 [W, M + 1]: how far pictures move, if damage is a square."""
        return np.sqrt(self.damage)

    def expected(self, configurations: np.ndarray) -> np.ndarray:
        """Predict labels without any.

        Args:
            configurations: [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float64 [B].
        """
        return self.offset + np.einsum("bwm,wm->b", configurations, self.contributions)

    def total(self, configurations: np.ndarray) -> np.ndarray:
        """Add up damages.

        Args:
            configurations: [B, W, M + 1], one-hot or relaxed.

        Returns:
            Float64 [B].
        """
        return np.einsum("bwm,wm->b", configurations, self.damage)

    def parts(self) -> list[Part]:
        """List the parts of a label that labels teach; see `qsdm.predictor.informed`.

        The scales are those that three small denoisers agree on within a factor of two
        (experiments/sample_efficiency); labels move them.
        """
        num_weights, num_columns = self.damage.shape
        everything, each = np.zeros(num_weights, dtype=np.int64), np.arange(num_weights)
        damage = self.damage[..., None]
        by_method = damage * np.eye(num_columns)
        unseen = self.typical / num_weights * self.error[..., None]
        parts: list[Part] = [
            Sums("scale", 0.3, damage, everything),
            Sums("role", 0.3, damage, self.roles),
            Sums("weight", 0.5, damage, each),
            Sums("method", 0.3, by_method, each),
            Sums("error", 0.5, unseen, each),
            Sums("error of roles", 0.5, unseen, self.roles),
            Sums("probe", 0.5, self.uncertainty[..., None], each),
            Pairs("edges", 0.2, self.amplitude, self.edges),
            Pairs("blocks", 0.2, self.amplitude, within(self.blocks)),
        ]
        if not self.anchored:
            ones = np.full_like(damage, 1 / num_weights)  # sums to 1 over the weights
            parts.append(Sums("offset", self.typical, ones, everything))
        return parts


def prior_of(
    encoding: Encoding,
    table: MethodTable,
    probes: Probes | None,
    objective: Objective,
    full: float | None,
    configurations: np.ndarray,
    labels: np.ndarray,
) -> Prior:
    """Combine probes, costs and the label of full precision.

    Args:
        encoding: of the space.
        table: errors of the space's weights under its methods.
        probes: of each weight; None for its error alone.
        objective: that labels measure.
        full: label of full precision; None if it was not measured.
        configurations: [B, W, M + 1], one-hot, those with a label; B may be 0.
        labels: float64 [B]; they tell the scale of probes that are no quality, and the offset if
            ``full`` is None.

    Returns:
        The prior.

    Raises:
        ProbeError: the probes are of other weights.
    """
    space = encoding.space
    probes = probes_of_errors(space, table) if probes is None else probes
    parts = probes.interpolation(space, table)
    damage = np.maximum(np.einsum("wmk,wk->wm", parts, probes.harm), 0)
    uncertainty = np.sqrt(np.einsum("wmk,wk->wm", parts**2, probes.standard_error**2))
    costs = bit_costs(space, objective)
    total = np.einsum("bwm,wm->b", configurations, damage)
    quality = labels - np.einsum("bwm,wm->b", configurations, costs)
    offset = None if full is None else full - float(costs[:, -1].sum())
    scale = 1.0
    if probes.fidelity != "full" and len(labels):
        scale = _scale(total, quality, offset)
    if offset is None:
        offset = float((quality + scale * total).mean()) if len(labels) else 0.0
    error = np.nan_to_num(errors(space, table))
    error = np.concatenate([error, np.zeros_like(error[:, :1])], axis=1)
    offered = encoding.allowed[:, :-1]
    mean = np.where(offered, damage[:, :-1], 0).sum(axis=1) / offered.sum(axis=1)
    return Prior(
        offset,
        costs,
        scale * damage,
        scale * uncertainty,
        error / (np.median(error[error > 0]) if (error > 0).any() else 1.0),
        scale * float(mean.sum()) or 1.0,
        full is not None,
        *grouped(space.graph),
    )


def grouped(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell which weights of a graph belong together.

    Args:
        graph: of the denoiser, with W weights.

    Returns:
        Roles and blocks, int64 [W] each, and edges, int64 [P, 2], as `Prior` holds them.
    """
    names = {weight.name: i for i, weight in enumerate(graph.weights)}
    nodes = [graph.node_of(weight.name) for weight in graph.weights]
    return (
        _numbered([str(node.role) for node in nodes]),
        _numbered([node.block for node in nodes]),
        neighbors(
            graph.edges,
            [names[node.weight.name] if node.weight is not None else -1 for node in graph.nodes],
        ),
    )


def bit_costs(space: Space, objective: Objective) -> np.ndarray:
    """Compute what an objective charges for the bits of each decision.

    Args:
        space: W weights and the methods on offer for each.
        objective: in which ``avg_bits`` may have a weight.

    Returns:
        Float64 [W, M + 1]; summed over a configuration, it is the weight times its average bits.
    """
    methods, graph, full = space.methods, space.graph, QuantMethod("fp", space.full_bits)
    costs = np.zeros((len(space.options), len(methods) + 1))
    charge = objective.weights.get("avg_bits", 0.0) / graph.num_values
    for w, (weight, offered) in enumerate(zip(graph.weights, space.options, strict=True)):
        for method in offered:
            costs[w, methods.index(method)] = charge * method.size_bits(weight, space.full_bits)
        costs[w, -1] = charge * full.size_bits(weight, space.full_bits)
    return costs


def _scale(total: np.ndarray, quality: np.ndarray, offset: float | None) -> float:
    """Loss of quality per unit of damage, by least squares; 1 where labels do not tell."""
    loss = -quality if offset is None else offset - quality
    if offset is None:
        total, loss = total - total.mean(), loss - loss.mean()
    square = float(total @ total)
    slope = float(total @ loss) / square if square > 0 else 0.0
    return slope if slope > 0 else 1.0


def _numbered(names: Sequence[str]) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
