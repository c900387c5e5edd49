from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from qsdm.graph import Graph, Node, Op, Weight
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod
from qsdm.qconfig.steps import StepBin
from qsdm.quant.activations import Rounding, fake_quantize, quantized_activations
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.packed import (
    PackedConv2d,
    PackedLayer,
    PackedLinear,
    PackedWeight,
    decode,
)
from qsdm.quant.packed_model import pack, unpack
from qsdm.quant.swap import Switch, quantized, sliced

METHODS = "uaq-3 uaq-4 uaq_g32-4 kmeans_c-3 kmeans_a-4 nf4_g64-4 fp8_e4m3-8 fp-16 uaq-8".split()  # noqa: SIM905
WEIGHTS = (
    Weight("a", "a.weight", (16, 24)),
    Weight("b#0", "b.weight", (8, 10, 3, 3)),
    Weight("b#1", "b.weight", (8, 6, 3, 3), start=10),
    Weight("c", "c.weight", (12, 8), ties=("d.weight",)),
)
GRAPH = Graph("toy", tuple(Node(w.name, Op.LINEAR, weight=w) for w in WEIGHTS), ())
MIXED = QuantConfig(
    "toy",
    {
        "a": QuantMethod("uaq", 3),
        "b#1": QuantMethod("kmeans_a", 3),
        "c": QuantMethod("kmeans_c", 4),
    },
)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 16)
        self.b = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.c = nn.Linear(8, 12)
        self.d = nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).mT.unflatten(-1, (4, 4))
        y = self.b(y).flatten(2).mT
        return (self.c(y) + self.d(y)).softmax(-1)


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    module = Toy()
    module.d.load_state_dict(module.c.state_dict())
    return module.eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1))


def faked(module: nn.Module, x: torch.Tensor, activation_bits: int = 0) -> torch.Tensor:
    """What the context manager's fake quantization gives."""
    originals = {name: p.detach().clone() for name, p in module.named_parameters()}

    def values(name: str, method: QuantMethod, out: torch.Tensor | None = None) -> torch.Tensor:
        weight = next(w for w in WEIGHTS if w.name == name)
        return dequantize(fit(sliced(originals[weight.parameter], weight), method), out)

    with torch.no_grad(), quantized(module, GRAPH, MIXED, values):
        if activation_bits:
            with quantized_activations(module, activation_bits):
                return module(x)
        return module(x)


@pytest.mark.parametrize("text", METHODS)
def test_decoding_gives_the_methods_values_in_any_type(text: str) -> None:
    weight = torch.randn(24, 70, generator=torch.Generator().manual_seed(2)).half()
    quantized = fit(weight, QuantMethod.parse(text))
    part = PackedWeight.of(quantized)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(part(dtype), dequantize(quantized).to(dtype))


@pytest.mark.parametrize(
    "text", ["uaq-3", "uaq-8", "uaq_g32-4", "kmeans_c-3", "kmeans_a-4", "nf4_g64-4"]
)
def test_rows_are_decoded_as_in_the_whole(text: str) -> None:
    numbers = torch.tensor([[3, 39, 3], [0, 7, 8]])
    for width in (12, 136):  # of 3 bits, rows of 12 do not fill whole bytes
        weight = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
        packed = PackedWeight.of(fit(weight, QuantMethod.parse(text)))
        values = packed.rows(numbers, torch.float16)
        assert torch.equal(values, packed(torch.float16)[numbers])


def test_packed_layers_compute_what_fake_quantization_does(toy: Toy, x: torch.Tensor) -> None:
    expected = faked(toy, x)
    toy.b.weight.data[:, :10] = (
        toy.b.weight.data[:, :10].half().float()
    )  # the slice that stays in 16 bit
    expected = faked(toy, x)
    pack(toy, GRAPH, MIXED)
    assert isinstance(toy.a, PackedLinear)
    assert isinstance(toy.b, PackedConv2d)
    assert len(toy.b.packed) == 2
    with torch.no_grad():
        assert torch.equal(toy(x), expected)


def test_activations_are_quantized_on_top(toy: Toy, x: torch.Tensor) -> None:
    toy.half().float()
    expected = faked(toy, x, 6)
    pack(toy, GRAPH, MIXED)
    with torch.no_grad(), quantized_activations(toy, 6):
        got = toy(x)
    assert torch.equal(got, expected)
    with torch.no_grad():
        assert not torch.equal(toy(x), expected)


def test_packed_layers_round_what_the_configuration_says(toy: Toy, x: torch.Tensor) -> None:
    toy.half().float()
    expected, plain = faked(toy, x, 6), faked(toy, x)
    rounded = QuantConfig("toy", MIXED.methods, 6)
    with torch.no_grad():
        pack(toy, GRAPH, rounded)
        assert torch.equal(toy(x), expected)
        assert torch.equal(copy.deepcopy(toy)(x), expected)
        assert torch.equal(unpack(toy)(x), plain)  # plain layers round nothing


def test_bins_of_steps_are_not_packed(toy: Toy) -> None:
    one = StepBin(0.8, 1, QuantConfig("toy", {}))
    with pytest.raises(ValueError, match=r"one configuration for all steps.*0\.8 to 1"):
        pack(toy, GRAPH, QuantConfig("toy", MIXED.methods, steps=(one,)))
    assert isinstance(toy.a, nn.Linear)


def test_a_switch_rounds_and_stops_rounding(toy: Toy, x: torch.Tensor) -> None:
    toy.half().float()
    expected, plain = faked(toy, x, 6), faked(toy, x)
    originals = {name: p.detach().clone() for name, p in toy.named_parameters()}

    def values(name: str, method: QuantMethod, out: torch.Tensor | None = None) -> torch.Tensor:
        weight = next(w for w in WEIGHTS if w.name == name)
        return dequantize(fit(sliced(originals[weight.parameter], weight), method), out)

    with torch.no_grad():
        full = toy(x)
        switch = Switch(toy, GRAPH, values)
        for _ in range(2):
            switch.to(QuantConfig("toy", MIXED.methods, 6))
            assert torch.equal(toy(x), expected)
            switch.to(MIXED)
            assert torch.equal(toy(x), plain)
        switch.to(QuantConfig("toy", {}, None, {"a": 3}))
        only = toy(x)
        toy.a.register_forward_pre_hook(lambda _, inputs: fake_quantize(inputs[0], 3))
        switch.restore()
        assert torch.equal(toy(x), only)
        assert not torch.equal(only, full)


def test_a_layer_that_cannot_round_is_named(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"no layer of 'lost.weight'"):
        Rounding(toy, {"lost.weight": 8})
    toy.a = nn.Bilinear(2, 2, 2)
    with pytest.raises(
        ValueError, match=r"'a\.weight' cannot be rounded, as its layer is a Bilinear"
    ):
        Rounding(toy, {"a.weight": 8})
    with pytest.raises(OutsideSpace, match="no weight 'never_called'"):
        pack(toy, GRAPH, QuantConfig("toy", {}, None, {"never_called": 8}))


def test_state_dict_round_trip_and_copy(toy: Toy, x: torch.Tensor) -> None:
    other = copy.deepcopy(toy)
    nn.init.zeros_(other.a.weight)
    pack(toy, GRAPH, MIXED)
    pack(other, GRAPH, MIXED)
    assert not torch.equal(other(x), toy(x))
    other.load_state_dict(toy.state_dict())
    assert torch.equal(other(x), toy(x))
    assert torch.equal(copy.deepcopy(toy)(x), toy(x))
    assert "a.weight" not in list(toy.state_dict())


def test_a_cast_changes_what_is_computed_and_not_what_is_stored(toy: Toy, x: torch.Tensor) -> None:
    pack(toy, GRAPH, MIXED)
    before = {
        name: tensor.clone() for name, tensor in toy.state_dict().items() if ".packed." in name
    }
    expected = toy(x)
    toy.to(torch.bfloat16)
    assert toy(x.bfloat16()).dtype == toy.a.weight.dtype == torch.bfloat16
    assert all(
        torch.equal(toy.state_dict()[n], t) and toy.state_dict()[n].dtype == t.dtype
        for n, t in before.items()
    )
    toy.float()
    torch.testing.assert_close(toy(x), expected, atol=1e-2, rtol=0)  # biases went through bfloat16
    assert toy.to("meta").a.packed[0].codes.device.type == "meta"


def test_stored_bytes_are_fewer(toy: Toy) -> None:
    before = sum(t.nbytes for t in toy.state_dict().values())
    pack(
        toy,
        GRAPH,
        QuantConfig("toy", dict.fromkeys(["a", "b#0", "b#1", "c"], QuantMethod("kmeans_a", 3))),
    )
    assert sum(t.nbytes for t in toy.state_dict().values()) < before / 4


def test_compiles_and_exports(toy: Toy, x: torch.Tensor) -> None:
    pack(toy, GRAPH, MIXED)
    with torch.no_grad():
        assert torch.equal(torch.compile(toy, backend="aot_eager", fullgraph=True)(x), toy(x))
        exported = torch.export.export(toy, (x,))
        assert any("qsdm.decode" in str(node.target) for node in exported.graph.nodes)
        assert torch.equal(exported.module()(x), toy(x))


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, when it starts its compiler
def test_inductor_compiles(toy: Toy, x: torch.Tensor) -> None:
    pack(toy, GRAPH, MIXED)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(toy, fullgraph=True)(x), toy(x))


def test_the_operator_is_sound() -> None:
    quantized = fit(
        torch.randn(8, 12, generator=torch.Generator().manual_seed(0)), QuantMethod("uaq", 4)
    )
    arguments = (quantized.codes, list(quantized.tensors.values()), "uaq-4", [8, 12], torch.float32)
    torch.library.opcheck(decode, arguments, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_an_adapter_works_on_top_and_cannot_be_merged(toy: Toy, x: torch.Tensor) -> None:
    peft = pytest.importorskip("peft")
    pack(toy, GRAPH, MIXED)
    plain = toy(x)
    adapted = peft.get_peft_model(
        toy, peft.LoraConfig(target_modules=["a", "b"], r=2, init_lora_weights=False)
    )
    assert not torch.equal(adapted(x), plain)
    adapted(x).sum().backward()
    assert adapted.base_model.model.a.lora_B["default"].weight.grad is not None
    for safe in (False, True):
        with pytest.raises(RuntimeError, match="cannot be merged"):
            adapted.merge_adapter(safe_merge=safe)


def test_offloaded_buffers_come_back_for_each_call(toy: Toy, x: torch.Tensor) -> None:
    accelerate = pytest.importorskip("accelerate")
    pack(toy, GRAPH, MIXED)
    expected = toy(x)
    accelerate.cpu_offload(toy, execution_device=torch.device("cpu"), offload_buffers=True)
    assert toy.a.packed[0].codes.device.type == "meta"
    assert torch.equal(toy(x), expected)


def test_what_does_not_fit_is_refused(toy: Toy) -> None:
    with pytest.raises(OutsideSpace, match="no weight 'z'"):
        pack(toy, GRAPH, QuantConfig("toy", {"z": QuantMethod("uaq", 4)}))
    toy.a = nn.Linear(24, 17)
    with pytest.raises(ValueError, match="not the traced denoiser"):
        pack(
            toy,
            GRAPH,
            QuantConfig("toy", {"a": QuantMethod("uaq", 4)}),
            lambda *_: fit(torch.ones(16, 24), MIXED.methods["a"]),
        )

    class Own(nn.Linear):
        pass

    toy.a = Own(24, 16)
    with pytest.raises(ValueError, match="no packed form"):
        pack(toy, GRAPH, QuantConfig("toy", {"a": QuantMethod("uaq", 4)}))


def test_a_packed_weight_is_read_and_never_written(toy: Toy) -> None:
    pack(toy, GRAPH, MIXED)
    values = toy.a.decoded()
    assert torch.equal(toy.a.weight + 0, values)
    assert torch.equal(
        torch.zeros(16, 24).add_(toy.a.weight), values
    )  # another tensor may be written to
    for write in (
        lambda weight: weight.add_(1),
        lambda weight: weight.copy_(torch.zeros(16, 24)),
        lambda weight: weight.__setitem__(0, 0.0),
        lambda weight: weight.__iadd__(1),
        nn.init.zeros_,
        nn.init.kaiming_uniform_,
    ):
        with pytest.raises(RuntimeError, match="cannot be written to"), torch.no_grad():
            write(toy.a.weight)
    assert torch.equal(toy.a.decoded(), values)


def test_tied_names_of_one_parameter_are_packed_once(toy: Toy, x: torch.Tensor) -> None:
    toy.b.weight.data = toy.b.weight.data.half().float()  # the slice that stays in 16 bit
    toy.d.weight = toy.c.weight
    expected = faked(toy, x)
    pack(toy, GRAPH, MIXED)
    assert len(toy.c.packed) == 1
    assert toy.c.packed[0] is toy.d.packed[0]
    with torch.no_grad():
        assert torch.equal(toy(x), expected)


def test_modules_that_share_a_layer_share_its_packed_form(toy: Toy) -> None:
    toy.d = toy.c
    pack(toy, GRAPH, QuantConfig("toy", {"a": QuantMethod("uaq", 4)}))
    graph = Graph(
        "toy",
        tuple(
            Node(w.name, Op.LINEAR, weight=w)
            for w in (*WEIGHTS[1:3], Weight("c", "c.weight", (12, 8)))
        ),
        (),
    )
    pack(toy, graph, QuantConfig("toy", {"c": QuantMethod("uaq", 4)}))
    assert toy.c is toy.d
    assert isinstance(toy.c, PackedLayer)
