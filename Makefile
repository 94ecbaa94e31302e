# Two commands do everything from a fresh clone, on Linux or macOS, with or without a GPU:
#
#   make demo    train the long-document classifier on the data that ships, and print its table
#   make test    check style and run every test but the slow ones
#
# And a third, `make benchmark`, measures speed and memory beside other models, in 15 minutes (ARGS=--quick: in 2).
#
# Each first makes `.venv` with the versions in constraints.txt; a second call finds it ready.
# Variables: PYTHON (which Python makes the environment, 3.11 or newer), OUT (where the demo writes), RESULTS (where the
# benchmark does), and ARGS (more flags for the script or for pytest): make demo OUT=runs/other ARGS="--seed 2"; make
# test ARGS="-k readme"

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/sotu
RESULTS ?= runs/benchmark.json
ARGS ?=

BIN := $(VENV)/bin
# What the installed versions depend on: when one of these files is newer than the stamp, pip runs again.
PINS := pyproject.toml constraints.txt

# The package of an earlier implementation has the name of this one, so it is kept apart.
PEERS := .cache/peers

.PHONY: demo test benchmark install style clean

demo: $(VENV)/.train
	$(BIN)/python scripts/run_classification.py --output_dir $(OUT) $(ARGS)

test: $(VENV)/.dev style
	$(BIN)/python -m pytest $(ARGS)

benchmark: $(VENV)/.benchmark
	$(BIN)/python scripts/benchmark.py --results $(RESULTS) $(ARGS)
	$(BIN)/python scripts/maintain.py plots $(RESULTS) --output $(RESULTS:.json=.png)

style: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
	$(BIN)/python -m pip install --no-deps --upgrade --target $(PEERS) sinkhorn_transformer==0.11.4
	@touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
