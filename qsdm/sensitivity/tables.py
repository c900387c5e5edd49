"""Sensitivity per role, op and block, as plain rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsdm.qconfig import Space

KINDS = ("role", "op", "block")


def groups_of(space: Space, kind: str) -> tuple[list[str], np.ndarray]:
    """Names of the groups in order of first use, and the group of each weight, int64 [W].

    Args:
        kind: role, op or block (the stage where a weight lies in no block).
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
    """One row per group.

    Args:
        harms: [B, W] by integrated gradients.
        to_full, from_full: [B, G] by ablation.
        hops: [B, W].

    Returns:
        Rows with name, num_weights, share_of_values, and harms, means over configurations: ``integrated_gradients``
        (sum over the group; all groups add up to the total), ``per_weight`` (their mean), ``to_full``, ``from_full``,
        ``hops`` (mean over the group's weights).
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


def text(kind: str, rows: list[dict[str, Any]], limit: int = 12) -> str:
    """The groups of greatest harm, for the terminal."""
    ordered = sorted(rows, key=lambda row: -row["integrated_gradients"])
    width = max(len(kind), *(len(row["name"]) for row in ordered[:limit])) + 2
    heads = ("weights", "of values", "harm", "per weight", "to full", "from full")
    lines = [f"{kind:<{width}}" + "".join(f"{head:>11}" for head in heads)]
    for row in ordered[:limit]:
        harms = (
            row[name] for name in ("integrated_gradients", "per_weight", "to_full", "from_full")
        )
        sizes = f"{row['num_weights']:>11}{row['share_of_values']:>11.1%}"
        lines.append(f"{row['name']:<{width}}{sizes}" + "".join(f"{harm:>11.3f}" for harm in harms))
    if len(ordered) > limit:
        lines.append(f"... and {len(ordered) - limit} more")
    return "\n".join(lines)
