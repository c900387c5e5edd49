#!/usr/bin/env bash
# diffusers' BitsAndBytesConfig.to_json_string() leaves out quant_method, and that of QuantoConfig raises.
#
# The text of the first is no config that from_pretrained can tell the backend of: only what differs from the defaults is
# written, and quant_method never does. With use_diff=False it is there. QuantoConfig, TorchAoConfig and SDNQ's config
# end in AttributeError instead ('to_diff_dict'), for use_diff=True is the default and they have no such method.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 optimum-quanto==0.2.7 accelerate==1.15.0 transformers==5.23.0
cat >"$tmp/show.py" <<'PY'
import importlib.metadata as metadata
import json
import sys
import warnings

warnings.simplefilter("ignore")
from diffusers import BitsAndBytesConfig, QuantoConfig

print(*(f"{name} {metadata.version(name)}" for name in ("diffusers", "optimum-quanto")))
config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["proj_out"])
short, full = config.to_json_string(), config.to_json_string(use_diff=False)
print("BitsAndBytesConfig.to_json_string():", json.loads(short))
print("... use_diff=False has quant_method:", json.loads(full).get("quant_method"))
try:
    raised = QuantoConfig("int8").to_json_string()
except AttributeError as error:
    raised = str(error)
print("QuantoConfig.to_json_string():", raised)
sys.exit(
    "quant_method" in json.loads(short)
    or json.loads(full).get("quant_method") != "bitsandbytes"
    or "to_diff_dict" not in raised
)
PY
"$tmp/venv/bin/python" "$tmp/show.py" 2>/dev/null
echo "as recorded: the short text does not name its backend"
