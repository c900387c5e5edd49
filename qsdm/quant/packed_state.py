"""What ``state_dict`` says of a denoiser with packed layers.

Of the whole denoiser it lists what a file stores: packed parts, and everything else as it is. Of a part of the denoiser
it lists values, as of plain layers, because that is how diffusers copies weights from one model to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from qsdm.quant.packed import PackedLayer


class StoredState(OrderedDict[str, torch.Tensor]):
    """The state dict of a whole denoiser: it lists what a file stores, packed parts, and ``path.weight`` of a packed
    layer can be looked up in it as well, as loaders of adapters do."""

    def __init__(self, state: Mapping[str, torch.Tensor] = {}, module: nn.Module | None = None):
        super().__init__(state)
        self.packed = {f"{name}.weight": layer for name, layer in _packed_layers(module)}

    def __missing__(self, key: str) -> torch.Tensor:
        return self.packed[key].weight

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.packed

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __reduce__(self) -> Any:
        """As a plain dict: what torch.save writes must load with ``weights_only``."""
        return OrderedDict(self).__reduce__()


def stored_state(
    module: nn.Module, state: Any, prefix: str, metadata: Mapping[str, Any]
) -> StoredState | None:
    """Hook of a denoiser's ``state_dict``."""
    if prefix:
        return None
    made = StoredState(state, module)
    made._metadata = state._metadata  # type: ignore[attr-defined]
    return made


def values_of_part(module: nn.Module, state: Any, prefix: str, metadata: Mapping[str, Any]) -> None:
    """Hook of ``state_dict`` of a part of a denoiser, which gives values where it is asked by itself.

    So ``ControlNetModel.from_unet`` and others get what they copy, also those that pass
    ``strict=False`` and would else keep random weights without a word.
    """
    if not prefix:
        for name, layer in _packed_layers(module):
            path = f"{name}." if name else ""
            for part, _ in layer.packed.named_buffers():
                state.pop(f"{path}packed.{part}")
            state[f"{path}weight"] = layer.decoded()


def _packed_layers(module: nn.Module | None) -> Iterator[tuple[str, PackedLayer]]:
    for name, layer in module.named_modules(remove_duplicate=False) if module else ():
        if isinstance(layer, PackedLayer):
            yield name, layer
