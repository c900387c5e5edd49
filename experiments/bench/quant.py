"""Speed of quantization at SDXL's size, compared with scikit-learn, copies and matrix products.

    make bench
    python experiments/bench/quant.py [--rows 128]
    python experiments/bench/quant.py --whole [--threads 2]    # all 2.6 G values: 7 GB of disk
    python experiments/bench/quant.py --whole --model flux --methods uaq-4    # 12 G values: 6 GB

``--whole`` works as calibrate does. Without it, at most ``--rows`` output channels of heavy-tailed
fp16 values are quantized for each shape in SDXL, and CPU seconds are scaled to the number of values
with that shape. K-Means-A, whose cost hardly depends on the size, gets them repeated to the full
shape. Ratios are taken within one run, because absolute times vary with the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qsdm.graph import Graph
from qsdm.qconfig import QuantMethod, Space
from qsdm.quant import kernels, packing
from qsdm.quant.decoding import dequantize, table
from qsdm.quant.fitting import fit, fit_all
from qsdm.workspace import Workspace

NAMES = ("uaq", "kmeans_c", "kmeans_a")
METHODS = [QuantMethod(name, bits) for name in NAMES for bits in (3, 4)]
SIDES = [
    QuantMethod.parse(text)
    for text in ("uaq_refined-4", "uaq_asym-4", "uaq_g64-4", "nf4_g64-4", "fp8_e4m3-8")
]
Shapes = Counter[
    tuple[int, int]
]  # how many weights have so many output channels and values per channel


def graph_of(name: str) -> Graph:
    from stages import model_of

    from qsdm.trace import trace

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return trace(Workspace(model_of(name), root=Path(folder)), page=False)


def heavy(rows: int, n: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy((0.02 * rng.standard_t(4, (rows, n))).astype(np.float16))


def cpu_seconds(function: Callable[[], object], repeat: int = 3) -> float:
    """The least of ``repeat`` CPU times of this process, all threads."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def line(name: str, value: float, ratio: float, target: str = "") -> None:
    print(f"{name:<40}{value:>9.2f}{ratio:>9.3f}  {target}")


def fits(shapes: Shapes, max_rows: int) -> None:
    """CPU seconds of all of SDXL, errors included."""
    rng = np.random.default_rng(0)
    seconds: Counter[str] = Counter()
    errors: Counter[QuantMethod] = Counter()
    total = sum(rows * n * count for (rows, n), count in shapes.items())
    rows_alone = [m for m in METHODS if m.name != "kmeans_a"]
    groups = [(name, [m for m in METHODS if m.name == name]) for name in NAMES] + [
        (str(m), [m]) for m in SIDES
    ]
    groups.append(("both by rows", rows_alone))
    for n in (100, 300):  # compile
        fit_all(heavy(8, n, rng), METHODS + SIDES)
    for (rows, n), count in shapes.items():
        weight = heavy(min(rows, max_rows), n, rng)
        whole = weight.repeat(-(-rows // weight.shape[0]), 1)[:rows]
        scale = rows * n * count / total
        for name, methods in groups:
            timed = whole if name == "kmeans_a" else weight
            start = time.process_time()
            fits_of = fit_all(timed, methods)
            seconds[name] += (time.process_time() - start) / timed.numel() * rows * n * count
            errors.update(
                {
                    m: fitted.rel_error * scale
                    for m, fitted in fits_of.items()
                    if name != "both by rows"
                }
            )
        x = weight.float().numpy()
        seconds["sorting the rows"] += (
            cpu_seconds(lambda x=x: np.sort(x, 1), 1) / x.size * rows * n * count
        )
        seconds["reading the weights"] += (
            cpu_seconds(lambda w=whole: w.view(torch.int16).max()) * count
        )
    print(
        f"SDXL: {sum(shapes.values())} weights of {len(shapes)} shapes, {total:,} values; "
        "CPU seconds of one core"
    )
    print(f"{'':<40}{'CPU s':>9}{'ns/value':>9}  rel_error")
    for name, methods in groups[:-1]:
        line(
            f"{name} 3, 4" if len(methods) > 1 else name,
            seconds[name],
            1e9 * seconds[name] / total,
            ", ".join(f"{errors[m]:.5f}" for m in methods),
        )
    all_six = seconds["both by rows"] + seconds["kmeans_a"]
    line("three methods, 3 and 4 bits, at once", all_six, 1e9 * all_six / total, "target: 120 s")
    for name in ("reading the weights", "sorting the rows"):
        line(name, seconds[name], 1e9 * seconds[name] / total)
    others(shapes, seconds["kmeans_c"])


def others(shapes: Shapes, ours: float) -> None:
    """K-Means-C for 3 and 4 bits by others, row by row; the paper's release also looks values up
    one by one.
    """
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(1)
    theirs: Counter[str] = Counter()
    fitted = KMeans(8, max_iter=100).fit(heavy(1, 300, rng)[0].float().numpy()[:, None])

    def look_up(row: np.ndarray, _K: int) -> None:
        for i in range(row.size):
            row[i] = fitted.cluster_centers_[fitted.labels_[i % 300], :].item()

    ways = {
        "scikit-learn": lambda row, K: KMeans(min(K, row.size), max_iter=100).fit(row[:, None]),
        "look": look_up,
    }
    try:
        from flash1dkmeans import kmeans_1d

        ways["flash1dkmeans"] = lambda row, K: kmeans_1d(row, K, is_sorted=False)
    except ImportError:
        print("flash1dkmeans is not installed: pip install flash1dkmeans")
    rows_of: Counter[int] = Counter()
    for (rows, n), count in shapes.items():
        rows_of[n] += rows * count
    for name, way in ways.items():
        way(heavy(1, 300, rng)[0].float().numpy(), 8)
        for n, num_rows in rows_of.items():
            sample = heavy(4, n, rng).float().numpy()
            seconds = cpu_seconds(
                lambda way=way, sample=sample: [way(row, K) for row in sample for K in (8, 16)], 1
            )
            theirs[name] += seconds / len(sample) * num_rows
    look = theirs.pop("look")
    for name, seconds in theirs.items():
        line(f"K-Means-C, {name}", seconds, seconds / ours, "x ours")
    release = theirs["scikit-learn"] + look
    line("K-Means-C, the release's pattern", release, release / ours, "x ours, target: 150")


def dequantization() -> None:
    rng = np.random.default_rng(1)
    rows, n = 10240, 1280
    weight = heavy(rows, n, rng)
    full, out = weight.float(), torch.empty(rows, n)
    copy = cpu_seconds(lambda: out.copy_(full), 7)
    print(f"\n{f'{rows} x {n}, into an output that is there':<40}{'CPU ms':>9}{'x copy':>9}")

    def row(name: str, function: Callable[[], object], target: str = "") -> None:
        seconds = cpu_seconds(function, 5)
        line(name, 1e3 * seconds, seconds / copy, target)

    line("copy of float32", 1e3 * copy, 1.0)
    for text in (
        "kmeans_c-4",
        "kmeans_a-4",
        "kmeans_c-3",
        "uaq-4",
        "uaq_g64-4",
        "nf4_g64-4",
        "fp8_e4m3-8",
    ):
        quantized = fit(weight, QuantMethod.parse(text))
        row(
            f"packed {text}",
            lambda q=quantized: dequantize(q, out),
            "target: 1.0" if text == "kmeans_c-4" else "",
        )
    codes, lines = quantized.codes, table(quantized)
    row("lookup_out, fp8_e4m3-8", lambda: kernels.lookup_out(codes, lines, 8, n, out))
    for group in (n, 64):
        scale, zero = torch.full((rows, n // group), 0.01), torch.full((rows, n // group), 7.0)
        row(
            f"affine_out, groups of {group}",
            lambda s=scale, z=zero, g=group: kernels.affine_out(full, s, z, 4, g, out),
            "target: 2.0",
        )
    row("affine, into a new output", lambda: kernels.affine(full, scale, zero, 4, 64))
    row("clone, into a new output", full.clone)
    row("affine, plain torch", lambda: kernels.reference.affine(full, scale, zero, 4, 64))
    line_scale, zeros = scale[:, 0].contiguous(), zero[:, 0].int()
    row(
        "torch.fake_quantize_per_channel_affine",
        lambda: torch.fake_quantize_per_channel_affine(full, line_scale, zeros, 0, 0, 15),
    )
    some = rng.integers(0, 8, rows * n).astype(np.uint8)
    for bits in (3, 4):
        row(f"packing {bits} bits", lambda b=bits: packing.pack(some, b))


def activations() -> None:
    x, weight = torch.randn(4096, 1280), torch.randn(1280, 1280)
    product = cpu_seconds(lambda: x @ weight)
    print(f"\n{'4096 x 1280 tokens':<40}{'CPU ms':>9}{'x GEMM':>9}")
    line("matrix product 4096 x 1280 x 1280", 1e3 * product, 1.0)
    for bits in (8, 6):
        seconds = cpu_seconds(lambda b=bits: kernels.tokens(x, b, False), 5)
        line(f"tokens, {bits} bits", 1e3 * seconds, seconds / product, "target: 0.03")
    seconds = cpu_seconds(lambda: kernels.reference.tokens(x, 8, False))
    line("tokens, 8 bits, plain torch", 1e3 * seconds, seconds / product)


def peak_kb() -> int:
    """Of this process's memory; Linux only, as the whole of ``--whole``."""
    (line,) = (
        text
        for text in Path("/proc/self/status").read_text().splitlines()
        if text.startswith("VmHWM")
    )
    return int(line.split()[1])


def whole(graph: Graph, methods: list[QuantMethod]) -> None:
    """Calibrates random weights of the denoiser's shapes: CPU and wall seconds, peak memory."""
    from qsdm.quant.calibration import calibrate

    shapes: dict[str, tuple[int, ...]] = {}
    for w in graph.weights:
        shape = shapes.get(w.parameter, w.shape)
        shapes[w.parameter] = (w.shape[0], max(shape[1], w.start + w.shape[1]), *w.shape[2:])

    largest = max(int(np.prod(shape)) for shape in shapes.values())
    pool = heavy(1, largest + (1 << 22), np.random.default_rng(0))[0]

    def tensors(name: str) -> torch.Tensor:
        start = 4096 * (sum(name.encode()) % 1000)
        return pool[start : start + int(np.prod(shapes[name]))].view(shapes[name])

    space = Space.of(graph, methods, max_overhead=np.inf)
    fit_all(pool[: 8 * 300].view(8, 300), methods)  # compile
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = peak_kb()
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        calibrate(tensors, space, Path(folder))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = (Path(folder) / "weights.safetensors").stat().st_size
    after = peak_kb()
    print(
        f"{len(graph.weights)} weights, {torch.get_num_threads()} threads: {cpu:.1f} CPU s, "
        f"{wall:.1f} s of wall time"
    )
    print(
        f"{size / 1e9:.2f} GB written, peak memory {after / 1e6:.2f} GB, "
        f"{(after - before) / 1e6:.2f} GB of it for the "
        f"weights; the largest one has {4 * largest / 1e9:.2f} GB in float32"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of quantization at SDXL's size.")
    parser.add_argument(
        "--rows", type=int, default=128, help="output channels that are sampled of every shape"
    )
    parser.add_argument(
        "--whole", action="store_true", help="quantize all of SDXL's weights once, and nothing else"
    )
    parser.add_argument("--model", default="sdxl", help="of --whole")
    parser.add_argument("--methods", nargs="+", default=list(map(str, METHODS)), help="of --whole")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    graph = graph_of(arguments.model if arguments.whole else "sdxl")
    if arguments.whole:
        whole(graph, [QuantMethod.parse(text) for text in arguments.methods])
        return
    fits(Counter((w.shape[0], w.fan_in) for w in graph.weights), arguments.rows)
    dequantization()
    activations()


if __name__ == "__main__":
    main()
