"""Make the shelf: recipes/ with index.json and README.md, from what was measured.

    python experiments/shelf/make.py --store store

Measured recipes are those of ``experiments/equal_bytes/results``, with every rival of the same
budget that was measured on the same captions and noise. Unmeasured starting points of published
denoisers are transferred from the closed models of the zoo's labels: damage by op, role, relative
depth, sizes and connectivity. No weight was read for them, so errors of weights play no part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import qsdm
from qsdm.graph import Graph
from qsdm.qconfig import QuantConfig, QuantMethod, Space, SpaceSpec
from qsdm.qconfig.cost import MethodTable, avg_bits, size_bytes
from qsdm.recipes import gguf, native, sdnq, torchao
from qsdm.recipes.targets import held_by
from qsdm.shelf import INDEX
from qsdm.store.files import write_text
from qsdm.strategies import Problem
from qsdm.strategies.greedy import path

if TYPE_CHECKING:
    from qsdm.predictor.transfer import Teacher

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "equal_bytes"))

ZOO = ("emoji_unet", "emoji_mmdit", "emoji_pixart")
PUBLISHED = (
    "pixart_alpha", "pixart_sigma", "hunyuan", "sdxl", "sd15", "dit",
    "flux", "sd35_medium", "qwen_image", "wan",
)  # fmt: skip
RULES = {"ours": "", "ours (quality)": "-quality"}
WRITERS = {"torchao": torchao.write, "sdnq": sdnq.write, "gguf": gguf.write}
TEACHING = SpaceSpec("traced", ["uaq-3", "uaq-4"], splits=".*", max_overhead=1e9)
UNIFORM = ("uaq-3", "uaq-4", "uaq-6", "uaq-8")
GROUPED = ("uaq_g32-4", "uaq_g32-5", "uaq_g32-8")  # what GGUF can hold as it is, or nearly
BITS = {"qsdm": (3.5, 4.0), "torchao": (3.5, 4.0), "sdnq": (3.5, 4.0), "gguf": (5.5,)}
"""Budgets by engine; that of GGUF is for the weights that it can hold at all."""

Recipe = tuple[str, dict[str, Any], QuantConfig, Graph]
"""Name, entry of the index, configuration, graph whose weights it names."""


def measured(name: str, store: str) -> Iterator[Recipe]:
    """Each rule's configuration of a pipeline that was measured."""
    import tables

    from qsdm.denoisers import weights_digest
    from qsdm.workspace import named

    workspace = named(name, "wide", store)
    graph, table = workspace.space.graph, workspace.table
    file = ROOT / "experiments" / "equal_bytes" / "results" / f"{name}.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    seen: set[str] = set()
    for budget, by_rule in sorted(results["rules"].items()):
        for rule, suffix in RULES.items():
            digest = by_rule[rule]
            outcome = tables.outcome_of(results, digest)
            if outcome is None or digest in seen:
                continue
            seen.add(digest)
            stored = results["outcomes"][digest]
            methods = dict(zip(results["weights"], stored["methods"], strict=True))
            qconfig = QuantConfig(name, {w: QuantMethod.parse(m) for w, m in methods.items()})
            assert qconfig.digest[:16] == digest
            yield (
                f"{name}-{budget}{suffix}",
                {
                    "denoiser": name,
                    "measured": True,
                    "budget_bits": float(budget),
                    "avg_bits": stored["avg_bits"],
                    "size_bytes": stored["size_bytes"],
                    "weights": weights_digest(workspace.model),
                    "protocol": results["protocol"],
                    "num_images": results["pictures"],
                    "seed_set": results["seed_set"],
                    "metrics": {m: stored["metrics"][m] for m in tables.METRICS},
                    "rivals": rivals(results, by_rule, digest),
                    "errors": [round(float(e), 6) for e in table.of(qconfig)[0]],
                    "rule": rule,
                },
                qconfig,
                graph,
            )


def rivals(
    results: Mapping[str, Any], by_rule: Mapping[str, str], digest: str
) -> dict[str, dict[str, Any]]:
    """A recipe minus each configuration of its budget that was measured, with standard errors."""
    import tables

    outcome = tables.outcome_of(results, digest)
    assert outcome is not None
    compared = {}
    for rule, other in {**by_rule, tables.FULL: results["full"]}.items():
        rival = tables.outcome_of(results, other)
        if other == digest or rival is None:
            continue
        differences = tables.row(rule, [rival], 0.0, outcome).differences
        compared[rule] = {
            "avg_bits": results["outcomes"][other]["avg_bits"],
            "differences": {m: [d.value, d.standard_error] for m, d in differences.items() if d},
        }
    return compared


def teacher(name: str, store: str) -> Teacher:
    """What the labels and probes of a pipeline teach, by features without errors of weights."""
    from qsdm.measurement.labels import label_of_full
    from qsdm.outcome import Objective
    from qsdm.predictor.encode import encode
    from qsdm.predictor.informed import Lessons
    from qsdm.predictor.transfer import Teacher
    from qsdm.train import usable_probes
    from qsdm.workspace import named

    workspace, objective = named(name, "traced", store), Objective({"fd_lite0": -1})
    bank, table = workspace.bank(), workspace.table
    labels = bank.labels(objective, 0, 256)
    encoding = encode(workspace.space, table)
    lessons = Lessons.of(
        encoding, table, objective, labels,
        next(iter(usable_probes(bank, table, objective, labels).values()), None),
        label_of_full(bank.outcomes, labels.protocol.digest, objective, workspace.model.full_bits),
    )  # fmt: skip
    real = Teacher.of(encoding, table, lessons.model(np.arange(len(labels))))
    space = TEACHING.of(workspace.graph, workspace.model.full_bits)
    nominal = nominal_table(space)
    return Teacher(encode(space, nominal), real.damage, np.full(len(real.damage), 4.0**-3))


def nominal_table(space: Space) -> MethodTable:
    """The same error for every weight: a factor of four per bit."""
    shape = (len(space.graph.weights), len(space.methods))
    error = np.broadcast_to([4.0**-m.bits for m in space.methods], shape).copy()
    names = tuple(weight.name for weight in space.graph.weights)
    return MethodTable(names, space.methods, error, np.zeros(shape, dtype=np.int64))


def starting_points(name: str, teachers: list[Teacher]) -> Iterator[Recipe]:
    """Configurations of a published denoiser that nobody has measured."""
    from qsdm import tracing
    from qsdm.predictor.encode import encode
    from qsdm.predictor.transfer import transferred
    from qsdm.run.conf import load
    from qsdm.trace import prepare

    model = load("model", name)
    module, inputs, _ = prepare(model)
    graph = tracing.trace(module, inputs, name, model.exclude, model.tied)
    space = TEACHING.of(graph, model.full_bits)
    table = nominal_table(space)
    damage = transferred(teachers, encode(space, table), table).harm[:, 0]
    full = QuantMethod("fp", model.full_bits)
    seen: set[str] = set()
    for target, budgets in BITS.items():
        offered = [QuantMethod.parse(m) for m in (GROUPED if target == "gguf" else UNIFORM)]
        holds = held_by(target, space.graph)
        options = tuple(
            tuple(m for m in offered if holds is None or holds(weight, m)) or (full,)
            for weight in space.graph.weights
        )
        if all(option == (full,) for option in options):
            continue
        harm = np.zeros((len(options), max(map(len, options))))
        for i, one in enumerate(options):
            harm[i, : len(one)] = [0 if m.is_full else damage[i] * 4.0 ** (3 - m.bits) for m in one]
        problem = Problem(Space(space.graph, options, model.full_bits), harm)
        genes = path(problem, harm)
        sizes = problem.size_of(genes)
        kept = sum(  # values that the engine cannot hold in fewer bits
            w.numel for w, o in zip(space.graph.weights, options, strict=True) if o == (full,)
        )
        for bits in budgets:
            limit_bits = bits * space.graph.num_values
            if target == "gguf":
                limit_bits += (model.full_bits - bits) * kept
            fitting = np.flatnonzero(sizes <= limit_bits / 8)
            if not len(fitting):
                continue
            decoded = problem.space.decode(genes[fitting[0]])
            methods = {w: m for w, m in decoded.methods.items() if not m.is_full}
            qconfig = QuantConfig(name, methods)
            if qconfig.digest in seen:  # the engine can hold what is best anyway
                continue
            seen.add(qconfig.digest)
            suffix = "" if target == "qsdm" else f"-{target}"
            yield (
                f"{name}-{bits}{suffix}-unmeasured",
                {
                    "denoiser": name,
                    "measured": False,
                    "budget_bits": bits,
                    "avg_bits": avg_bits(space.graph, qconfig, model.full_bits),
                    "size_bytes": size_bytes(space.graph, qconfig, model.full_bits),
                    "target": target,
                    "teachers": list(ZOO),
                },
                qconfig,
                space.graph,
            )


def write(out: Path, name: str, entry: dict[str, Any], qconfig: QuantConfig, graph: Graph) -> None:
    """The recipe in our form, and for the engines that can hold it."""
    folder, target = out / entry["denoiser"], entry.get("target", "qsdm")
    files = {"qsdm": f"{name}.json"}
    write_text(folder / files["qsdm"], native.write(graph, qconfig).text)
    weights = {weight.name: weight for weight in graph.weights}
    for engine, writer in WRITERS.items():
        holds = held_by(engine, graph)
        assert holds is not None
        everything = all(holds(weights[w], m) for w, m in qconfig.methods.items())
        if everything and target in (engine, "qsdm"):
            written = writer(graph, qconfig)
            files[engine] = f"{name}{written.suffix}"
            write_text(folder / files[engine], written.text)
    entry["files"] = {engine: f"{entry['denoiser']}/{file}" for engine, file in files.items()}
    entry["digest"], entry["version"] = qconfig.digest, qsdm.__version__


def readme(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of recipes/README.md."""
    lines = [
        "# Recipes",
        "",
        "`qsdm recipe list` prints this table, `qsdm recipe show NAME` one recipe, and",
        "`qsdm recipe use NAME +model=…` puts it into the model's store and says how far its",
        "weights are from those that it was measured on. `experiments/shelf` makes all of this.",
        "",
        "**Measured** ones were drawn and scored: 1,024 pictures on noise that nothing has learned",
        "from; `fd_lite0` is smaller where pictures are better. **Unmeasured** ones are starting",
        "points: what the labels of the three emoji pipelines teach about ops, roles, depth and",
        "sizes, carried over to a denoiser whose weights nobody has read. Measure them first.",
        "",
        "| name | bits | bytes | fd_lite0 | PSNR, dB | engines |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        metrics = entry.get("metrics", {})
        values = [f"{metrics[m]:.1f}" if metrics else "unmeasured" for m in ("fd_lite0", "psnr")]
        engines = ", ".join(entry["files"])
        bits, size = f"{entry['avg_bits']:.3f}", f"{entry['size_bytes']:,}"
        lines.append(f"| `{name}` | {bits} | {size} | {' | '.join(values)} | {engines} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="store", help="with wide and traced calibrations")
    parser.add_argument("--out", type=Path, default=ROOT / "recipes")
    parser.add_argument("--models", nargs="*", default=[*ZOO, *PUBLISHED], help="by default all")
    args = parser.parse_args()
    teachers: list[Teacher] = []
    for name in args.models:
        print(name, flush=True)
        if name not in ZOO:
            teachers = teachers or [teacher(one, args.store) for one in ZOO]
        recipes = measured(name, args.store) if name in ZOO else starting_points(name, teachers)
        add(args.out, name, list(recipes))


def add(out: Path, denoiser: str, recipes: Sequence[Recipe]) -> None:
    """Replace what the shelf has of a denoiser."""
    shutil.rmtree(out / denoiser, ignore_errors=True)
    index = out / "index.json"
    before = INDEX.read(index) if index.exists() else {}
    entries: dict[str, Any] = {n: e for n, e in before.items() if e["denoiser"] != denoiser}
    for name, entry, qconfig, graph in recipes:
        write(out, name, entry, qconfig, graph)
        entries[name] = entry
    order = [*ZOO, *PUBLISHED]
    entries = dict(sorted(entries.items(), key=lambda item: order.index(item[1]["denoiser"])))
    INDEX.write(index, {"recipes": entries})
    write_text(out / "README.md", readme(entries))


if __name__ == "__main__":
    main()
