"""An audit of a published recipe as text: what each group of weights got, the score, changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qsdm import text
from qsdm.graph import Graph
from qsdm.outcome import SIGNIFICANT_Z

KINDS = ("role", "block")
MOST_ROWS = 24


def groups(
    graph: Graph, kind: str, kinds: Mapping[str, str], size_bytes: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Count what each group of weights got.

    Args:
        graph: of the denoiser.
        kind: of the groups: role or block; a weight outside any block is grouped by its stage.
        kinds: type by weight.
        size_bytes: by weight.

    Returns:
        A row per group in the graph's order: name, weights, values, bits per weight, bytes, types.
    """
    members: dict[str, list[str]] = {}
    values: Counter[str] = Counter()
    for weight in graph.weights:
        node = graph.node_of(weight.name)
        name = str(node.role) if kind == "role" else node.block or node.stage
        members.setdefault(name or "none", []).append(weight.name)
        values[name or "none"] += weight.numel
    rows = []
    for name, weights in members.items():
        size = sum(size_bytes[weight] for weight in weights)
        counts = Counter(kinds[weight] for weight in weights)
        rows.append(
            {
                "name": name,
                "num_weights": len(weights),
                "num_values": values[name],
                "bits": 8 * size / values[name],
                "size_bytes": round(size),
                "types": dict(counts.most_common()),
            }
        )
    return rows


def table_of_groups(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format what `groups` counted; blocks whose rows are the same are joined.

    Args:
        kind: role or block.
        rows: of the groups.
    """
    cells, last = [], None
    for row in rows:
        types = ", ".join(f"{count} {name}" for name, count in row["types"].items())
        cell = [row["num_weights"], f"{row['bits']:.2f}", f"{row['size_bytes']:,}", types]
        if cell == last:
            cells[-1][0] = f"{cells[-1][0].partition(' to ')[0]} to {row['name']}"
            continue
        cells.append([row["name"], *cell])
        last = cell
    hidden = len(cells) - MOST_ROWS
    heads = (kind, "weights", "bits", "bytes of each", "types")
    shown = [[str(cell) for cell in row] for row in cells[:MOST_ROWS]]
    lines = text.table(heads, shown, are_texts=True)
    return lines + f"\n... and {hidden} more" * (hidden > 0)


def table_of_scores(content: Mapping[str, Any]) -> str:
    """Format the recipe beside ours.

    Args:
        content: of the audit.
    """
    rows = [
        [name, content[key]["avg_bits"], content[key]["size_bytes"], content[key]["predicted"]]
        for name, key in (("the recipe", "recipe"), ("ours, no larger", "ours"))
    ]
    gain = content["gain"]
    lines = text.table(
        ("", "bits", "bytes", "predicted"), rows, ("", ".3f", "", ".5g")
    ).splitlines()
    return "\n".join([*lines, f"{verdict(gain['value'], gain['deviation'])}"])


def verdict(value: float, deviation: float) -> str:
    """Say whether a predicted difference is one.

    Args:
        value: how much better ours is predicted to be.
        deviation: of it, positive.
    """
    low, high = value - SIGNIFICANT_Z * deviation, value + SIGNIFICANT_Z * deviation
    interval = f"{value:+.4g} (95 % interval {low:.4g} to {high:.4g})"
    if low > 0:
        return f"ours is predicted to be better by {interval}"
    if high < 0:
        return f"the recipe is predicted to be better: {interval}"
    return f"no difference is predicted that the interval carries: {interval}"


def table_of_changes(content: Mapping[str, Any]) -> str:
    """Format the layers that we would change.

    Args:
        content: of the audit.
    """
    cells = [
        [
            change["weight"],
            change["role"],
            change["was"],
            change["ours"],
            f"{change['bytes']:+,}",
            f"{change['gain']:+.3g}",
            f"{change['gain'] - SIGNIFICANT_Z * change['deviation']:.3g} to "
            f"{change['gain'] + SIGNIFICANT_Z * change['deviation']:.3g}",
        ]
        for change in content["changes"]
    ]
    heads = ("weight", "role", "recipe", "ours", "bytes", "gain", "95 % interval")
    lines = text.table(heads, cells, are_texts=True)
    rest = content["rest"]
    if rest["num"]:
        lines += (
            f"\n{rest['num']} more weights change, for {rest['bytes']:+,} bytes: "
            f"{rest['gain']:+.3g} together"
        )
    return lines
