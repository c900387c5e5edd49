#!/usr/bin/env bash
# torch_geometric 2.6.1: copy.deepcopy of a model with a torch_geometric Linear in it draws random numbers.
#
# Its `Linear.__deepcopy__` builds a new layer, which initializes itself from torch's global generator, before the
# values are copied. So copying a model (an average of weights, the best state so far, a worker's copy) changes every
# random number after it, and with threads that copy while others initialize, one seed gives several networks.
# GATv2Conv, GCNConv and most other convolutions hold such a Linear. Gone in 2.7.0.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$tmp/show.py" <<'PY'
import copy, sys, torch, torch_geometric
from torch_geometric.nn import GATv2Conv


def next_number(make):
    torch.manual_seed(0)
    layer = make()
    before = torch.get_rng_state()
    copy.deepcopy(layer)
    return torch.equal(before, torch.get_rng_state())


print("torch", torch.__version__, "torch_geometric", torch_geometric.__version__)
plain, conv = next_number(lambda: torch.nn.Linear(8, 8)), next_number(lambda: GATv2Conv(8, 8))
print("generator untouched by deepcopy of torch.nn.Linear:", plain, " of GATv2Conv:", conv)
sys.exit(0 if plain and conv == (sys.argv[1] == "untouched") else 1)
PY
for case in "2.6.1 drawn" "2.8.1 untouched"; do
    read -r version state <<<"$case"
    "$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch-geometric==$version"
    "$tmp/venv/bin/python" -W ignore "$tmp/show.py" "$state"
done
echo "as recorded: 2.6.1 draws, 2.8.1 does not"
