"""The certificate: measured harm while weights are restored, in the attributed and other orders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.outcome import SIGNIFICANT_Z
from qsdm.report.figures.canvas import PALETTE, WIDTH_IN, canvas, legend, short, tip, title
from qsdm.report.results import NotRun, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS: dict[str, tuple[str, str]] = {
    "attribution": (PALETTE["ours"], "-"),
    "probes": (PALETTE["candidates"], "-"),
    "weight_error": (PALETTE["uniform"], "--"),
    "size": (PALETTE["full"], "--"),
    "random": (PALETTE["random"], ":"),
}
"""Color and line of each order."""

SIDE_BY_SIDE_IN = 6.0  # a narrower figure has one direction above the other
ABOVE = {"most_first": "the most harmful first", "least_first": "the least harmful first"}


def certificate(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the measured harm along each order, in both directions; random orders in both.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: no certificate was measured.
    """
    measured = results.certificate
    if measured is None:
        raise NotRun(results.denoiser, "certificate", "attribute certificate=true")
    wide = width >= SIDE_BY_SIDE_IN
    figure, both = canvas(width, 3.6 if wide else 6.0, 2 if wide else 1, 1 if wide else 2)
    counts = measured["counts"]
    percent = [100 * count / counts[-1] for count in counts]
    for axes, (direction, above) in zip(both, ABOVE.items(), strict=True):
        labeled: set[str] = set()
        # The attributions last, on top.
        for one in reversed(measured["curves"]):
            order = one["order"]
            if order != "random" and one["direction"] != direction:
                continue
            color, line = LOOKS[order]
            look: dict[str, Any] = {"color": color, "linewidth": 1.4}
            look["linewidth"] += 0.8 * (order == "attribution")
            label = None if order in labeled else order.replace("_", " ")
            labeled.add(order)
            axes.plot(percent, one["harms"], line, label=label, **look)
            if order == "attribution" and one["errors"] is not None:
                harms, half = np.array(one["harms"]), SIGNIFICANT_Z * np.array(one["errors"])
                band: dict[str, Any] = {"color": color, "alpha": 0.15, "linewidth": 0}
                axes.fill_between(percent, harms - half, harms + half, **band)
            dots = axes.scatter(percent, one["harms"], s=14, color=color, linewidths=0, zorder=3)
            tip(
                dots,
                [
                    f"{order.replace('_', ' ')}, {count} weights restored: harm {short(harm)}"
                    for count, harm in zip(counts, one["harms"], strict=True)
                ],
            )
        axes.axhline(0, color=PALETTE["random"], linewidth=0.8)
        title(axes, "weights restored (%)", "measured harm", above)
    legend(both[0], "upper right")
    return figure
