#!/usr/bin/env bash
# SDNQ: modules_dtype_dict beats modules_quant_config, a least width that is met does not end the search, * is a regex.
#
# The settings of a module's own entry (uint8) lose against a list of a coarser dtype (uint2) that holds it as well. A
# layer listed under minimum_4bit first and under int8 second gets int8, if the base has 4 bits already. "to_[qk]*"
# matches to_q, "a.b*" matches axb. And int2 has three levels, not four.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 sdnq==0.2.8 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0
cat >"$tmp/show.py" <<'PY'
import importlib.metadata as metadata
import sys

import torch
from sdnq import SDNQConfig
from sdnq.quantizer import sdnq_quantize_layer_weight
from sdnq.utils import check_param_name_in, get_quant_kwargs

print(*(f"{name} {metadata.version(name)}" for name in ("sdnq", "torch")))


def dtype(**config):
    settings = SDNQConfig(weights_dtype="uint4", **config)
    return get_quant_kwargs(torch.nn.Linear(64, 64), settings, param_name="a.b.weight")["weights_dtype"]


seen = {
    "uint2 in modules_dtype_dict, uint8 in modules_quant_config": dtype(
        modules_dtype_dict={"uint2": ["a"]}, modules_quant_config={"a": {"weights_dtype": "uint8"}}
    ),
    "minimum_4bit first, int8 second, base uint4": dtype(modules_dtype_dict={"minimum_4bit": ["a"], "int8": ["b"]}),
    "minimum_6bit first, int8 second, base uint4": dtype(modules_dtype_dict={"minimum_6bit": ["a"], "int8": ["b"]}),
    "'to_[qk]*' holds for to_q.weight": check_param_name_in("to_q.weight", ["to_[qk]*"]) is not None,
    "'a.b*' holds for axb.weight": check_param_name_in("axb.weight", ["a.b*"]) is not None,
}
weight = torch.randn(1, 8192, generator=torch.Generator().manual_seed(0))
for kind in ("int2", "uint2"):
    dequantizer, parts = sdnq_quantize_layer_weight(weight, "Linear", kind, group_size=-1)
    seen[f"levels of {kind}"] = len(dequantizer(**parts).unique())
for what, value in seen.items():
    print(what, "=>", value)
sys.exit(list(seen.values()) != ["uint2", "int8", "int6", True, True, 3, 4])
PY
SDNQ_USE_TORCH_COMPILE=0 "$tmp/venv/bin/python" "$tmp/show.py" 2>/dev/null
echo "as recorded: lists of dtypes beat a module's own settings"
