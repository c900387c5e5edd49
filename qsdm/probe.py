"""Probe each weight: quantize it alone and see what that does.

    python -m qsdm.probe +model=emoji_unet
    python -m qsdm.probe +model=emoji_unet 'methods=[uaq-3,uaq-2]' num_images=64
    python -m qsdm.probe +model=emoji_unet fidelity=drawn num_images=16    # distance of pictures
    python -m qsdm.probe +model=emoji_unet fidelity=forward num_images=16  # draws no picture
    python -m qsdm.probe +model=sdxl metrics=clip max_probes=200           # groups of weights first
    python -m qsdm.probe +model=emoji_unet pairs=8 num_images=256          # two weights at a time
    python -m qsdm.probe +model=emoji_unet pairs=4 pairs_of=blocks num_images=256
    python -m qsdm.probe +model=emoji_unet activations=6 num_images=128    # inputs, role by role
    python -m qsdm.probe +model=emoji_unet steps=5 num_images=256          # in a part of the steps
    python -m qsdm.probe +model=emoji_unet lora=FILE num_images=8          # what is left of a LoRA
    python -m qsdm.probe +model=emoji_unet plan=true price_per_hour=2.5    # only time and price

Probes predict any configuration without a label, and `qsdm.train` learns from labels what they
missed. They are outcomes like any other: what the same protocol has measured before is skipped, so
a killed run continues where it stopped. Three fidelities, the cheapest first:

- ``forward``: the denoiser's output on recorded inputs, at a few time steps; no picture is drawn
- ``drawn``: distance of pictures to those of full precision with the same noise (LPIPS, features,
  pixels; what the model's metrics offer)
- ``full``: all metrics, the objective's among them; needs more pictures

Of a model of more than ``max_probes`` weights, groups (by stage, role and block) are probed, and
only the most harmful ones are opened.

With ``activations``, weights keep full precision, and the inputs of the layers of one role after
the other are rounded to so many bits: the table tells which inputs cannot bear them, beside the
layers whose inputs have the largest outliers.

With ``steps``, pictures are drawn with the denoiser quantized within one bin of the sampler's steps
after the other and in full precision outside of it; the table, in the store as ``steps.json``, says
how much each bin suffers.

With ``lora``, the denoiser's output is computed on recorded inputs with the adapter and without it,
once for each weight that is quantized alone and once for all together; the table says how much of
the adapter's effect they retain (`qsdm.measurement.retention`), for ``limit.lora_retention`` of
search and realize and for the cards of why. It is kept in the store under ``lora/``.

With ``pairs``, the trained predictor names pairs of weights or of blocks that may do more or less
harm together than alone, and pictures of both and of each tell whether they do (see
`qsdm.predictor.interactions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qsdm import run, text
from qsdm.denoisers import require_one_part
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.outcome import Objective, Outcome, require_measured
from qsdm.predictor.probes import require_fidelity
from qsdm.probing import Probing, nearness_of
from qsdm.probing.alone import probe_alone
from qsdm.probing.pairs import probe_pairs
from qsdm.probing.roles import probe_roles
from qsdm.probing.steps import probe_steps, read_config
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.qconfig.steps import equal_bins
from qsdm.store.schemas import STEPS, STEPS_FILE
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.predictor.interactions import Candidate


def probe(
    workspace: Workspace,
    objective: Objective,
    methods: Sequence[str] = ("uaq-3",),
    fidelity: str = "full",
    num_images: int = 32,
    num_steps: int = 3,
    max_probes: int = 200,
    pairs: int = 0,
    pairs_of: str = "weights",
    pairs_by: str = "difference",
    activations: int | None = None,
    steps: int | None = None,
    config: Path | None = None,
    lora: Path | None = None,
    seed_set: int = 0,
    batch_size: int = 16,
    engine: Engine = Local(),  # noqa: B008 (a frozen value)
    plan: bool = False,
    price_per_hour: float | None = None,
    log: Log = ignore,
) -> list[Outcome]:
    """Quantize each weight alone, and store what that does.

    Args:
        workspace: model, space and store.
        objective: whose loss is harm; it chooses which groups are opened.
        methods: each weight is probed under each of them, or its substitute where one is not on
            offer.
        fidelity: ``forward``, ``drawn`` or ``full``.
        num_images: drawings of each probe.
        num_steps: time steps at which ``forward`` compares outputs.
        max_probes: number above which groups of weights are probed together.
        pairs: instead of all weights, probe this many pairs under the first method, and both parts
            of each alone.
        pairs_of: ``weights`` or ``blocks``.
        pairs_by: ``difference``, by the predicted excess where all else keeps full precision, or
            ``shapley``, by its average over what else is quantized (needs ``qsdm[shapley]``).
        activations: instead of weights, round the inputs of the layers of each role to this many
            bits, 2 to 8.
        steps: instead of weights alone, quantize all of them within each of this many equal bins of
            the sampler's steps: 5 are first, early, middle, late and last.
        config: JSON of the configuration that is applied in these bins; by default, all weights
            have the first method.
        lora: file of a LoRA, of which the probes tell what is left; as diffusers loads it.
        seed_set: which starting noise; labels of the same seed set have the same one.
        batch_size: pictures at a time; halved where memory does not suffice.
        engine: where workers run.
        plan: only print what is missing and how long it takes.
        price_per_hour: of one worker, in any currency; for the plan.
        log: receives the metrics of every probe.

    Returns:
        The outcomes of the probes, or of the pairs; with ``plan`` those that were measured
        before. Those of a LoRA are no outcomes: none.

    Raises:
        StoreError: the model is not traced or not calibrated, or the store cannot be written; for
            pairs, no predictor was trained.
        EvaluationError: a probe has no outcome.
        ValueError: a value is out of range, or an optional package is missing.
    """
    from qsdm.measurement.retention import Adapter, Retaining
    from qsdm.measurement.session import open_session
    from qsdm.predictor.interactions import BY, blocks, candidates
    from qsdm.probing.lora import probe_lora
    from qsdm.report.tracked import track

    require(1, MANY, num_steps=num_steps, max_probes=max_probes, batch_size=batch_size)
    require(2, MANY, num_images=num_images)
    require(0, MANY, pairs=pairs)
    require(0, price_per_hour=price_per_hour)
    require(2, 8, activations=activations)
    if steps is not None:
        equal_bins(steps, workspace.model.steps)  # now, before workers start
    require_fidelity(fidelity)
    for is_given, what in (
        (fidelity == "forward", "fidelity=forward compares outputs of"),
        (activations is not None, "activations are probed in"),
        (steps is not None, "bins of steps are of"),
        (lora is not None, "a LoRA is probed in"),
    ):
        if is_given:
            require_one_part(workspace.model, what)
    chosen = [QuantMethod.parse(method) for method in methods]
    if not chosen:
        raise ValueError("methods must name at least one method, as [uaq-3]")
    space = workspace.space
    if activations is None:
        for method in chosen:
            space.uniform(method)  # now, before workers start
    if fidelity == "full" and lora is None:
        require_measured(objective.metrics, workspace.model.metrics)
    if len(space.graph.weights) > max_probes and len(chosen) > 1 and lora is None:
        raise ValueError(
            f"groups of weights are probed under one method (got {len(chosen)}): give one, "
            f"or max_probes={len(space.graph.weights)}"
        )
    if fidelity != "full":
        nearness = nearness_of(workspace.model.metrics) if fidelity == "drawn" else {}
        workspace = replace(workspace, model=replace(workspace.model, metrics=nearness))
    if pairs and fidelity != "full":
        raise ValueError(
            f"pairs are measured by the objective (got fidelity={fidelity}): distances of pictures "
            "do not add up; give fidelity=full"
        )
    if pairs_of not in ("weights", "blocks"):
        raise ValueError(f"pairs_of must be weights or blocks (got {pairs_of!r})")
    if pairs_by not in BY:
        raise ValueError(f"pairs_by must be {' or '.join(BY)} (got {pairs_by!r})")
    if pairs and activations is not None:
        raise ValueError(
            f"activations are probed role by role, not in pairs (got pairs={pairs}): give one "
            "of both"
        )
    if steps is not None and (pairs or activations is not None or fidelity == "forward"):
        raise ValueError(
            "bins of steps are probed by pictures and by themselves (got fidelity="
            f"{fidelity}, pairs={pairs}, activations={activations}): give steps without these"
        )
    if config is not None and steps is None:
        raise ValueError(f"config is what steps probes (got {config} without steps): give steps=5")
    if lora is not None and (pairs or activations is not None or steps is not None):
        raise ValueError(
            "a LoRA is probed weight by weight (got "
            f"pairs={pairs}, activations={activations}, steps={steps}): give lora without these"
        )
    adapter = None if lora is None else Adapter(lora)
    applied: QuantConfig | None = None
    if steps is not None:
        applied = space.uniform(chosen[0]) if config is None else read_config(config)
    proposed: list[Candidate] = []
    if pairs:
        groups = blocks(space.graph) if pairs_of == "blocks" else None
        predictor = workspace.predictor(objective)
        proposed = candidates(predictor, space.uniform(chosen[0]), pairs, groups, pairs_by)
    with open_session(workspace, Serial() if plan else engine, batch_size) as ready:
        if adapter is not None:
            drawings = ready.drawing(seed_set, num_images)
            retaining = Retaining(ready, adapter, drawings, num_steps)
            probe_lora(retaining, chosen, plan, partial(print, flush=True))
            return []
        if fidelity == "full":
            protocol = ready.protocol(seed_set, num_images)
        else:  # needs no metrics of the model
            protocol = ready.drawing(seed_set, num_images)
        priced = (plan, engine.num_workers, price_per_hour)
        tell = partial(print, flush=True)
        probing = Probing(ready, protocol, objective, fidelity, num_steps, *priced, tell, log)
        if activations is not None:
            return probe_roles(probing, activations)
        if steps is not None and applied is not None:
            outcomes = probe_steps(probing, applied, steps)
            if not plan:
                tell_steps(workspace)
            return outcomes
        if proposed:
            return probe_pairs(probing, proposed, chosen[0])
        outcomes = probe_alone(probing, chosen, max_probes)
    if not plan:
        track(log, "probe", workspace.store, workspace.space_name, workspace.model.full_bits)
    return outcomes


def tell_steps(workspace: Workspace) -> None:
    """Print what each bin of steps suffers, and draw it in the first metric that was measured.

    Args:
        workspace: whose steps were probed.
    """
    from qsdm.report import figures
    from qsdm.report.steps import step_table

    table = workspace.store.read(STEPS, STEPS_FILE)
    if (tabulated := step_table(table, {})) is not None:
        print(text.table(*tabulated, are_texts=True))
    path = workspace.store.path(STEPS_FILE).with_suffix(".png")
    figures.write(path, figures.steps(table, next(iter(table["rows"][0]["metrics"]))))
    print(f"figure: {path}")


if __name__ == "__main__":
    run.main(probe)
