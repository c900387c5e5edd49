"""diffusers' models that copy a packed denoiser's weights, and adapters that change it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_cases import packed, tiny
from torch import nn

from qsdm.checkpoint import dequantized

Denoisers = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory: pytest.TempPathFactory) -> Denoisers:
    """The tiny denoiser of a LoRA loader, packed. Tests must not change it."""
    cache: dict[str, nn.Module] = {}

    def of(loader: str, **config: object) -> nn.Module:
        key = f"{loader} {config}"
        if key not in cache:
            cache[key] = packed(tiny(loader, **config), tmp_path_factory.mktemp("packed"))
        return cache[key]

    return of


SD, SDXL = "StableDiffusionLoraLoaderMixin", "StableDiffusionXLLoraLoaderMixin"
SD3, FLUX = "SD3LoraLoaderMixin", "FluxLoraLoaderMixin"


def motion(unet: nn.Module) -> nn.Module:
    from diffusers import MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )
    return UNetMotionModel.from_unet2d(unet, adapter)


def controlnet(kind: str) -> Callable[[nn.Module], nn.Module]:
    def build(unet: nn.Module) -> nn.Module:
        import diffusers

        return getattr(diffusers, kind).from_unet(unet)

    return build


def controlnet_xs(unet: nn.Module) -> nn.Module:
    from diffusers import UNetControlNetXSModel

    return UNetControlNetXSModel.from_unet(unet, size_ratio=1.0, ctrl_optional_kwargs={})


def controlnet_of_transformer(kind: str, **options: object) -> Callable[[nn.Module], nn.Module]:
    def build(transformer: nn.Module) -> nn.Module:
        import diffusers

        return getattr(diffusers, kind).from_transformer(transformer, **options)

    return build


COPIERS: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "UNetMotionModel": (SD, motion),
    "ControlNetModel": (SD, controlnet("ControlNetModel")),
    "ControlNetModel of SDXL": (SDXL, controlnet("ControlNetModel")),
    "ControlNetUnionModel": (SDXL, controlnet("ControlNetUnionModel")),
    "SparseControlNetModel": (SD, controlnet("SparseControlNetModel")),
    "UNetControlNetXSModel": (SD, controlnet_xs),
    "SD3ControlNetModel": (
        SD3,
        controlnet_of_transformer(
            "SD3ControlNetModel", num_layers=1, num_extra_conditioning_channels=0
        ),
    ),
    "FluxControlNetModel": (
        FLUX,
        controlnet_of_transformer(
            "FluxControlNetModel",
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated")
@pytest.mark.parametrize("name", COPIERS)
def test_a_model_made_of_a_packed_denoiser_has_its_values(name: str, denoisers: Denoisers) -> None:
    loader, build = COPIERS[name]
    source = denoisers(loader, **({"layers_per_block": 2} if build is controlnet_xs else {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # a copy, for SparseControlNetModel.from_unet writes into the config of its source
        got = build(copy.deepcopy(source)).state_dict()
        torch.manual_seed(0)
        expected = build(dequantized(source)).state_dict()
        torch.manual_seed(1)
        other = build(dequantized(source)).state_dict()
    assert set(got) == set(expected)
    # what is not copied is random or zero in both; what is the same for two seeds was copied
    copied = [key for key in expected if key.endswith("weight") and expected[key].std() > 0]
    copied = [key for key in copied if torch.equal(expected[key], other[key])]
    assert len(copied) > 10
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_hunyuan_copies_the_whole_state_and_needs_the_plain_one(tmp_path: Path) -> None:
    """Its ``from_transformer`` prints missing keys and continues: see docs/checkpoints.md."""
    from diffusers import HunyuanDiT2DControlNetModel, HunyuanDiT2DModel

    # sizes that from_transformer does not hand on are the published ones
    source = HunyuanDiT2DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        hidden_size=16,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        patch_size=2,
        sample_size=8,
        in_channels=4,
        text_len=4,
        text_len_t5=4,
        activation_fn="gelu-approximate",
    )
    plain = dequantized(packed(source, tmp_path))
    model = HunyuanDiT2DControlNetModel.from_transformer(plain, transformer_num_layers=2)
    state, copied = plain.state_dict(), model.state_dict()
    shared = [name for name in copied if name in state]
    assert len(shared) > 20
    assert all(torch.equal(copied[name], state[name]) for name in shared)


def test_the_whole_state_lists_what_is_stored_and_parts_list_values(denoisers: Denoisers) -> None:
    unet = denoisers(SD)
    state = unet.state_dict()
    assert "conv_in.packed.0.codes" in state
    assert "conv_in.weight" not in list(state)
    assert torch.equal(state["conv_in.weight"], unet.conv_in.decoded())
    assert torch.equal(state.get("conv_in.weight"), unet.conv_in.decoded())
    assert "conv_in.weight" in state
    assert state.get("conv_in.nothing") is None
    with pytest.raises(KeyError):
        state["conv_in.nothing"]
    part = unet.down_blocks.state_dict()
    assert not any(".packed." in key for key in part)
    name = "1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(part[f"{name}.weight"], unet.down_blocks.get_submodule(name).decoded())


def test_the_state_is_written_as_a_plain_dict(denoisers: Denoisers) -> None:
    state = denoisers(SD).state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert list(again) == list(state)
    assert torch.equal(again["conv_in.packed.0.codes"], state["conv_in.packed.0.codes"])


@pytest.mark.parametrize("strict", [True, False])
def test_values_are_not_loaded_into_packed_layers(denoisers: Denoisers, strict: bool) -> None:
    unet = denoisers(SD)
    with pytest.raises(RuntimeError, match=r"load them into qsdm\.checkpoint\.dequantized"):
        unet.load_state_dict({"conv_in.weight": torch.zeros(8, 4, 3, 3)}, strict=strict)
    assert not unet.load_state_dict(unet.state_dict()).missing_keys


def ip_adapter(unet: nn.Module, inside: int = 16) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter for ``unet``."""
    image = {
        "proj.weight": torch.randn(4 * inside, 8),
        "proj.bias": torch.zeros(4 * inside),
        "norm.weight": torch.ones(inside),
        "norm.bias": torch.zeros(inside),
    }
    layers = {}
    crossing = [name for name in unet.attn_processors if "attn2" in name]
    for i, name in enumerate(crossing):
        out = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        layers |= {f"{2 * i + 1}.to_{k}_ip.weight": torch.randn(out, inside) for k in "kv"}
    return {"image_proj": image, "ip_adapter": layers}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_ip_adapter(tmp_path: Path, dtype: torch.dtype) -> None:
    unet = packed(tiny(SD), tmp_path).to(dtype)
    plain = dequantized(unet)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = ip_adapter(unet)
    inputs = {
        "sample": torch.ones(1, 4, 8, 8, dtype=dtype),
        "timestep": 500,
        "encoder_hidden_states": torch.ones(1, 3, 16, dtype=dtype),
    }
    before = unet(**inputs).sample
    pictures = {"added_cond_kwargs": {"image_embeds": [torch.ones(1, 1, 8, dtype=dtype)]}}
    outputs = []
    for one in (unet, plain):
        one._load_ip_adapter_weights([adapter])
        with torch.inference_mode():
            outputs.append(one(**inputs, **pictures).sample)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_part_tells_the_type_that_it_computes_in(
    denoisers: Denoisers, dtype: torch.dtype
) -> None:
    """Not that of its scales: transformers cast to the type of a part without other tensors."""
    from diffusers.models.modeling_utils import get_parameter_dtype

    layer = copy.deepcopy(denoisers(SD)).to(dtype).down_blocks[1].attentions[0]
    query = layer.transformer_blocks[0].attn1.to_q
    assert query.bias is None
    assert get_parameter_dtype(query) == dtype
    assert query.weight.dtype == dtype
