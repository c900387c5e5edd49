"""Why does a weight have its method? Everything that is known of one decision, on a card.

    python -m qsdm.why +model=emoji_unet                                  # the most telling weights
    python -m qsdm.why +model=emoji_unet weight=down_blocks.0.resnets.0.conv1
    python -m qsdm.why +model=emoji_unet weight='down*to_k' most=20       # by a pattern
    python -m qsdm.why +model=emoji_unet weight=mid_block.attentions.0    # by a block
    python -m qsdm.why +model=emoji_unet weight=conv_in pictures=4        # with and without a swap
    python -m qsdm.why +model=emoji_unet weight=conv_in config=FILE swap=uaq-3
    python -m qsdm.why +model=emoji_unet weight=conv_in lora=FILE         # after probe lora=FILE

A card tells the chosen method and the runner-up (see `qsdm.sensitivity.cards`); what other methods
are predicted to change, with the interval of the folds, and what was measured of that, with the
paired 95 % interval; bytes; the attribution, the probe, the score by hops; and measured
interactions. ``lora=FILE`` adds what the weight leaves of that adapter's effect. ``pictures=N``
draws N pictures of the same captions and noise at full precision, as chosen, and with the swap;
they are stored, and drawn once.

It says "because" only where pictures have confirmed the attributions (``attribute
certificate=true``). Cards are written to ``why/<configuration>.json``; those of the chosen
configuration are on ``report.html``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsdm import run
from qsdm.denoisers import prompts_of
from qsdm.engine.local import Local
from qsdm.outcome import Objective
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod, Space
from qsdm.qconfig.cost import size_bytes
from qsdm.store import StoreError
from qsdm.store.provenance import provenance
from qsdm.store.schemas import CERTIFICATE, CHOSEN, FRONT, SENSITIVITIES, WHY
from qsdm.store.schemas import digest_of_attributions as digest_of
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.sensitivity.cards import Evidence
    from qsdm.store.schemas import Card, CardPictures, Why


def why(
    workspace: Workspace,
    objective: Objective,
    weight: str | None = None,
    config: Path | None = None,
    swap: str | None = None,
    lora: Path | None = None,
    most: int = 6,
    pictures: int = 0,
    seed_set: int = 1,
    batch_size: int = 16,
    engine: Engine = Local(num_workers=1),  # noqa: B008 (a frozen value)
    log: Log = ignore,
) -> Why:
    """Explain the methods of some weights.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        weight: name of a weight or of a block, the beginning of names, or a pattern such as
            ``*.to_k``; by default, the weights whose method is predicted to matter most.
        config: JSON with a configuration of the space; by default, the one that realize has chosen.
        swap: the method that is tried instead in pictures; by default, each weight's runner-up.
        lora: file of a LoRA; the cards say what each weight leaves of its effect, as probe has
            measured it.
        most: number of cards, at most.
        pictures: drawn for each card with and without the swap; 0 draws none.
        seed_set: of their starting noise.
        batch_size: pictures that are drawn at a time.
        engine: where workers run.
        log: receives the predicted change of every swap, and the pictures.

    Returns:
        The content of the JSON file, with these cards alone.

    Raises:
        StoreError: an earlier stage has not run.
        NoWeight: no weight or block matches.
        OutsideSpace: the configuration or the swap is not of the space.
        EvaluationError: a picture cannot be drawn.

    Example:
        >>> import qsdm
        >>> from qsdm.outcome import Objective
        >>> from qsdm.why import why
        >>> result = why(qsdm.open("emoji_unet"), Objective({"fd_lite0": -1}), "conv_in")
        >>> [card["weight"] for card in result["cards"]]
        ['conv_in']
    """
    from qsdm.report import cards as report
    from qsdm.sensitivity.cards import cards, most_telling, select

    require(1, MANY, most=most, batch_size=batch_size)
    require(0, MANY, pictures=pictures)
    if swap is not None:
        QuantMethod.parse(swap)
    evidence = evidence_of(workspace, objective, config, lora)
    space, qconfig = evidence.space, evidence.qconfig
    names = most_telling(evidence, most) if weight is None else select(space.graph, weight)
    if swap is not None:
        check_swap(space, names[:most], swap)
    shown = cards(evidence, names[:most])
    path = workspace.path(f"why/{qconfig.digest[:16]}.json")
    before = WHY.read(path, workspace.name)["cards"] if path.exists() else []
    drawn = {card["weight"]: card["pictures"] for card in before}
    shown = [{**card, "pictures": drawn.get(card["weight"])} for card in shown]
    if pictures:
        drawing = Drawing(pictures, seed_set, swap, batch_size, engine)
        shown = with_pictures(workspace, shown, qconfig, drawing)
    told = {card["weight"] for card in shown}
    earlier = [card for card in before if card["weight"] not in told]
    content: Why = {
        "denoiser": workspace.name,
        "space": workspace.space_name,
        "objective": dict(objective.weights),
        "qconfig": qconfig.digest,
        "predicted": float(evidence.predictor.predict(space.encode(qconfig)[None])[0][0]),
        "price": evidence.price,
        "certified": certified(workspace, evidence.sensitivities),
        "cards": shown,
        "provenance": provenance(),
    }
    WHY.write(path, {**content, "cards": [*shown, *earlier]})
    print(report.as_text(content))
    if len(names) > most:
        print(f"{len(names) - most} more weights match: give a larger most")
    print(path)
    log({f"why/{c['weight']}/{s['method']}": s["predicted"] for c in shown for s in c["swaps"]})
    log({"why/cards": report.rows(content)})
    for card in shown:
        if card["pictures"] is not None:
            log({f"why/{card['weight']}/pictures": path.parent / card["pictures"]["file"]})
    write_page(workspace)
    return content


def evidence_of(
    workspace: Workspace, objective: Objective, config: Path | None, lora: Path | None = None
) -> Evidence:
    """Read what is known of a configuration.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        config: JSON of the configuration; None for the one that was chosen.
        lora: file of an adapter that was probed; None without one.

    Returns:
        The evidence; probes, interactions and the front only if they are there.

    Raises:
        StoreError: an earlier stage has not run.
        OutsideSpace: the configuration is not of the space.
    """
    from qsdm.predictor.interactions import interactions_of
    from qsdm.predictor.probes import ProbeError
    from qsdm.predictor.retention import read_retention
    from qsdm.sensitivity.cards import Evidence, price_of

    store, name = workspace.store, workspace.space_name
    space, predictor = workspace.space, workspace.predictor(objective)
    sensitivities = store.read(SENSITIVITIES, f"sensitivity/{name}.json")
    if config is None:
        qconfig = store.read(CHOSEN, "chosen.json")
    elif not config.is_file():
        raise StoreError(f"no file {config}: give config=FILE with one configuration")
    else:
        qconfig = CHOSEN.read(config, workspace.name)
    space.encode(qconfig)  # raises now if it is not of the space
    bank = workspace.bank()
    try:
        probes = workspace.probes(objective)
    except (ProbeError, OutsideSpace):
        probes = None
    present = store.outcomes(bank.protocols)
    front = f"search/{name}.json"
    points = store.read(FRONT, front)["points"] if workspace.path(front).exists() else []
    size = size_bytes(space.graph, qconfig, space.full_bits)
    return Evidence(
        space,
        qconfig,
        objective,
        predictor,
        sensitivities,
        price_of(points, size),
        probes,
        interactions_of(present, objective),
        present,
        None if lora is None else read_retention(workspace, lora),
    )


def certified(workspace: Workspace, sensitivities: Mapping[str, object]) -> bool | None:
    """Whether pictures confirm the attributions.

    Args:
        workspace: model, space and store.
        sensitivities: contents of the sensitivity file.

    Returns:
        What the certificate says; None if there is none, or of other attributions.
    """
    path = workspace.path(f"sensitivity/{workspace.space_name}-certificate.json")
    if not path.exists():
        return None
    certificate = CERTIFICATE.read(path, workspace.name)
    if certificate["attributions"] != digest_of(sensitivities):
        return None
    return certificate["holds"]


def check_swap(space: Space, names: Sequence[str], swap: str) -> None:
    """Refuse a swap that is not on offer.

    Args:
        space: of the weights.
        names: of the weights.
        swap: text form of a method.

    Raises:
        OutsideSpace: a weight does not have it on offer.
        ValueError: the text is not a method.
    """
    method = QuantMethod.parse(swap)
    offered = {w.name: o for w, o in zip(space.graph.weights, space.options, strict=True)}
    for name in names:
        if not method.is_full and method not in offered[name]:
            raise OutsideSpace(
                f"swap={swap} is not on offer for {name!r} "
                f"(offered: {', '.join(map(str, offered[name]))}, fp-{space.full_bits})"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    """How pictures of swaps are drawn.

    Attributes:
        num_images: of each configuration.
        seed_set: of the starting noise.
        swap: the method that is tried; None for each weight's runner-up.
        batch_size: pictures at a time.
        engine: where workers run.
    """

    num_images: int
    seed_set: int
    swap: str | None
    batch_size: int
    engine: Engine


def with_pictures(
    workspace: Workspace, cards: Sequence[Card], qconfig: QuantConfig, drawing: Drawing
) -> list[Card]:
    """Add pictures to cards; what was drawn before is not drawn again.

    Args:
        workspace: model, space and store.
        cards: of the weights.
        qconfig: whose decisions they explain.
        drawing: how pictures are drawn.

    Returns:
        The cards; one without a swap that is on offer, or whose swap is its own method, gets none.

    Raises:
        EvaluationError: a picture cannot be drawn.
    """
    from qsdm.measurement.protocol import protocol_of
    from qsdm.measurement.session import open_session
    from qsdm.metrics.fidelity import Psnr
    from qsdm.quant.calibrated import fitted_version
    from qsdm.report import grids
    from qsdm.sensitivity.cards import swapped

    num = drawing.num_images
    prompts = prompts_of(workspace.model)
    protocol = dataclasses.replace(
        protocol_of(workspace.model, prompts, drawing.seed_set, max(2, num)),
        quantizer_version=fitted_version(workspace.packed),
    )
    folder = workspace.path(f"why/{qconfig.digest[:16]}-{protocol.digest[:16]}")
    result, missing = list(cards), {}
    for i, card in enumerate(cards):
        swap, known = drawing.swap or card["runner_up"], card["pictures"]
        if swap is None or swap == card["method"]:
            result[i] = {**card, "pictures": None}
            continue
        path = folder / file_name(card["weight"], swap)
        file = f"{folder.name}/{path.name}"
        if (
            known is None
            or (known["file"], known["num_images"]) != (file, num)
            or not path.exists()
        ):
            missing[i] = path, swap
    if not missing:
        return result
    with open_session(workspace, drawing.engine, drawing.batch_size) as ready:
        full = ready.pictures(QuantConfig(qconfig.denoiser, {}), protocol, num)
        before = ready.pictures(qconfig, protocol, num)
        for i, (path, swap) in missing.items():
            name = cards[i]["weight"]
            instead = swapped(qconfig, name, QuantMethod.parse(swap))
            after = ready.pictures(instead, protocol, num)
            chosen = qconfig.decisions[name]
            rows = {"full precision": full, f"chosen:\n{chosen}": before, f"swap:\n{swap}": after}
            thumbnails = {label: grids.thumbnails(images) for label, images in rows.items()}
            grids.write(path, grids.strips(thumbnails))
            shown: CardPictures = {
                "file": f"{folder.name}/{path.name}",
                "swap": swap,
                "num_images": num,
                "psnr": float(np.mean(Psnr().features(after, [""] * len(after), before))),
            }
            result[i] = {**cards[i], "pictures": shown}
    return result


def file_name(weight: str, swap: str) -> str:
    """Name the file of a swap's pictures.

    Args:
        weight: its name.
        swap: the method that is tried.
    """
    return re.sub(r"[^\w.#-]+", "_", f"{weight}-{swap}") + ".png"


def write_page(workspace: Workspace) -> None:
    """Write the page again, with the cards, if there is one.

    Args:
        workspace: model, space and store.
    """
    from qsdm.report import page, results

    target = workspace.path("report.html")
    if target.exists():
        page.write(
            target, results.read(workspace.store, workspace.space_name, workspace.space.full_bits)
        )
        print(target)


if __name__ == "__main__":
    run.main(why)
