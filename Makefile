# `make` lists what can be made. Everything happens in .venv, which the first target that needs it creates.

PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
TOO_OLD := $(shell $(PYTHON) -c 'import sys; print("" if sys.version_info >= (3, 11) else "yes")' 2>/dev/null || echo yes)
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check --progress-bar on

# The tested version. On Linux the package index has it with CUDA alone, 3 GB; where there is no NVIDIA GPU, PyTorch's own
# index has the CPU build, 0.2 GB.
TORCH := torch==2.13.0
CPU_BUILD := --index-url https://download.pytorch.org/whl/cpu

# What is installed, by the version of Python: with another one, .venv is made anew.
VENV := .venv/python-$(VERSION)
RUNTIME := .venv/runtime-$(VERSION)
DEVELOPMENT := .venv/development-$(VERSION)

.PHONY: help install develop fit predict tensorboard test portable torture lint check audit bench records lists lecture gpu clean

help: ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

install: $(RUNTIME) ## create .venv and install what the project runs on
develop: $(DEVELOPMENT) ## the same, and what its tests need

$(VENV):
	$(if $(TOO_OLD),$(error $(PYTHON) is $(or $(VERSION),not installed) and makemore_pl needs Python 3.11 or newer; name another, such as PYTHON=python3.13))
	@if test -d .venv; then echo ".venv is not of Python $(VERSION): making it anew"; fi
	@$(PYTHON) -m venv --clear .venv
	@touch $@

$(RUNTIME): pyproject.toml constraints.txt | $(VENV)
	@echo "installing torch, lightning and what else the project runs on into .venv (1.2 GB)"
	@if $(BIN)/python -c 'import sys; from importlib.metadata import version as v; sys.exit([int(n) for n in v("torch").split(".")[:2]] < [2, 10])' 2>/dev/null; \
	then echo "torch is there already, and stays"; \
	elif ! command -v nvidia-smi >/dev/null && $(PIP_INSTALL) --quiet --dry-run --report - '$(TORCH)' | grep -q '"nvidia-'; \
	then $(PIP_INSTALL) '$(TORCH)' $(CPU_BUILD); \
	else $(PIP_INSTALL) '$(TORCH)'; fi
	$(PIP_INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo "installing what the tests need (0.3 GB)"
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

fit: install ## train on names.txt and print new names; ARGS='--data.path my_words.txt' for others
	$(BIN)/python -m makemore_pl fit $(ARGS)

predict: install ## print more names; ARGS='--sample.num_names 50'
	$(BIN)/python -m makemore_pl predict $(ARGS)

tensorboard: install ## show the curves of all runs
	$(BIN)/tensorboard --logdir lightning_logs

# Two files at a time. Threads that wait do not spin meanwhile: the other process has work for the core.
test: develop ## run the tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

portable: develop ## run the tests as on other machines: plain kernels, oldest and newest versions (half an hour)
	$(BIN)/python tests/portable.py $(ARGS)

torture: develop ## kill runs, hurt checkpoints, and count what is lost (four minutes)
	$(BIN)/python tests/torture.py

lists: develop ## train on twelve lists with default flags (ten minutes; fetches some with npm); ARGS='--only emoji'
	$(BIN)/python benchmarks/lists.py $(ARGS)

lecture: develop ## run docs/lecture.ipynb and keep its outputs in it
	$(BIN)/python docs/lecture.py

lint: develop ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: lint test ## what CI runs

audit: install ## look the tested versions up among the known vulnerabilities, where there is a network
	@if $(BIN)/python -c "from urllib.request import urlopen; urlopen('https://osv.dev', timeout=10)" 2>/dev/null; \
	then $(PIP_INSTALL) --quiet pip-audit && (cat constraints.txt; echo '$(TORCH)') > .venv/tested.txt \
	&& $(BIN)/pip-audit --vulnerability-service osv --requirement .venv/tested.txt --no-deps --disable-pip; \
	else echo "audit: skipped, no source of advisories can be reached"; fi

bench: develop ## measure against the notebook and the usual Lightning, side by side (six minutes)
	$(BIN)/python benchmarks/run.py

records: install ## train the recipes that are compared with counting, several seeds each (fifteen minutes)
	$(BIN)/python benchmarks/records.py

gpu: develop ## test and measure on a GPU; says so where there is none
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py
	$(BIN)/python benchmarks/gpu.py

clean: ## remove .venv and caches, but no runs
	rm -rf .venv .portable .*_cache .hypothesis build dist
