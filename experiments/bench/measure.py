"""What measuring a configuration costs, compared with the bare pipeline and with the naive way.

    make bench
    python experiments/bench/measure.py [--images 256]

CPU seconds of one thread for one random configuration of each zoo pipeline:

    bare        the pipeline as a user calls it, in the same batches, at full precision
    drawing     qsdm: only weights that change are written, and prompt embeddings are kept; the
                overhead is relative to ``bare``
    scoring     all metrics of ``metrics=emoji``, halves and prefixes; in parentheses in percent of
                ``drawing``
    naive       a separate process: it loads the pipeline, quantizes every weight (K-Means by
                scikit-learn, as in the paper's release; in parentheses by our fits), encodes the
                prompts, draws the pictures and scores them
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from stages import model_of

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model, arguments, computed_in, denoiser_of, load_pipeline, prompts_of
from qsdm.graph import Graph
from qsdm.measurement.drawer import Drawer, compute_in
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.protocol import protocol_of, seed_of
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec
from qsdm.quant.calibrated import PackedWeights
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.run.conf import CONF
from qsdm.store.files import read_json
from qsdm.trace import trace
from qsdm.workspace import Workspace

PIPELINES = ("emoji_unet", "emoji_pixart", "emoji_mmdit")


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(name: str, num_images: int, store: Path) -> dict[str, float]:
    model, spec = parts_of(name)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        graph = trace(Workspace(model, root=store), page=False)
        calibrate(Workspace(model, spec, store))
    space = spec.of(graph, model.full_bits)
    packed = PackedWeights(store / name / "calibration" / spec.name)
    prompts = prompts_of(model)
    protocol = protocol_of(model, prompts, 0, num_images)
    drawer = Drawer(model, space.graph, packed)
    ready = Evaluator(drawer, model.metrics, protocol, prompts)
    rng = np.random.default_rng(0)
    warm, timed = space.sample(rng), space.sample(rng)

    ready.outcome(warm)
    bare = draw_bare(model, ready.prompts, drawer.batch_size)
    bare()
    found = {"bare": min(cpu_seconds(bare) for _ in range(2))}
    drawn: list[float] = []
    for qconfig in (timed, warm):
        drawn.append(cpu_seconds(lambda q=qconfig: ready.pictures(q)))
    found["drawing"] = min(drawn)
    found["total"] = cpu_seconds(lambda: ready.outcome(timed))
    for key, fits in (("naive", "scikit-learn"), ("naive, our fits", "ours")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            __file__,
            "--naive",
            name,
            "--fits",
            fits,
            "--images",
            str(num_images),
        ]
        subprocess.run([*command, "--store", str(store)], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[key] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def draw_bare(model: Model, prompts: Sequence[Prompt], batch_size: int) -> Callable[[], None]:
    """The pipeline as a user calls it: a function that draws a picture of each prompt."""
    pipeline = load_pipeline(model)
    compute_in(denoiser_of(pipeline, model), computed_in(model.dtype))

    @torch.inference_mode()
    def draw() -> None:
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            seeds = [seed_of(0, i) for i in range(start, start + len(part))]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            call = arguments(pipeline, model, part, generator=generators, output_type="pt")
            pipeline(**call)

    return draw


def naive(name: str, num_images: int, store: Path, fits: str) -> None:
    """One configuration, from nothing."""
    model, spec = parts_of(name)
    space = spec.of(Graph.from_json(read_json(store / name / "graph.json")), model.full_bits)
    qconfig = space.sample(np.random.default_rng(0))
    prompts = prompts_of(model)
    protocol = protocol_of(model, prompts, 0, num_images)
    drawer = Drawer(model, space.graph, None)
    fresh = Evaluator(drawer, model.metrics, protocol, prompts)
    parameters = dict(drawer.denoiser.named_parameters())
    with torch.no_grad():
        for weight in space.graph.weights:
            part = parameters[weight.parameter][:, weight.start : weight.start + weight.shape[1]]
            method = qconfig.methods[weight.name]
            if fits == "ours" or method.name == "uaq":
                part.copy_(dequantize(fit(part.float(), method)))
            else:
                part.copy_(scikit_learn(part.float(), method))
    fresh.outcome(QuantConfig(name, {}))


def scikit_learn(weight: torch.Tensor, method: QuantMethod) -> torch.Tensor:
    from sklearn.cluster import KMeans

    rows = (
        weight.reshape(len(weight), -1).numpy()
        if method.name == "kmeans_c"
        else weight.reshape(1, -1).numpy()
    )
    found = []
    for row in rows:
        clusters = min(2**method.bits, len(np.unique(row)))
        fitted = KMeans(clusters, max_iter=100).fit(row[:, None])
        found.append(fitted.cluster_centers_[fitted.labels_, 0])
    return torch.from_numpy(np.stack(found)).view(weight.shape)


def parts_of(name: str) -> tuple[Model, SpaceSpec]:
    """The model with its metrics, and the space, as ``python -m qsdm.measure +model=NAME`` has
    them.
    """
    entries = [
        OmegaConf.load(CONF / group) for group in ("metrics/emoji.yaml", "space/traced.yaml")
    ]
    metrics, spec = (instantiate(entry, _convert_="all") for entry in entries)
    return dataclasses.replace(model_of(name), metrics=metrics), spec


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument(
        "--naive",
        choices=PIPELINES,
        help="only measure one configuration of this one, from nothing",
    )
    parser.add_argument(
        "--fits", choices=("ours", "scikit-learn"), default="ours", help="of --naive"
    )
    parser.add_argument("--store", type=Path, help="of --naive, traced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.naive:
        naive(args.naive, args.images, args.store, args.fits)
        return
    print(
        f"{f'CPU s, {args.images} pictures':<22}{'bare':>8}{'drawing':>9}{'overhead':>10}"
        f"{'scoring':>16}",
        end="",
    )
    print(f"{'naive':>18}{'naive/ours':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for name in PIPELINES:
            seconds = measure(name, args.images, Path(folder))
            bare, drawing, total = seconds["bare"], seconds["drawing"], seconds["total"]
            slow, fast = seconds["naive"], seconds["naive, our fits"]
            print(
                f"{name:<22}{bare:>8.2f}{drawing:>9.2f}{100 * (drawing / bare - 1):>9.1f}%", end=""
            )
            print(
                f"{total - drawing:>8.2f} ({100 * (total / drawing - 1):4.1f}%)"
                f"{slow:>10.1f} ({fast:.1f})"
                f"{slow / total:>11.2f} ({fast / total:.2f})"
            )
    print("targets: overhead 5 %, scoring 5 % of drawing, naive/ours 3")


if __name__ == "__main__":
    main()
