"""The engines themselves on a toy: which layers they leave alone, where they are installed."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PATHS = (
    "time_embedder.linear_1",
    "blocks.0.attn.to_q",
    "blocks.0.attn.to_out.0",
    "blocks.0.proj_out",
    "blocks.0.x_proj_out",
    "proj_out",
)
KEEP = ("time_embedder",)


@cache
def toy(keep: bool) -> tuple[type, Path]:
    """A diffusers model of the six Linear layers in `PATHS`, and the folder that it is saved in."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from torch import nn

    class Toy(ModelMixin, ConfigMixin):
        _keep_in_fp32_modules = list(KEEP) if keep else None

        @register_to_config
        def __init__(self, width: int = 128) -> None:
            super().__init__()
            attn, block, embedder = nn.Module(), nn.Module(), nn.Module()
            attn.to_q, attn.to_out = (
                nn.Linear(width, width),
                nn.ModuleList([nn.Linear(width, width)]),
            )
            block.attn, block.proj_out = attn, nn.Linear(width, width)
            block.x_proj_out = nn.Linear(width, width)
            embedder.linear_1 = nn.Linear(width, width)
            self.time_embedder, self.blocks = embedder, nn.ModuleList([block])
            self.proj_out = nn.Linear(width, width)

    folder = Path(tempfile.mkdtemp())
    Toy().save_pretrained(folder)
    return Toy, folder


def kept(engine: str, entries: Sequence[str], keep: bool = False) -> list[str]:
    """The layers that an engine leaves at full precision, given its skip list.

    Args:
        engine: torchao, quanto or bitsandbytes, inside diffusers.
        entries: of ``modules_to_not_convert``.
        keep: the class has ``_keep_in_fp32_modules``.
    """
    import torch
    from torch import nn

    cls, folder = toy(keep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if engine == "bitsandbytes":
            from diffusers import BitsAndBytesConfig
            from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

            config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=list(entries))
            names = [*entries, *(KEEP if keep else ())]
            model = replace_with_bnb_linear(
                cls(), modules_to_not_convert=names, quantization_config=config
            )
        else:
            from diffusers import QuantoConfig, TorchAoConfig

            if engine == "torchao":
                from torchao.quantization import Int8WeightOnlyConfig

                config = TorchAoConfig(Int8WeightOnlyConfig(), list(entries))
            else:
                config = QuantoConfig("int8", list(entries))
            model = cls.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    layers = {path: model.get_submodule(path) for path in PATHS}
    return [
        path
        for path, layer in layers.items()
        if type(layer) is nn.Linear and type(layer.weight.data) is torch.Tensor
    ]
