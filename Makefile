# Two commands do everything from a fresh clone, on Linux or macOS, with or without a GPU:
#
#   make demo    train the long-document classifier on the data that ships, and print its table
#   make test    check style and run every test but the slow ones, on all cores
#
# And a third, `make benchmark`, measures speed and memory beside other models, of whole texts, in decoding, and of other
# people's models with this attention, in 15 minutes (ARGS=--quick: in 2).
#
# `make test-oldest` runs the tests of the model with the oldest Transformers and torch, in an environment of its own.
#
# Each first makes `.venv` with the versions in constraints.txt; a second call finds it ready.
# Variables: PYTHON (which Python makes the environment, 3.11 or newer), OUT (where the demo writes), RESULTS (where the
# benchmark does), and ARGS (more flags for the script or for pytest): make demo OUT=runs/other ARGS="--seed 2"; make
# test ARGS="-k readme"; make test ARGS="-n 0 --pdb" (in one process)

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/sotu
RESULTS ?= runs/benchmark.json
ARGS ?=
# One process per core. A worker takes from another what that one has not begun, when its own tests are done.
WORKERS ?= --numprocesses logical --maxprocesses 8 --dist worksteal

# The oldest versions that pass: the lower bounds in pyproject.toml.
OLDEST_VENV ?= .venv-oldest
OLDEST_TRANSFORMERS := 5.23.0
OLDEST_TORCH := 2.8.0

BIN := $(VENV)/bin
# What the installed versions depend on: when one of these files is newer than the stamp, pip runs again.
PINS := pyproject.toml constraints.txt

.PHONY: demo test test-oldest benchmark install style clean

demo: $(VENV)/.train
	$(BIN)/python scripts/run_classification.py --output_dir $(OUT) $(ARGS)

test: $(VENV)/.dev style
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-oldest: $(OLDEST_VENV)/.test
	$(OLDEST_VENV)/bin/python -m pytest $(WORKERS) tests/model $(ARGS)

benchmark: $(VENV)/.benchmark
	$(BIN)/python scripts/benchmark.py --results $(RESULTS) $(if $(filter --quick,$(ARGS)),,--minutes 8) $(ARGS)
	$(BIN)/python scripts/maintain.py plots $(RESULTS) --output $(RESULTS:.json=.png)
	$(BIN)/python scripts/benchmark_decoding.py --results $(RESULTS:.json=_decoding.json) \
		$(or $(filter --quick,$(ARGS)),--contexts 1024 4096 16384 --minutes 3)
	$(BIN)/python scripts/benchmark_interface.py --results $(RESULTS:.json=_interface.json) \
		$(or $(filter --quick,$(ARGS)),--rounds 2 --minutes 4)

style: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/maintain.py model_rules

# The environment with everything in it, for work on the code.
install: $(VENV)/.dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + \
		": give one with `make PYTHON=...`" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[train]"
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.train

$(VENV)/.benchmark: $(PINS) | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[benchmark]"
	@touch $@ $(VENV)/.train

$(OLDEST_VENV)/.test: $(PINS)
	test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	sed -e 's/^transformers==.*/transformers==$(OLDEST_TRANSFORMERS)/' -e 's/^torch==.*/torch==$(OLDEST_TORCH)/' \
		constraints.txt > $(OLDEST_VENV)/constraints.txt
	$(OLDEST_VENV)/bin/python -m pip install -c $(OLDEST_VENV)/constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST_VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
