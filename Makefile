# The targets that need packages set up .venv first, from python3.11 (or newer) and constraints.txt alone.
# On a machine without a GPU, a smaller torch: make install PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
VENV := .venv
PY := $(VENV)/bin/python
MODEL ?= emoji_unet
STAMP := $(VENV)/.installed

PEERS := .venv-peers
LOWEST := .venv-lowest
UV_FLAGS ?=

.PHONY: help install demo test check soak soak-tests docs lowest bench bench-cuda bench-sdxl bench-full-size bench-store peers-table trace-table study
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install: $(STAMP) ## set up .venv; quick when nothing changed

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 here: install Python 3.11 or newer, or give PYTHON=PATH"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "qsdm needs Python 3.11 or newer, and $(PYTHON) is older: give PYTHON=PATH"; exit 1; }
	test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## the whole pipeline on a model that ships with qsdm, minutes on two cores: table, pictures, HTML page
	$(PY) -m qsdm +model=$(MODEL)

test: install ## all tests, fast and slow, but those of `make soak`
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

check: install ## lint, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# Made anew each time: uv keeps what is installed if it satisfies a bound. PyPI's torch brings CUDA's packages, 7 GB in all;
# where PyTorch's own index can be reached: make lowest UV_FLAGS="--torch-backend cpu"
$(LOWEST)/.installed: pyproject.toml
	"$(PYTHON)" -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct $(UV_FLAGS) -e '.[dev]'
	@touch $@

lowest: $(LOWEST)/.installed ## the fast tests with the lowest version of every dependency, in an environment of its own
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not soak"

soak-tests: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -m soak

soak: soak-tests ## what takes longer than `make test`: more kills, models and engines, damaged copies; an hour
	OMP_NUM_THREADS=1 $(PY) experiments/bench/pool.py --out outputs/pool.jsonl
	OMP_NUM_THREADS=1 $(PY) experiments/bench/damage.py --num 2000 --folder outputs/damage

docs: install ## build the site into docs/_build/html; a warning is an error
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[docs]'
	$(PY) -m sphinx --fail-on-warning --keep-going -q -b html docs docs/_build/html

bench: install $(PEERS)/.installed ## measure speed, beside other quantizers in an environment of their own; 15 minutes
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PY) experiments/bench/stages.py
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PEERS)/bin/python experiments/bench/quant.py
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PEERS)/bin/python experiments/bench/peers.py
	OMP_NUM_THREADS=1 $(PY) experiments/bench/measure.py
	OMP_NUM_THREADS=1 $(PY) experiments/bench/compare.py
	OMP_NUM_THREADS=1 $(PY) experiments/bench/dispatch.py
	$(PY) experiments/bench/trace.py

bench-cuda: install ## measure the CUDA kernels; needs an NVIDIA GPU
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[cuda]'
	$(PY) experiments/bench/gpu.py

bench-sdxl: install ## SDXL at full size: pack, switch, write, load, run; 13 GB of disk, 10 minutes
	$(PY) experiments/bench/checkpoint.py

bench-full-size: install ## learn, predict, search and attribute at SDXL's size; 10 minutes
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PY) experiments/bench/full_size.py

bench-store: install ## open a store of 100,000 outcomes and 1,000 shards; 1.3 GB of disk, 5 minutes the first time
	OMP_NUM_THREADS=1 $(PY) experiments/bench/store.py

$(PEERS)/.installed: pyproject.toml constraints.txt
	test -x $(PEERS)/bin/python || "$(PYTHON)" -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e . \
		torchao optimum-quanto hqq bitsandbytes sdnq flash1dkmeans scikit-learn
	@touch $@

peers-table: $(PEERS)/.installed ## quantizers of others on the same layer: the table of docs/quantizers.md
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PEERS)/bin/python experiments/bench/peers.py --write docs/quantizers.md

trace-table: install ## trace every denoiser class of diffusers: the table of docs/tracing.md
	OMP_NUM_THREADS=1 $(PY) experiments/trace_table/table.py --write docs/tracing.md

study: install ## the study of a published denoiser: NAME=sdxl_w37, with small=true on random weights or plan=true for its price
	@test -n "$(NAME)" || { echo "give NAME=pixart_alpha_w34|pixart_sigma_w39|hunyuan_w365|sdxl_w37|sd15|dit_xl2"; exit 1; }
	OMP_NUM_THREADS=1 $(PY) experiments/studies/study.py $(NAME) $(if $(small),small=$(small)) $(if $(plan),plan=$(plan)) $(ARGS)
