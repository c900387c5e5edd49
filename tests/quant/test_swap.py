from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod
from qsdm.quant import placement
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.kernels import build
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import Switch, quantized

UAQ3, UAQ4 = QuantMethod("uaq", 3), QuantMethod("uaq", 4)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Conv2d(12, 4, 3)
        self.c = nn.Linear(8, 8)
        self.d = nn.Linear(8, 8)


WEIGHTS = (
    Weight("a", "a.weight", (8, 6)),
    Weight("b#0", "b.weight", (4, 5, 3, 3)),
    Weight("b#1", "b.weight", (4, 7, 3, 3), start=5),
    Weight("c", "c.weight", (8, 8), ties=("d.weight",)),
)
GRAPH = Graph("toy", tuple(Node(w.name, Op.LINEAR, weight=w) for w in WEIGHTS), ())


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64], ids=str)
def toy(request: pytest.FixtureRequest) -> Toy:
    torch.manual_seed(0)
    module = Toy()
    module.d.load_state_dict(module.c.state_dict())
    return module.to(request.param)


class Fits:
    """Quantized versions of a module's original weights, and how often each was requested."""

    def __init__(self, module: nn.Module) -> None:
        self.originals = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.calls: list[str] = []

    def __call__(
        self, name: str, method: QuantMethod, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.calls.append(name)
        return dequantize(self.quantized(name, method), out)

    def quantized(self, name: str, method: QuantMethod) -> Quantized:
        weight = next(w for w in WEIGHTS if w.name == name)
        slice_ = self.originals[weight.parameter][:, weight.start : weight.start + weight.shape[1]]
        return fit(slice_, method)


def test_only_changed_weights_are_touched(toy: Toy) -> None:
    fits = Fits(toy)
    switch = Switch(toy, GRAPH, fits)
    assert switch.to(QuantConfig("toy", dict.fromkeys(["a", "b#0", "c"], UAQ4))) == 3
    fits.calls.clear()
    assert switch.to(QuantConfig("toy", {"a": UAQ4, "b#0": UAQ3, "c": UAQ4})) == 1
    assert fits.calls == ["b#0"]
    assert switch.to(QuantConfig("toy", {"a": UAQ4, "b#0": UAQ3})) == 1
    assert fits.calls == ["b#0"]
    assert torch.equal(toy.c.weight, fits.originals["c.weight"])
    assert torch.equal(toy.d.weight, fits.originals["d.weight"])


def test_values_are_the_methods_own(toy: Toy) -> None:
    fits = Fits(toy)
    parameter = toy.b.weight
    with quantized(toy, GRAPH, QuantConfig("toy", {"b#1": UAQ3, "c": UAQ4}), fits):
        assert toy.b.weight is parameter
        assert torch.equal(toy.b.weight[:, :5], fits.originals["b.weight"][:, :5])
        assert torch.equal(toy.b.weight[:, 5:], fits("b#1", UAQ3).to(toy.b.weight.dtype))
        assert torch.equal(toy.c.weight, fits("c", UAQ4).to(toy.c.weight.dtype))
        assert torch.equal(toy.c.weight, toy.d.weight)


def test_any_order_of_configurations_leads_to_the_same_weights(toy: Toy) -> None:
    fits = Fits(toy)
    first = QuantConfig("toy", {"a": UAQ3, "b#1": UAQ4})
    second = QuantConfig("toy", {"a": UAQ4, "c": UAQ3})
    switch = Switch(toy, GRAPH, fits)
    switch.to(second)
    direct = {name: p.detach().clone() for name, p in toy.named_parameters()}
    switch.to(first)
    switch.to(second)
    assert all(torch.equal(p, direct[name]) for name, p in toy.named_parameters())


def test_stored_originals_are_read_again_and_others_are_copied(toy: Toy) -> None:
    fits = Fits(toy)
    stored = {name: p.detach().clone() for name, p in toy.named_parameters()}
    with torch.no_grad():
        toy.a.weight[0, 0] += 1  # as a fused adapter does: the file has other values
    before = {name: p.detach().clone() for name, p in toy.named_parameters()}
    asked: list[str] = []

    def originals(name: str) -> torch.Tensor | None:
        asked.append(name)
        return None if name == "d.weight" else stored[name]  # a tied weight is stored once

    switch = Switch(toy, GRAPH, fits, originals)
    assert set(asked) == {"a.weight", "b.weight", "c.weight", "d.weight"}
    kept = {name for name, own in switch._originals.items() if own is stored[name]}
    assert kept == {"b.weight", "c.weight"}
    switch.to(QuantConfig("toy", dict.fromkeys(["a", "b#0", "b#1", "c"], UAQ4)))
    assert not torch.equal(toy.b.weight, before["b.weight"])
    assert switch.restore() == 4
    assert all(torch.equal(p, before[name]) for name, p in toy.named_parameters())


def test_an_error_leaves_the_module_restored(toy: Toy) -> None:
    fits = Fits(toy)
    with (
        pytest.raises(RuntimeError),
        quantized(toy, GRAPH, QuantConfig("toy", {"a": UAQ3, "b#0": UAQ4}), fits),
    ):
        raise RuntimeError
    assert all(torch.equal(p, fits.originals[name]) for name, p in toy.named_parameters())


def test_foreign_configurations_and_modules_are_refused(toy: Toy) -> None:
    with pytest.raises(OutsideSpace, match="has no weight 'x'"):
        Switch(toy, GRAPH, Fits(toy)).to(QuantConfig("toy", {"x": UAQ3}))
    with pytest.raises(ValueError, match=r"lacks the parameter 'a\.weight'.*trace it again"):
        Switch(nn.Linear(2, 2), GRAPH, Fits(toy))
    toy.a = nn.Linear(5, 8)
    with pytest.raises(ValueError, match="different models"):
        Switch(toy, GRAPH, Fits(toy))


@pytest.mark.cuda
@pytest.mark.skipif(not build.cuda_available(), reason="needs an NVIDIA GPU and cuda-core")
@pytest.mark.parametrize("is_kept", [True, False])
def test_on_a_gpu_weights_become_those_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    if not is_kept:
        monkeypatch.setattr(placement, "room", lambda _: 0)
    torch.manual_seed(0)
    here = Toy()
    here.d.load_state_dict(here.c.state_dict())
    here = here.to(torch.bfloat16)
    there = copy.deepcopy(here).cuda()
    there.b.weight.data = there.b.weight.data.contiguous(memory_format=torch.channels_last)
    fits, place = Fits(here), placement.Placement()

    def on_gpu(name: str, method: QuantMethod, out: torch.Tensor) -> torch.Tensor:
        codes = place.on(out.device, name, method, lambda: fits.quantized(name, method))
        assert codes.codes.is_cuda
        return dequantize(codes, out)

    pair = Switch(here, GRAPH, fits), Switch(there, GRAPH, on_gpu)
    for methods in ({"a": UAQ3, "b#1": UAQ4, "c": UAQ3}, {"b#0": UAQ4, "b#1": UAQ3}, {}):
        for switch in pair:
            switch.to(QuantConfig("toy", methods))
        for name, values in here.named_parameters():
            assert torch.equal(values, there.get_parameter(name).cpu())
