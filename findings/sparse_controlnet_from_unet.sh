#!/usr/bin/env bash
# diffusers' SparseControlNetModel.from_unet(unet) changes the config of the U-Net that it is given.
#
# It replaces the entries of unet.config.down_block_types in place by "CrossAttnDownBlockMotion" and "DownBlockMotion".
# The U-Net still computes, but what its save_pretrained writes from then on does not load, and ControlNetModel.from_unet
# of the same U-Net fails. The lists of a U-Net that came from from_pretrained are changed just the same.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 accelerate==1.15.0 transformers==5.23.0
cat >"$tmp/show.py" <<'PY'
import importlib.metadata as metadata
import sys
import tempfile
import warnings

warnings.simplefilter("ignore")
import diffusers

diffusers.utils.logging.set_verbosity_error()
print(*(f"{name} {metadata.version(name)}" for name in ("diffusers", "torch")))
folder = tempfile.mkdtemp()
diffusers.UNet2DConditionModel(
    sample_size=8,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    block_out_channels=[8, 16],
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
    cross_attention_dim=16,
).save_pretrained(folder)
unet = diffusers.UNet2DConditionModel.from_pretrained(folder)
print("before:", list(unet.config.down_block_types))
diffusers.SparseControlNetModel.from_unet(unet)
print("after: ", list(unet.config.down_block_types))
unet.save_pretrained(folder)
try:
    diffusers.UNet2DConditionModel.from_pretrained(folder)
except ValueError as error:
    print("saved and loaded again:", error)
    sys.exit(list(unet.config.down_block_types) != ["DownBlockMotion", "CrossAttnDownBlockMotion"])
sys.exit("as it should be: the finding no longer holds")
PY
"$tmp/venv/bin/python" "$tmp/show.py" 2>/dev/null
echo "as recorded: the config of the source is changed in place"
