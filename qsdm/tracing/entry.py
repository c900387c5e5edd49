"""What a pipeline calls of a part: ``decode`` of a VAE, ``forward`` of anything else."""

from __future__ import annotations

import inspect

from torch import nn


def entry(module: nn.Module) -> str:
    """Name the method that draws with a module.

    Args:
        module: a part of a pipeline.

    Returns:
        ``decode`` for the autoencoders of diffusers, whose ``forward`` encodes too; else
        ``forward``.
    """
    return "decode" if type(module).__module__.startswith("diffusers.models.autoenc") else "forward"


def signature(module: nn.Module) -> inspect.Signature:
    """The signature of the method that draws with a module, ``self`` included.

    Args:
        module: a part of a pipeline.
    """
    return inspect.signature(getattr(type(module), entry(module)))


def as_forward(module: nn.Module) -> nn.Module:
    """Let a call of a module be what draws with it, so that hooks of its forward see that.

    Args:
        module: a part of a pipeline, changed in place; it computes what it did.

    Returns:
        ``module``.
    """
    name = entry(module)
    if name != "forward" and "forward" not in vars(module):
        module.forward = getattr(module, name)
        setattr(module, name, module.__call__)
    return module
