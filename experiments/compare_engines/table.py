"""Whose pictures are better, ours or another engine's? The comparisons as one table.

    python experiments/compare_engines/table.py compare/emoji_unet/compare.json ...

Adds what `qsdm.compare` wrote to results.json, and prints all of it. Differences are the engine's
value minus ours: the same captions and noise, with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.store.schemas import COMPARISON

HERE = Path(__file__).parent
OURS = "ours"
METRICS = {"fd_lite0": 1, "psnr": 2, "lite0_distance": 1, "clip_score": 4}  # digits


def entry(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes, values and differences from ours of one pipeline's comparison."""
    full, *others = comparison["pipelines"]
    found: dict[str, Any] = {
        "num_images": comparison["num_images"],
        "seed_set": comparison["seed_set"],
        "full": {name: full["metrics"].get(name) for name in METRICS},
        "engines": {},
    }
    for one in others:
        differences = {
            each["metric"]: [each["value"], each["low"], each["high"]]
            for each in comparison["differences"]
            if (each["first"], each["second"]) == (OURS, one["name"]) and each["metric"] in METRICS
        }
        found["engines"][one["name"]] = {
            "bytes": one["size_bytes"],
            "metrics": {name: one["metrics"].get(name) for name in METRICS},
            "minus_ours": differences,
        }
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All comparisons as Markdown."""
    heads = ["", "", "bytes", *METRICS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, compared in results.items():
        for engine, own in compared["engines"].items():
            cells = []
            for metric, digits in METRICS.items():
                cell = f"{own['metrics'][metric]:.{digits}f}"
                if (difference := own["minus_ours"].get(metric)) is not None:
                    value, low, high = (f"{number:+.{digits}f}" for number in difference)
                    cell += f" ({value}, {low} to {high})"
                cells.append(cell)
            lines.append(f"| `{name}` | {engine} | {own['bytes']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="compare.json of each pipeline")
    args = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for file in args.files:
        comparison = COMPARISON.read(file)
        results[comparison["pipelines"][0]["name"]] = entry(comparison)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
