"""Ours against each rival at equal bytes: tables with paired intervals, and the figure.

    python experiments/equal_bytes/tables.py --store store --chosen chosen   # collect, then draw
    python experiments/equal_bytes/tables.py                                 # from results/ alone

``results/NAME.json`` holds what was measured of one pipeline, ``results/tables.md`` the tables,
``results/differences.json`` all differences, ``docs/equal_bytes.png`` the figure. A difference is
ours minus the rival, of the same captions and starting noise; ``better`` and ``worse`` are said
only where its 95 % interval excludes 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.measurement.paired import Difference, mean_difference
from qsdm.outcome import Outcome
from qsdm.qconfig import QuantConfig
from qsdm.report.figures.canvas import FONT_PT, GRID, INK, PALETTE, canvas, title, write
from qsdm.store.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
ZOO = ("emoji_unet", "emoji_mmdit", "emoji_pixart")
SEED_SET = 2
METRICS = {"fd_lite0": False, "psnr": True, "lite0_distance": False}
"""Metrics and whether larger is better: the distribution, and fidelity in two ways."""

JUDGED = ("fd_lite0", "psnr")
OURS, VARIANT = "ours", "ours (quality)"
BALANCED, QUALITY = "qsdm, balanced", "qsdm, quality"
ALSO_OURS = (OURS, VARIANT, BALANCED, QUALITY)
FULL = "full precision"
RULES = {
    VARIANT: ("ours, quality alone", PALETTE["ours"], "*"),
    OURS: ("ours, closed models", PALETTE["ours"], "o"),
    QUALITY: ("qsdm search, quality", PALETTE["ours"], "D"),
    "weight error": ("greedy by weight error", PALETTE["greedy_error"], "o"),
    "probes": ("single layers, Fréchet distance", PALETTE["candidates"], "o"),
    "probes, fidelity": ("single layers, pixels", PALETTE["candidates"], "D"),
    "additive": ("additive model of labels", PALETTE["greedy"], "o"),
    "paper, ops": ("arg-max per op", PALETTE["harm"], "o"),
    "paper, blocks": ("arg-max per block", PALETTE["harm"], "D"),
    "best label": ("best label", PALETTE["random"], "D"),
    "random, mean": ("random, mean", PALETTE["random"], "o"),
    "uniform": ("uniform", PALETTE["uniform"], "o"),
}
"""What a row is called in the figure, its color and its mark."""


@dataclass(frozen=True, slots=True)
class Row:
    """One rival at one budget.

    Attributes:
        name: of the rule.
        outcomes: one, or several whose mean counts.
        bits: average bits, of several the mean.
        differences: ours minus the rival by metric; None where it is not defined.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    bits: float
    differences: Mapping[str, Difference | None]

    def value(self, metric: str) -> float | None:
        values = [o.metrics[metric] for o in self.outcomes]
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None

    def verdict(self, metric: str) -> str:
        one = self.differences[metric]
        return "" if one is None else one.verdict(METRICS[metric])


def collect(name: str, folder: str, chosen: Path, num_images: int) -> dict[str, Any]:
    """Read what was measured of what was chosen.

    Args:
        name: of the pipeline.
        folder: of the artifacts.
        chosen: that `choose.py` wrote.
        num_images: pictures of each configuration.

    Returns:
        What ``results/NAME.json`` holds.
    """
    from qsdm.qconfig.cost import avg_bits, size_bytes
    from qsdm.workspace import named

    workspace = named(name, "wide", folder)
    store, graph = workspace.store, workspace.space.graph
    rules = json.loads((chosen / f"{name}.json").read_text(encoding="utf-8"))
    measured = store.measured(lambda p: (p.seed_set, p.num_images) == (SEED_SET, num_images))
    chosen_by = {
        bits: {rule: QuantConfig.from_json(qconfig) for rule, qconfig in by_rule.items()}
        for bits, by_rule in rules.items()
    }
    wanted = {q.digest: q for by_rule in chosen_by.values() for q in by_rule.values()}
    full = QuantConfig(name, {})
    wanted[full.digest] = full
    bits = workspace.model.full_bits
    return {
        "pipeline": name,
        "pictures": num_images,
        "seed_set": SEED_SET,
        "protocol": sorted({o.protocol for o in measured.values()}),
        "full": full.digest[:16],
        "weights": [weight.name for weight in graph.weights],
        "rules": {
            budget: {rule: q.digest[:16] for rule, q in by_rule.items()}
            for budget, by_rule in chosen_by.items()
        },
        "outcomes": {
            digest[:16]: {
                "avg_bits": avg_bits(graph, qconfig, bits),
                "size_bytes": size_bytes(graph, qconfig, bits),
                "methods": [str(qconfig.methods.get(w.name, "fp")) for w in graph.weights],
                "metrics": dict(measured[digest].metrics),
                "halves": {
                    m: [[round(v, 5) for v in pair] for pair in measured[digest].halves.get(m, ())]
                    for m in METRICS
                },
            }
            for digest, qconfig in wanted.items()
            if digest in measured
        },
    }


def outcome_of(results: Mapping[str, Any], digest: str) -> Outcome | None:
    data = results["outcomes"].get(digest)
    if data is None:
        return None
    return Outcome(
        QuantConfig(results["pipeline"], {}),
        "",
        data["metrics"],
        results["pictures"],
        {name: tuple(map(tuple, pairs)) for name, pairs in data["halves"].items() if pairs},
    )


def rows_of(
    results: Mapping[str, Any], budget: str, base: str = OURS
) -> tuple[Outcome, float, list[Row]] | None:
    """Compare ours, or another rule, with all that was measured at a budget; None if it was not."""
    by_rule = results["rules"][budget]
    ours = outcome_of(results, by_rule[base]) if base in by_rule else None
    if ours is None:
        return None

    def bits(rule: str) -> float:
        return float(results["outcomes"][by_rule[rule]]["avg_bits"])

    measured = {
        rule: outcome
        for rule, digest in by_rule.items()
        if rule != base and (outcome := outcome_of(results, digest)) is not None
    }
    rows = [
        row(rule, [outcome], bits(rule), ours)
        for rule, outcome in measured.items()
        if not rule.startswith("random-")
    ]
    randoms = {rule: o for rule, o in measured.items() if rule.startswith("random-")}
    if randoms:
        mean = sum(map(bits, randoms)) / len(randoms)
        rows.append(row(f"random, mean of {len(randoms)}", list(randoms.values()), mean, ours))
        best = min(randoms, key=lambda rule: float(randoms[rule].metrics["fd_lite0"] or 0))
        rows.append(row(f"random, best of {len(randoms)}", [randoms[best]], bits(best), ours))
    full = outcome_of(results, results["full"])
    if full is not None:
        rows.append(row(FULL, [full], 16.0, ours))
    return ours, bits(base), rows


def row(name: str, outcomes: Sequence[Outcome], bits: float, ours: Outcome) -> Row:
    differences = {}
    for metric in METRICS:
        away = mean_difference(outcomes, ours, metric)
        differences[metric] = away and Difference(-away.value, away.standard_error)
    return Row(name, tuple(outcomes), bits, differences)


def rivals(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.name not in (*ALSO_OURS, FULL)]


def summary(
    everything: Mapping[str, Mapping[str, Any]], budget: str, base: str = OURS
) -> list[str]:
    """Format ours, or another rule, minus all rivals at one budget, with standard errors; no line
    of a rival that was measured nowhere."""
    of = {name: rows for name, b, _, rows in compared_rows(everything, base) if b == budget}
    if not of:
        return []
    names = list(dict.fromkeys(one.name for rows in of.values() for one in rivals(rows)))
    lines = [
        f"### `{base}` minus the rival at {float(budget):g} bits",
        "",
        "| | " + " | ".join(f"`{name}`: fd_lite0 | PSNR, dB" for name in of) + " |",
        "|---" * (1 + 2 * len(of)) + "|",
    ]
    also = {one.name for rows in of.values() for one in rows}
    for rival in (*names, *(rule for rule in ALSO_OURS if rule in also)):
        cells = []
        for rows in of.values():
            one = next((row for row in rows if row.name == rival), None)
            for metric, digits in (("fd_lite0", 1), ("psnr", 2)):
                cells.append("" if one is None else cell(one, metric, digits, ends=False))
        lines.append(f"| {rival} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def markdown(everything: Mapping[str, Mapping[str, Any]]) -> str:
    """Format all tables."""
    budgets = {budget for results in everything.values() for budget in results["rules"]}
    lines = [line for base in (OURS, BALANCED) for line in verdicts(everything, base)]
    for base in (OURS, BALANCED):
        lines += [line for b in sorted(budgets, key=float) for line in summary(everything, b, base)]
    for name, results in everything.items():
        for budget in sorted(results["rules"], key=float):
            compared = rows_of(results, budget)
            if compared is None:
                continue
            ours, bits, rows = compared
            lines += [
                f"### `{name}`, {float(budget):g} bits ({results['pictures']} pictures a row)",
                "",
                "| | bits | fd_lite0 ↓ | ours − it | PSNR, dB ↑ | ours − it | "
                "lite0_distance ↓ | ours − it |",
                "|---|---|---|---|---|---|---|---|",
                "| "
                + " | ".join(
                    [
                        "**ours**",
                        f"{bits:.3f}",
                        f"{ours.metrics['fd_lite0']:.1f}",
                        "",
                        f"{ours.metrics['psnr']:.2f}",
                        "",
                        f"{ours.metrics['lite0_distance']:.1f}",
                        "",
                    ]
                )
                + " |",
            ]
            lines += [row_of(one) for one in rows]
            lines += ["", conclusion(rows), ""]
    return "\n".join(lines)


def verdicts(everything: Mapping[str, Mapping[str, Any]], base: str) -> list[str]:
    """Count what the intervals carry of one rule at each budget: how many rivals it is better than
    in both metrics, in one of them, in neither; and who is better than it."""
    lines = [
        f"### What the intervals carry of `{base}`",
        "",
        "| | bits | rivals | better than in both | in one | in neither | better in fd_lite0 "
        "| better in PSNR |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, budget, _, rows in compared_rows(everything, base):
        against = rivals(rows)
        wins = [sum(one.verdict(m) == "better" for m in JUDGED) for one in against]
        losses = [
            ", ".join(one.name for one in against if one.verdict(m) == "worse") or "-"
            for m in JUDGED
        ]
        counts = [str(wins.count(k)) for k in (2, 1, 0)]
        lines.append(
            f"| `{name}` | {float(budget):g} | {len(against)} | "
            + " | ".join([*counts, *losses])
            + " |"
        )
    return [*lines, ""]


def row_of(one: Row) -> str:
    cells = [one.name, f"{one.bits:.3f}"]
    for metric, digits in (("fd_lite0", 1), ("psnr", 2), ("lite0_distance", 1)):
        value = one.value(metric)
        cells.append("–" if value is None else f"{value:.{digits}f}")
        cells.append(cell(one, metric, digits))
    return "| " + " | ".join(cells) + " |"


def cell(one: Row, metric: str, digits: int, ends: bool = True) -> str:
    """A difference with its standard error and, if asked, the ends of its 95 % interval; bold
    where ours is better, with an exclamation mark where it is worse."""
    difference = one.differences[metric]
    if difference is None:
        return ""
    if difference.interval is None:
        return f"{difference.value:+.{digits}f}"
    low, high = difference.interval
    text = f"{difference.value:+.{digits}f} ± {difference.standard_error:.{digits}f}"
    if ends:
        text += f" ({low:+.{digits}f} to {high:+.{digits}f})"
    verdict = one.verdict(metric)
    return f"**{text}**" if verdict == "better" else text + " !" * (verdict == "worse")


def conclusion(rows: Sequence[Row]) -> str:
    """What the intervals carry, in one paragraph."""
    against = rivals(rows)
    worse = {
        metric: [one.name for one in against if one.verdict(metric) == "worse"] for metric in JUDGED
    }
    neither = [one.name for one in against if not any(one.verdict(m) == "better" for m in JUDGED)]
    both = sum(all(one.verdict(m) == "better" for m in JUDGED) for one in against)
    said = [f"Ours is better than {both} of {len(against)} rivals in both metrics."]
    for metric, what in (("fd_lite0", "Fréchet distance"), ("psnr", "PSNR")):
        names = ", ".join(worse[metric])
        said.append(f"Better than ours in {what}: {names or 'none'}.")
    said.append(f"Better than neither metric of: {', '.join(neither) or 'none'}.")
    return " ".join(said)


def differences(everything: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All differences as plain data."""
    total: dict[str, Any] = {}
    for name, budget, _, rows in compared_rows(everything):
        total.setdefault(name, {})[budget] = {
            one.name: {
                metric: None
                if (d := one.differences[metric]) is None
                else {
                    "ours_minus_it": round(d.value, 4),
                    "standard_error": d.standard_error and round(d.standard_error, 4),
                    "interval": d.interval and [round(end, 4) for end in d.interval],
                    "ours_is": one.verdict(metric),
                }
                for metric in METRICS
            }
            for one in rows
        }
    return total


def compared_rows(
    everything: Mapping[str, Mapping[str, Any]], base: str = OURS
) -> Iterator[tuple[str, str, Outcome, list[Row]]]:
    for name, results in everything.items():
        for budget in sorted(results["rules"], key=float):
            if (compared := rows_of(results, budget, base)) is not None:
                yield name, budget, compared[0], compared[2]


def figure(everything: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Differences in both metrics with their intervals; what `qsdm search` finds is at the
    crossing."""
    names = list(dict.fromkeys(name for name, _, _, _ in compared_rows(everything, BALANCED)))
    drawn, side_by_side = canvas(11, 4.8, max(1, len(names)))
    handles: dict[str, Any] = {}
    for axes, name in zip(side_by_side, names, strict=False):
        for _, _, _, rows in compared_rows({name: everything[name]}, BALANCED):
            for one in rows:
                if one.name == FULL or one.name.startswith("random, best"):
                    continue
                rule = one.name.partition(" of ")[0]
                label, color, mark = RULES.get(rule, RULES["uniform"])
                x, y = (one.differences[metric] for metric in JUDGED)
                if x is None or y is None:
                    continue
                handles[label] = axes.errorbar(
                    x.value,
                    y.value,
                    xerr=1.96 * (x.standard_error or 0),
                    yerr=1.96 * (y.standard_error or 0),
                    color=color,
                    marker=mark,
                    markersize=5,
                    linestyle="",
                    elinewidth=0.8,
                )
        axes.set_xscale("symlog", linthresh=20)  # two bits in all weights are far to the left
        axes.axhline(0, color=GRID, linewidth=1)
        axes.axvline(0, color=GRID, linewidth=1)
        first = axes is side_by_side[0]
        title(
            axes,
            "fd_lite0, qsdm - rival (left: qsdm is better)",
            "PSNR in dB, qsdm - rival (above: qsdm is better)" * first,
            name,
        )
    ordered = [label for label, _, _ in RULES.values() if label in handles]
    drawn.legend(
        [handles[label] for label in ordered],
        ordered,
        loc="outside upper left",
        ncols=5,
        frameon=False,
        fontsize=FONT_PT["tick"],
        labelcolor=INK,
    )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="collect from this store first")
    parser.add_argument("--chosen", type=Path, default=Path("chosen"))
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figure", type=Path, default=HERE.parents[1] / "docs/equal_bytes.png")
    args = parser.parse_args()
    if args.store is not None:
        for name in ZOO:
            results = collect(name, args.store, args.chosen, args.images)
            write_text(args.results / f"{name}.json", compact(results))
    everything = {
        name: json.loads((args.results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ZOO
    }
    text = markdown(everything)
    print(text)
    write_text(args.results / "tables.md", text)
    write_json(args.results / "differences.json", differences(everything))
    write(args.figure, figure(everything))


def compact(results: Mapping[str, Any]) -> str:
    """JSON with one line per outcome."""
    head = {key: value for key, value in results.items() if key != "outcomes"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    outcomes = [
        f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in results["outcomes"].items()
    ]
    return "\n".join(["{", *lines, ' "outcomes": {', ",\n".join(outcomes), " }", "}"]) + "\n"


if __name__ == "__main__":
    main()
