"""The CUDA source compiles for every GPU generation; it and the CPU kernels equal the reference."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels, packing
from qsdm.quant.decoding import dequantize, table
from qsdm.quant.fitting import fit
from qsdm.quant.kernels import build, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
Twin = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """Runs a kernel on the CPU: ``twin("affine", dtype, (rows, n), inputs, numbers)``."""
    library = build.compile_twin(tmp_path_factory.mktemp("twin"))
    if library is None:
        pytest.skip("no C++ compiler (g++ or clang++): the kernels' CPU twin cannot be built")

    def run(
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, int],
        inputs: tuple,
        numbers: tuple,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype) if out is None else out
        place = [
            ctypes.c_void_p(i.data_ptr()) if isinstance(i, torch.Tensor) else i
            for i in (*inputs, out)
        ]
        threads = min(build.MAX_THREADS, max(32, 1 << (shape[1] - 1).bit_length()))
        getattr(library, f"{name}_{build.SUFFIX[str(dtype)]}")(shape[0], threads, *place, *numbers)
        return out

    return run


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits; any NaN equals any other."""
    view = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and bool(
        ((a.view(view) == b.view(view)) | (a.isnan() & b.isnan())).all()
    )


def values(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Of all magnitudes, halves of a step among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, shape) * np.exp(rng.normal(0, 2, (shape[0], 1)))
    x[:, ::7] = np.round(x[:, ::7] * 8) / 16
    return torch.from_numpy(x).to(dtype)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_nvrtc_compiles_the_source_without_a_gpu(arch: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'qsdm[cuda]'")
    code = build.compile_cubin(arch).code
    assert code[:4] == b"\x7fELF"
    for name in build.NAMES:
        assert name.encode() in code


@pytest.mark.parametrize(("n", "group"), [(1, 1), (33, 33), (300, 64), (256, 32), (1000, 1000)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@by_dtype
def test_affine_twin_is_the_reference(
    twin: Twin, dtype: torch.dtype, bits: int, n: int, group: int
) -> None:
    x = values((9, n), dtype)
    x[2, n // 2], x[3, n // 3], x[4, n // 4] = torch.nan, torch.inf, -torch.inf
    groups = -(-n // group)
    scale = torch.rand(9, groups, generator=torch.Generator().manual_seed(n)) + 1e-3
    scale[0] = 0.125  # exact ties
    zero = torch.randint(
        0, 2**bits, (9, groups), generator=torch.Generator().manual_seed(bits)
    ).float()
    numbers = (ctypes.c_int64(n), ctypes.c_int64(group), ctypes.c_float(2**bits - 1))
    expected = reference.affine(x, scale, zero, bits, group)
    assert same(twin("affine", dtype, (9, n), (x, scale, zero), numbers), expected)
    assert same(kernels.affine(x, scale, zero, bits, group), expected)
    out = torch.full_like(x, 7)
    kernels.affine_out(x, scale, zero, bits, group, out)
    assert same(out, expected)
    gradient = values((9, n), dtype, seed=1)
    expected = reference.affine_backward(gradient, x, scale, zero, bits, group)
    assert same(
        twin("affine_backward", dtype, (9, n), (gradient, x, scale, zero), numbers), expected
    )
    assert same(kernels.affine_backward(gradient, x, scale, zero, bits, group), expected)


@pytest.mark.parametrize(("n", "group"), [(1, 1), (33, 33), (300, 64), (256, 32), (256, 256)])
@pytest.mark.parametrize("bits", range(1, 9))
@by_dtype
def test_lookup_twin_is_the_reference(
    twin: Twin, dtype: torch.dtype, bits: int, n: int, group: int
) -> None:
    rng = np.random.default_rng(n)
    codes = torch.from_numpy(packing.pack(rng.integers(0, 2**bits, (5, n)).astype(np.uint8), bits))
    for lines in (1, 5 * -(-n // group)):
        lookup = torch.from_numpy(rng.normal(size=(lines, 2**bits)).astype(np.float32))
        inputs = (codes, ctypes.c_int64(codes.numel()), lookup)
        numbers = (
            ctypes.c_int64(n),
            ctypes.c_int64(group),
            ctypes.c_int(bits),
            ctypes.c_int64(lines),
            *map(ctypes.c_int64, (n, 1, 1, 1)),
        )
        expected = reference.lookup(codes, lookup, bits, 5, n, group, dtype)
        assert same(twin("lookup", dtype, (5, n), inputs, numbers), expected)
        assert same(kernels.lookup(codes, lookup, bits, 5, n, group, dtype), expected)
        out = torch.full((5, n), 7, dtype=dtype)
        kernels.lookup_out(codes, lookup, bits, group, out)
        assert same(out, expected)


LAYOUTS: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "contiguous": lambda dtype: torch.full((6, 10, 3, 2), 7, dtype=dtype),
    "a slice": lambda dtype: torch.full((6, 15, 3, 2), 7, dtype=dtype)[:, 2:12],
    "a slice of a linear layer": lambda dtype: torch.full((6, 15), 7, dtype=dtype)[:, 3:11],
    "channels last": lambda dtype: torch.full((6, 3, 2, 10), 7, dtype=dtype).permute(0, 3, 1, 2),
    "a slice of it": lambda dtype: torch.full((6, 3, 2, 15), 7, dtype=dtype).permute(0, 3, 1, 2)[
        :, 4:14
    ],
    "transposed": lambda dtype: torch.full((8, 6), 7, dtype=dtype).t(),
    "one position": lambda dtype: torch.full((6, 1, 1, 10), 7, dtype=dtype).permute(0, 3, 1, 2),
    "1-d": lambda dtype: torch.full((6, 4, 5), 7, dtype=dtype).transpose(1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@by_dtype
def test_values_are_written_where_they_belong(twin: Twin, dtype: torch.dtype, layout: str) -> None:
    out = LAYOUTS[layout](dtype)
    rows, n, bits = len(out), out[0].numel(), 3
    rng = np.random.default_rng(n)
    codes = torch.from_numpy(packing.pack(rng.integers(0, 8, (rows, n)).astype(np.uint8), bits))
    lookup = torch.from_numpy(rng.normal(size=(rows * -(-n // 8), 8)).astype(np.float32))
    expected = reference.lookup(codes, lookup, bits, rows, n, 8, dtype).view(out.shape)
    whole = out if out._base is None else out._base
    before, strides = whole.clone(), kernels.strides_of(out)
    kernels.lookup_out(codes, lookup, bits, 8, out)
    assert same(out.contiguous(), expected)
    assert (whole == 7).sum() == before.numel() - out.numel()  # nothing beside it
    out.fill_(7)
    assert strides is not None
    numbers = (n, 8, bits, len(lookup), *strides)
    types = [ctypes.c_int64] * 2 + [ctypes.c_int] + [ctypes.c_int64] * 5
    arguments = tuple(kind(number) for kind, number in zip(types, numbers, strict=True))
    inputs = (codes, ctypes.c_int64(codes.numel()), lookup)
    twin("lookup", dtype, (rows, n), inputs, arguments, out)
    assert same(out.contiguous(), expected)
    assert (whole == 7).sum() == before.numel() - out.numel()


def test_a_layout_without_one_distance_has_no_strides() -> None:
    assert kernels.strides_of(torch.zeros(4, 5, 3, 4)[..., :2]) is None
    assert kernels.strides_of(torch.zeros(4, 5, 2, 3)) == (30, 6, 6, 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("no cuda"), r"needs pip install 'qsdm\[cuda\]'"),
        (RuntimeError("NVRTC_ERROR_COMPILATION\nline 3"), "RuntimeError: NVRTC_ERROR_COMPILATION"),
    ],
    ids=["the extra is missing", "a kernel does not compile"],
)
def test_a_gpu_without_kernels_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "cuda_kernel", fail)
    build.usable.cache_clear()
    assert not kernels.run_on(torch.device("cuda", 3))
    assert not kernels.run_on(torch.device("cuda", 3))
    build.usable.cache_clear()
    text = capsys.readouterr().err
    assert re.search(rf"do not run on GPU 3 \(.*{reason}\): weights are decoded", text)
    assert text.count("\n") == 1
    assert not kernels.run_on(torch.device("cpu"))


@pytest.mark.parametrize("n", [1, 31, 257, 1280])
@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("from_zero", [False, True])
@by_dtype
def test_tokens_twin_is_the_reference(
    twin: Twin, dtype: torch.dtype, bits: int, n: int, from_zero: bool
) -> None:
    x = values((12, n), dtype)
    x[3] = 0
    x[4] = -2.5
    x[5, n // 2] = torch.nan
    x[7, n // 3] = -torch.nan
    x[6] += 1000
    if from_zero:
        x = x.abs()
    numbers = (ctypes.c_int64(n), ctypes.c_float(2**bits - 1), ctypes.c_int(from_zero))
    expected = reference.tokens(x, bits, from_zero)
    assert same(twin("tokens", dtype, (12, n), (x,), numbers), expected)
    assert same(kernels.tokens(x, bits, from_zero), expected)
    assert same(kernels.round_tokens(x, bits, from_zero), expected)


@pytest.mark.parametrize("n", [1, 31, 77, 4096])
@pytest.mark.parametrize("bits", [6, 8])
@by_dtype
def test_softmax_and_rounding_in_one_operation_are_both_of_them(
    dtype: torch.dtype, bits: int, n: int
) -> None:
    """Of 10,000 codes, fewer than one is another: the next. All else differs by a type's ulps."""
    x = 4 * values((300, n), dtype)
    x[3] = -torch.inf
    x[4, n // 2] = torch.nan
    x[5, n // 2] = -torch.nan
    x[6, n // 2] = torch.inf
    x[7, 1:] = -torch.inf
    x[8] = 0
    exact = kernels.tokens(x.float().softmax(-1), bits, from_zero=True)
    expected = exact.to(dtype).float()
    found = kernels.round_softmax(x, bits)
    assert found.dtype == dtype
    undefined = expected.isnan()
    assert torch.equal(found.isnan(), undefined)
    assert undefined.any(1).nonzero().flatten().tolist() == [3, 4, 5, 6]
    step = x.float().softmax(-1).amax(-1, keepdim=True) / (2**bits - 1)
    apart = ((found.float() - expected) / step)[~undefined].abs()
    ulps = {torch.float32: 2e-4, torch.float16: 0.13, torch.bfloat16: 1.1}[dtype]
    assert (apart > ulps).float().mean() < 1e-4
    assert apart.max() < 1 + ulps
    x.requires_grad_()
    kernels.round_softmax(x[8:], bits).sum().backward()
    assert x.grad is not None


def test_every_half_is_converted_as_torch_does(twin: Twin) -> None:
    """Values near the rounding boundaries of fp16 and bf16 test the twin's own conversions."""
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = halves.view(dtype)
        x = x[~x.isnan()].float()
        between = torch.cat([x, torch.nextafter(x, x.new_tensor(torch.inf)), (x + x.roll(1)) / 2])
        between = between[: between.numel() // 256 * 256].view(-1, 256)
        codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(between.shape[0])
        inputs = (codes, ctypes.c_int64(codes.numel()), between.contiguous())
        shape = tuple(between.shape)
        numbers = (
            ctypes.c_int64(256),
            ctypes.c_int64(256),
            ctypes.c_int(8),
            ctypes.c_int64(shape[0]),
            *map(ctypes.c_int64, (256, 1, 1, 1)),
        )
        assert same(twin("lookup", dtype, shape, inputs, numbers), between.to(dtype))


@pytest.mark.parametrize("method", ["uaq-3", "uaq-4", "uaq_g32-4", "uaq_asym-5"])
def test_fake_quantization_of_a_weight_is_what_is_stored(method: str) -> None:
    weight = values((16, 160), torch.float16)
    quantized = fit(weight, QuantMethod.parse(method))
    scale, zero = (quantized.tensors[name].float().view(16, -1) for name in ("scale", "zero_point"))
    group, bits = quantized.method.group_size or 160, quantized.method.bits
    assert torch.equal(
        kernels.affine(weight.float(), scale, zero, bits, group), dequantize(quantized)
    )
    lines = table(quantized)
    assert torch.equal(
        kernels.lookup(quantized.codes, lines, bits, 16, 160, group, torch.float32),
        dequantize(quantized),
    )


def test_quantizing_twice_is_quantizing_once() -> None:
    x = values((8, 100), torch.float32)
    scale, zero = torch.full((8, 1), 0.1), torch.full((8, 1), 7.0)
    once = kernels.affine(x, scale, zero, 4, 100)
    assert torch.equal(kernels.affine(once, scale, zero, 4, 100), once)
    assert once[0].unique().numel() <= 16


def test_gradients_pass_straight_through_inside_the_range() -> None:
    x = torch.tensor([[-2.0, -0.5, 0.0, 0.4, 3.0]], requires_grad=True)
    scale, zero = torch.tensor([[0.25]]), torch.tensor([[4.0]])
    kernels.affine(x, scale, zero, 3, 5).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]  # the range is [-1, 0.75]
    y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kernels.tokens(y, 8, False).sum().backward()
    assert y.grad is not None
    assert torch.equal(y.grad, torch.ones_like(y))


def test_operators_are_registered_as_torch_wants_them() -> None:
    scale, zero = torch.full((4, 2), 0.1), torch.full((4, 2), 7.0)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    codes, lines = torch.arange(100, 109, dtype=torch.uint8), torch.linspace(-1, 1, 8)[None]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(kernels.affine, (x, scale, zero, 4, 3), test_utils=tests)
    torch.library.opcheck(kernels.tokens, (x, 8, False), test_utils=tests)
    torch.library.opcheck(
        kernels.lookup, (codes, lines, 3, 4, 6, 6, torch.float16), test_utils=tests
    )
    x, out = x.detach(), torch.empty(4, 6)
    torch.library.opcheck(kernels.affine_backward, (x, x, scale, zero, 4, 3), test_utils=tests)
    torch.library.opcheck(kernels.affine_out, (x, scale, zero, 4, 3, out), test_utils=tests)
    torch.library.opcheck(kernels.lookup_out, (codes, lines, 3, 6, out), test_utils=tests)


class Layer(torch.nn.Module):
    """Every operator but the backward one."""

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        scale, zero, line = x.new_full((4, 1), 0.1), x.new_full((4, 1), 7.0), x.new_ones(1, 8)
        kernels.affine_out(
            kernels.tokens(x, 8, False), scale, zero, 4, 16, out := torch.empty_like(x)
        )
        kernels.lookup_out(codes, line, 3, 16, values := torch.empty_like(x))
        return kernels.affine(out, scale, zero, 3, 16) + values * kernels.lookup(
            codes, line, 3, 4, 16, 16, x.dtype
        )


@pytest.mark.parametrize("how", ["export", "compile"])
def test_export_and_compile_go_through(how: str) -> None:
    x, codes = values((4, 16), torch.float32), torch.arange(24, dtype=torch.uint8)
    if how == "export":
        program = torch.export.export(Layer(), (x, codes))
        assert all(
            f"qsdm.{name}" in str(program.graph) for name in ("tokens", "affine", "lookup_out")
        )
        actual = program.module()(x, codes)
    else:
        actual = torch.compile(Layer(), backend="aot_eager", fullgraph=True)(x, codes)
    assert torch.equal(actual, Layer()(x, codes))


def test_wrong_shapes_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"wanted scale float32 of shape \(4, 2\)"):
        kernels.affine(torch.zeros(4, 6), torch.ones(4, 1), torch.zeros(4, 2), 4, 3)
    with pytest.raises(
        ValueError, match=r"wanted a contiguous output, torch.float32 of shape \(4, 6\)"
    ):
        kernels.affine_out(
            torch.zeros(4, 6), torch.ones(4, 2), torch.zeros(4, 2), 4, 3, torch.zeros(6, 4).t()
        )
    with pytest.raises(ValueError, match="wanted 9 bytes of codes"):
        kernels.lookup(
            torch.zeros(8, dtype=torch.uint8), torch.zeros(1, 8), 3, 4, 6, 6, torch.float32
        )


def test_threads_change_nothing() -> None:
    x = values((300, 700), torch.bfloat16)
    scale = torch.rand(300, 1, generator=torch.Generator().manual_seed(0)) + 0.01
    zero = torch.full((300, 1), 3.0)
    one = kernels.affine(x, scale, zero, 4, 700), kernels.tokens(x, 6, False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = kernels.affine(x, scale, zero, 4, 700), kernels.tokens(x, 6, False)
    finally:
        torch.set_num_threads(before)
    assert all(map(same, one, three))


@pytest.mark.cuda
@pytest.mark.skipif(not build.cuda_available(), reason="needs an NVIDIA GPU and cuda-core")
@by_dtype
def test_gpu_is_the_reference(dtype: torch.dtype) -> None:
    x = values((64, 300), dtype)
    generator = torch.Generator().manual_seed(0)
    scale, zero = torch.rand(64, 5, generator=generator) + 0.01, torch.full((64, 5), 3.0)
    on_gpu = kernels.affine(x.cuda(), scale.cuda(), zero.cuda(), 4, 64)
    assert same(on_gpu.cpu(), reference.affine(x, scale, zero, 4, 64))
    assert same(kernels.tokens(x.cuda(), 8, False).cpu(), reference.tokens(x, 8, False))
    codes = torch.randint(0, 256, (64 * 300 * 3 // 8,), dtype=torch.uint8, generator=generator)
    lines = torch.randn(64, 8, generator=generator)
    on_gpu = kernels.lookup(codes.cuda(), lines.cuda(), 3, 64, 300, 300, dtype)
    assert same(on_gpu.cpu(), reference.lookup(codes, lines, 3, 64, 300, 300, dtype))
