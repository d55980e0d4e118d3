# `make` lists what can be made. Everything happens in .venv, which the first target that needs it creates.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install fit predict tensorboard test torture lint check audit bench records gpu clean

help: ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

install: .venv/installed ## create .venv and install the project into it

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

fit: install ## train on names.txt and print new names; ARGS='--data.path my_words.txt' for others
	$(BIN)/python -m makemore_pl fit $(ARGS)

predict: install ## print more names; ARGS='--sample.num_names 50'
	$(BIN)/python -m makemore_pl predict $(ARGS)

tensorboard: install ## show the curves of all runs
	$(BIN)/tensorboard --logdir lightning_logs

# Two files at a time. Threads that wait do not spin meanwhile: the other process has work for the core.
test: install ## run the tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

torture: install ## kill runs, hurt files, and count what is lost (under ten minutes)
	$(BIN)/python tests/torture.py $(ARGS)
	@$(BIN)/pip install --quiet atheris || echo "atheris has no wheel for this system"
	$(BIN)/python tests/fuzz.py

lint: install ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: lint test ## what CI runs

audit: install ## look the tested versions up among the known vulnerabilities, where there is a network
	@if $(BIN)/python -c "from urllib.request import urlopen; urlopen('https://osv.dev', timeout=10)" 2>/dev/null; \
	then $(BIN)/pip install --quiet pip-audit && $(BIN)/pip-audit --vulnerability-service osv --requirement constraints.txt --no-deps --disable-pip; \
	else echo "audit: skipped, no source of advisories can be reached"; fi

bench: install ## measure against the notebook and the usual Lightning, side by side (under ten minutes)
	$(BIN)/python benchmarks/run.py $(ARGS)

records: install ## train the recipes that beat counting, three seeds each (twenty minutes); ARGS='--only smoothed'
	$(BIN)/python benchmarks/records.py $(ARGS)

gpu: install ## test and measure on a GPU; says so where there is none
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py
	$(BIN)/python benchmarks/gpu.py

clean: ## remove .venv and caches, but no runs
	rm -rf .venv .*_cache .hypothesis build dist
