"""The main job: from a pipeline to a measured mixed-precision configuration of its denoiser.

    python -m qsdm +model=emoji_unet
    python -m qsdm +model=emoji_unet budget.avg_bits=3.25 candidates=12
    python -m qsdm +model=emoji_unet budget.size_bytes=1.6e6 limit.psnr=26 pin.conv_in=uaq-4
    python -m qsdm +model=emoji_unet force=true

Runs trace, calibrate, probe, measure, train, attribute, search (with rounds) and realize. A stage
is skipped if the store holds what it writes and nothing that it reads has changed: ``stages.json``
in the model's store remembers for each stage a digest of its arguments and of the files that it
reads, and digests of the files that it wrote. probe runs only if no complete probes of the weights
are there, and measure only while there are fewer than ``num_labels`` labels. What the rounds of
search and realize measure is not a label: a search has proposed it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

import qsdm
from qsdm import run
from qsdm.denoisers import require_denoiser, require_one_part, weights_digest
from qsdm.engine.kept import kept
from qsdm.graph import canonical
from qsdm.outcome import Objective, require_measured
from qsdm.predictor.probes import is_probe, require_fidelity
from qsdm.qconfig import OutsideSpace
from qsdm.recipes.targets import held_by
from qsdm.store import Store
from qsdm.store.artifacts import Artifact
from qsdm.store.files import decode
from qsdm.strategies.constraints import DEFAULT_BITS, Constraints, read_budget, with_bytes
from qsdm.text import MANY, Log, ignore, require
from qsdm.workspace import Workspace, takes_workspace

if TYPE_CHECKING:
    from qsdm.engine import Engine
    from qsdm.predictor import FitOptions
    from qsdm.sensitivity import AttributionOptions
    from qsdm.strategies import StrategyOptions

COMMANDS = (
    "trace",
    "calibrate",
    "probe",
    "measure",
    "train",
    "attribute",
    "search",
    "realize",
    "recipe",
    "compare",
    "why",
    "dashboard",
)

# They change no result, or are digested apart.
SKIPPED_ARGUMENTS = {"workspace", "log", "engine", "batch_size", "page", "price_per_hour"}


class StageEntry(TypedDict):
    """What stages.json says of a stage: digests of all that it read, and of what it wrote."""

    inputs: str
    makes: dict[str, str | None]


class _StagesFile(TypedDict):
    stages: dict[str, StageEntry]


STAGES = Artifact(
    "qsdm/stages/1",
    "qsdm",
    lambda data: decode(data, _StagesFile)["stages"],
    unversioned=lambda data: {"stages": data},
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the main job.

    Attributes:
        name: of the command.
        reads: artifacts that it reads, beside the model's weights.
        makes: artifacts that it writes.
    """

    name: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]

    @property
    def function(self) -> Callable[..., Any]:
        """The command's function."""
        return getattr(import_module(f"qsdm.{self.name}"), self.name)


def stages(space: str) -> list[Stage]:
    """List the stages in their order.

    Args:
        space: name of the space.
    """
    tables = (f"calibration/{space}/table.safetensors", f"calibration/{space}/weights.safetensors")
    report, sensitivity, front = (
        f"predictor/{space}/report.json",
        f"sensitivity/{space}.json",
        f"search/{space}.json",
    )
    return [
        Stage("trace", (), ("graph.json",)),
        Stage("calibrate", ("graph.json",), tables),
        Stage("probe", ("graph.json", *tables), ()),
        Stage("measure", ("graph.json", *tables), ()),
        Stage("train", ("graph.json", tables[0]), (report,)),
        Stage("attribute", ("graph.json", tables[0], report), (sensitivity,)),
        Stage("search", ("graph.json", tables[0], report), (front,)),
        Stage(
            "realize",
            ("graph.json", *tables, front),
            ("summary.json", "chosen.json", "report.html", "checkpoint/model_index.json"),
        ),
    ]


@takes_workspace("model", "space", "objective", "predictor", "attribution", "strategy", "engine")
def main(
    workspace: Workspace,
    objective: Objective,
    predictor: FitOptions,
    attribution: AttributionOptions,
    strategy: StrategyOptions,
    engine: Engine,
    fidelity: str = "drawn",
    probe_images: int = 16,
    num_labels: int = 40,
    num_images: int = 256,
    seed_set: int = 0,
    budget: Mapping[str, float] | float | None = None,
    limit: Mapping[str, float] | None = None,
    pin: Mapping[str, str] | Sequence[str] | None = None,
    forbid: Sequence[str] = (),
    target: str | None = None,
    evaluations: int = 10_000,
    rounds: int = 1,
    per_round: int = 4,
    max_pictures: int | None = None,
    patience: int = 2,
    candidates: int = 1,
    num_random: int = 3,
    batch_size: int = 16,
    price_per_hour: float | None = None,
    seed: int = 0,
    avg_bits: float | None = None,
    force: bool = False,
    log: Log = ignore,
) -> dict[str, Any]:
    """Run every stage whose artifacts are missing or stale.

    Args:
        workspace: model, space and store.
        objective: what is learned and searched for: a weighted sum of metrics and costs.
        predictor: how the graph networks are trained.
        attribution: how sensitivities are computed.
        strategy: of the search.
        engine: where measurements run.
        fidelity: of the probes, if there are none: forward, drawn or full (see `qsdm.probe`).
        probe_images: pictures of each probe; ``full`` needs more than the others.
        num_labels: number of labels that the predictor needs; missing ones are measured.
        num_images: pictures per measured configuration.
        seed_set: of the starting noise of the labels; the final table uses the next one.
        budget: the most that the chosen configuration may take, as budget.size_bytes=1.2e9 or
            budget.avg_bits=3.5; rounds look for the best one, and the front ends there. Without
            one, 3.5 bits, and the front is whole.
        limit: the worst allowed value of a metric, as limit.psnr=28, predicted and measured.
        pin: method of a weight, or of all that match a pattern, as pin.conv_in=uaq-4.
        forbid: methods that no weight may have, with or without bits, as [uaq-3,kmeans_a].
        target: engine that must hold the result: torchao, gguf, sdnq or qsdm.
        evaluations: number of configurations that the search may have predicted.
        rounds: how often the search measures what promises most, and searches again.
        per_round: configurations that a round measures.
        max_pictures: of all rounds together; None for no limit.
        patience: rounds without gain, in a row, after which there are no more.
        candidates: number of points of the last front that are measured, too; the best of them and
            of the rounds' is chosen.
        num_random: number of random configurations of the same size in the final table.
        batch_size: pictures that are drawn at a time.
        price_per_hour: of one worker, in any currency; probe, measure and search say what they are
            going to draw, how long it takes and, with this, what it costs.
        seed: of sampling, folds and search.
        avg_bits: old spelling of budget.avg_bits.
        force: rerun stages that are up to date; no configuration is measured again.
        log: receives what the stages report.

    Returns:
        Seconds per stage, 0 for a skipped one.
    """
    parameters = dict(locals())
    require(1, MANY, num_labels=num_labels, candidates=candidates, batch_size=batch_size)
    require(2, MANY, num_images=num_images)
    require(1, MANY, per_round=per_round, patience=patience)
    require(1, max_pictures=max_pictures)
    require(0, price_per_hour=price_per_hour)
    require(2, MANY, probe_images=probe_images)
    require(0, MANY, num_random=num_random, rounds=rounds)
    require(1, evaluations=evaluations, avg_bits=avg_bits)
    budget, evaluations = read_budget(budget, evaluations, avg_bits=avg_bits)
    constraints = Constraints.of(budget, limit, pin, forbid, target)
    if target not in (None, "qsdm"):
        require_denoiser(workspace.model, f"target={target}")
    require_fidelity(fidelity)
    if fidelity == "forward":
        require_one_part(workspace.model, "fidelity=forward compares outputs of")
    asked = (*constraints.limit, *filter(None, [objective.fidelity]), *objective.metrics)
    require_measured(asked, workspace.model.metrics)
    parameters |= {"budget": budget, "evaluations": evaluations, "avg_bits": None}
    # The final table is measured on seeds that no label used.
    renamed: dict[str, dict[str, Any]] = {
        "search": {} if budget == with_bytes(budget) else {"avg_bits": DEFAULT_BITS},
        "realize": {
            "budget": with_bytes(budget),
            "label_seed_set": seed_set,
            "seed_set": seed_set + 1,
        },
        "measure": {"num_configs": num_labels},
        "probe": {"num_images": probe_images},
    }
    weights, seconds = weights_digest(workspace.model), {}
    ordered, began = stages(workspace.space_name), time.perf_counter()
    with kept(engine) as shared:
        for name in ("search", "realize"):  # nothing between them needs the memory
            renamed[name]["engine"] = shared
        for number, stage in enumerate(ordered, 1):
            accepted = inspect.signature(stage.function).parameters
            arguments = {
                k: v for k, v in (parameters | renamed.get(stage.name, {})).items() if k in accepted
            }
            heading = f"[{number}/{len(ordered)}] {stage.name}"
            if stage.name == "calibrate":  # the graph is there, and nothing costly has run
                constraints.restrict(workspace.space, held_by(target, workspace.space.graph))
            why = reason_to_skip(stage, weights, objective, arguments, force)
            seconds[f"{stage.name}_s"] = 0.0
            if why is not None:
                print(f"\n{heading}: {why}", flush=True)
                continue
            print(f"\n{heading}", flush=True)
            start = time.perf_counter()
            stage.function(**arguments)
            seconds[f"{stage.name}_s"] = round(time.perf_counter() - start, 3)
            if stage.makes:
                remember(workspace.store, stage, inputs_of(stage, weights, arguments))
            print(f"{stage.name} took {seconds[f'{stage.name}_s']:.1f} s", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s in all; see {workspace.path('report.html')}")
    return seconds


def reason_to_skip(
    stage: Stage, weights: str, objective: Objective, arguments: Mapping[str, Any], force: bool
) -> str | None:
    """Tell why a stage need not run.

    Args:
        stage: one command.
        weights: digest of the pipeline's weights.
        objective: of the labels and probes.
        arguments: of the command's function, the workspace among them.
        force: nothing is up to date; but what is measured stays measured.

    Returns:
        A few words; None if it must run.
    """
    workspace: Workspace = arguments["workspace"]
    if stage.name == "measure":
        wanted = arguments["num_configs"]
        labels = num_measured(workspace, objective, arguments["seed_set"], arguments["num_images"])
        return f"{labels} of {wanted} labels are measured" if labels >= wanted else None
    if stage.name == "probe":
        return probed(workspace, objective)
    if not force and is_current(workspace.store, stage, inputs_of(stage, weights, arguments)):
        return "up to date"
    return None


def num_measured(workspace: Workspace, objective: Objective, seed_set: int, num_images: int) -> int:
    """Count the labels that `measure` would measure in the same way today.

    Args:
        workspace: model, space and store.
        objective: whose metrics a label has.
        seed_set: of the starting noise.
        num_images: pictures that each label was measured from.

    Returns:
        Their number; 0 if labels were measured in other ways only.
    """
    from qsdm.measurement.labels import NoLabels

    try:
        labels = workspace.labels(objective, seed_set, num_images)
    except NoLabels:
        return 0
    return len(labels) if labels.is_current(workspace.model) else 0


def probed(workspace: Workspace, objective: Objective) -> str | None:
    """Tell which probes there are.

    Args:
        workspace: model, space and store.
        objective: whose loss is harm.

    Returns:
        A sentence; None if there are no complete ones.
    """
    from qsdm.predictor.probes import ProbeError

    try:
        probes = workspace.probes(objective)
    except (ProbeError, OutsideSpace):
        return None
    of = f"of {probes.num_images} pictures each" if probes.num_images else "without pictures"
    return f"{len(probes.weights)} weights are probed, {probes.fidelity}, {of}"


def inputs_of(stage: Stage, weights: str, arguments: Mapping[str, Any]) -> str:
    """Hash everything that decides what a stage writes.

    Args:
        stage: one command.
        weights: digest of the pipeline's weights.
        arguments: of the command's function, the workspace among them.

    Returns:
        The digest.
    """
    workspace: Workspace = arguments["workspace"]
    settings = {
        key: plain(value) for key, value in arguments.items() if key not in SKIPPED_ARGUMENTS
    }
    parts: dict[str, Any] = {
        "version": qsdm.__version__,
        "model": plain(workspace.model),
        "weights": weights,
        "space": plain(workspace.spec) if stage.name != "trace" else None,
        "settings": settings,
    }
    parts["reads"] = {name: content(workspace.path(name)) for name in stage.reads}
    if stage.name == "calibrate":
        parts["format"] = 2  # since then tables tell which weights they were computed from
    if stage.name == "train":
        parts["outcomes"] = sorted(
            (*outcome.key, sorted(outcome.versions.items()))
            for outcome in workspace.store.outcomes()
            if outcome.is_label or is_probe(outcome)
        )
    if stage.name == "search":
        parts["rounds"] = sorted(
            outcome.key
            for outcome in workspace.store.outcomes()
            if outcome.provenance.get("stage") == "rounds"
        )
    return hashlib.sha256(canonical(parts)).hexdigest()


def is_current(store: Store, stage: Stage, inputs: str) -> bool:
    """Whether a store holds what a stage would write.

    Args:
        store: of the model.
        stage: one command.
        inputs: digest of what the stage reads today.
    """
    makes = {name: content(store.path(name)) for name in stage.makes}
    return remembered(store).get(stage.name) == {"inputs": inputs, "makes": makes}


def remember(store: Store, stage: Stage, inputs: str) -> None:
    """Note in stages.json that a stage has run.

    Args:
        store: of the model.
        stage: one command.
        inputs: digest of what the stage has read.
    """
    makes = {name: content(store.path(name)) for name in stage.makes}
    entries = {**remembered(store), stage.name: {"inputs": inputs, "makes": makes}}
    STAGES.write(store.path("stages.json"), {"stages": entries})


def remembered(store: Store) -> dict[str, StageEntry]:
    """Read what stages.json says of each stage.

    Args:
        store: of the model.

    Returns:
        Entries by name of the stage.

    Raises:
        StoreError: the file is damaged.
    """
    path = store.path("stages.json")
    return STAGES.read(path, store.denoiser) if path.exists() else {}


def content(path: Path) -> str | None:
    """Hash a file.

    Args:
        path: of the file.

    Returns:
        sha256; None if there is no file.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Turn an argument into what JSON can hold; objects by their class and fields.

    Args:
        value: of the argument.

    Returns:
        Texts, numbers, lists and dictionaries.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str | type(None)) else repr(value)


def cli() -> NoReturn:
    """Run one command, ``qsdm COMMAND ...``, or the main job without one."""
    first, rest = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if first == "recipe":
        import_module("qsdm.recipe").cli(rest)
    if first in COMMANDS:
        run.main(getattr(import_module(f"qsdm.{first}"), first), rest)
    if re.fullmatch(r"\w+", first):
        close = difflib.get_close_matches(first, COMMANDS, 1)
        guess = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(COMMANDS)}"
        sys.exit(f"qsdm has no command {first!r}: {guess}")
    if first in ("", "--help", "-h"):
        try:
            print(qsdm.__doc__)
            print("qsdm COMMAND --help explains one command;", end=" ")
            print("without a command, all of them run in order:\n")
        except BrokenPipeError as error:
            run.leave_with_reader(error)
            raise
    run.main(main)


if __name__ == "__main__":
    cli()
