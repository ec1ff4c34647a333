# `make demo` and `make test` set themselves up in .venv; later runs do not reinstall.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# modules are compiled when they are imported, and most of them never are
PIP := $(BIN)/python -m pip install -q --no-compile -c constraints.txt

# what XLA compiled for one test serves the next run, and the other worker
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/$(VENV)/jax-cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
# tests run most programs once, so compiling them well takes longer than it saves
test wheel-test: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
  --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1

.PHONY: demo test lint docs wheel-test clean

demo: $(VENV)/.demo
	$(BIN)/adtn demo

# one thread per worker: two workers with two threads each take far longer on two cores
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=40

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff .
	$(BIN)/lint-imports
	$(BIN)/python .ci/duplicated_lines.py
	$(BIN)/python .ci/english.py
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel-test: $(VENV)/.test
	bash .ci/wheel-test $(BIN)/python

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adtn needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[torch,jax,plot]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[torch,jax,plot,tensornetwork,test]'
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) -e '.[lint]'
	touch $@

$(VENV)/.docs: $(VENV)/.test
	$(PIP) -e '.[docs]'
	touch $@

# everything in one call, which is faster than one after the other
$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[torch,jax,plot,tensornetwork,test,lint,docs]'
	touch $(VENV)/.demo
	touch $(VENV)/.test
	touch $(VENV)/.lint $(VENV)/.docs $@

clean:
	rm -rf $(VENV) dist docs/_build docs/jupyter_execute .pytest_cache .hypothesis .ruff_cache
