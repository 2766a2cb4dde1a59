# Needs Python 3.11 or newer, make and a C compiler; everything else goes into .venv, which is made again when
# pyproject.toml or constraints.txt change.
#
#   make run ARGS=--help           arguments for the command behind a target
#   make run PYTHON=python3.12     another interpreter, looked at when .venv is made

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
ARGS :=

# Half of what a test takes is waiting for processes, so that three at a time keep two cores busy.
TESTS_AT_ONCE := 3

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run demo-faults test check lint types layers format bench clean force

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.run ## the demo: a NATS server, a worker and many agents, answers checked
	@$(BIN)/aikoryu demo $(ARGS)

demo-faults: $(VENV)/.plot ## the demo with every fault in turn; draws faults.svg
	@$(BIN)/aikoryu demo --faults --picture faults.svg $(ARGS)

# Hundreds of processes load the package: bytecode is kept, also where the environment says otherwise.
test: $(VENV)/.dev ## the test suite
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal --max-worker-restart 0 $(ARGS)

check: lint types layers ## lint, format, types, import layers

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

layers: $(VENV)/.dev
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.bench ## the bus against its peers on this machine
	@$(BIN)/aikoryu bench bus $(ARGS)

clean: ## remove the environment, caches and build output
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# A stamp says which extras are installed; each level holds the one before, so it renews that stamp too.
$(VENV)/.run: EXTRAS := worker,models
$(VENV)/.run: STAMPS := .run
$(VENV)/.plot: EXTRAS := worker,models,plot
$(VENV)/.plot: STAMPS := .run .plot
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.dev: STAMPS := .run .dev
$(VENV)/.bench: EXTRAS := dev,bench
$(VENV)/.bench: STAMPS := .run .plot .dev .bench

$(VENV)/.run $(VENV)/.plot $(VENV)/.dev $(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.home
	@echo "Installing aikoryu[$(EXTRAS)] into $(VENV) (the first time takes a minute or two, longer where pip fetches a CUDA build of torch) ..."
	@$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@cd $(VENV) && touch $(STAMPS)

# An environment that was moved or copied with its folder, or whose interpreter is gone, is made again; one made by hand is kept.
ifneq ($(shell [ -x $(BIN)/python ] && [ "$$(cat $(VENV)/.home 2>/dev/null)" = "$$(pwd -P)" ] || echo stale),)
$(VENV)/.home: force
endif

$(VENV)/.home:
	@if [ ! -f $@ ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then pwd -P > $@; exit; fi; \
	for python in $(PYTHONS); do \
	  "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer with venv and ensurepip among: $(PYTHONS)." >&2; \
	  echo "Install one (Debian and Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version) ..."; \
	"$$python" -m venv --clear $(VENV) && pwd -P > $@
