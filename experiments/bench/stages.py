"""How fast the stages are on this machine, on one thread: make bench.

    python experiments/bench/stages.py [--commit e3486ce] [--commands-only]

quantize and dequantize     ns per weight of a 1280 x 1280 layer with heavy tails, by method
draw                        pictures per second of the shipped pipeline at full precision
verify                      seconds and CPU-seconds of reading an artifact of 500 MB from the page
                            cache: with its checksums, without any, and by safetensors
load                        the same of loading a packed denoiser by load_quantized, with its
                            checksums and without any
commands                    CPU-seconds of train, attribute, search and realize of emoji_unet when
                            nothing is left to measure, beside those of an earlier commit, in turns
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
REALIZE = ("num_images=16", "candidates=3", "num_random=2", "engine=serial")
COMMANDS = {"train": (), "attribute": (), "search": (), "realize": REALIZE}


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of several runs, after one that warms up."""
    function()
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        durations.append(time.perf_counter() - began)
    return min(durations)


def quantizers() -> None:
    from qsdm.qconfig import QuantMethod
    from qsdm.quant.decoding import dequantize
    from qsdm.quant.fitting import fit

    generator = torch.Generator().manual_seed(0)
    weight = (
        torch.randn(1280, 1280, generator=generator)
        * torch.randn(1280, 1280, generator=generator).exp()
    )
    out = torch.empty_like(weight)
    print(f"{'method':<12}{'fit ns':>10}{'dequantize ns':>16}")
    for text in (
        "uaq-3",
        "uaq-4",
        "kmeans_c-3",
        "kmeans_c-4",
        "kmeans_a-3",
        "kmeans_a-4",
        "uaq_g64-4",
        "nf4_g64-4",
    ):
        method = QuantMethod.parse(text)
        packed = fit(weight, method)
        times = [
            seconds(lambda m=method: fit(weight, m)),
            seconds(lambda p=packed: dequantize(p, out)),
        ]
        print(
            f"{text:<12}"
            + f"{times[0] / weight.numel() * 1e9:>10.1f}{times[1] / weight.numel() * 1e9:>16.2f}"
        )


def model_of(name: str) -> Any:
    from qsdm.denoisers import Model
    from qsdm.run.conf import CONF

    entry = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Model(
        **{
            key: value
            for key, value in entry.items()
            if key not in ("_target_", "defaults", "metrics")
        }
    )


def drawing(num_images: int = 64) -> None:
    from qsdm.denoisers import prompts_of
    from qsdm.graph import Graph
    from qsdm.measurement.drawer import Drawer
    from qsdm.measurement.evaluator import Evaluator
    from qsdm.measurement.protocol import protocol_of
    from qsdm.qconfig import QuantConfig

    model = model_of("emoji_unet")
    prompts = prompts_of(model)
    drawer = Drawer(model, Graph(model.name, (), ()), None)
    evaluator = Evaluator(drawer, {}, protocol_of(model, prompts, 0, num_images), prompts)
    duration = seconds(lambda: evaluator.pictures(QuantConfig(model.name, {})), repeats=1)
    print(f"draw        {num_images / duration:.1f} pictures a second")


def in_turns(what: str, runs: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Medians of several runs of each kind, in turns, and what checksums cost.

    Seconds are what a user waits for; CPU-seconds include the thread that hashes.
    """
    durations: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for name, run in list(runs.items()) * (repeats + 1):  # the first of each warms up
        began, began_cpu = time.perf_counter(), time.process_time()
        run()
        durations[name].append((time.perf_counter() - began, time.process_time() - began_cpu))
    for unit, number in (("s", 0), ("CPU-s", 1)):
        median = {n: statistics.median(one[number] for one in durations[n][1:]) for n in runs}
        print(
            f"{what:<12}{unit:<6}"
            + "".join(f"  {name} {value:.3f}" for name, value in median.items())
            + f"  verification {100 * (median['checksums'] / median['none'] - 1):.1f} %"
        )


def verifying(size: int = 500_000_000, repeats: int = 15) -> None:
    """Reading an artifact from the page cache."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from qsdm.store.tensors import load_tensors, write_tensors

    part = np.random.default_rng(0).bytes(size // 4)
    tensors = {f"part {i}": np.frombuffer(part, np.uint8) for i in range(4)}
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = Path(folder) / "ours.safetensors", Path(folder) / "bare.safetensors"
        write_tensors(ours, tensors, {})
        save_file(tensors, bare)
        readers = {
            "checksums": lambda: load_tensors(ours),
            "none": lambda: load_tensors(bare),
            "safetensors": lambda: load_file(bare),
        }
        in_turns("verify", readers, repeats)
    print("target: verification 5 % of the seconds, where a core is idle")


def loading(name: str = "pixart_alpha", repeats: int = 9) -> None:
    """Loading a packed denoiser, with and without its checksums."""
    from unittest import mock

    from checkpoint import random_denoiser

    from qsdm import tracing
    from qsdm.checkpoint import load_quantized, save_denoiser
    from qsdm.checkpoint.quantizer import QsdmQuantizer
    from qsdm.qconfig import SpaceSpec
    from qsdm.trace import prepare

    denoiser, model = random_denoiser(name)
    module, inputs, _ = prepare(model)
    graph = tracing.trace(module, inputs, name)
    space = SpaceSpec("bench", ["uaq-4"]).of(graph, model.full_bits)
    unchecked = mock.patch.object(
        QsdmQuantizer, "maybe_update_state_dict", lambda _self, state_dict: state_dict
    )
    with tempfile.TemporaryDirectory() as folder:
        uniform = space.uniform(space.methods[0])
        size = save_denoiser(denoiser, space.graph, uniform, Path(folder)).total_bytes
        del denoiser

        def load() -> None:
            loaded = load_quantized(Path(folder), torch.bfloat16)
            for tensor in loaded.state_dict().values():  # a byte of each mapped page
                tensor.flatten().view(torch.uint8)[::4096].sum()

        print(f"load        {name}, {size / 1e6:.0f} MB packed")
        in_turns("load", {"checksums": load, "none": unchecked(load)}, repeats)


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit in a folder, for as long as the block runs."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def cpu_seconds(tree: Path, store: Path, command: str) -> float:
    """Of one command of a source tree, by this Python and its packages."""
    arguments = ["+model=emoji_unet", f"store={store}", *COMMANDS.get(command, ())]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", f"qsdm.{command}", *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command} in {tree} failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(commit: str, folder: Path, repeats: int = 2) -> None:
    """The fastest of several runs of each command, here and at the commit in turns."""
    with checked_out(commit, folder / "before") as before:
        trees = {"here": ROOT, commit: before}
        for name, tree in trees.items():  # what is there to begin with; compiled kernels, too
            for command in ("trace", "calibrate", *COMMANDS):
                cpu_seconds(tree, folder / f"store-{name}", command)
        print(f"{'CPU s':<12}{commit:>10}{'here':>10}{'ratio':>10}")
        for command in COMMANDS:
            runs: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(repeats):
                for name, tree in trees.items():
                    runs[name].append(cpu_seconds(tree, folder / f"store-{name}", command))
            then, now = min(runs[commit]), min(runs["here"])
            print(f"{command:<12}{then:>10.1f}{now:>10.1f}{then / now:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit", default="e3486ce", help="to compare the commands with")
    parser.add_argument("--commands-only", action="store_true", help="without the inner loops")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.commands_only:
        quantizers()
        drawing()
        verifying()
        loading()
    with tempfile.TemporaryDirectory() as folder:
        try:
            commands(args.commit, Path(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"commands are not compared: {args.commit} cannot be checked out ({error})")


if __name__ == "__main__":
    main()
