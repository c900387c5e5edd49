"""The ``state_dict`` of a denoiser with packed layers.

That of the whole denoiser lists what a file stores: packed parts, and everything else unchanged.
That of a part of the denoiser lists values, like those of plain layers, because that is how
diffusers copies weights from one model to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from qsdm.quant.packed import PackedLayer


class StoredState(OrderedDict[str, torch.Tensor]):
    """The state dict of a whole denoiser: it lists what a file stores.

    ``path.weight`` of a packed layer can be looked up in it too, as loaders of adapters do.

    Args:
        state: what it lists.
        module: the denoiser; None for a copy without packed layers.
    """

    def __init__(
        self, state: Mapping[str, torch.Tensor] = {}, module: nn.Module | None = None
    ) -> None:
        super().__init__(state)
        self.packed = {f"{name}.weight": layer for name, layer in _packed_layers(module)}

    def __missing__(self, key: str) -> torch.Tensor:
        return self.packed[key].weight

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.packed

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, also of a packed layer's weight; ``default`` if there is none."""
        try:
            return self[key]
        except KeyError:
            return default

    def __reduce__(self) -> Any:
        """As a plain dict: what torch.save writes must load with ``weights_only``."""
        return OrderedDict(self).__reduce__()


def stored_state(
    module: nn.Module, state: Any, prefix: str, _metadata: Mapping[str, Any]
) -> StoredState | None:
    """Hook of the ``state_dict`` of a denoiser."""
    if prefix:
        return None
    stored = StoredState(state, module)
    stored._metadata = state._metadata  # type: ignore[attr-defined]
    return stored


def values_of_part(
    module: nn.Module, state: Any, prefix: str, _metadata: Mapping[str, Any]
) -> None:
    """Hook of the ``state_dict`` of a part of a denoiser: alone, the part gives values.

    So ``ControlNetModel.from_unet`` and others get what they copy, even those that pass
    ``strict=False`` and would otherwise silently keep random weights.

    Raises:
        ValueError: weights change with the sampler's steps.
    """
    if not prefix:
        require_one_version(module)
        for name, layer in _packed_layers(module):
            path = f"{name}." if name else ""
            for part, _ in layer.packed.named_buffers():
                state.pop(f"{path}packed.{part}")
            state[f"{path}weight"] = layer.decoded()


def _packed_layers(module: nn.Module | None) -> Iterator[tuple[str, PackedLayer]]:
    for name, layer in module.named_modules(remove_duplicate=False) if module else ():
        if isinstance(layer, PackedLayer):
            yield name, layer


def require_one_version(module: nn.Module) -> None:
    """Refuse to turn weights that change with the sampler's steps into plain ones.

    Args:
        module: a denoiser, or a part of it.

    Raises:
        ValueError: it has such weights.
    """
    for name, layer in _packed_layers(module):
        if layer.is_stepped:
            raise ValueError(
                f"the weight of {name!r} has {len(layer.versions)} versions, for bins of the "
                "sampler's steps, and a plain layer holds one: save a configuration without bins, "
                "and load that"
            )
