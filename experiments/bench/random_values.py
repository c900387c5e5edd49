"""Stand-ins for what cannot be downloaded: random values for modules, and a tokenizer of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def byte_tokenizer() -> Any:
    """A CLIP tokenizer of bytes, with the ids of the published one at the ends of a text."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: i for i, word in enumerate(words)}
    vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def fill(module: torch.nn.Module, dtype: torch.dtype, rng: np.random.Generator) -> torch.nn.Module:
    """Give a module normal values of deviation fan_in^-1/2; norms and biases do nothing.

    Args:
        module: on ``meta``.
        dtype: of the values.
        rng: source of the values.

    Returns:
        The module on the CPU, in evaluation mode.
    """
    module = module.to(dtype).to_empty(device="cpu")
    noise = rng.standard_normal(1 << 22, dtype=np.float32)  # drawing all values would take minutes
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if key.endswith("weight") else 0.0)
                continue
            values = np.resize(np.roll(noise, rng.integers(len(noise))), parameter.numel())
            deviation = parameter[0].numel() ** -0.5
            parameter.copy_(torch.from_numpy(values).view(parameter.shape) * deviation)
        for key, buffer in module.named_buffers():
            if key.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
    return module.eval()
