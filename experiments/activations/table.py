"""What rounding the inputs of layers costs, as `realize activations=[16,8,6]` has measured it.

    python -m qsdm.realize +model=emoji_unet budget.avg_bits=3.5 activations=[16,8,6]
    python experiments/activations/table.py --names emoji_unet

Adds the pipelines' tables to results.json, and prints those of all pipelines in it. Differences are
paired: the same captions and noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.qconfig.activations import FULL
from qsdm.store.schemas import SUMMARY
from qsdm.workspace import named

HERE = Path(__file__).parent


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as Markdown: distance and PSNR, and what rounding changes."""
    lines = [
        "| | configuration | bits | activations "
        "| fd_lite0 ↓ | of rounding | PSNR, dB ↑ | of rounding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in results.items():
        changes = {
            tuple(entry["second"]): entry["metrics"]
            for entry in measured["differences"]
            if entry["first"] == [entry["second"][0], FULL]
        }
        for row in measured["rows"]:
            cells = []
            for metric, digits in (("fd_lite0", 1), ("psnr", 2)):
                change, error = changes.get((row["name"], row["activations"]), {}).get(
                    metric, (None, None)
                )
                cells += [
                    f"{row['metrics'][metric]:.{digits}f}",
                    "" if change is None else f"{change:+.{digits}f} ± {error:.{digits}f}",
                ]
            lines.append(
                f"| `{name}` | {row['name']} | {row['avg_bits']:.2f} | {row['activations']} "
                f"| {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=[], help="of pipelines that were realized")
    parser.add_argument("--store", default="store")
    args = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in args.names:
        results[name] = named(name, store=args.store).store.read(SUMMARY, "summary.json")[
            "activations"
        ]
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
