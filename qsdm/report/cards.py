"""Cards of single decisions: why a weight has its method. As text, as a table, and for the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsdm import text
from qsdm.report.results import Results

if TYPE_CHECKING:
    from qsdm.store.schemas import Alone, Card, Swap, Why

NUM_SHOWN = 6  # cards on the page
MOST_PICTURE_BYTES = 2_000_000  # of all cards on the page


def reason(card: Card, certified: bool | None) -> str:
    """Say why a weight has its method, against the runner-up; "because" only where certified.

    Args:
        card: of the weight.
        certified: whether pictures confirm the attributions.

    Returns:
        A sentence.
    """
    swap = next((s for s in card["swaps"] if s["method"] == card["runner_up"]), None)
    if swap is None:
        return f"{card['weight']} has {card['method']}: nothing else is on offer."
    more = swap["size_bytes"] - card["size_bytes"]
    size = f"{text.size(abs(more))} {'more' if more > 0 else 'less'}" if more else "as many bytes"
    change = f"change predicted quality by {swap['predicted']:+.2f} and take {size}"
    has = f"{card['weight']} has {card['method']}"
    if swap["predicted"] > 0 and more <= 0:
        return f"{has}, although {swap['method']} would {change}."
    link = " because " if certified else ": "
    return f"{has}{link}{swap['method']} would {change}."


def notes(card: Card) -> list[tuple[str, str]]:
    """List the evidence of a card.

    Args:
        card: of the weight.

    Returns:
        Names and texts.
    """
    of = f"of {card['num_weights']}"
    shape = " × ".join(map(str, card["shape"]))
    entries = [
        ("weight", f"{card['role']}, {card['op']} in {card['block']}, {shape}"),
        (
            "bytes",
            f"{card['size_bytes']:,}; {card['saved_bytes']:,} saved; "
            f"{card['share_of_values']:.2%} of all values",
        ),
    ]
    if card["attribution"] is not None:
        entries.append(
            (
                "attribution",
                f"harm {card['attribution']:.2f} under {card['method']}; "
                f"rank {card['attribution_rank']} {of}",
            )
        )
    if (probe := card["probe"]) is not None:
        entries.append(
            (
                "probe",
                f"{probe['harm']:.3g} ± {probe['half_width']:.2g} ({probe['fidelity']}, "
                f"{probe['num_images']} pictures); rank {probe['rank']} {of}",
            )
        )
    if (lora := card.get("lora")) is not None:
        entries.append(
            (
                "LoRA",
                f"{100 * lora['retention']:.2f} ± {100 * lora['half_width']:.2f} % of the effect "
                f"of {lora['file']} is left under {lora['method']} alone; rank {lora['rank']} {of}",
            )
        )
    entries += [("measured alone", alone(entry)) for entry in card["alone"]]
    if card["hop_rank"] is not None:
        scores = ", ".join(f"{score:.2f}" for score in card["hops"])
        entries.append(("hops", f"{scores}; rank {card['hop_rank']} {of} at hop 0"))
    for one in card["interactions"]:
        entries.append(
            (
                "interaction",
                f"with {called(one['other'])}: {one['excess']:+.1f} "
                f"({one['low']:+.1f} to {one['high']:+.1f}) beyond the sum of both",
            )
        )
    if (shown := card["pictures"]) is not None:
        near = "" if shown["psnr"] is None else f", PSNR {shown['psnr']:.1f} dB to those as chosen"
        entries.append(("pictures", f"{shown['num_images']} with {shown['swap']}{near}"))
    return entries


def alone(entry: Alone) -> str:
    """Describe what a weight does alone.

    Args:
        entry: of the card.
    """
    interval = "" if entry["low"] is None else f" ({entry['low']:+.1f} to {entry['high']:+.1f})"
    harm = f"harm {entry['harm']:+.1f}{interval}"
    return f"{harm} under {entry['method']}, {entry['num_images']} pictures"


def called(names: list[str]) -> str:
    """Name a group of weights.

    Args:
        names: of its weights.
    """
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def changes(swap: Swap) -> list[str]:
    """Write the cells of a swap: method, bytes, predicted and measured change of quality.

    Args:
        swap: of the card.
    """
    measured, text_of = swap["measured"], "–"
    if measured is not None:
        text_of = f"{measured['value']:+.1f}"
        if measured["low"] is not None:
            text_of += f" ({measured['low']:+.1f} to {measured['high']:+.1f})"
    predicted = f"{swap['predicted']:+.2f} ({swap['low']:+.2f} to {swap['high']:+.2f})"
    return [swap["method"], f"{swap['size_bytes']:,}", predicted, text_of]


def as_text(content: Why) -> str:
    """Format cards for the terminal.

    Args:
        content: of the JSON file.

    Returns:
        Several lines.
    """
    parts = []
    for card in content["cards"]:
        lines = [reason(card, content["certified"])]
        width = max(len(name) for name, _ in notes(card)) + 2
        lines += [f"  {name:<{width}}{note}" for name, note in notes(card)]
        cells = [
            [("* " if swap["method"] == card["runner_up"] else "  ") + first, *rest]
            for swap in card["swaps"]
            for first, *rest in [changes(swap)]
        ]
        heads = ("  instead", "bytes", "predicted change", "measured change")
        parts.append("\n".join([*lines, text.table(heads, cells, are_texts=True)]))
    parts.append(about(content))
    return "\n\n".join(parts)


def about(content: Why) -> str:
    """Explain what cards show.

    Args:
        content: of the JSON file.

    Returns:
        Sentences.
    """
    sure = {
        True: "Pictures have confirmed the attributions.",
        False: "Pictures have not confirmed the attributions, so no causes are named.",
        None: "No pictures have confirmed the attributions yet, so no causes are named: run "
        f"python -m qsdm.attribute +model={content['denoiser']} certificate=true.",
    }[content["certified"]]
    terms = ", ".join(f"{value:+g} × {name}" for name, value in content["objective"].items())
    return (
        f"Changes are of quality ({terms}): "
        f"more is better; {content['predicted']:.1f} is predicted for the whole configuration. "
        "Predicted intervals are those of the folds, measured ones paired; the runner-up is marked "
        f"with an asterisk. {sure}"
    )


def rows(content: Why) -> list[dict[str, Any]]:
    """Reduce cards to a table: one row per swap.

    Args:
        content: of the JSON file.
    """
    return [
        {
            "weight": card["weight"],
            "method": card["method"],
            "swap": swap["method"],
            "runner_up": swap["method"] == card["runner_up"],
            "bytes": swap["size_bytes"] - card["size_bytes"],
            "predicted": swap["predicted"],
            "low": swap["low"],
            "high": swap["high"],
            "measured": swap["measured"] and swap["measured"]["value"],
            "attribution": card["attribution"],
        }
        for card in content["cards"]
        for swap in card["swaps"]
    ]


def shown(results: Results) -> list[Mapping[str, Any]]:
    """Choose the cards of the page, with their pictures while there is room for them.

    Args:
        results: of a denoiser.

    Returns:
        sentence, notes, swaps (cells, and whether it is the runner-up) and uri of each; the uri is
        None without pictures.
    """
    if results.why is None:
        return []
    free = MOST_PICTURE_BYTES
    entries: list[Mapping[str, Any]] = []
    for card in sorted(results.why["cards"], key=telling, reverse=True)[:NUM_SHOWN]:
        uri = None
        file = card["pictures"] and card["pictures"]["file"]
        if file and (content := results.why_pictures.get(file)) and len(content) <= free:
            free -= len(content)
            uri = "data:image/png;base64," + base64.b64encode(content).decode()
        entries.append(
            {
                "sentence": reason(card, results.why["certified"]),
                "notes": notes(card),
                "swaps": [(changes(s), s["method"] == card["runner_up"]) for s in card["swaps"]],
                "uri": uri,
            }
        )
    return entries


def telling(card: Card) -> tuple[bool, float]:
    """Order cards: those with pictures first, then by the greatest predicted change.

    Args:
        card: of a weight.
    """
    quantized = [abs(s["predicted"]) for s in card["swaps"] if not s["is_full"]]
    return card["pictures"] is not None, max(quantized, default=0.0)
