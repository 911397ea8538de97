# Everything a newcomer types; `make help` lists it. PYTHON=/path/to/python chooses the interpreter of .venv.
SHELL  := /bin/bash
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
EXTRAS := dev,notebooks
ifeq ($(shell uname -s),Linux)
EXTRAS := $(EXTRAS),deepspeed
endif
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null

.DEFAULT_GOAL := help
.PHONY: help install train test lint format notebooks clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## create .venv and install the package with pinned dependencies (again only when the pins change)

train: $(STAMP)  ## render the demo world, pretrain its small encoders, train and evaluate; the last line is the run folder
	@$(PY) -m macaw_lit.data.demo.render
	@$(PY) -m macaw_lit.data.demo.pretrain
	@$(PY) -m macaw_lit.train experiment=demo

test: $(STAMP)  ## run all tests on all cores, with coverage and without network; ARGS="-k media" runs a part, without coverage
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(or $(ARGS),-n auto --dist loadfile --no-loadscope-reorder --cov=macaw_lit)

lint: $(STAMP)  ## check style, formatting, types, and who imports whom
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

format: $(STAMP)  ## rewrite the code in the house style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

notebooks: $(STAMP)  ## execute every notebook; the executed copies go to logs/
	@mkdir -p logs && $(VENV)/bin/jupyter execute --output='../logs/{notebook_name}' notebooks/*.ipynb

clean:  ## remove caches and build outputs; .venv, data and logs stay
	@rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in "$(PYTHON)" python3.11 python3.12 python3.13 python3; do \
		if "$$python" $(NEW_ENOUGH); then break; fi; \
		if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	if ! "$$python" $(NEW_ENOUGH); then \
		echo "error: $$python is not Python 3.11 or newer: install one, or name it with PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	if [ ! -x $(VENV)/bin/pip ]; then "$$python" -m venv $(VENV); fi
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
