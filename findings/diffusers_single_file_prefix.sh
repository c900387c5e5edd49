#!/usr/bin/env bash
# diffusers' from_single_file of Flux and SD3 ends in "IndexError: list index out of range" if diffusers' own tensor names
# carry the prefix model.diffusion_model., which converters put before a denoiser's tensors. Without it the file loads.
#
# The prefix hides that the names are diffusers' already; the conversion then looks for double_blocks. or joint_blocks.
# and takes the last of none. No message names the file, the prefix or a tensor.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 safetensors==0.8.0 accelerate==1.15.0 transformers==5.23.0
cat >"$tmp/show.py" <<'PY'
import importlib.metadata as metadata
import sys
import tempfile

from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import save_file

print(*(f"{name} {metadata.version(name)}" for name in ("diffusers", "torch")))
TINY = {
    FluxTransformer2DModel: dict(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    ),
    SD3Transformer2DModel: dict(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
    ),
}
seen = []
for cls, config in TINY.items():
    model, folder = cls(**config), tempfile.mkdtemp()
    model.save_pretrained(folder)
    for prefix in ("", "model.diffusion_model."):
        tensors = {prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, f"{folder}/denoiser.safetensors")
        try:
            cls.from_single_file(f"{folder}/denoiser.safetensors", config=folder)
            result = "loads"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        seen.append(result)
        print(f"{cls.__name__}, names begin with {prefix!r} => {result}")
sys.exit(seen != ["loads", "IndexError: list index out of range"] * 2)
PY
"$tmp/venv/bin/python" "$tmp/show.py" 2>/dev/null
echo "as recorded: the prefix makes diffusers' own names unreadable"
