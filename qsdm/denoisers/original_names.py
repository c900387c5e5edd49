"""Which tensor of a file in its authors' layout each parameter of a denoiser comes from.

diffusers converts such files by renaming, splitting and joining tensors. Its own conversion tells
what becomes what: it is run on tensors that hold nothing but the number of their name, each a
single value in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from qsdm.denoisers.classes import denoiser_class, denoiser_config
from qsdm.denoisers.faults import ModelError
from qsdm.denoisers.model import Model


def origins(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Find where the parameters of a model's denoiser come from.

    Args:
        model: whose class and config convert the file.
        shapes: of the file's tensors, by name.

    Returns:
        Name in the file by name of the parameter; empty if diffusers does not convert such files.
    """
    import torch
    from diffusers.loaders import single_file_model

    try:
        cls, config = denoiser_class(model), dict(denoiser_config(model))
    except ModelError:  # without class and config, names stay as they are
        return {}
    entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES.get(cls.__name__)
    if entry is None:
        return {}
    names = list(shapes)
    numbered = {
        name: torch.full((1,), i, dtype=torch.int32).expand(shapes[name] or (1,))
        for i, name in enumerate(names)
    }
    try:
        convert = cast(dict[str, Any], entry)["checkpoint_mapping_fn"]
        converted = convert(config=config, checkpoint=numbered)
    except Exception:  # conversions of files of other models fail anywhere
        return {}
    return {
        name: names[int(tensor[(0,) * tensor.dim()])]
        for name, tensor in converted.items()
        if isinstance(tensor, torch.Tensor) and tensor.numel()
    }
