# Every target sets up what it needs: Python 3.11 with venv, and make, are enough.

PYTHON ?= python3
UV := .venv/bin/uv
RUN := .venv/bin/python -m
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1

.PHONY: help setup demo test check e2e format clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.ready  ## make .venv with what the lock file names

.venv/.ready: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gatepass needs Python 3.11 or later; name one: make PYTHON=python3.11"; exit 1; }
	@echo "setting up .venv ..." >&2
	@test -x $(UV) || { $(PYTHON) -m venv .venv && $(RUN) pip install --quiet --disable-pip-version-check uv; } || \
		{ echo "no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@$(UV) sync --quiet --frozen --all-extras
	@touch $@

demo: setup  ## show in a table who gets in at a gateway; OPENCLAW=1 with the real OpenClaw, from npm
	@PYTHONPATH=tests $(RUN) demo $(if $(filter-out 0,$(OPENCLAW)),--openclaw)

# One worker more than processors: a third of a test's time is waiting for processes and deadlines.
test: setup  ## everything but the end-to-end tests, in under two minutes
	@$(RUN) pytest -q -n $$((1 + $$(nproc))) --dist worksteal --loops one

check: setup  ## formatting, lint, types, import contracts
	@$(RUN) ruff format --check --quiet . || { $(RUN) ruff format --diff .; exit 1; }
	@$(RUN) ruff check --quiet .
	@$(RUN) mypy
	@.venv/bin/lint-imports

e2e: setup  ## the real OpenClaw, from npm into a cache outside the checkout; root for the tests with several users
	@$(RUN) pytest -q -n $$((1 + $$(nproc))) --dist worksteal --loops other
	@$(RUN) pytest -q -p no:cacheprovider --timeout 300 tests/e2e

format: setup  ## write what `check` asks for
	@$(RUN) ruff format --quiet .
	@$(RUN) ruff check --quiet --fix .

clean:  ## remove what the targets above made in the checkout
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
