# ruff: noqa: E501 (the data card's own lines)
"""Ship measured outcomes with a pipeline: the label bank, its protocols and a data card.

    sh experiments/zoo/bank.sh emoji_unet               # measure, then call this
    python experiments/zoo/bank.py --name emoji_unet    # ship what has been measured so far

The outcomes move from store/emoji_unet/ to qsdm/zoo/emoji_unet/store/. Only outcomes of the
pipeline's current weights are taken, including those that already ship.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from architectures import ARCHITECTURES, model_of

from qsdm.denoisers import weights_digest
from qsdm.graph import Graph
from qsdm.measure import histogram
from qsdm.measurement.labels import Bank
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.predictor.judge import noise
from qsdm.predictor.scores import srcc
from qsdm.qconfig import OutsideSpace, Space, SpaceSpec
from qsdm.qconfig.cost import avg_bits, size_bytes
from qsdm.quant.fitting import VERSION
from qsdm.store import Store
from qsdm.store.files import read_json, write_json, write_text
from qsdm.store.parquet import write_outcomes_parquet

SPACES = ("traced", "wide")


def kind(outcome: Outcome, spaces: dict[str, Space]) -> str:
    """Which part of the bank an outcome belongs to: rounded, full_precision, alone, or the narrowest
    space that holds it.
    """
    if outcome.qconfig.rounds_activations:
        return "rounded"
    methods = outcome.qconfig.methods
    if not methods:
        return "full_precision"
    if len(methods) == 1:
        return "alone"
    for name, space in spaces.items():
        with suppress(OutsideSpace):
            space.encode(outcome.qconfig)
            return name
    return "other"


Row = tuple[str, Outcome, Protocol, float]  # part, outcome, its protocol, average bits


def noise_of(metric: str, rows: Sequence[Row], space: Space) -> str:
    """A line of the card: how far the metric of the traced configurations agrees with itself."""
    bank = Bank(space, [o for _, o, _, _ in rows], {p.digest: p for _, _, p, _ in rows})
    objective = Objective({metric: 1.0})
    levels = noise(bank.labels(objective, seed_set=0, num_images=256))
    assert levels is not None, f"the labels have no halves of {metric}"
    tested = {
        (test.protocol.seed_set, test.protocol.num_images): dict(
            zip(test.digests, test.values, strict=True)
        )
        for test in bank.tests(objective)
    }

    def agreement(other: tuple[int, int]) -> str:
        digests = tested.get((0, 256), {}).keys() & tested.get(other, {}).keys()
        if len(digests) < 10:
            return "-"
        first, second = (
            np.array([tested[key][d] for d in digests], dtype=np.float64)
            for key in ((0, 256), other)
        )
        return f"{srcc(first, second):.3f}"

    halves = f"{levels['halves']:.3f} ({levels['halves_low']:.3f} to {levels['halves_high']:.3f})"
    return f"| `{metric}` | {halves} | {levels['ceiling']:.3f} | {agreement((1, 256))} | {agreement((0, 1024))} |"


def card(name: str, rows: Sequence[Row], traced: Space) -> str:
    """The data card, in Markdown."""
    counts = Counter(
        (part, o.provenance.get("stage", "measure"), p.num_images, p.seed_set)
        for part, o, p, _ in rows
    )
    lines = "\n".join(
        f"| {part} | {stage} | {images} | {seed_set} | {count} |"
        for (part, stage, images, seed_set), count in sorted(counts.items())
    )
    drawn = "\n\n".join(
        f"Average bits of the {space} configurations (labels):\n\n```\n"
        + histogram([bits for part, o, _, bits in rows if part == space and o.is_label])
        + "\n```"
        for space in SPACES
        if sum(part == space and o.is_label for part, o, _, _ in rows) >= 10
    )
    protocol, versions = rows[0][2], rows[0][1].versions
    dates = sorted(o.provenance["made"] for _, o, _, _ in rows)
    packages = rows[-1][1].provenance["versions"]
    metrics = "\n".join(
        f"| `metric/{metric}` | {version} |" for metric, version in sorted(versions.items())
    )
    noises = "\n".join(noise_of(metric, rows, traced) for metric in sorted(versions))
    return f"""---
license: apache-2.0
pretty_name: qsdm label bank, {name}
configs:
- config_name: default
  data_files: outcomes.parquet
---
# Label bank of {name}

What a quantization configuration does to the pictures of `{name}` ({protocol.sampler.split()[0]}, {protocol.steps} steps, guidance
{protocol.guidance:g}, {protocol.resolution_px} px, {protocol.dtype}), measured with its present weights and fits of version {VERSION}. One row per configuration
and protocol. Made by `sh experiments/zoo/bank.sh {name}` between {dates[0][:10]} and {dates[-1][:10]}
({", ".join(f"{package} {version}" for package, version in packages.items())}), on two CPU cores.

| part | stage | pictures | seed set | outcomes |
|---|---|---|---|---|
{lines}

`traced`: the paper's six methods (UAQ, K-Means per channel and per tensor, 3 and 4 bits) on every weight, skip layers split by their inputs;
`wide`: 2 to 8 bits with group-wise UAQ and NF4; `alone`: one weight by `uaq-3` (or what takes its place where its overhead is too large), all
others in full precision. Stage `test` is held out: predictors are judged on it and never trained. Stage `realize`: uniform configurations, one method
for every weight, to compare a chosen configuration with. `rounded`: the first traced labels again, each layer's input rounded to 16, 8, 6 or 4
bits by chance; compare them with the first 64 pictures of the same weights. Random configurations are drawn so that average
bits spread evenly. Picture i of every configuration has the same caption and, within a seed set, the same starting noise.

{drawn}

Noise, as rank correlations: between halves of the pictures of the labels (mean of 16 ways to halve, and their 95 %), the ceiling that this sets to any
predictor, and between values of the test set: of two seed sets, and of 256 and 1,024 pictures. Halves show
different captions, seed sets the same: what agrees less between halves than between seed sets (`cmmd`) depends on the captions more than on the noise.

| metric | halves | ceiling | two seed sets | 1,024 pictures |
|---|---|---|---|---|
{noises}

| column | what it is |
|---|---|
| `qconfig`, `protocol` | digests; the protocols are in `protocols.json` |
| `part`, `stage`, `seed_set`, `num_images` | as above |
| `computed_in` | {protocol.dtype}, or float32 where the processor had none: distances of eight configurations of emoji_unet differed by 0.7 at most (`experiments/zoo/reproduce.py`) |
| `avg_bits`, `size_bytes` | of the quantizable weights, scales and codebooks included, full precision counted with 16 bits |
| `metric/NAME` | value over all pictures; null where it is not defined (full precision compared with itself) |
| `standard_error/NAME` | over prompts and noise, from 16 random halves of the pictures |
| `pictures` | sha256 of the sha256 of each 8-bit picture; another machine's differ by rounding |
| `json` | all of it: the method of every weight, both halves in 16 ways, metrics of the first 16, 64, 256 pictures, provenance |

| metric | version |
|---|---|
{metrics}

```python
import pandas

bank = pandas.read_parquet("outcomes.parquet")
```

DuckDB: `SELECT * FROM 'outcomes.parquet'`; Hugging Face: `datasets.load_dataset(FOLDER)`.

Limits: one small pipeline trained on emoji; fd_lite0 is not FID; standard errors are those of one metric alone, and since all configurations share
prompts and noise, differences between configurations are surer than they say.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, default=Path("store"), help="where outcomes were measured"
    )
    parser.add_argument(
        "--zoo", type=Path, default=Path("qsdm/zoo"), help="where the pipelines lie"
    )
    parser.add_argument("--name", choices=ARCHITECTURES, default="emoji_unet")
    args = parser.parse_args()
    model, store = model_of(args.name, args.zoo), Store(args.store, args.name)
    graph = Graph.from_json(read_json(store.find("graph.json", "trace")))
    spaces = {name: spec(name).of(graph) for name in SPACES}
    weights = weights_digest(model)
    protocols = {
        d: p
        for d, p in store.protocols().items()
        if p.weights == weights and p.quantizer_version == VERSION
    }
    traced = spaces["traced"]
    uniform = {traced.uniform(method).digest for method in traced.methods}
    rows = [
        (kind(o, spaces), o, protocols[o.protocol], avg_bits(graph, o.qconfig, model.full_bits))
        for o in store.outcomes()
        if o.protocol in protocols
        and (
            o.provenance.get("stage", "measure") in ("measure", "test")
            or (o.provenance["stage"] == "realize" and o.qconfig.digest in uniform)
        )
    ]
    if not rows:
        raise SystemExit(
            f"no outcomes of the present weights in {store.root}: run python -m qsdm.measure first"
        )
    rows.sort(  # those of few pictures last
        key=lambda row: (
            row[2].num_images < 256,
            row[2].seed_set,
            row[2].num_images,
            row[0],
            row[1].provenance["made"],
        )
    )
    home = args.zoo / args.name / "store"
    columns = {
        "part": [part for part, _, _, _ in rows],
        "seed_set": [p.seed_set for _, _, p, _ in rows],
        "computed_in": [o.provenance.get("computed_in", p.dtype) for _, o, p, _ in rows],
        "avg_bits": [bits for _, _, _, bits in rows],
        "size_bytes": [size_bytes(graph, o.qconfig, model.full_bits) for _, o, _, _ in rows],
    }
    write_outcomes_parquet(home / "outcomes.parquet", [o for _, o, _, _ in rows], columns)
    write_json(
        home / "protocols.json",
        [p.to_json() for p in {p.digest: p for _, _, p, _ in rows}.values()],
    )
    write_text(home / "README.md", card(args.name, rows, spaces["traced"]))
    print(f"{len(rows)} outcomes => {home}: {dict(Counter(part for part, _, _, _ in rows))}")


def spec(name: str) -> SpaceSpec:
    """An entry of ``conf/space``."""
    from omegaconf import OmegaConf

    entry = OmegaConf.load(f"conf/space/{name}.yaml")
    return SpaceSpec(entry.name, list(entry.methods), entry.splits)


if __name__ == "__main__":
    main()
