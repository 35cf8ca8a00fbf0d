# Standpipe: everything a developer or an operator runs from a checkout. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors alone, not a page of warnings. Not compiled: most modules are never imported,
# the rest is compiled by its first import, and installing takes half the time. Where the
# environment forbids that (container images often do), every start would compile anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check install --no-compile
PYTEST := $(BIN)/python -m pytest
# Further arguments for pytest and for the programs that demo, up and bench start.
PYTEST_ARGS ?=
ARGS ?=

# A stamp says what .venv holds; it is older than the files that decide it when that has changed.
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench

.DEFAULT_GOAL := help
.PHONY: help setup fmt check test test-servers faults bench bench-guard demo up docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## Put everything for working on Standpipe into .venv

fmt: $(DEV) ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

check: $(DEV) ## Check format, lint, types, imports and spelling
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports
	@$(BIN)/codespell

test: $(DEV) ## Run the tests against real servers (STANDPIPE_TEST_SERVERS=all: every version)
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-servers: $(DEV) ## Run the tests that need a server against every version there is
	@STANDPIPE_TEST_SERVERS=all $(PYTEST) -m "servers and not slow" $(PYTEST_ARGS)

faults: $(DEV) ## Run all fault tests, the long ones too: kill, stop, cut, fill the disk
	@$(PYTEST) tests/faults -m faults $(PYTEST_ARGS)

bench: $(BENCH) ## Measure Standpipe beside redis-py, FastStream and the server's limit (10 min)
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-guard: $(DEV) ## Fail when an event costs more than it did (under a minute)
	@$(BIN)/python benchmarks/guard.py

demo: $(DEMO) ## Start a server, a simulated water network and workers, and show them
	@$(BIN)/standpipe demo $(ARGS)

up: $(DEMO) ## Start the embedded server
	@$(BIN)/standpipe up $(ARGS)

docs: $(DEV) ## Write the generated pages anew and check the documentation
	@$(BIN)/python scripts/pages.py
	@$(PYTEST) tests/docs $(PYTEST_ARGS)

clean: ## Remove .venv and what the tools have left
	@rm -rf $(VENV) build dist .coverage .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Standpipe needs Python 3.11 or later; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "No virtual environment could be made with $(PYTHON). On Debian and Ubuntu:" >&2; \
	    echo "    apt-get install python3-venv" >&2; exit 1; }

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Standpipe and its demo into $(VENV) (about half a minute) …"
	@$(INSTALL) -c constraints.txt -e '.[demo]'
	@touch $@

$(BENCH): $(DEV)
	@$(INSTALL) -c constraints.txt -e '.[bench]'
	@touch $@

# What developing needs includes the demo, so its stamp is set as well.
$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Standpipe, its tests and tools into $(VENV) (about a minute) …"
	@$(INSTALL) -c constraints.txt -e '.[all,test,dev]'
	@touch $(DEMO) $@
