"""The stage of a module, the outermost part of the denoiser, and its block, the repeated part."""

from __future__ import annotations

from collections import Counter

from torch import nn

QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def stages_and_blocks(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Find the stage and the block of every module.

    The stage is the outermost part: a child of the denoiser, or an item of one of its lists. The
    block is the innermost list item with two or more weights, or item of a Sequential with four or
    more; if there is none, it is the stage.

    Args:
        module: the denoiser, or a skeleton of it.

    Returns:
        Module path => (stage, block).
    """
    modules = dict(module.named_modules())
    weights: Counter[str] = Counter()
    for path, child in modules.items():
        if isinstance(child, QUANTIZABLE):
            parts = path.split(".")
            weights.update(".".join(parts[:i]) for i in range(1, len(parts)))

    def is_block(path: str) -> bool:
        parent = modules.get(path.rpartition(".")[0])
        if isinstance(modules[path], (*_CONTAINERS, nn.Sequential)):
            return False
        if isinstance(parent, _CONTAINERS):
            return weights[path] >= 2
        return isinstance(parent, nn.Sequential) and weights[path] >= 4

    parts_of = {"": ("", "")}
    for path in modules:
        if path:
            parts = path.split(".")
            stage = ".".join(parts[:2]) if isinstance(modules[parts[0]], _CONTAINERS) else parts[0]
            blocks = [
                prefix for i in range(1, len(parts) + 1) if is_block(prefix := ".".join(parts[:i]))
            ]
            parts_of[path] = (stage, blocks[-1] if blocks else stage)
    return parts_of
