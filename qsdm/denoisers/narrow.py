"""Large denoisers in the 16 bits of their files, in memory and where they are written again.

SDXL's U-Net takes 5.1 GB in 16 bits, and 10.3 GB in float32, in which smaller denoisers are loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from qsdm.denoisers.classes import denoiser_class, denoiser_config
from qsdm.denoisers.faults import ModelError
from qsdm.denoisers.files import component_files, pipeline_folder
from qsdm.denoisers.weights import mapped_tensors
from qsdm.store.header import DTYPES, read_header

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qsdm.denoisers.model import Model

LARGE = 2**30
"""Number of values from which on a denoiser is not kept in float32 beside its 16 bits."""


def kept_in(model: Model) -> str:
    """Choose the type in which a denoiser is kept in memory.

    Args:
        model: whose denoiser is loaded.

    Returns:
        ``model.dtype`` if the denoiser is large and all its files are of this type, else float32.
        Of several parts, that of the denoisers: the others are kept in float32, as beside one.
    """
    if len(model.parts) > 1:
        types = {kept_in(part) for part in model.parts if part.denoisers}
        return types.pop() if len(types) == 1 else "float32"
    stored, num_values = stored_in(model)
    return model.dtype if num_values >= LARGE and stored == model.dtype else "float32"


def stored_in(model: Model) -> tuple[str | None, int]:
    """Read from the headers of a denoiser's files which type they have.

    Args:
        model: whose files are read.

    Returns:
        Type in torch's spelling, None if there are several or no safetensors files; and the number
        of values.
    """
    if model.file is not None:
        return None, 0
    try:
        folder = pipeline_folder(model)
        files = component_files(folder, model.component, "diffusers", model.load)
        parts = [part for file in files for part in read_header(file).parts.values()]
    except (ModelError, OSError, ValueError):  # whoever loads them says what is wrong
        return None, 0
    types = {part.dtype for part in parts}
    size = sum(part.data_offsets[1] - part.data_offsets[0] for part in parts)
    if types not in ({"F16"}, {"BF16"}):
        return None, size
    return DTYPES[types.pop()], size // 2


def mapped_denoiser(model: Model) -> nn.Module | None:
    """Build a denoiser whose parameters are mapped from its files: it takes no memory of its own.

    Args:
        model: whose denoiser it is.

    Returns:
        The denoiser, in the type of its files; None if that has not 16 bits, or if ``model.load``
        changes values.
    """
    import torch

    if stored_in(model)[0] is None:
        return None
    try:
        read = mapped_tensors(model)
        if read is None:
            return None
        cls = cast(Any, denoiser_class(model))
        with torch.device("meta"):
            module = cast("nn.Module", cls.from_config(dict(denoiser_config(model))))
        # A buffer that is not in the files could not be mapped.
        if any(True for _ in module.buffers()):
            return None
        state = {name: read(name) for name, _ in module.named_parameters()}
    except ModelError:
        return None
    module.load_state_dict(state, strict=False, assign=True)
    return None if any(p.is_meta for p in module.parameters()) else module.eval()


def compute_by_layer(module: nn.Module, dtype: torch.dtype) -> None:
    """Let each layer compute in a wider type than that of its parameters, which it keeps.

    A layer's parameters are converted when it is called, and the copies freed when it returns.

    Args:
        module: changed in place; its parameters keep their identity, type and values.
        dtype: in which layers compute.
    """
    import torch

    narrow: dict[nn.Module, dict[str, torch.Tensor]] = {}

    def widen(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        own = dict(layer.named_parameters(recurse=False))
        narrow[layer] = {name: parameter.data for name, parameter in own.items()}
        for parameter in own.values():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        return tuple(
            value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for value in args
        )

    def restore(layer: nn.Module, _args: object, _result: object) -> None:
        for name, data in narrow.pop(layer, {}).items():
            layer.get_parameter(name).data = data

    for layer in module.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            layer.register_forward_pre_hook(widen)
            layer.register_forward_hook(restore, always_call=True)
