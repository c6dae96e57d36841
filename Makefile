# One environment in .venv, made from nothing. On a machine with an NVIDIA GPU the same set-up takes the CUDA build of torch.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch>=2.11" || echo "torch==2.13.0")
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test check format bench lines clean

setup: $(VENV)/.ok

# torch.txt pins the torch that is there, so that no later extra replaces it with another build.
$(VENV)/.ok: pyproject.toml
	$(PY) -c "import sys; assert sys.version_info >= (3, 11), 'Sightline needs Python 3.11 or newer; set PY=/path/to/python3'"
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -c "import torch; print(f'torch=={torch.__version__}')" > $(VENV)/torch.txt
	$(BIN)/python -m pip install -q -c $(VENV)/torch.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/sightline demo --out runs/demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks all

# Lines of code by package, without docstrings, comments and blank lines.
lines: setup
	$(BIN)/python benchmarks/count_lines.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache src/*.egg-info
