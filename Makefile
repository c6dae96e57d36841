# One environment in .venv, made from nothing with the versions of constraints/. Tests of other versions have environments of their own.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Environments of single targets; each can be put elsewhere.
TRANSFORMERS_VENV ?= .venv-transformers
TRL_VENV ?= .venv-trl
# On a machine with an NVIDIA GPU the same set-up takes the CUDA build of torch.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch>=2.11,<2.15" || echo "torch==2.13.0")
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo examples test test-latest test-oldest test-transformers test-trackers test-trl constraints check format bench gpu gpu-wheels lines clean

setup: $(VENV)/.ok

$(VENV)/.ok: pyproject.toml tools/environment.py $(wildcard constraints/*.txt)
	$(PY) -c "import sys; assert sys.version_info >= (3, 11), 'Sightline needs Python 3.11 or newer; set PY=/path/to/python3'"
	$(PY) tools/environment.py tested $(VENV) --torch "$(TORCH)"
	touch $@

demo: setup
	$(BIN)/sightline demo --out runs/demo

# The notebooks in full, on two cores about half an hour; the tests run them with 20 steps.
examples: setup
	$(BIN)/python -m examples.run examples/architecture.ipynb examples/mixture.ipynb

test: setup
	$(BIN)/python -m pytest

# The newest versions that pyproject.toml allows, looked up at each call, and its lower bounds; torch is that of .venv.
test-latest: setup
	$(BIN)/python tools/environment.py latest .venv-latest --like $(VENV)
	.venv-latest/bin/python -m pytest

test-oldest: .venv-oldest/.ok
	.venv-oldest/bin/python -m pytest

.venv-oldest/.ok: $(VENV)/.ok
	$(BIN)/python tools/environment.py oldest .venv-oldest --like $(VENV)
	touch $@

# transformers' own model, generation, processor and pipeline tests, from the source distribution of the tested version or, with TRANSFORMERS_SRC, from a
# checkout of its repository, which has more of them.
test-transformers: $(TRANSFORMERS_VENV)/.ok
	$(TRANSFORMERS_VENV)/bin/python -m tests.transformers_suite.fetch $(TRANSFORMERS_VENV) $(TRANSFORMERS_SRC)
	PYTHONPATH=$(TRANSFORMERS_VENV) HF_HUB_OFFLINE=1 $(TRANSFORMERS_VENV)/bin/python -m pytest -c tests/transformers_suite/pytest.ini \
		--rootdir . --confcutdir tests/transformers_suite tests/transformers_suite/suite.py tests/transformers_suite/processors.py

$(TRANSFORMERS_VENV)/.ok: $(VENV)/.ok
	$(BIN)/python tools/environment.py tested $(TRANSFORMERS_VENV) --like $(VENV) --extra parameterized==0.9.0
	touch $@

# TRL's SFTTrainer and `transformers serve` on a folder exported with its code, where Sightline cannot be imported.
test-trl: $(TRL_VENV)/.ok
	$(TRL_VENV)/bin/python -m pytest -W default tests/trl_suite/suite.py

$(TRL_VENV)/.ok: $(VENV)/.ok
	$(BIN)/python tools/environment.py tested $(TRL_VENV) --like $(VENV) --extra trl==1.16.0 --extra "transformers[serving]"
	touch $@

# A short training with each tracker, in an environment of its own below TRACKERS; then what the tracker stored is read back. MLflow needs
# an older pyarrow than that of constraints/.
TRACKERS ?= .venv-trackers
test-trackers: $(TRACKERS)/tensorboard/.ok $(TRACKERS)/mlflow/.ok $(TRACKERS)/wandb/.ok
	for name in tensorboard mlflow wandb; do \
		$(TRACKERS)/$$name/bin/python -m pytest -W default tests/trackers_suite/with_$$name.py || exit 1; done

$(TRACKERS)/%/.ok: $(VENV)/.ok
	mkdir -p $(TRACKERS)
	$(BIN)/python tools/environment.py tested $(TRACKERS)/$* --like $(VENV) --extras dev,$* --free pyarrow
	touch $@

# Writes the versions that test-latest has passed with to constraints/.
constraints:
	$(PY) tools/environment.py freeze .venv-latest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.configuration_page --check
	$(BIN)/python -m tools.method_figures --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks all

# All that a GPU can show, in at most five minutes: results in build/gpu, benchmarks/results and docs/results/gpu.md. gpu-wheels gathers what a
# machine without a package index lacks; copy it there together with the code and run `sh benchmarks/gpu.sh OUT`.
gpu: setup
	PYTHON=$(abspath $(BIN))/python sh benchmarks/gpu.sh build/gpu

gpu-wheels: setup
	$(BIN)/python tools/gpu_wheels.py build/gpu-wheels

# Lines of code by package, without docstrings, comments and blank lines.
lines: setup
	$(BIN)/python benchmarks/count_lines.py

clean:
	rm -rf $(VENV) .venv-latest .venv-oldest $(TRANSFORMERS_VENV) $(TRL_VENV) $(TRACKERS) build dist .pytest_cache .ruff_cache src/*.egg-info
