"""Audit a recipe that others publish: which layer got what, and what we would change.

    python -m qsdm.recipe audit unet-Q4_K_S.gguf +model=NAME        # a GGUF file
    python -m qsdm.recipe audit sdxl-sdnq/ +model=sdxl              # a checkpoint with a config
    python -m qsdm.recipe audit flux-nvfp4.safetensors +model=flux  # Comfy's metadata per layer
    python -m qsdm.recipe audit SKIP_LIST.json +model=NAME          # whatever `recipe` reads

Only headers and configs are read, no weights. The trained predictor scores the recipe beside the
best configuration of no larger size that it knows (our methods and those of the recipe), and lists
the layers whose change it expects to gain most. Gains are predicted, not measured; the printed
command measures ours.

Writes ``recipes/NAME-audit.json`` and ``recipes/NAME-ours.json`` into the model's store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsdm.denoisers import require_one_part
from qsdm.graph import Graph
from qsdm.outcome import Objective
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod, Space, cost
from qsdm.recipes import RecipeError, native, sentences
from qsdm.recipes.published import Published, read_checkpoint, read_comfy, read_gguf
from qsdm.recipes.skip_list import Engine
from qsdm.store import StoreError
from qsdm.store.files import write_json, write_text
from qsdm.store.provenance import provenance
from qsdm.store.schemas import FRONT
from qsdm.text import MANY, require
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from qsdm.predictor import Predictor
    from qsdm.sensitivity.audit import StandIns


def audit(
    file: Sequence[str],
    workspace: Workspace,
    objective: Objective,
    default: str = "uaq-4",
    rules: Engine | None = None,
    most: int = 10,
) -> dict[str, Any]:
    """Show what a published recipe gives to which layer, score it and list what we would change.

    Args:
        file: a GGUF or safetensors file, a folder with a quantization config, or a recipe, as an
            argument without a key.
        workspace: model, space and store.
        objective: for which the predictor was trained.
        default: method of the weights that a recipe does not mention.
        rules: whose rule a list of modules to skip follows if its file does not say so.
        most: number of layers that are listed.

    Returns:
        What recipes/NAME-audit.json holds.

    Raises:
        RecipeError: the file cannot be read, or is of another denoiser.
        StoreError: an earlier stage has not run; ``train`` comes last.
        ValueError: not one file was given.
    """
    from qsdm.report.audit import KINDS, groups, table_of_changes, table_of_groups, table_of_scores

    require(1, MANY, most=most)
    if len(file) != 1:
        raise ValueError(f"wanted one FILE after audit (got {len(file)})")
    path, graph = Path(file[0]).expanduser(), workspace.space.graph
    published = read_published(workspace, path, QuantMethod.parse(default), rules)
    size = sum(published.size_bytes.values())
    print(
        f"{path}: {len(graph.weights)} weights, {round(size):,} bytes, "
        f"{8 * size / graph.num_values:.4f} bits per weight"
    )
    tables = {kind: groups(graph, kind, published.kinds, published.size_bytes) for kind in KINDS}
    for kind, rows in tables.items():
        print(f"\n{table_of_groups(kind, rows)}")
    for note in published.notes:
        print(f"  {note}")
    print()
    content = scored(workspace, objective, published, most)
    content = {
        "file": path.name,
        **content,
        "groups": tables,
        "notes": [*published.notes, *content["notes"]],
        "provenance": provenance(),
    }
    for note in content["notes"][len(published.notes) :]:
        print(f"  {note}")
    print(f"{table_of_scores(content)}\n\n{table_of_changes(content)}")
    ours = QuantConfig.from_json(content["ours"]["qconfig"])
    stem = path.name.partition(".")[0] or path.resolve().name
    target = workspace.path(f"recipes/{stem}-ours.json")
    write_text(target, native.write(graph, ours).text)
    write_json(workspace.path(f"recipes/{stem}-audit.json"), content)
    from qsdm.recipe import measuring

    usage = measuring(workspace, ours).replace("FILE", str(target))
    print(f"\nGains are predicted; this measures ours:\n{usage}")
    return content


def read_published(
    workspace: Workspace, path: Path, default: QuantMethod, rules: Engine | None = None
) -> Published:
    """Read a recipe in any form in which it is published.

    Args:
        workspace: model, space and store.
        path: of a file or folder.
        default: method of the weights that it does not mention.
        rules: whose rule a list of modules to skip follows if its file does not say so.

    Returns:
        The recipe.

    Raises:
        StoreError: there is no such file.
        RecipeError: it cannot be read, or is of another denoiser.
    """
    from qsdm.denoisers.original_names import origins
    from qsdm.recipe import loader_of, read

    graph, model = workspace.space.graph, workspace.model
    require_one_part(model, "a published recipe is of")
    if not path.exists():
        raise StoreError(f"no file {path}: give the FILE or folder of a recipe after audit")
    config = None if path.is_file() else config_in(path, model.component)
    if path.suffix in (".gguf", ".safetensors"):
        checkpoint = read_gguf(path) if path.suffix == ".gguf" else read_comfy(path)
        if checkpoint is not None:
            return read_checkpoint(graph, checkpoint, path, lambda shapes: origins(model, shapes))
        config = config_in(path.parent, model.component)
    try:
        contents = (config or path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} cannot be read ({type(error).__name__}): give a GGUF or safetensors file, "
            "a folder with a quantization config, or a recipe"
        ) from error
    result = read(graph, contents, default, rules, loader_of(model))
    full_bits = workspace.model.full_bits
    full = QuantMethod("fp", full_bits)
    return Published(
        result.qconfig,
        {w.name: str(result.qconfig.methods.get(w.name, full)) for w in graph.weights},
        sizes_of(graph, result.qconfig, full_bits),
        result.notes,
    )


def config_in(folder: Path, component: str) -> Path:
    """Find the config of a folder that tells how its weights are quantized.

    Args:
        folder: of a pipeline or of a denoiser.
        component: the denoiser's attribute of the pipeline.

    Returns:
        Path of the JSON.

    Raises:
        RecipeError: there is none.
    """
    for name in (f"{component}/config.json", "config.json", "quantization_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise RecipeError(f"{path} cannot be read ({error}): restore the file") from error
        if name.startswith("quant") or (isinstance(data, dict) and "quantization_config" in data):
            return path
    raise RecipeError(
        f"nothing in {folder} says how its weights are quantized: wanted a quantization_config in "
        f"{component}/config.json or config.json, or a file whose header names types"
    )


def scored(
    workspace: Workspace, objective: Objective, published: Published, most: int
) -> dict[str, Any]:
    """Score a recipe beside ours at equal bytes, and find what we would change.

    Args:
        workspace: model, space and store.
        objective: for which the predictor was trained.
        published: the recipe.
        most: number of layers that are listed.

    Returns:
        The recipe, ours, the predicted gain, and changes of single weights.

    Raises:
        StoreError: no predictor was trained.
    """
    from qsdm.sensitivity.audit import StandIns, changed, differences, predict, single_changes

    predictor = workspace.predictor(objective)
    graph, space = workspace.space.graph, workspace.space
    stand_ins = StandIns.of(predictor.encoding, workspace.table)
    base, counts = stand_ins.rows(published.qconfig)
    size = sum(published.size_bytes.values())
    ours = best(workspace, predictor, stand_ins, published)
    target, _ = stand_ins.rows(ours)
    values = predict(predictor, np.stack([base, target])).mean(axis=0)
    (gain,), (deviation,) = differences(predictor, base, target[None])
    where = changed(base, target)
    gains, deviations = differences(predictor, base, single_changes(base, target, where))
    sizes = sizes_of(graph, ours, space.full_bits)
    changes = [
        {
            "weight": graph.weights[i].name,
            "role": str(graph.node_of(graph.weights[i].name).role),
            "was": published.kinds[graph.weights[i].name],
            "ours": str(ours.methods.get(graph.weights[i].name, "full precision")),
            "bytes": round(
                sizes[graph.weights[i].name] - published.size_bytes[graph.weights[i].name]
            ),
            "gain": float(g),
            "deviation": float(d),
        }
        for i, g, d in zip(where, gains, deviations, strict=True)
    ]
    changes.sort(key=lambda change: -change["gain"])
    listed, rest = changes[:most], changes[most:]
    ours_bytes = cost.size_bytes(graph, ours, space.full_bits)
    larger = (
        ["nothing that the predictor knows is as small as the recipe: ours is larger"]
        if ours_bytes > size
        else []
    )
    return {
        "objective": dict(objective.weights),
        "recipe": {
            "avg_bits": 8 * size / graph.num_values,
            "size_bytes": round(size),
            "predicted": float(values[0]),
            "qconfig": published.qconfig.to_json(),
        },
        "ours": {
            "avg_bits": 8 * ours_bytes / graph.num_values,
            "size_bytes": ours_bytes,
            "predicted": float(values[1]),
            "qconfig": ours.to_json(),
        },
        "gain": {"value": float(gain), "deviation": float(deviation)},
        "changes": listed,
        "rest": {
            "num": len(rest),
            "bytes": sum(change["bytes"] for change in rest),
            "gain": sum(change["gain"] for change in rest),
        },
        "notes": [*sentences(counts), *larger],
    }


def sizes_of(graph: Graph, qconfig: QuantConfig, full_bits: int) -> Mapping[str, float]:
    """Compute the bytes of each weight.

    Args:
        graph: of the denoiser.
        qconfig: methods by weight; a weight without one has full precision.
        full_bits: bits of full precision.
    """
    full = QuantMethod("fp", full_bits)
    return {
        w.name: qconfig.methods.get(w.name, full).size_bits(w, full_bits) / 8 for w in graph.weights
    }


def best(
    workspace: Workspace, predictor: Predictor, stand_ins: StandIns, published: Published
) -> QuantConfig:
    """Choose the best configuration of no larger size than a recipe.

    Each weight may have the space's methods, those of the recipe and full precision. Of the
    knapsack of single contributions, and of the front that a search has left, the one with the
    best prediction is taken.

    Args:
        workspace: model, space and store.
        predictor: the trained one.
        stand_ins: how it sees methods.
        published: the recipe.

    Returns:
        The configuration; the smallest, if nothing is as small.

    Raises:
        StoreError: the predictor does not tell how sure it is.
    """
    from qsdm.sensitivity.audit import predict
    from qsdm.strategies import Problem
    from qsdm.strategies.greedy import path

    if predictor.posterior is None:
        raise StoreError(
            "the predictor does not tell how sure it is: run python -m qsdm.train again"
        )
    space = workspace.space
    least = min(method.bits for method in space.methods)
    borrowed = {m for m in published.qconfig.methods.values() if m.bits >= least}
    extra = [QuantMethod("fp", space.full_bits), *sorted(borrowed)]
    options = tuple(tuple(dict.fromkeys([*offered, *extra])) for offered in space.options)
    everything = Space(space.graph, options, space.full_bits)
    contributions = predictor.posterior.model.contributions()
    harm = np.array(
        [
            [-float(stand_ins.row(i, method)[0] @ contributions[i]) for method in offered]
            + [0.0] * (max(map(len, options)) - len(offered))
            for i, offered in enumerate(options)
        ]
    )
    problem = Problem(everything, harm)
    genes = path(problem, harm)
    budget = sum(published.size_bytes.values())
    fitting = np.flatnonzero(problem.size_of(genes) <= budget)
    candidates = [_plain(everything.decode(genes[fitting[0] if len(fitting) else -1]))]
    front = f"search/{workspace.space_name}.json"
    if len(fitting) and workspace.path(front).exists():
        points = FRONT.read(workspace.path(front), workspace.name)["points"]
        allowed = [point for point in points if point["size_bytes"] <= budget]
        if allowed:
            point = max(allowed, key=lambda point: point["predicted"])
            candidates.append(QuantConfig.from_json(point["qconfig"]))
    try:
        rows = np.stack([stand_ins.rows(one)[0] for one in candidates])
    except OutsideSpace:  # a front of another space
        return candidates[0]
    return candidates[int(predict(predictor, rows).mean(axis=0).argmax())]


def _plain(qconfig: QuantConfig) -> QuantConfig:
    """Without the weights that keep full precision."""
    methods = {name: method for name, method in qconfig.methods.items() if not method.is_full}
    return QuantConfig(qconfig.denoiser, methods)
