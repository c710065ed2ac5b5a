# Everything a developer does, one command each. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Test workers: as many as there are cores, at most 4.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
# File by file, in order of folders: files of few tests, which take longest each, are not the last.
SHARED_OUT := --dist loadfile --no-loadscope-reorder
# Frames that `make fuzz` sends.
FRAMES ?= 1000000
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help demo test scripts harmless harmless-quick lint types check bench bench-tui bench-ssh bench-mishaps bench-scale bench-peer soak fuzz stress screenshots figures manual clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.train ## set up and run the demo: dp, ddp, then fsdp on 4 virtual devices
	$(BIN)/dpwatch demo --gpus 4

test: $(VENV)/.dev ## set up and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(SHARED_OUT) -m "not scripts"

scripts: $(VENV)/.scripts ## run other people's kinds of scripts under `dpwatch run`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m scripts

harmless: $(VENV)/.scripts ## the proof that the probe changes nothing; half an hour on two cores, or ROWS="zoo/ddp ops/prod"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.harmless $(ROWS)

harmless-quick: $(VENV)/.dev ## the part of it that CI runs, two to four minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.harmless --quick

lint: $(VENV)/.dev ## style and import walls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

check: lint types test scripts harmless-quick ## all of the above, as CI runs it

bench: $(VENV)/.dev ## what the probe costs a training step, measured in pairs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.overhead
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.collectives
	$(BIN)/python -m tests.bench.prints

bench-tui: $(VENV)/.dev ## what the dashboard costs at 8, 1,024 and 4,096 ranks; about five minutes
	$(BIN)/python -m tests.bench.tui

bench-ssh: $(VENV)/.dev ## how long after ssh is up the first record stands on the screen, and the bytes that follow
	$(BIN)/python -m tests.bench.ssh_first
	$(BIN)/python -m tests.bench.ssh_bytes

bench-mishaps: $(VENV)/.dev ## whether training notices that a hub or a viewer is killed or stands still
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.mishaps

MINUTES ?= 60
soak: $(VENV)/.dev ## whether hub and viewer grow; an hour, or MINUTES=5
	$(BIN)/python -m tests.bench.soak --minutes $(MINUTES)

bench-scale: $(VENV)/.dev ## what hub and viewer cost at 64 to 4,096 ranks; brings docs/scale.md up to date
	$(BIN)/python -m tests.bench.scale --write docs

# TraceML has an environment of its own, beside the same torch; without it the bench runs the rest.
PEER := .bench-peer
TRACEML := 0.5.0
bench-peer: $(VENV)/.dev ## training plain, under dpwatch and under TraceML in turn; an hour, or ARGS="--only 1x1"
	@test -e $(PEER)/bin/traceml || { $(MAKE) --no-print-directory VENV=$(PEER) $(PEER)/.torch \
	  && $(PEER)/bin/python -m pip --disable-pip-version-check --quiet \
	    install -c constraints.txt torch traceml-ai==$(TRACEML); } \
	  || echo "pip can't install traceml-ai==$(TRACEML): comparing without it" >&2
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.peer $(ARGS)

fuzz: $(VENV)/.dev ## a million damaged frames to a real hub; by coverage too, where atheris is installed
	$(BIN)/python -m tests.fuzz.hub --frames $(FRAMES)
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
	  $(BIN)/python -m tests.fuzz.coverage -runs=$(FRAMES) -seed=1; \
	else \
	  echo "coverage-guided fuzzing skipped: pip install atheris"; \
	fi

stress: $(VENV)/.scripts ## the same scripts a hundred times each; about two hours
	$(BIN)/python -m tests.bench.stress

screenshots: $(VENV)/.dev ## draw the README's pictures anew, from real runs
	$(BIN)/python -m dpwatch.demo.screenshots docs/screenshots

figures: $(VENV)/.dev ## measure the figures of docs/strategies.md anew
	$(BIN)/python -m dpwatch.demo.figures docs/strategies.md

manual: $(VENV)/.dev ## write docs/dpwatch.1 anew, from the parser
	$(BIN)/python -m dpwatch.cli.manual docs/dpwatch.1

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) $(PEER) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "dpwatch needs Python 3.10 or newer: make PYTHON=python3.11 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# PyPI's torch for x86-64 Linux brings gigabytes of CUDA. Where there is no GPU take the CPU build:
# from a local wheel where pip knows one, else from PyTorch's own index.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@if [ "$$(uname -sm)" != "Linux x86_64" ] || command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) install -c constraints.txt torch numpy; \
	else \
	  $(PIP) install --no-index --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	    || $(PIP) install --no-deps --index-url $(CPU_WHEELS) "torch==$(TORCH)+cpu"; \
	fi
	@touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[train,dev]'
	@touch $@

$(VENV)/.scripts: $(VENV)/.dev
	$(PIP) install -c constraints.txt -e '.[train,dev,scripts]'
	@touch $@
