#!/usr/bin/env bash
# diffusers' torchao backend: an entry of modules_to_not_convert protects every layer whose name *contains* it before a dot.
#
# "out" keeps proj_out, x_proj_out and blocks.0.proj_out, "0" keeps all of blocks.0, and "proj_out" keeps x_proj_out too:
# pieces of names count. So a short entry can leave most of a model at full precision.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 torchao==0.18.0 accelerate==1.15.0 transformers==5.23.0
cat >"$tmp/show.py" <<'PY'
import importlib.metadata as metadata
import sys
import tempfile
import warnings

warnings.simplefilter("ignore")
import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

diffusers.utils.logging.set_verbosity_error()


class Toy(ModelMixin, ConfigMixin):
    _keep_in_fp32_modules = None

    @register_to_config
    def __init__(self, width=128):
        super().__init__()
        block, embedder = nn.Module(), nn.Module()
        block.to_q, block.proj_out, block.x_proj_out = (nn.Linear(width, width) for _ in range(3))
        embedder.linear_1 = nn.Linear(width, width)
        self.time_embedder, self.blocks = embedder, nn.ModuleList([block])
        self.proj_out = nn.Linear(width, width)


folder = tempfile.mkdtemp()
Toy().save_pretrained(folder)
PATHS = [name for name, module in Toy().named_modules() if isinstance(module, nn.Linear)]


def kept(config):
    """Layers that are still plain after loading with a quantization config."""
    model = Toy.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    layers = {path: model.get_submodule(path) for path in PATHS}
    return [p for p, m in layers.items() if type(m) is nn.Linear and type(m.weight.data) is torch.Tensor]

from torchao.quantization import Int8WeightOnlyConfig

print(*(f"{name} {metadata.version(name)}" for name in ("diffusers", "torchao", "torch")))
expected = {
    "proj_out": ["blocks.0.proj_out", "blocks.0.x_proj_out", "proj_out"],
    "out": ["blocks.0.proj_out", "blocks.0.x_proj_out", "proj_out"],
    "0": ["blocks.0.to_q", "blocks.0.proj_out", "blocks.0.x_proj_out"],
    "embedder": ["time_embedder.linear_1"],
}
seen = {}
for entry in expected:
    seen[entry] = kept(diffusers.TorchAoConfig(Int8WeightOnlyConfig(), [entry]))
    print("modules_to_not_convert =", [entry], "| still plain:", seen[entry])
sys.exit({k: sorted(v) for k, v in seen.items()} != {k: sorted(v) for k, v in expected.items()})
PY
"$tmp/venv/bin/python" "$tmp/show.py" 2>/dev/null
echo "as recorded: pieces of names protect layers"
