#!/usr/bin/env bash
# cuda-bindings 13 compiles with NVRTC 12 if something loaded libnvrtc.so.12 before: `import torch` is enough.
#
# The wheel nvidia-cuda-nvrtc 13 is installed and is what cuda-bindings finds alone. In a process where a CUDA 12 build
# of torch was imported first, it takes torch's library instead, without a word, and so another compiler: with CUDA 12.6
# (torch 2.7.0 from PyPI) "sm_100" is then "invalid value for --gpu-architecture". Needs no GPU. To stay small, this
# loads the same wheel that torch 2.7.0 depends on with ctypes instead of importing torch.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    cuda-bindings==13.0.3 cuda-pathfinder==1.9.0 nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvrtc-cu12==12.6.77
cat >"$tmp/show.py" <<'PY'
import ctypes, importlib.metadata as m, sys
from pathlib import Path

before = sys.argv[1] == "before"
if before:
    files = m.files("nvidia-cuda-nvrtc-cu12")
    path = next(Path(f.locate()) for f in files if f.name == "libnvrtc.so.12")
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
from cuda.bindings import nvrtc

_, major, minor = nvrtc.nvrtcVersion()
_, archs = nvrtc.nvrtcGetSupportedArchs()
print("cuda-bindings", m.version("cuda-bindings"), "| libnvrtc.so.12 loaded before:", before, "| NVRTC", f"{major}.{minor}", "| knows sm_100:", 100 in archs)
sys.exit(0 if (major, 100 in archs) == ((12, False) if before else (13, True)) else 1)
PY
"$tmp/venv/bin/python" "$tmp/show.py" alone
"$tmp/venv/bin/python" "$tmp/show.py" before
echo "as recorded: the library that is loaded already is taken"
