# The targets that need packages set up .venv first, from python3.11 (or newer) and constraints.txt alone.
# On a machine without a GPU, a smaller torch: make install PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
VENV := .venv
PY := $(VENV)/bin/python
MODEL ?= emoji_unet
STAMP := $(VENV)/.installed

	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PY) experiments/bench/peers.py
	$(PY) experiments/bench/trace.py

bench-cuda: install ## measure the CUDA kernels; needs an NVIDIA GPU
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[cuda]'
	$(PY) experiments/bench/gpu.py

bench-sdxl: install ## SDXL at full size: pack, switch, write, load, run; 8 GB of disk, 10 minutes
	$(PY) experiments/bench/checkpoint.py

trace-table: install ## trace every denoiser class of diffusers: the table of docs/tracing.md
	OMP_NUM_THREADS=1 $(PY) experiments/trace_table/table.py --write docs/tracing.md
