"""Laws that every method of the registry keeps."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from qsdm.graph import Weight
from qsdm.qconfig import QuantMethod
from qsdm.quant import methods
from qsdm.quant.decoding import dequantize, layout, table
from qsdm.quant.fitting import fit, fit_all

METHODS = [
    QuantMethod(kind.name, bits)
    for kind in methods.METHODS.values()
    for bits in kind.bits
    if bits not in (6, 7)  # nothing begins or ends there
]
WIDTHS = range(2, 9)
NAMES = [kind.name for kind in methods.METHODS.values() if set(kind.bits) >= set(WIDTHS)]
by_method = pytest.mark.parametrize("method", METHODS, ids=str)


def heavy(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """Student-t values of channels of different size, as trained weights are."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 0.5, (shape[0], *[1] * (len(shape) - 1))))
    return torch.from_numpy(0.02 * size * rng.standard_t(4, shape)).to(dtype)


def error(weight: torch.Tensor, method: QuantMethod) -> float:
    return fit_all(weight, [method])[method].rel_error


EDGES = {
    "constant rows": torch.full((4, 40), 0.3).half(),
    "negative constant": torch.full((4, 40), -0.3).half(),
    "zeros": torch.zeros(3, 50).half(),
    "a zero row": torch.cat(
        [torch.zeros(1, 70), torch.randn(2, 70, generator=torch.Generator().manual_seed(0))]
    ).half(),
    "two values": torch.tensor([0.25, -1.5]).repeat(5, 20).half(),
    "fewer values than centroids": heavy((3, 4)),
    "one input": heavy((5, 1)),
    "one value": torch.tensor([[0.7]]).half(),
    "far from zero": (100 + heavy((4, 300))).half(),
    "odd length": heavy((7, 333)),
    "one sign": heavy((6, 100)).abs() + 0.01,
    "outlier": torch.cat([heavy((2, 1023)), torch.full((2, 1), 100.0).half()], 1),
    "tiny": heavy((4, 100)) * 1e-4,
}


@by_method
def test_bytes_are_those_of_the_cost_model(method: QuantMethod) -> None:
    for shape in ((6, 130), (5, 3, 3, 3), (257, 64), (1, 1)):
        quantized = fit(heavy(shape), method)
        assert 8 * quantized.size_bytes == method.size_bits(Weight("w", "w.weight", shape), 16)
        stored = {"codes": quantized.codes, **quantized.tensors}
        assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == layout(
            method, shape
        )


@by_method
@pytest.mark.parametrize("name", EDGES)
def test_edge_cases_stay_finite_and_within_the_range(method: QuantMethod, name: str) -> None:
    weight = EDGES[name]
    values = dequantize(fit(weight, method))
    assert values.shape == weight.shape
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    # At most half a step beyond the range, as zero points are integers. NF4's scales are rounded.
    assert values.abs().max() <= 1.5 * weight.float().abs().max() + 1e-6


@pytest.mark.parametrize(
    "name", ["constant rows", "negative constant", "zeros", "one value", "one input"]
)
@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.name.startswith("uaq") or m.name == "kmeans_c"], ids=str
)
def test_a_single_value_per_channel_is_exact(method: QuantMethod, name: str) -> None:
    assert torch.equal(dequantize(fit(EDGES[name], method)), EDGES[name].float())


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("kmeans")], ids=str)
def test_two_values_are_exact(method: QuantMethod) -> None:
    assert torch.equal(dequantize(fit(EDGES["two values"], method)), EDGES["two values"].float())


@pytest.mark.parametrize("name", EDGES)
def test_all_fits_at_once_are_the_fits_one_by_one(name: str) -> None:
    weight = EDGES[name]
    full = weight.double()
    for method, fitted in fit_all(weight, METHODS).items():
        alone = fit(weight, method)
        assert fitted.quantized.method == method
        assert torch.equal(fitted.quantized.codes, alone.codes)
        assert all(
            torch.equal(tensor, alone.tensors[part])
            for part, tensor in fitted.quantized.tensors.items()
        )
        off = (dequantize(alone).double() - full).abs()
        for p, actual in ((2, fitted.rel_error), (2.4, fitted.norm_error)):
            norm = full.abs().pow(p).sum()
            expected = (off.pow(p).sum() / norm).item() if norm else 0.0
            assert actual == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_threads_change_nothing() -> None:
    weight = heavy((96, 700))
    narrow = [method for method in METHODS if method.bits in (3, 4)]
    before = torch.get_num_threads()
    actual = []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            actual.append(fit_all(weight, narrow))
    finally:
        torch.set_num_threads(before)
    for method in narrow:
        one, three = (each[method] for each in actual)
        assert torch.equal(one.quantized.codes, three.quantized.codes)
        assert (one.rel_error, one.norm_error) == (three.rel_error, three.norm_error)


@by_method
def test_an_output_is_filled_and_returned(method: QuantMethod) -> None:
    quantized = fit(heavy((9, 4, 3, 3)), method)
    out = torch.full((9, 4, 3, 3), torch.nan)
    assert dequantize(quantized, out) is out
    assert torch.equal(out, dequantize(quantized))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        last = torch.full((9, 3, 3, 6), 7, dtype=dtype).permute(0, 3, 1, 2)  # channels last
        assert torch.equal(dequantize(quantized, last[:, 1:5]), out.to(dtype))
        assert (last[:, [0, 5]] == 7).all()


@pytest.mark.parametrize("name", NAMES)
def test_error_falls_with_bits(name: str) -> None:
    weight = heavy((16, 320))
    errors = [error(weight, QuantMethod(name, bits)) for bits in WIDTHS]
    assert all(b < a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("bits", WIDTHS)
def test_methods_stand_in_their_order(bits: int) -> None:
    weight = heavy((32, 640))
    of = {name: error(weight, QuantMethod(name, bits)) for name in NAMES}
    assert of["kmeans_c"] < of["uaq"]  # its optimum contains every uniform grid
    assert of["uaq_g32"] < of["uaq_g128"] < of["uaq"]


@pytest.mark.parametrize(
    "method", [QuantMethod(n, b) for n in ("kmeans_a", "kmeans_c") for b in (3, 4)], ids=str
)
def test_codebooks_quantize_their_own_output_to_itself(method: QuantMethod) -> None:
    once = dequantize(fit(heavy((8, 200)), method))
    assert torch.equal(dequantize(fit(once.half(), method)), once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@by_method
def test_any_float_type(method: QuantMethod, dtype: torch.dtype) -> None:
    weight = heavy((8, 96), dtype=dtype)
    assert error(weight, method) < {2: 0.5, 3: 0.2, 4: 0.06, 5: 0.02}.get(method.bits, 0.01)


def test_nf4_is_close_to_its_textbook_form() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    assert error(weight, QuantMethod("nf4_g64", 4)) == pytest.approx(
        0.0083, rel=0.1
    )  # QLoRA's NF4 of normal weights


def test_not_a_number_is_refused_in_a_sentence() -> None:
    weight = heavy((4, 8))
    weight[2, 3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinities: repair"):
        fit(weight, QuantMethod("uaq", 4))
    with pytest.raises(ValueError, match=r"wanted a floating-point weight \[out, in"):
        fit(torch.zeros(3), QuantMethod("uaq", 4))
    with pytest.raises(ValueError, match="wanted a floating-point output"):
        dequantize(fit(heavy((4, 8)), QuantMethod("uaq", 4)), torch.empty(8, 4))


@pytest.mark.parametrize("name", ["uaq", "uaq_g32", "kmeans_c", "kmeans_a"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_codes_were_chosen_for_the_stored_numbers(name: str, bits: int) -> None:
    weight = heavy((16, 320), seed=3)
    quantized = fit(weight, QuantMethod(name, bits))
    values = table(quantized)
    if name == "uaq_g32":
        lines = values.view(16, 10, -1).repeat_interleave(32, 1)
    else:
        lines = values.view(-1, 1, 2**bits).expand(16, 320, -1)
    nearest = (lines - weight.float()[..., None]).abs().min(-1).values
    off = (dequantize(quantized) - weight.float()).abs()
    assert (
        torch.equal(off, nearest) or (off - nearest).max() < 1e-6 * weight.abs().max()
    )  # ties may go either way


@pytest.mark.parametrize("method", [m for m in METHODS if not m.is_full], ids=str)
def test_a_part_of_the_table_is_a_part_of_the_whole(method: QuantMethod) -> None:
    quantized = fit(heavy((24, 333)), method)
    lines = table(quantized)
    kind = methods.METHODS[method.name]
    groups = kind.num_groups(333)
    assert lines.shape == (1 if kind.per_tensor else 24 * groups, 2**method.bits)
    if not kind.per_tensor:
        assert torch.equal(
            table(quantized, slice(8 * groups, 16 * groups)), lines[8 * groups : 16 * groups]
        )


def test_reading_names_imports_neither_torch_nor_numba() -> None:
    code = (
        "import sys; from qsdm.qconfig import QuantMethod; QuantMethod.parse('uaq-4');"
        "print(sorted({'torch', 'numba'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
