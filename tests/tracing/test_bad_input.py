"""What cannot be traced is told in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qsdm import tracing
from qsdm.tracing import TraceError, inputs, skeleton


def told(module: nn.Module, **arguments: object) -> str:
    with pytest.raises(TraceError) as caught:
        tracing.trace(module, arguments or {"sample": torch.zeros(1, 4)}, "x")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_module_without_weights_is_no_denoiser() -> None:
    assert "calls no Linear or Conv" in told(nn.Identity(), input=torch.zeros(1, 4))


def test_a_forward_without_named_inputs_is_no_denoiser(tiny_unet: nn.Module) -> None:
    class Empty(nn.Module): ...

    for module in (Empty(), nn.DataParallel(tiny_unet)):
        with pytest.raises(
            TraceError,
            match=r"forward names no input: it is a wrapper around .*, or not a denoiser$",
        ):
            tracing.trace_unaided(module, {}, "x")


def test_something_else_is_no_module() -> None:
    assert "wanted a torch.nn.Module" in told("sdxl")  # type: ignore[arg-type]


def test_wrong_inputs_name_the_call_that_failed() -> None:
    message = told(nn.Sequential(nn.Linear(8, 8)), input=torch.zeros(1, 4))
    assert "linear in 0 with [1, 4], [8, 8], [8]" in message
    assert "model.inputs" in message


def test_a_custom_kernel_is_told() -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, sample: Tensor) -> Tensor:
            raise NotImplementedError("flash_attn_func needs CUDA")

    assert "flash_attn_func needs CUDA" in told(Kernel())


class Calls(nn.Module):
    """A Linear, and then an operator that torch does not know."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.proj = nn.Linear(64, 64)
        self.operator = operator

    def forward(self, sample: Tensor) -> Tensor:
        return self.operator(self.proj(sample))


def test_an_operator_without_a_cpu_version_is_told() -> None:
    with torch.library._scoped_library("qsdm_tests", "DEF") as library:
        library.define("of_the_gpu(Tensor x) -> Tensor")
        library.impl("of_the_gpu", lambda x: x, "CUDA")
        message = told(Calls(torch.ops.qsdm_tests.of_the_gpu), sample=torch.zeros(1, 256, 64))
    assert "of_the_gpu in the forward with [1, 256, 64]" in message
    assert message.endswith(
        "this kernel does not run on a CPU: "
        "load the model with plain attention and without fused layers"
    )


def test_an_operator_without_a_rule_for_shapes_is_computed() -> None:
    with torch.library._scoped_library("qsdm_tests", "DEF") as library:
        library.define("doubled(Tensor x) -> Tensor")
        library.impl("doubled", lambda x: torch.cat([x, x], -1), "CPU")
        module = nn.Sequential(Calls(torch.ops.qsdm_tests.doubled), nn.Linear(128, 4))
        graph = tracing.trace(module, {"input": torch.zeros(1, 256, 64)}, "x")
    assert [w.name for w in graph.weights] == ["0.proj", "1"]
    assert {(graph.nodes[a].name, graph.nodes[b].name) for a, b in graph.edges} >= {("0.proj", "1")}


def test_a_kernel_whose_package_is_missing_is_told() -> None:
    def kernel(_x: Tensor) -> Tensor:
        raise ModuleNotFoundError("No module named 'triton'")

    message = told(Calls(kernel), sample=torch.zeros(1, 4, 64))
    assert "No module named 'triton'" in message
    assert "does not run on a CPU" in message


def test_quantized_models_are_refused(tiny_unet: nn.Module) -> None:
    integers = copy.deepcopy(tiny_unet)
    weight = torch.zeros(integers.conv_in.weight.shape, dtype=torch.int8)
    integers.conv_in._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    assert "already quantized (Conv2d at 'conv_in')" in told(integers)

    class Packed(Tensor):
        pass

    packed = copy.deepcopy(tiny_unet)
    packed.conv_in.weight = nn.Parameter(packed.conv_in.weight.data.as_subclass(Packed))
    assert "already quantized" in told(packed)
    flagged = copy.deepcopy(tiny_unet)
    flagged.hf_quantizer = object()
    assert "load it without quantization_config" in told(flagged)


def test_adapters_and_offloading_are_refused(tiny_unet: nn.Module) -> None:
    adapted = copy.deepcopy(tiny_unet)
    adapted.conv_in.lora_A = nn.Linear(4, 4)
    assert "adapters" in told(adapted)
    offloaded = copy.deepcopy(tiny_unet)
    offloaded.conv_in._hf_hook = object()
    assert "offloaded" in told(offloaded)


def test_a_real_adapter_and_a_real_offload_are_refused(tiny_unet: nn.Module) -> None:
    accelerate, peft = pytest.importorskip("accelerate"), pytest.importorskip("peft")
    adapted = copy.deepcopy(tiny_unet)
    adapted.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    assert "call fuse_lora() and unload_lora_weights() first" in told(adapted)
    offloaded = accelerate.cpu_offload(
        copy.deepcopy(tiny_unet), execution_device=torch.device("cpu")
    )
    assert "load it without enable_*_offload()" in told(offloaded)


def test_a_meta_module_is_traced(tiny_unet: nn.Module) -> None:
    """Sequential offloading leaves meta tensors; without its hooks they are as good as weights."""
    from qsdm.tracing import skeleton

    plain = tracing.trace(tiny_unet, inputs.build(tiny_unet), "x")
    empty = skeleton.build(type(tiny_unet), tiny_unet.config)
    assert tracing.trace(empty, inputs.build(empty), "x").digest == plain.digest


def test_wrong_overrides_are_told(tiny_unet: nn.Module) -> None:
    for overrides, wanted in [
        ({"hidden": [1, 2]}, "takes no 'hidden'"),
        ({"sample": [1, -2]}, "positive sizes"),
        ({"sample": {"size": [1]}}, "must be a shape"),
        ({"sample": {"shape": [1], "dtype": "float17"}}, "must be a shape"),
    ]:
        with pytest.raises(TraceError, match=wanted):
            inputs.build(tiny_unet, overrides)
    wrong = inputs.build(tiny_unet, {"encoder_hidden_states": [1, 7, 5]})
    assert "to_k" in told(tiny_unet, **wrong) or "to_v" in told(tiny_unet, **wrong)


def test_overrides_replace_built_inputs(tiny_unet: nn.Module) -> None:
    built = inputs.build(
        tiny_unet,
        {
            "sample": [1, 4, 16, 24],
            "timestep": {"shape": [1], "dtype": "int64", "value": 3},
            "class_labels": None,
        },
    )
    assert built["sample"].shape == (1, 4, 16, 24)
    assert built["timestep"].tolist() == [3]
    graph = tracing.trace(tiny_unet, built, "tiny")
    assert graph.node_of("conv_in").activation == (1, 16, 16, 24)


def test_unknown_required_parameters_are_guessed_and_named_when_that_fails() -> None:
    class Exotic(nn.Module):
        def forward(self, sample: Tensor, wavelet: Tensor) -> Tensor:
            raise LookupError("no such wavelet")

    assert set(inputs.build(Exotic())) == {"sample", "wavelet"}
    with pytest.raises(
        TraceError,
        match=r"inputs sample, wavelet \(LookupError: no such wavelet\): give model\.inputs",
    ):
        tracing.trace_unaided(Exotic(), {}, "exotic")


def test_a_wrong_config_is_told() -> None:
    from diffusers import UNet2DConditionModel

    with pytest.raises(ValueError, match="does not take this config"):
        skeleton.build(UNet2DConditionModel, {"no_such_field": 1})


def test_capture_needs_a_call_of_the_denoiser(tiny_unet: nn.Module) -> None:
    class Silent:
        unet = tiny_unet

        def __call__(self) -> None: ...

    with pytest.raises(TraceError, match="without calling its unet"):
        inputs.capture(Silent(), "unet")
    assert "forward" not in vars(tiny_unet)
