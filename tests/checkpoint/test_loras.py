"""LoRAs by ``pipeline.load_lora_weights`` on packed denoisers, for every loader of diffusers.

The dequantized denoiser, an ordinary one, gives the right output. Table: docs/checkpoints.md.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_cases import CASES, arguments, packed, tiny
from soak import soaked
from torch import nn

from qsdm.checkpoint import CheckpointError, dequantized, load_quantized
from qsdm.quant.packed import PackedLayer

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft's and diffusers' own

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
NO_PIPELINE = {"AmusedLoraLoaderMixin", "LoraLoaderMixin"}
"""Loaders that no pipeline of diffusers uses any more."""
Case = tuple[str, nn.Module, nn.Module, Callable[[nn.Module], torch.Tensor]]
FAST = {
    *(f"{kind}LoraLoaderMixin" for kind in ("StableDiffusion", "StableDiffusionXL", "SD3")),
    *(f"{kind}LoraLoaderMixin" for kind in ("Flux", "QwenImage", "Sana", "Wan", "CogVideoX")),
}
SD, FLUX = "StableDiffusionLoraLoaderMixin", "FluxLoraLoaderMixin"


def pipeline_of(loader: str, denoiser: nn.Module) -> Any:
    """The loader's pipeline, of which only the denoiser is there."""
    import diffusers

    case = CASES[loader]
    kind = getattr(diffusers, case.pipeline)
    if issubclass(kind, diffusers.ModularPipeline):
        pipeline = kind()
        pipeline.update_components(**{case.component: denoiser})
        return pipeline
    parameters = inspect.signature(kind.__init__).parameters
    absent: dict[str, Any] = {
        k: None for k, v in parameters.items() if k != "self" and v.default is v.empty
    }
    if loader == "CosmosLoraLoaderMixin":  # it asks these two for their configs
        absent |= {
            "safety_checker": nn.Identity(),
            "vae": diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1),
        }
    if loader == "RFD4ProteinaLoraLoaderMixin":
        absent["vae"] = nn.Identity()
        absent["vae"].config = SimpleNamespace(latent_dim=denoiser.config.latent_dim)
    return kind(**{**absent, case.component: denoiser})


def random_lora(loader: str, denoiser: nn.Module, seed: int = 1, rank: int = 2) -> dict[str, Any]:
    """For every Linear layer, as diffusers saves it; the alpha is the rank."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, layer in denoiser.named_modules():
        if isinstance(layer, nn.Linear):
            path = f"{CASES[loader].component}.{name}"
            into, out = layer.in_features, layer.out_features
            state[f"{path}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / 4
            state[f"{path}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / 4
    return state


def merged(loader: str, denoiser: nn.Module, lora: dict[str, torch.Tensor]) -> nn.Module:
    """A plain denoiser with the LoRA's products added to its weights by hand."""
    plain = dequantized(denoiser)
    for key, down in lora.items():
        path, lora_a, rest = key.partition(".lora_A")
        if lora_a:
            layer = plain.get_submodule(path.removeprefix(f"{CASES[loader].component}."))
            layer.weight.data += lora[f"{path}.lora_B{rest}"] @ down
    return plain


@torch.inference_mode()
def output(denoiser: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    outputs = denoiser(**given)
    while not isinstance(outputs, torch.Tensor):
        outputs = outputs[0]
    return outputs


@pytest.mark.parametrize("loader", soaked(sorted(set(CASES) - NO_PIPELINE), FAST))
def test_a_lora_does_what_it_does_on_the_dequantized_denoiser(loader: str, tmp_path: Path) -> None:
    import diffusers

    try:
        getattr(diffusers, CASES[loader].pipeline)
    except (AttributeError, RuntimeError) as error:  # too old, or transformers is
        pytest.skip(f"no {CASES[loader].pipeline} can be imported: {error}")
    full = tiny(loader)
    given = arguments(loader, full)
    denoiser = packed(full, tmp_path)
    lora = random_lora(loader, denoiser)
    before = output(denoiser, given)
    assert before.isfinite().all()
    outputs = []
    for one in (denoiser, dequantized(denoiser)):
        pipeline = pipeline_of(loader, one)
        pipeline.load_lora_weights(lora, adapter_name="a")
        adapted = [layer for layer in one.modules() if hasattr(layer, "lora_A")]
        assert len(adapted) == len(lora) // 2
        outputs.append(output(one, given))
        pipeline.unload_lora_weights()
        assert torch.equal(output(one, given), before)
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], before, rtol=1e-3)
    expected = output(merged(loader, denoiser, lora), given)
    scale = (expected - before).abs().max()
    assert (outputs[0] - expected).abs().max() < 1e-3 * scale


@pytest.fixture(params=[SD, FLUX])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A loader, a packed denoiser, its dequantized twin, and what computes a denoiser's output."""
    full = tiny(request.param)
    given = arguments(request.param, full)
    denoiser = packed(full, tmp_path)
    return request.param, denoiser, dequantized(denoiser), lambda one: output(one, given)


def test_several_loras_one_deleted_one_swapped(case: Case) -> None:
    loader, denoiser, plain, out = case
    loras = [random_lora(loader, denoiser, seed) for seed in (1, 2, 3)]
    pipelines = [pipeline_of(loader, one) for one in (denoiser, plain)]
    seen: list[torch.Tensor] = [out(denoiser)]

    def check(change: Callable[[Any], None]) -> None:
        for pipeline in pipelines:
            change(pipeline)
        assert torch.equal(out(denoiser), out(plain))
        assert not any(torch.equal(out(denoiser), one) for one in seen)
        seen.append(out(denoiser))

    check(lambda p: p.load_lora_weights(loras[0], adapter_name="a"))
    check(lambda p: p.load_lora_weights(loras[1], adapter_name="b"))
    check(lambda p: p.set_adapters(["a", "b"], [0.5, -1.0]))
    check(lambda p: p.delete_adapters("b"))
    check(lambda p: p.load_lora_weights(loras[2], adapter_name="a", hotswap=True))
    for pipeline in pipelines:
        pipeline.disable_lora()
    assert torch.equal(out(denoiser), seen[0])
    for pipeline in pipelines:
        pipeline.enable_lora()
    assert torch.equal(out(denoiser), seen[-1])
    for pipeline in pipelines:
        pipeline.unload_lora_weights()
    assert torch.equal(out(denoiser), seen[0])


def test_swapping_is_refused_where_peft_does_it_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = "FluxLoraLoaderMixin"
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.19.1" if name == "peft" else version(name)
    )
    denoiser = packed(tiny(loader), tmp_path)
    monkeypatch.undo()
    pipeline = pipeline_of(loader, denoiser)
    pipeline.load_lora_weights(random_lora(loader, denoiser, 1), adapter_name="a")
    with pytest.raises(
        RuntimeError, match=r"peft 0\.19\.1 would leave wrong values .* install peft"
    ):
        pipeline.load_lora_weights(random_lora(loader, denoiser, 2), adapter_name="a", hotswap=True)
    assert "load_lora_adapter" not in vars(dequantized(denoiser))


def test_fusing_is_refused_and_the_adapter_stays(case: Case) -> None:
    loader, denoiser, _, out = case
    pipeline = pipeline_of(loader, denoiser)
    pipeline.load_lora_weights(random_lora(loader, denoiser), adapter_name="a")
    adapted = out(denoiser)
    for safe in (False, True):
        with pytest.raises(
            RuntimeError, match=r"cannot be merged .* qsdm\.checkpoint\.dequantized"
        ):
            pipeline.fuse_lora(safe_fusing=safe)
    assert torch.equal(out(denoiser), adapted)
    for layer in denoiser.modules():
        if hasattr(layer, "lora_A"):
            with pytest.raises(RuntimeError, match="cannot be merged"):
                layer.merge()
    fused = pipeline_of(loader, dequantized(denoiser))
    fused.fuse_lora()
    torch.testing.assert_close(out(getattr(fused, CASES[loader].component)), adapted)


def test_a_control_lora_widens_a_packed_layer(tmp_path: Path) -> None:
    """FLUX's: the first layer gets twice the channels, norms new scales; both are taken back."""
    full = tiny(FLUX)
    denoiser = packed(full, tmp_path)
    given = arguments(FLUX, full)
    before = output(denoiser, given)
    channels = denoiser.x_embedder.in_features
    lora = random_lora(FLUX, denoiser)
    lora["transformer.x_embedder.lora_A.weight"] = torch.randn(2, 2 * channels) / 4
    norm = "transformer_blocks.0.attn.norm_q.weight"
    lora[f"transformer.{norm}"] = 2 * denoiser.state_dict()[norm]
    wide = given | {"hidden_states": torch.randn(1, 256, 2 * channels)}
    outputs = []
    for one in (denoiser, dequantized(denoiser)):
        pipeline = pipeline_of(FLUX, one)
        pipeline.load_lora_weights(lora, adapter_name="control")
        outputs.append(output(one, wide))
        pipeline.unload_lora_weights(reset_to_overwritten_params=True)
        assert torch.equal(output(one, given), before)
    assert torch.equal(*outputs)
    packed_layers = sum(isinstance(layer, PackedLayer) for layer in denoiser.modules())
    assert packed_layers == sum(type(m) is nn.Linear for m in full.modules()) - 1
    with pytest.raises(CheckpointError, match="'x_embedder' is no longer packed"):
        denoiser.save_pretrained(tmp_path / "again")


def test_every_loader_is_in_the_table_of_the_docs() -> None:
    from diffusers.loaders import lora_pipeline

    base = lora_pipeline.LoraBaseMixin
    loaders = {
        name
        for name, entry in vars(lora_pipeline).items()
        if inspect.isclass(entry) and issubclass(entry, base) and entry is not base
    }
    assert loaders - set(CASES) - NO_PIPELINE == set(), "loaders without a case"
    expected = [
        f"| `{name}` | `{case.pipeline}` | `{case.denoiser}` | "
        + ("no pipeline uses it |" if name in NO_PIPELINE else "works |")
        for name, case in sorted(CASES.items())
    ]
    rows = [
        line for line in DOCS.read_text(encoding="utf-8").splitlines() if "LoaderMixin`" in line
    ]
    assert rows == expected


@pytest.mark.parametrize("how", ["sequential", "groups", "blocks"])
def test_offloading(how: str, tmp_path: Path) -> None:
    import accelerate

    full = tiny(SD)
    given = arguments(SD, full)
    denoiser = packed(full, tmp_path)
    before = output(denoiser, given)
    cpu = torch.device("cpu")
    if how == "sequential":
        accelerate.cpu_offload(denoiser, cpu, offload_buffers=True)
    elif how == "groups":
        denoiser.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    else:
        denoiser.enable_group_offload(cpu, cpu, "block_level", num_blocks_per_group=1)
    assert torch.equal(output(denoiser, given), before)


def test_a_pipeline_from_a_pipeline_shares_the_packed_denoiser(tmp_path: Path) -> None:
    import diffusers

    denoiser = packed(tiny(SD), tmp_path)
    pipeline = pipeline_of(SD, denoiser)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    assert other.unet is denoiser
    assert any(isinstance(layer, PackedLayer) for layer in other.unet.modules())
    assert load_quantized(tmp_path).state_dict().keys() == denoiser.state_dict().keys()
