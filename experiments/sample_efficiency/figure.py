"""Draw what pictures buy, from what `study.py` and `compare.py` wrote.

    python experiments/sample_efficiency/figure.py            # results/*.json => docs/*.png

``sample_efficiency.png``: rank correlation with the test set on other noise than the labels',
against the pictures that a predictor was given; mean and deviation of five draws. Diamonds: labels
of 64 pictures instead of 256.
``pictures_bought.png``: what the configurations found at 3.5 bits really lose on noise that nobody
has seen, against what the network of 240 labels finds, with standard errors.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullFormatter

from qsdm.report.figures.canvas import PALETTE, canvas, legend, title, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
ZOO = ("emoji_unet", "emoji_mmdit", "emoji_pixart")
CURVES = {
    "mean-16": ("probes of 16 pictures, random labels", PALETTE["ours"]),
    "probes-64": ("probes of 64, random labels", PALETTE["candidates"]),
    "no probes": ("random labels alone", PALETTE["uniform"]),
    "additive": ("labels alone, additive model", PALETTE["random"]),
}
"""Predictors by the start of their names: label and color."""

MEASURED = CURVES | {
    "fused-16": CURVES["mean-16"],
    "probes-16": CURVES["mean-16"],
    "lite0_distance-16": CURVES["mean-16"],
    "asked": ("probes of 16, labels that were asked for", PALETTE["full"]),
    "mean": ("probes of 256, random labels", PALETTE["harm"]),
    "probes-256": ("probes of 256, random labels", PALETTE["harm"]),
}
FEW: dict[str, Any] = {"marker": "D", "linestyle": ""}
"""Labels of 64 pictures instead of 256."""

OTHERS = {"error_sum": ("greedy on weight errors", PALETTE["greedy_error"])}
BITS, REFERENCE = "3.5", "network 240/0"
LABEL_PICTURES = 61_440


def ranks(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, side_by_side = canvas(11, 4.2, len(curves))
    for axes, (name, curve) in zip(side_by_side, curves.items(), strict=True):
        for start, (label, color) in CURVES.items():
            for few, look in (("", {"marker": "o", "label": label}), ("x64", FEW)):
                pattern = re.compile(rf"{re.escape(start)} \d+{few}")
                points = sorted(
                    (row["pictures"], row["srcc"][-1], row["deviation"][-1])
                    for key, row in curve.items()
                    if pattern.fullmatch(key)
                )
                if points:
                    x, y, error = zip(*points, strict=True)
                    axes.errorbar(x, y, error, color=color, markersize=4, **look)
        for key, (label, color) in OTHERS.items():
            axes.axhline(curve[key]["srcc"][-1], color=color, linestyle="--", label=label)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0.8)
        title(axes, "pictures", "rank correlation" * (axes is side_by_side[0]), name)
    legend(side_by_side[1], "lower right")
    return figure


def differences(
    curves: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]]
) -> Figure:
    figure, side_by_side = canvas(11, 4.2, len(curves))
    for axes, (name, curve) in zip(side_by_side, curves.items(), strict=True):
        families: dict[tuple[str, str], list[tuple[float, ...]]] = {
            MEASURED[start]: [] for start in ("no probes", "mean-16", "asked", "probes-64", "mean")
        }
        for key, entry in measured[name].get(BITS, {}).items():
            predictor, _, draw = key.rpartition("/")
            if (
                draw == "0"
                and predictor in curve
                and (family := MEASURED.get(predictor.rpartition(" ")[0]))
            ):
                point = (curve[predictor]["pictures"], *entry[REFERENCE])
                families[family].append(point)
        for (label, color), points in families.items():
            if not points:
                continue
            x, y, error = np.array(sorted(points)).T
            axes.errorbar(x, y, error, color=color, label=label, marker="o", linestyle="")
        for key, (label, color) in OTHERS.items():
            value = measured[name][BITS][f"{key}/0"][REFERENCE][0]
            axes.axhline(value, color=color, linestyle="--", label=label)
        axes.axhline(0, color=PALETTE["full"], linewidth=1, label="network of 240 labels")
        axes.axvline(LABEL_PICTURES, color=PALETTE["full"], linewidth=0.6)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        title(axes, "pictures", "fd_lite0 lost" * (axes is side_by_side[0]), name)
    legend(side_by_side[1], "upper right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs")
    args = parser.parse_args()
    curves = {
        name: json.loads((args.results / f"{name}.curve.json").read_text(encoding="utf-8"))
        for name in ZOO
    }
    measured = json.loads((args.results / "measured.json").read_text(encoding="utf-8"))
    write(args.out / "sample_efficiency.png", ranks(curves))
    write(args.out / "pictures_bought.png", differences(curves, measured))


if __name__ == "__main__":
    main()
