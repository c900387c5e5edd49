"""Damage copies of every artifact of a small real store, read them, and count the answers.

    python experiments/bench/damage.py --num 2000 --folder /tmp/damage
    python experiments/bench/damage.py --num 2000 --folder /tmp/damage --seed 1    # other damage
    python experiments/bench/damage.py --num 2000 --folder /tmp/bare --bare        # no checksums

Files are cut at random places, emptied, or have one bit flipped; fields of JSON, in rows of SQLite
and Parquet too, are removed or replaced by other types, null, NaN and huge numbers. An answer is

    sentence     an error of one line, or a line on stderr and less data
    harmless     the same data as from the undamaged artifact, value by value
    traceback    any other error
    silent       other data without a word
    hang         no answer within 60 seconds

Without checksums, as version 0.1.0 wrote its artifacts, other values of the right type cannot be
noticed: then silent answers are counted but are not a failure.

A run that was stopped continues where it was. The exit status is 1 if there is any of the last
three. Not in CI: 2,000 copies take about 3 minutes on one core; a test damages each artifact a few
times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qsdm.text import table as text_table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # where the tiny pipeline is built

KINDS = ("sentence", "harmless", "traceback", "silent", "hang")
LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Case:
    """One artifact and what reads it.

    Attributes:
        path: of the artifact.
        read: gives all that was read, as what `flat` understands.
        by_diffusers: it is diffusers that reads it, so that an error of its own is as good as a
            sentence if it names the file.
    """

    name: str
    path: Path
    read: Callable[[], object]
    by_diffusers: bool = False


class HangError(BaseException):
    """A reader did not come back."""


# ---------------------------------------------------------------------------------- a small store


def build(folder: Path) -> None:
    """Run every command on the tiny pipeline, once."""
    if (folder / "built").exists():
        return
    from tiny import build_tiny_model

    from qsdm.__main__ import STAGES
    from qsdm.attribute import attribute
    from qsdm.calibrate import calibrate
    from qsdm.engine.serial import Serial
    from qsdm.measure import measure
    from qsdm.outcome import Objective
    from qsdm.predictor import FitOptions
    from qsdm.realize import realize
    from qsdm.search import search
    from qsdm.sensitivity import AttributionOptions
    from qsdm.store.parquet import write_outcomes_parquet
    from qsdm.strategies.random import Random
    from qsdm.trace import trace
    from qsdm.train import train

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build_tiny_model(folder / "model")
    workspace, objective = workspace_of(folder), Objective({"fd_lite0": -1.0})
    trace(workspace, export=["pyg"])
    calibrate(workspace)
    measure(workspace, num_configs=20, num_images=4, batch_size=4, engine=Serial())
    options = FitOptions(folds=2, width=8, hops=1, epochs=2)
    train(workspace, objective, options, num_images=4)
    attribute(workspace, objective, AttributionOptions(num_configs=4, steps=2))
    search(workspace, objective, Random(), evaluations=100)
    few = {"candidates": 1, "num_images": 4, "num_random": 1}
    realize(workspace, objective, {"avg_bits": 3.9}, engine=Serial(), **few)
    entry = {"inputs": "0" * 64, "makes": {"graph.json": "1" * 64}}
    STAGES.write(workspace.path("stages.json"), {"stages": {"trace": entry}})
    write_outcomes_parquet(folder / "outcomes.parquet", workspace.store.outcomes(), {})
    shards_of(folder).add(*some_shard())
    (folder / "built").touch()


def workspace_of(folder: Path) -> Any:
    from qsdm.denoisers import Model
    from qsdm.metrics.fidelity import Psnr
    from qsdm.metrics.frechet import FrechetLite0
    from qsdm.qconfig import SpaceSpec
    from qsdm.workspace import Workspace

    model = Model(
        name="tiny",
        path=str(folder / "model" / "pipeline"),
        denoiser="UNet2DConditionModel",
        component="unet",
        resolution_px=16,
        steps=2,
        guidance=2.0,
        full_bits=16,
        prompts=str(folder / "model" / "prompts.json"),
        metrics={"fd_lite0": FrechetLite0(str(reference_of(folder))), "psnr": Psnr()},
    )
    spec = SpaceSpec("small", ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"))
    return Workspace(model, spec, folder / "store")


def strip(folder: Path) -> None:
    """Take the checksums out of every artifact."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    for path in sorted(folder.rglob("*.json")):
        if path.name == "checksums.json":
            path.unlink()
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        for about in (
            (data, data.get("quantization_config") or {}) if isinstance(data, dict) else ()
        ):
            for key in ("checksum", "checksums", "config_checksum"):
                about.pop(key, None)
        path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "np") as file:
            metadata = {k: v for k, v in (file.metadata() or {}).items() if k != "xxh3_128"}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(arrays, path, metadata)
    for path in folder.rglob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for table in ("outcome", "protocol"):
                for row, text in db.execute(f"SELECT rowid, json FROM {table}").fetchall():
                    data = {k: v for k, v in json.loads(text).items() if k != "checksum"}
                    bare = (json.dumps(data), row)
                    db.execute(f"UPDATE {table} SET json = ? WHERE rowid = ?", bare)


def reference_of(folder: Path) -> Path:
    return folder / "model" / "reference.safetensors"


def shards_of(folder: Path) -> Any:
    from qsdm.measurement.shards import Shards

    workspace = workspace_of(folder)
    protocol = next(iter(workspace.store.protocols().values()))
    return Shards(workspace.store, protocol, 2, {"fd_lite0": "1", "psnr": "1"})


def some_shard() -> tuple[Any, int, Any]:
    from qsdm.measurement.scoring import ScoredShard
    from qsdm.qconfig import QuantConfig

    rng = np.random.default_rng(0)
    features = {
        "fd_lite0": rng.random((2, 112), np.float32),
        "psnr": rng.random((2, 1), np.float32),
    }
    seen = ScoredShard(features, rng.integers(0, 256, (2, 32), np.uint8), {"score_s": 1.0})
    return QuantConfig("tiny", {}), 0, seen


# ---------------------------------------------------------------------------------- what reads it


def cases(folder: Path) -> list[Case]:
    """Every artifact, each with what reads it."""
    from qsdm.__main__ import remembered
    from qsdm.measurement.worker import read_full
    from qsdm.metrics.frechet import read_reference
    from qsdm.predictor.pyg import read_pyg
    from qsdm.qconfig import QuantMethod
    from qsdm.quant.calibrated import PackedWeights, read_table
    from qsdm.report import results
    from qsdm.store.parquet import read_outcomes_parquet

    workspace = workspace_of(folder)
    place = workspace.store.path
    space, table = workspace.space, read_table(place("calibration/small"))
    genes = np.zeros((3, len(space.options)), dtype=np.int64)

    def packed() -> object:
        weights = PackedWeights(place("calibration/small"))
        return {
            f"{name} {method}": {
                k: v.numpy() for k, v in weights.quantized(name, method).parts.items()
            }
            for name in table.weights
            for method in map(QuantMethod.parse, map(str, table.methods))
            if (name, method) in weights
        }

    def predictor() -> object:
        from qsdm.predictor import Predictor

        return Predictor.load(place("predictor/small"), space, table).predict(genes)

    def outcomes() -> object:
        store = workspace.store
        protocols = sorted(store.protocols())
        parts = (store.outcomes(protocols, mixed_labels=mixed) for mixed in (True, False))
        return [[o.to_json() for o in part] for part in (store.outcomes(), *parts)], protocols

    def page(name: str) -> Callable[[], object]:
        return lambda: getattr(results.read(workspace.store, "small"), name)

    def shard() -> object:
        shards, (qconfig, _, _) = shards_of(folder), some_shard()
        missing = (0, 2) in shards.missing(qconfig)
        return "drawn again" if missing else vars_of(shards._find(qconfig, 0, 2))

    full = next(place("pictures").glob("full-*.safetensors"))
    readers: dict[Path, Callable[[], object]] = {
        place("graph.json"): lambda: workspace.store.graph().to_json(),
        place("graph.pyg.safetensors"): lambda: read_pyg(place("graph.pyg.safetensors")).to_dict(),
        place("calibration/small/table.safetensors"): lambda: vars_of(
            read_table(place("calibration/small"))
        ),
        place("calibration/small/weights.safetensors"): packed,
        place("outcomes.sqlite"): outcomes,
        folder / "outcomes.parquet": lambda: read_outcomes_parquet(folder / "outcomes.parquet"),
        full: lambda: np.asarray(read_full(full)),
        next(place("shards").rglob("*.safetensors")): shard,
        place("predictor/small/fold-0.safetensors"): predictor,
        place("predictor/small/report.json"): page("predictor"),
        place("search/small.json"): page("front"),
        place("sensitivity/small.json"): page("sensitivity"),
        place("summary.json"): page("summary"),
        place("chosen.json"): page("chosen"),
        place("stages.json"): lambda: remembered(workspace.store),
        reference_of(folder): lambda: vars_of(read_reference(reference_of(folder), 112)),
    }
    own = [Case(path.relative_to(folder).as_posix(), path, read) for path, read in readers.items()]
    return own + list(checkpoint_cases(place("checkpoint")))


def checkpoint_cases(folder: Path) -> Iterator[Case]:
    """The packed denoiser by both loaders, and every other file of the pipeline by ours."""
    from qsdm.checkpoint import load_quantized

    def ours() -> object:
        pipeline = load_quantized(folder)
        states = {
            name: {k: v.numpy() for k, v in part.state_dict().items()}
            for name, part in pipeline.components.items()
            if hasattr(part, "state_dict")
        }
        parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "scheduler")}
        configs = {name: dict(part.config) for name, part in parts.items()}
        return states, repr(configs), pipeline.tokenizer("a red house").input_ids

    def theirs() -> object:
        import diffusers

        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        return {k: v.numpy() for k, v in unet.state_dict().items()}

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if (name := path.relative_to(folder).as_posix()) != "README.md":
            yield Case(f"checkpoint/{name}", path, ours)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    yield Case("checkpoint/unet by diffusers", file, theirs, by_diffusers=True)


def vars_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__slots__}


def flat(value: Any) -> object:
    """A value that can be compared: arrays by their bytes, NaN equal to NaN."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {str(key): flat(entry) for key, entry in value.items()}
    if hasattr(value, "numpy"):
        return flat(value.numpy())
    if isinstance(value, list | tuple):
        return [flat(entry) for entry in value]
    return repr(value)


# ---------------------------------------------------------------------------------- damage


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file in one way; what was done."""
    data = path.read_bytes()
    if path.suffix == ".sqlite" and rng.random() < 0.4:
        return damage_row(path, rng)
    if path.suffix == ".json" and rng.random() < 0.5:
        told, text = damage_json(data, rng)
        path.write_bytes(text)
        return told
    kind = rng.choice(["cut", "flip", "flip", "flip", "zeros", "empty"])
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(data[: (stop := rng.randrange(len(data)))])
        kind += f" at {stop} of {len(data)}"
    elif kind == "zeros":
        start = rng.randrange(len(data))
        path.write_bytes(data[:start] + bytes(min(64, len(data) - start)) + data[start + 64 :])
        kind += f" at {start} of {len(data)}"
    else:
        bit = rng.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        kind += f" bit {bit} of {8 * len(data)}"
    return kind


def damage_json(text: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Replace or remove one field, which lies as deep as it happens to."""
    data = json.loads(text)
    holder, steps = data, []
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            break
        key = rng.choice(keys)
        steps.append(str(key))
        inside = holder[key]
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.2:
            break
        holder = inside
    kind = rng.choice(["null", "NaN", "huge", "text", "number", "list", "object", "bool", "remove"])
    if not steps:
        return "nothing", text
    values = {"null": None, "NaN": float("nan"), "huge": rng.choice([1e308, 10**40, -(10**30)])}
    values |= {"text": "x", "number": -7, "list": [1], "object": {"a": 1}, "bool": True}
    if kind == "remove":
        del holder[key]
    else:
        holder[key] = values[kind]
    return f"{kind} at {'.'.join(steps)}", json.dumps(data).encode()


def damage_row(path: Path, rng: random.Random) -> str:
    """Damage the text or a key of one row, as no program of ours would write it."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        table = rng.choice(["outcome", "outcome", "protocol"])
        rows = db.execute(f"SELECT rowid, json FROM {table}").fetchall()
        row, text = rng.choice(rows)
        kind = rng.choice(["json", "json", "cut", "flip", "blob", "key", "delete nothing"])
        if kind == "json":
            told, changed = damage_json(text.encode(), rng)
            kind, value = f"json {told}", changed.decode()
        elif kind == "cut":
            value = text[: rng.randrange(len(text))]
        elif kind == "flip":
            flipped = bytearray(text.encode())
            flipped[rng.randrange(len(flipped))] ^= 1
            value = flipped.decode()
        else:
            value = rng.randbytes(20) if kind == "blob" else text
        db.execute(f"UPDATE {table} SET json = ? WHERE rowid = ?", (value, row))
        if kind == "key":
            column = "digest" if table == "protocol" else "qconfig"
            db.execute(f"UPDATE {table} SET {column} = 'x' WHERE rowid = ?", (row,))
    return f"{table} row {row}: {kind}"


# ---------------------------------------------------------------------------------- answers


def answer(case: Case, expected: object) -> tuple[str, str]:
    """What the reader of a damaged artifact did, as one of `KINDS`, and its words."""
    from qsdm.run.errors import sentence
    from qsdm.store.files import warn_once

    def hang(*_: object) -> None:
        raise HangError

    warn_once.cache_clear()
    errors = io.StringIO()
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            found = flat(case.read())
    except HangError:
        return "hang", ""
    except Exception as error:
        told = sentence(error)
        words = f"{type(error).__name__}: {error}"
        if case.by_diffusers and str(case.path) in words:
            return "sentence", words
        return ("sentence" if told and "\n" not in told else "traceback"), words
    finally:
        signal.alarm(0)
    if found == expected:
        return "harmless", ""
    lines = errors.getvalue().splitlines()
    told = [line for line in lines if case.path.name in line]
    return ("sentence", told[0]) if told else ("silent", "")


def run(folder: Path, num: int, seed: int) -> Counter[tuple[str, str]]:
    """Damage, read, restore, as often as asked; what was done before is not done again."""
    log = folder / f"answers-{seed}.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    every = cases(folder)
    wholes = {case.path: case.path.read_bytes() for case in every}
    expected = {case.name: flat(case.read()) for case in every}
    with log.open("a") as file:
        for i in range(len(lines), num):
            case, rng = every[i % len(every)], random.Random(f"{seed} {i}")
            done = damage(case.path, rng)
            if case.path.read_bytes() == wholes[case.path]:
                kind, words = "harmless", "nothing was changed"
            else:
                kind, words = answer(case, expected[case.name])
            restore(case.path, wholes[case.path])
            lines.append({"case": case.name, "damage": done, "answer": kind, "words": words})
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
            if kind in KINDS[2:]:
                print(f"{kind}: {case.name}, {done}: {words[:300]}", flush=True)
    return Counter((line["case"], line["answer"]) for line in lines)


def restore(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def table(counts: Counter[tuple[str, str]]) -> str:
    names = list(dict.fromkeys(name for name, _ in counts))
    rows = [
        [
            name,
            *(
                sum(n for (a, b), n in counts.items() if b == kind and name in (a, "all"))
                for kind in KINDS
            ),
        ]
        for name in [*names, "all"]
    ]
    return text_table(["artifact", *KINDS], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=2000, help="damaged copies")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged, and how")
    parser.add_argument("--folder", type=Path, required=True, help="of the store, and of answers")
    parser.add_argument("--bare", action="store_true", help="artifacts without checksums")
    args = parser.parse_args(arguments)
    if args.bare and not (args.folder / "built").exists():
        build(args.folder)
        strip(args.folder)
    build(args.folder)
    counts = run(args.folder, args.num, args.seed)
    print(table(counts))
    failures = set(KINDS[2:]) - ({"silent"} if args.bare else set())
    return int(any(kind in failures for _, kind in counts))


if __name__ == "__main__":
    raise SystemExit(main())
