from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import QuantMethod, Space
from qsdm.quant.calibrated import OtherWeights, PackedWeights, fitted_version, read_table
from qsdm.quant.calibration import calibrate, version_of
from qsdm.quant.decoding import dequantize
from qsdm.quant.digests import digest_of, fitted_digest
from qsdm.quant.fitting import VERSION, fit
from qsdm.store import StoreError

METHODS = [
    "uaq-3",
    "uaq-4",
    "kmeans_c-3",
    "kmeans_a-3",
    "uaq_g32-5",
    "nf4_g64-4",
    "fp8_e4m3-8",
    "fp-16",
]
WEIGHTS = (
    Weight("a", "a.weight", (8, 200)),
    Weight("b#0", "b.weight", (4, 5, 3, 3)),
    Weight("b#1", "b.weight", (4, 7, 3, 3), start=5),
    Weight("c", "c.weight", (80, 16), ties=("d.weight",)),
)
GRAPH = Graph("toy", tuple(Node(w.name, Op.LINEAR, weight=w) for w in WEIGHTS), ())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (8, 200), "b.weight": (4, 12, 3, 3), "c.weight": (80, 16)}
    tensors = {
        name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()
    }
    return tensors | {"d.weight": tensors["c.weight"].clone()}


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.of(GRAPH, METHODS)


@pytest.fixture(scope="module")
def path(
    tensors: dict[str, torch.Tensor], space: Space, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "some"
    calibrate(tensors.__getitem__, space, path)
    return path


def test_the_table_comes_back(path: Path, tensors: dict[str, torch.Tensor], space: Space) -> None:
    table = read_table(path)
    assert table.weights == tuple(weight.name for weight in WEIGHTS)
    assert table.methods == space.methods
    for i, (weight, offered) in enumerate(zip(WEIGHTS, space.options, strict=True)):
        for j, method in enumerate(table.methods):
            assert np.isnan(table.rel_error[i, j]) == (method not in offered)
            assert table.size_bytes[i, j] == method.size_bits(weight, 16) // 8
    a = tensors["a.weight"].double()
    j = table.methods.index(QuantMethod("uaq", 3))
    off = dequantize(fit(tensors["a.weight"], QuantMethod("uaq", 3))).double() - a
    assert table.rel_error[0, j] == pytest.approx(
        float(off.square().sum() / a.square().sum()), rel=1e-6
    )
    assert table.rel_error[0, table.methods.index(QuantMethod("fp", 16))] == 0


def test_both_errors_are_of_the_stored_values(
    path: Path, tensors: dict[str, torch.Tensor], space: Space
) -> None:
    table, packed = read_table(path), PackedWeights(path)
    assert table.norm_error is not None
    assert (np.isnan(table.norm_error) == np.isnan(table.rel_error)).all()
    for i, weight in enumerate(space.graph.weights):
        full = tensors[weight.parameter].double()[:, weight.start : weight.start + weight.shape[1]]
        for method in space.options[i]:
            missed = (packed.dequantize(weight.name, method).double() - full).abs()
            column = table.methods.index(method)
            for p, stored in ((2, table.rel_error), (2.4, table.norm_error)):
                expected = (missed.pow(p).sum() / full.abs().pow(p).sum()).item()
                np.testing.assert_allclose(stored[i, column], expected, rtol=1e-4, atol=1e-12)


def test_the_papers_error_is_a_named_option(
    tensors: dict[str, torch.Tensor], space: Space, tmp_path: Path
) -> None:
    table = calibrate(tensors.__getitem__, space, tmp_path, error="paper")
    full, i = tensors["b.weight"].double()[:, :5], 1
    for text in ("uaq-3", "kmeans_c-3", "kmeans_a-3"):
        method = QuantMethod.parse(text)
        if method in space.options[i]:
            off = (dequantize(fit(full.half(), method)).double() - full).abs().pow(2.4)
            expected = off.sum(1).mean() if text == "kmeans_a-3" else off.mean((1, 2, 3)).sum()
            assert table.rel_error[i, table.methods.index(method)] == pytest.approx(
                expected.item(), rel=1e-4
            )
    with pytest.raises(ValueError, match="wanted the error 'relative', 'weighted' or 'paper'"):
        calibrate(tensors.__getitem__, space, tmp_path, error="mean")


def test_weighted_fits_are_kept_apart_by_the_inputs(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    space = Space.of(GRAPH, ["uaq-3", "uaq_w-3", "kmeans_a_w-3"])
    moments = {"a": np.linspace(0.1, 4, 200, dtype=np.float32), "b#1": np.float32(range(1, 8))}
    table = calibrate(tensors.__getitem__, space, tmp_path, error="weighted", importances=moments)
    method = QuantMethod("uaq_w", 3)
    missed = PackedWeights(tmp_path).dequantize("b#1", method) - tensors["b.weight"][:, 5:]
    sums = [x.float().square().sum((0, 2, 3)) for x in (missed, tensors["b.weight"][:, 5:])]
    off, norm = (float(squares @ torch.from_numpy(moments["b#1"])) for squares in sums)
    assert table.rel_error[2, table.methods.index(method)] == pytest.approx(off / norm, rel=1e-4)
    other = {**moments, "a": moments["a"][::-1].copy()}
    versions = {version_of(space, inputs) for inputs in (moments, other)}
    assert len(versions) == 2
    assert fitted_version(tmp_path) in versions
    plain = Space.of(GRAPH, ["uaq-3"])
    assert version_of(plain, moments) == version_of(space, None) == VERSION


def test_packed_weights_are_the_fits(
    path: Path, tensors: dict[str, torch.Tensor], space: Space
) -> None:
    packed = PackedWeights(path)
    for weight, offered in zip(WEIGHTS, space.options, strict=True):
        original = tensors[weight.parameter][:, weight.start : weight.start + weight.shape[1]]
        for method in offered:
            assert torch.equal(
                packed.dequantize(weight.name, method), dequantize(fit(original, method))
            )
            copies = 1 + len(weight.ties)
            assert (
                copies * packed.quantized(weight.name, method).size_bytes
                == method.size_bits(weight, 16) // 8
            )
            assert (weight.name, method) in packed


def test_packed_weights_travel_to_another_process_by_their_path(path: Path) -> None:
    text = pickle.dumps(PackedWeights(path))
    assert len(text) < 2000
    method = QuantMethod("uaq", 3)
    assert torch.equal(
        pickle.loads(text).dequantize("a", method), PackedWeights(path).dequantize("a", method)
    )


def test_calibrating_again_gives_the_same_bytes(
    path: Path, tensors: dict[str, torch.Tensor], space: Space, tmp_path: Path
) -> None:
    calibrate(tensors.__getitem__, space, tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == (
        path / "weights.safetensors"
    ).read_bytes()


def test_what_is_not_there_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no uaq-8 of 'a': run python"):
        PackedWeights(path).dequantize("a", QuantMethod("uaq", 8))
    with pytest.raises(StoreError, match=r"run python -m qsdm\.calibrate again"):
        PackedWeights(tmp_path)
    with pytest.raises(StoreError, match="damaged or was not written by qsdm"):
        read_table(tmp_path)


@pytest.mark.parametrize("name", ["weights", "table"])
def test_a_truncated_file_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    whole = (path / f"{name}.safetensors").read_bytes()
    (tmp_path / f"{name}.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError):
        PackedWeights(tmp_path) if name == "weights" else read_table(tmp_path)


def test_tied_parameters_must_be_equal(
    tensors: dict[str, torch.Tensor], space: Space, tmp_path: Path
) -> None:
    other = tensors | {"d.weight": tensors["d.weight"] + 1}
    with pytest.raises(ValueError, match=r"'d\.weight' is tied to 'c\.weight'"):
        calibrate(other.__getitem__, space, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused(
    tensors: dict[str, torch.Tensor], space: Space, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"wanted 'a' of shape \(8, 200\)"):
        calibrate((tensors | {"a.weight": torch.zeros(8, 100)}).__getitem__, space, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_parameter_that_is_not_finite_is_named(
    tensors: dict[str, torch.Tensor], space: Space, tmp_path: Path, value: float
) -> None:
    weight = next(weight for weight in space.graph.weights if weight.ties)
    name = weight.parameter
    damaged = tensors[name].clone()
    damaged.view(-1)[3] = value
    changed = tensors | dict.fromkeys((name, *weight.ties), damaged)
    with pytest.raises(
        ValueError, match=f"^{re.escape(name)}: the weight contains NaN or infinities"
    ):
        calibrate(changed.__getitem__, space, tmp_path)


def test_what_was_quantized_is_what_is_drawn_with(
    path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    """Bit by bit, in whatever type the same values are held."""
    packed = PackedWeights(path)
    packed.require(tensors.__getitem__, GRAPH)
    packed.require({name: t.float() for name, t in tensors.items()}.__getitem__, GRAPH)
    for name in tensors:
        changed = {key: tensor.float().clone() for key, tensor in tensors.items()}
        changed[name].view(-1)[-1] *= 1 + 2**-20
        with pytest.raises(
            OtherWeights, match=rf"{name} was quantized from other weights of 'toy'"
        ):
            packed.require(changed.__getitem__, GRAPH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_digest_is_of_the_values(dtype: torch.dtype) -> None:
    """Not of their type or of how they lie in memory."""
    values = torch.randn(3, 1 << 18, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert digest_of(values) == digest_of(values.float())
    assert digest_of(values[:, 5:]) == digest_of(values[:, 5:].float().contiguous())
    assert digest_of(values[:, 5:]) != digest_of(values[:, :-5])


def test_a_fused_adapter_is_seen(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A LoRA of rank 1 that changes each weight of one layer by 2 %."""
    changed = {name: tensor.float() for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(size, generator=generator) for size in ((8, 1), (1, 200)))
    changed["a.weight"] = changed["a.weight"] + 0.02 * up @ down
    with pytest.raises(OtherWeights, match=r"run python -m qsdm\.calibrate \+model=toy"):
        PackedWeights(path).require(changed.__getitem__, GRAPH)


def test_files_that_do_not_tell_their_origin_are_made_again(
    path: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """As qsdm 0.1.0 wrote them."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = path / "weights.safetensors"
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["qsdm"])
    del about["digests"]
    save_file(load_file(file), tmp_path / "weights.safetensors", {"qsdm": json.dumps(about)})
    packed = PackedWeights(tmp_path)
    with pytest.raises(OtherWeights, match=r"does not record which weights .*calibrate .* again"):
        packed.require(tensors.__getitem__, GRAPH)


def test_the_table_holds_the_same_digest(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    assert read_table(path).fitted == fitted_digest(tensors.__getitem__, GRAPH)
    changed = {name: 2 * tensor for name, tensor in tensors.items()}
    assert read_table(path).fitted != fitted_digest(changed.__getitem__, GRAPH)
