"""Which tensor of the authors' layout a parameter comes from."""

from __future__ import annotations

from typing import Any

import single_files

from qsdm.denoisers import Model
from qsdm.denoisers.original_names import origins


def test_every_parameter_is_found_in_the_original_layout(
    tiny_model: Model, tiny_pipeline: Any
) -> None:
    tensors = single_files.original(tiny_pipeline, unet_only=True)
    result = origins(tiny_model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    unet = tiny_pipeline.unet
    attentive = {
        b for b, kind in enumerate(unet.config.up_block_types) if kind.startswith("CrossAttn")
    }
    assert set(result) == set(unet.state_dict())
    for name, origin in result.items():
        theirs = single_files.unet_name(name, unet.config.layers_per_block, attentive)
        assert origin == f"model.diffusion_model.{theirs}"


def test_a_file_of_another_model_has_none(tiny_model: Model) -> None:
    assert origins(tiny_model, {"double_blocks.0.img_attn.qkv.weight": (96, 32)}) == {}
