"""Which pairs of weights do more or less harm together than alone?

    python -m qsdm.probe +model=emoji_unet pairs=8 num_images=256
    python -m qsdm.probe +model=emoji_unet pairs=8 pairs_by=shapley num_images=256
    python -m qsdm.probe +model=emoji_unet pairs=8 pairs_of=blocks num_images=256
    python experiments/interactions/pairs.py --name emoji_unet

Adds a pipeline's measured pairs to results.json, prints them as tables, and draws those of all
pipelines in it: docs/interactions.png, weights above and blocks below. Positive: more harm than the
sum. Bars are standard errors of the paired difference of four configurations: none, each part
alone, both. Pairs that an earlier store measured stay, with what its predictor said. Without the
package shapiq, the predictor tells second differences alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.outcome import Objective
from qsdm.predictor.interactions import BY, blocks, candidates, interactions_of
from qsdm.report.figures.canvas import INK, PALETTE, canvas, title, write
from qsdm.workspace import Workspace, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
QUALITY = Objective({"fd_lite0": -1})
METHOD = "uaq-3"
MANY = 10_000  # candidates: all of them


def measured(workspace: Workspace) -> list[dict[str, Any]]:
    """Every pair in the store, with the excess that the trained predictor proposes it for."""
    uniform, predictor = workspace.space.uniform(METHOD), workspace.predictor(QUALITY)
    graph = workspace.space.graph
    predicted: dict[frozenset[tuple[str, ...]], dict[str, float]] = {}
    for by in BY if find_spec("shapiq") else BY[:1]:
        for groups in (None, blocks(graph)):
            for one in candidates(predictor, uniform, MANY, groups, by):
                excess = predicted.setdefault(frozenset(one.groups), {})
                excess[by] = round(one.excess, 2)

    def name(group: tuple[str, ...]) -> str:
        block = graph.node_of(group[0]).block
        return group[0] if len(group) == 1 else f"{block} ({len(group)} weights)"

    return [
        {
            "pair": [name(group) for group in one.groups],
            "harms": [round(harm, 2) for harm in one.harms],
            "joint": round(one.joint, 2),
            "excess": round(one.excess, 2),
            "standard_error": round(one.standard_error, 2),
            "predicted": predicted[frozenset(one.groups)],
            "confirmed": one.is_confirmed,
            "pictures": one.num_images,
        }
        for one in interactions_of(workspace.store.outcomes(), QUALITY)
        if frozenset(one.groups) in predicted
    ]


def of_blocks(pair: Mapping[str, Any]) -> bool:
    return any(name.endswith(" weights)") for name in pair["pair"])


def table(pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| pair | harm alone | of both | beyond the sum | second difference | Shapley |",
        "|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        first, second = pair["pair"]
        bold = "**" * pair["confirmed"]
        said = [f"{pair['predicted'][by]:+.1f}" if by in pair["predicted"] else "" for by in BY]
        lines.append(
            f"| `{first}` and `{second}` | {pair['harms'][0]:.1f} and {pair['harms'][1]:.1f} "
            f"| {pair['joint']:.1f} | {bold}{pair['excess']:+.1f} ± {pair['standard_error']:.1f}"
            f"{bold} | {said[0]} | {said[1]} |"
        )
    return "\n".join(lines)


def figure(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    drawn, every = canvas(13, 7.2, len(results), 2)
    panels = [
        (name, [pair for pair in pairs if of_blocks(pair) == chosen])
        for chosen in (False, True)
        for name, pairs in results.items()
    ]
    for axes, (name, pairs) in zip(every, panels, strict=True):
        if not pairs:
            axes.set_axis_off()
            continue
        names = ["\n+ ".join(pair["pair"]) for pair in pairs]
        values = [pair["excess"] for pair in pairs]
        colors = [
            PALETTE["random"]
            if not pair["confirmed"]
            else PALETTE["harm"]
            if pair["excess"] > 0
            else PALETTE["full"]
            for pair in pairs
        ]
        errors = [pair["standard_error"] for pair in pairs]
        axes.barh(names, values, xerr=errors, color=colors, ecolor=INK)
        for by, marker in zip(BY, "|x", strict=True):  # what the predictor said
            said = [pair["predicted"].get(by, float("nan")) for pair in pairs]
            axes.plot(said, names, marker, color=PALETTE["ours"], markersize=7)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=5.5)
        title(axes, "harm beyond the sum (fd_lite0)", above=name)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="emoji_unet")
    parser.add_argument("--store", default="store")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "interactions.png")
    args = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    pairs = measured(named(args.name, store=args.store))
    known = [pair["pair"] for pair in pairs]
    pairs += [pair for pair in results.get(args.name, ()) if pair["pair"] not in known]
    results[args.name] = sorted(pairs, key=lambda pair: -pair["excess"])
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for chosen in (False, True):
        print(table([pair for pair in results[args.name] if of_blocks(pair) == chosen]))
    write(args.out, figure(results))


if __name__ == "__main__":
    main()
