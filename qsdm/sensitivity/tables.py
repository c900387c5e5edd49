"""Tables of sensitivity per role, op and block."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsdm import text
from qsdm.qconfig import Space

KINDS = ("role", "op", "block")


def groups_of(space: Space, kind: str) -> tuple[list[str], np.ndarray]:
    """Group a space's weights.

    Args:
        space: W weights and the methods on offer for each.
        kind: role, op or block; a weight outside any block is grouped by its stage.

    Returns:
        Names of the groups, in order of first use, and the group of each weight, int64 [W].
    """
    nodes = [space.graph.node_of(weight.name) for weight in space.graph.weights]
    keys = [
        str(getattr(node, kind)) or (node.stage if kind == "block" else "") or "none"
        for node in nodes
    ]
    names = list(dict.fromkeys(keys))
    return names, np.array([names.index(key) for key in keys])


def table(
    space: Space,
    kind: str,
    harms: np.ndarray,
    to_full: np.ndarray,
    from_full: np.ndarray,
    hops: np.ndarray,
) -> list[dict[str, Any]]:
    """Tabulate the harm of each group of weights, averaged over configurations.

    Args:
        space: W weights and the methods on offer for each.
        kind: of the groups: role, op or block.
        harms: float64 [B, W], by integrated gradients.
        to_full: float64 [B, G], by ablation: the group restored to full precision.
        from_full: float64 [B, G], by ablation: the group quantized alone.
        hops: float64 [B, W], by norms of hop embeddings.

    Returns:
        One row per group, with ``name``, ``num_weights``, ``share_of_values`` and the harms:
        ``integrated_gradients`` (sum over the group; all groups add up to the total),
        ``per_weight`` (their mean), ``to_full``, ``from_full`` and ``hops`` (mean over the group's
        weights).
    """
    names, groups = groups_of(space, kind)
    sizes = np.array([weight.numel for weight in space.graph.weights]) / space.graph.num_values
    rows = []
    for g, name in enumerate(names):
        inside = groups == g
        total = float(harms[:, inside].sum(axis=1).mean())
        rows.append(
            {
                "name": name,
                "num_weights": int(inside.sum()),
                "share_of_values": float(sizes[inside].sum()),
                "integrated_gradients": total,
                "per_weight": total / int(inside.sum()),
                "to_full": float(to_full[:, g].mean()),
                "from_full": float(from_full[:, g].mean()),
                "hops": float(hops[:, inside].mean()),
            }
        )
    return rows


def most_harmful(kind: str, rows: list[dict[str, Any]], limit: int = 12) -> str:
    """Format the most harmful groups for the terminal.

    Args:
        kind: of the groups: role, op or block.
        rows: of `table`.
        limit: maximum number of groups.

    Returns:
        Several lines of text.
    """
    ordered = sorted(rows, key=lambda row: -row["integrated_gradients"])
    harms = ("integrated_gradients", "per_weight", "to_full", "from_full")
    cells = [
        [row["name"], row["num_weights"], f"{row['share_of_values']:.1%}", *(row[h] for h in harms)]
        for row in ordered[:limit]
    ]
    heads = (kind, "weights", "of values", "harm", "per weight", "to full", "from full")
    lines = text.table(heads, cells, ".3f")
    num_hidden = max(0, len(ordered) - limit)
    return lines + f"\n... and {num_hidden} more" * (num_hidden > 0)
