"""Recipes that ship with qsdm: measured ones of its pipelines, starting points of published models.

    python -m qsdm.recipe list                                 # what there is
    python -m qsdm.recipe show emoji_unet-3.5                  # its bits, rivals, files
    python -m qsdm.recipe use emoji_unet-3.5 +model=emoji_unet # as a configuration to measure
    python -m qsdm.recipe use sdxl-4.0-unmeasured +model=sdxl

A measured recipe is about the weights that it was measured on. ``use`` compares: the digest of the
weights, and, where calibrate has run, the errors of each weight under its method. It says how many
pictures would prove again what was measured. An unmeasured one has no figures at all.

``use`` writes ``recipes/NAME.json`` into the model's store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from qsdm import text
from qsdm.graph import Graph
from qsdm.outcome import SIGNIFICANT_Z
from qsdm.qconfig import OutsideSpace, QuantConfig
from qsdm.recipes import RecipeError, check, closest, native
from qsdm.store import StoreError
from qsdm.store.artifacts import Artifact
from qsdm.store.files import decode, read_json, write_text
from qsdm.workspace import Workspace

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
SHELF = (CHECKOUT if (CHECKOUT / "pyproject.toml").exists() else HERE) / "recipes"
"""A checkout's recipes/ comes before the copy that a wheel carries."""

NUM_PICTURES = 256  # of a first measurement
LARGER_IS_BETTER = {"psnr"}


class Rival(TypedDict):
    """What a recipe was compared to: bits, and by metric the recipe minus it, with its error."""

    avg_bits: float
    differences: dict[str, list[float | None]]


class Entry(TypedDict):
    """What the index says of a recipe.

    Attributes:
        denoiser: name of the model.
        measured: whether pictures were drawn with it.
        budget_bits: the budget that it was made for.
        avg_bits: bits per quantizable value.
        size_bytes: of the quantizable weights.
        files: by engine, relative to the shelf.
        digest: of the configuration.
        version: of qsdm that made it.
        weights: digest of the weights that it was measured on.
        num_images: pictures that it was measured from.
        metrics: measured values.
        rivals: by name.
        errors: relative squared error of each weight of the graph under its method.
        rule: of ``experiments/equal_bytes`` that chose it.
        target: engine that it was made for.
        teachers: models whose labels it was carried over from.
    """

    denoiser: str
    measured: bool
    budget_bits: float
    avg_bits: float
    size_bytes: int
    files: dict[str, str]
    digest: str
    version: str
    weights: NotRequired[str]
    protocol: NotRequired[list[str]]
    num_images: NotRequired[int]
    seed_set: NotRequired[int]
    metrics: NotRequired[dict[str, float | None]]
    rivals: NotRequired[dict[str, Rival]]
    errors: NotRequired[list[float]]
    rule: NotRequired[str]
    target: NotRequired[str]
    teachers: NotRequired[list[str]]


class _IndexFile(TypedDict):
    recipes: dict[str, Entry]


INDEX = Artifact("qsdm/shelf/1", "recipe", lambda data: decode(data, _IndexFile)["recipes"])


def recipes(shelf: Path = SHELF) -> dict[str, Entry]:
    """Read the index of the shelf.

    Args:
        shelf: folder of the recipes.

    Returns:
        Entries by name.

    Raises:
        StoreError: the index is missing or damaged.
    """
    return INDEX.read(shelf / "index.json")


def find(name: Sequence[str], shelf: Path = SHELF) -> tuple[str, Entry]:
    """Look up one recipe.

    Args:
        name: of it, alone in a list.
        shelf: folder of the recipes.

    Returns:
        Its name and entry.

    Raises:
        RecipeError: not one name was given, or no recipe has it.
    """
    entries = recipes(shelf)
    if len(name) != 1:
        raise RecipeError(f"wanted one NAME of `qsdm recipe list` (got {len(name)})")
    if name[0] not in entries:
        near = closest(name[0], entries)
        raise RecipeError(f"no recipe is called {name[0]!r}: {near}; qsdm recipe list shows all")
    return name[0], entries[name[0]]


def list_recipes(measured: bool = False) -> dict[str, Entry]:
    """List the recipes.

    Args:
        measured: leave out those that nobody has measured.

    Returns:
        Entries by name.
    """
    chosen = {n: entry for n, entry in recipes().items() if entry["measured"] or not measured}
    rows = [
        [
            name,
            f"{entry['avg_bits']:.3f}",
            f"{entry['size_bytes']:,}",
            _value(entry, "fd_lite0"),
            _value(entry, "psnr"),
            ", ".join(entry["files"]),
        ]
        for name, entry in chosen.items()
    ]
    heads = ("name", "bits", "bytes", "fd_lite0", "PSNR, dB", "engines")
    print(text.table(heads, rows, are_texts=True))
    return chosen


def show_recipe(name: Sequence[str]) -> Entry:
    """Show one recipe: its methods, its figures, its files.

    Args:
        name: of the recipe, as an argument without a key.

    Returns:
        What the index says of it.

    Raises:
        RecipeError: there is no such recipe.
    """
    title, entry = find(name)
    state = "measured" if entry["measured"] else "UNMEASURED, a starting point"
    print(
        f"{title}: {state}; {entry['avg_bits']:.4f} bits per weight, {entry['size_bytes']:,} bytes,"
        f" made by qsdm {entry['version']}"
    )
    if entry["measured"]:
        print(
            f"on weights {entry.get('weights', '')[:16]}, {entry.get('num_images')} pictures of "
            f"seed set {entry.get('seed_set')}; recipe minus the rival, 95 % interval:"
        )
        print(_table_of_rivals(entry))
    for engine, file in entry["files"].items():
        print(f"{engine}: {SHELF / file}")
    return entry


def use_recipe(name: Sequence[str], workspace: Workspace) -> QuantConfig:
    """Put a recipe into a model's store, and say how far its weights are from the recipe's.

    Args:
        name: of the recipe, as an argument without a key.
        workspace: model, space and store.

    Returns:
        The configuration.

    Raises:
        RecipeError: there is no such recipe, or it is of another denoiser.
        StoreError: the model was not traced.
    """
    from qsdm.recipe import measuring

    title, entry = find(name)
    graph = workspace.space.graph
    qconfig = of_graph(graph, QuantConfig.from_json(read_json(SHELF / entry["files"]["qsdm"])))
    target = workspace.path(f"recipes/{title}.json")
    write_text(target, native.write(graph, qconfig).text)
    print(f"{title}: {entry['avg_bits']:.4f} bits per weight")
    for line in (*how_far(workspace, entry, qconfig), proof(entry)):
        print(f"  {line}")
    print(f"{target}\n{measuring(workspace, qconfig).replace('FILE', str(target))}")
    return qconfig


def of_graph(graph: Graph, qconfig: QuantConfig) -> QuantConfig:
    """Take a recipe for a model of the same denoiser under another name, such as a fine-tune.

    Args:
        graph: of the model's denoiser.
        qconfig: of the shelf.

    Returns:
        The configuration under the model's name.

    Raises:
        RecipeError: the weights have other names.
    """
    own = {weight.name for weight in graph.weights}
    renamed = QuantConfig(graph.denoiser, qconfig.methods, qconfig.activations, qconfig.inputs)
    check(graph, renamed if set(qconfig.methods) <= own else qconfig)
    return renamed


def how_far(workspace: Workspace, entry: Entry, qconfig: QuantConfig) -> list[str]:
    """Compare a model's weights with those that a recipe was measured on.

    Args:
        workspace: model, space and store.
        entry: of the recipe.
        qconfig: the recipe.

    Returns:
        Sentences.
    """
    from qsdm.denoisers import ModelError, weights_digest

    if not entry["measured"]:
        return [
            "unmeasured: carried over from other denoisers by op, role, depth and size; "
            "no weight of this one was read"
        ]
    try:
        same = weights_digest(workspace.model) == entry.get("weights")
    except ModelError:
        return ["the model's weights are not on this machine: nothing can be compared"]
    if same:
        return [f"measured on these very weights ({entry.get('weights', '')[:16]})"]
    lines = [f"measured on other weights ({entry.get('weights', '')[:16]}): its figures need proof"]
    try:
        errors = workspace.table.of(qconfig)[0]
    except (StoreError, OutsideSpace):
        return [*lines, "how far their errors are is known once calibrate offers its methods"]
    return [*lines, _of_errors(np.array(entry.get("errors", [])), errors)]


def _of_errors(recorded: np.ndarray, errors: np.ndarray) -> str:
    from scipy.stats import spearmanr

    if recorded.shape != errors.shape:
        return "their errors cannot be compared: the space splits weights in another way"
    known = (recorded > 0) & (errors > 0)
    if not known.any():
        return "their errors cannot be compared: nothing is quantized"
    ratio = errors[known] / recorded[known]
    factor = np.exp(np.abs(np.log(ratio)))
    line = f"errors of weights differ by a factor of {np.median(factor):.2f} in the median"
    if known.sum() > 2 and np.ptp(errors[known]) > 0:
        rank = spearmanr(errors[known], recorded[known]).statistic
        line += f", with a rank correlation of {rank:.3f}"
    return f"{line}; the largest factor is {factor.max():.2f}"


def proof(entry: Entry) -> str:
    """Say how much must be measured to prove a recipe.

    A paired standard error falls with the root of the number of pictures.

    Args:
        entry: of the recipe.

    Returns:
        A sentence.
    """
    if not entry["measured"]:
        return (
            f"a first measurement: this recipe, a uniform one of its size and full precision, "
            f"{NUM_PICTURES} pictures each: {3 * NUM_PICTURES:,} pictures"
        )
    num, best = entry.get("num_images", 0), 0
    who = ""
    for name, rival in entry.get("rivals", {}).items():
        value, deviation = rival["differences"].get("fd_lite0", [None, None])
        if value is None or not deviation or value >= -SIGNIFICANT_Z * deviation:
            continue  # it was not shown to be better than this one
        needed = math.ceil(num * (SIGNIFICANT_Z * deviation / value) ** 2)
        if needed > best:
            best, who = needed, name
    if not best:
        return "against none of its rivals was a smaller fd_lite0 shown: there is nothing to prove"
    return (
        f"two configurations of about {max(best, 16):,} pictures each would show again that its "
        f"fd_lite0 is below that of its nearest rival ({who}), if the difference is the same"
    )


def _value(entry: Entry, metric: str) -> str:
    value = entry.get("metrics", {}).get(metric)
    return "unmeasured" if value is None else f"{value:.2f}"


def _table_of_rivals(entry: Entry) -> str:
    rivals: Mapping[str, Rival] = entry.get("rivals", {})
    metrics = list(entry.get("metrics", {}))
    rows = [["this recipe", f"{entry['avg_bits']:.3f}", *(_value(entry, m) for m in metrics)]]
    for name, rival in rivals.items():
        cells = []
        for metric in metrics:
            value, deviation = rival["differences"].get(metric, [None, None])
            if value is None or deviation is None:
                cells.append("-")
                continue
            low, high = value - SIGNIFICANT_Z * deviation, value + SIGNIFICANT_Z * deviation
            better = low > 0 if metric in LARGER_IS_BETTER else high < 0
            cells.append(f"{value:+.2f} ({low:+.2f} to {high:+.2f}){' better' * better}")
        rows.append([name, f"{rival['avg_bits']:.3f}", *cells])
    return text.table(("", "bits", *metrics), rows, are_texts=True)
