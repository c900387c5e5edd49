"""Small LoRAs in files, as diffusers, peft or kohya spell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 2


def factors(denoiser: Any, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B for the queries of every attention."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(RANK, layer.in_features, generator=generator) / 4,
            torch.randn(layer.out_features, RANK, generator=generator) / 4,
        )
        for name, layer in denoiser.named_modules()
        if name.endswith(".to_q")
    }


def write(path: Path, spelling: str, pairs: dict, component: str, alpha: float = RANK) -> Path:
    """A file as diffusers, peft or kohya write it."""
    state: dict[str, torch.Tensor] = {}
    for name, (a, b) in pairs.items():
        if spelling == "kohya":
            flat = f"lora_unet_{name.replace('.', '_')}"
            state |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
            state[f"{flat}.alpha"] = torch.tensor(alpha)
        else:
            prefix = component if spelling == "diffusers" else "base_model.model"
            state |= {f"{prefix}.{name}.lora_A.weight": a, f"{prefix}.{name}.lora_B.weight": b}
    path.parent.mkdir(exist_ok=True)
    save_file(state, path)
    if spelling == "peft":
        about = {"r": RANK, "lora_alpha": alpha, "peft_type": "LORA", "target_modules": ["to_q"]}
        (path.parent / "adapter_config.json").write_text(json.dumps(about))
    return path
