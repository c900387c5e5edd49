"""What the rounds of a search have brought: the measured front after each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsdm.report.figures.canvas import PALETTE, WIDTH_IN, canvas, legend, short, tip, title
from qsdm.report.figures.quality import BITS
from qsdm.report.results import NotRun, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rounds(results: Results, width: float = WIDTH_IN) -> Figure:
    """Draw the measured front before the rounds and after each, and what they have measured.

    Args:
        results: of a denoiser.
        width: in inches.

    Returns:
        The figure.

    Raises:
        NotRun: the search had no rounds.
    """
    report = (results.front or {}).get("rounds")
    if not report or not report["rounds"]:
        raise NotRun(results.denoiser, "rounds", "search rounds=1")
    figure, (axes,) = canvas(width, 4.2)
    last = max(bits for entry in (report, *report["rounds"]) for bits, _ in entry["front"])

    def steps(front: list[tuple[float, float]], label: str, color: str, alpha: float) -> None:
        bits, quality = zip(*front, strict=True)
        axes.step(
            [*bits, last],
            [*quality, quality[-1]],
            where="post",
            color=color,
            alpha=alpha,
            label=label,
        )

    steps(report["front"], "measured front of random labels", PALETTE["random"], 1.0)
    for number, entry in enumerate(report["rounds"], 1):
        shade = 0.35 + 0.65 * number / len(report["rounds"])
        steps(entry["front"], f"after round {number}", PALETTE["ours"], shade)
        measured = [point for point in entry["proposals"] if point["measured"] is not None]
        dots = axes.scatter(
            [point["avg_bits"] for point in measured],
            [point["measured"] for point in measured],
            s=36,
            color=PALETTE["candidates"],
            alpha=shade,
            linewidths=0,
            zorder=3,
            label="measured in rounds" if number == len(report["rounds"]) else None,
        )
        tip(
            dots,
            [
                f"round {number}: {point['avg_bits']:.3f} bits, {short(point['measured'])}, "
                f"predicted {short(point['predicted'])} ± {point['std']:.2g}"
                for point in measured
            ],
        )
    if report["avg_bits"] is not None:
        axes.axvline(report["avg_bits"], color=PALETTE["full"], linestyle="--", linewidth=1.2)
    title(axes, BITS, "measured quality (more is better)")
    legend(axes)
    return figure
