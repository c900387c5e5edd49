#!/usr/bin/env bash
# diffusers' quanto backend: names of containers and full paths in modules_to_not_convert protect nothing, silently.
#
# Only a Linear layer's own name counts ("to_q"). "blocks", "blocks.0", "blocks.0.to_q" and "time_embedder" are accepted
# and every layer is quantized all the same. So is what the class itself demands in _keep_in_fp32_modules, where that
# names a container (Wan's "time_embedder"). The torchao and bitsandbytes backends honor all of these but a path's tail.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 optimum-quanto==0.2.7 accelerate==1.15.0 transformers==5.23.0
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
    _keep_in_fp32_modules = ["time_embedder"]

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

print(*(f"{name} {metadata.version(name)}" for name in ("diffusers", "optimum-quanto", "torch")))
seen = {}
for entries in (["to_q"], ["blocks"], ["blocks.0"], ["blocks.0.to_q"], ["time_embedder"], []):
    seen[tuple(entries)] = kept(diffusers.QuantoConfig("int8", list(entries)))
    print("modules_to_not_convert =", entries, "| still plain:", seen[tuple(entries)])
silent = [entries for entries in seen if entries != ("to_q",)]
sys.exit(seen[("to_q",)] != ["blocks.0.to_q"] or any(seen[entries] for entries in silent))
PY
"$tmp/venv/bin/python" "$tmp/show.py" 2>/dev/null
echo "as recorded: only a layer's own name protects it"
