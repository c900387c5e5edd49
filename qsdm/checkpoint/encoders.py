"""Packed text encoders, whose library, transformers, has no place for our format.

They are written as transformers would, in config.json and model.safetensors, with the packed
weights and the ``quantization_config`` of `qsdm.checkpoint.format`. Only `load_encoder` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qsdm.checkpoint.format import CheckpointError
from qsdm.checkpoint.quantizer import QsdmConfig, QsdmQuantizer
from qsdm.quant.packed_model import refuse_to_save


def is_encoder(module: nn.Module) -> bool:
    """Whether a module is of transformers.

    Args:
        module: a part of a pipeline.
    """
    return hasattr(type(module), "config_class")


def described(module: Any) -> dict[str, Any]:
    """The content of an encoder's config.json.

    Args:
        module: of transformers.
    """
    config: dict[str, Any] = json.loads(module.config.to_json_string())
    return {**config, "architectures": [type(module).__name__]}


def stored_names(module: nn.Module) -> set[str]:
    """The names under which an encoder's values are stored: one for what several names share.

    Args:
        module: of transformers.
    """
    tensors = module.named_parameters, module.named_buffers  # a packed weight is of buffers
    once = {name for named in tensors for name, _ in named()}
    every = {name for named in tensors for name, _ in named(remove_duplicate=False)}
    return module.state_dict().keys() - (every - once)


def load_encoder(
    folder: Path, config: Mapping[str, Any], file: Path, dtype: torch.dtype
) -> nn.Module:
    """Load a packed encoder.

    Args:
        folder: of the encoder, for errors.
        config: content of its config.json.
        file: its weights.
        dtype: in which it computes.

    Returns:
        The encoder, of the class of transformers that was packed.

    Raises:
        CheckpointError: it is damaged, or not of a class of transformers.
    """
    import accelerate
    import safetensors.torch

    cls = encoder_class(folder, config)
    options = {k: v for k, v in config.items() if k not in ("quantization_config", "dtype")}
    with accelerate.init_empty_weights(include_buffers=False):
        module = cls(cls.config_class(**options))
    module.tie_weights()  # which were made one by one
    # As transformers does with float16 weights; bfloat16 has the exponents of float32.
    keep = (getattr(cls, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    nn.Module.to(module, dtype)
    quantizer = QsdmQuantizer(QsdmConfig(**config["quantization_config"]))
    quantizer._process_model_before_weight_loading(module, keep)
    state = quantizer.maybe_update_state_dict(safetensors.torch.load_file(file))
    needed = stored_names(module)
    if unknown := state.keys() - needed:
        raise CheckpointError(
            f"{file} has {min(unknown)!r}, which the {cls.__name__} of transformers lacks: it was "
            "saved by another version of transformers"
        )
    quantizer.update_missing_keys(module, sorted(needed - state.keys()), "")
    plain = {}
    for name, tensor in state.items():
        if quantizer.check_if_quantized_param(module, tensor, name):
            quantizer.create_quantized_param(module, tensor, name, "cpu", state)
        elif tensor.is_floating_point() and set(keep).isdisjoint(name.split(".")):
            plain[name] = tensor.to(dtype)
        else:
            plain[name] = tensor.float() if tensor.is_floating_point() else tensor
    module.load_state_dict(plain | _tied(module, plain), strict=False, assign=True)
    quantizer._process_model_after_weight_loading(module)
    module.save_pretrained = refuse_to_save
    return module.eval().requires_grad_(False)


def _tied(module: nn.Module, values: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """One parameter, under all its names, for each of the values that several names share."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    sources = {
        name: first[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    shared = {source for name, source in sources.items() if name != source} & values.keys()
    one = {source: nn.Parameter(values[source], requires_grad=False) for source in shared}
    return {name: one[source] for name, source in sources.items() if source in one}


def encoder_class(folder: Path, config: Mapping[str, Any]) -> Any:
    """The class of an encoder.

    Args:
        folder: of the encoder, for errors.
        config: content of its config.json.

    Raises:
        CheckpointError: it names no class of transformers.
    """
    import transformers

    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    cls = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{folder / 'config.json'} names no class of diffusers or transformers (got {name!r}): "
            "copy it again"
        )
    return cls
