# What a contributor runs. Everything happens inside the checkout: `.venv` is made
# here, and nothing is installed on the machine. POSIX sh and any make of GNU 3.82+.

SHELL = /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
SEED ?= 1
MINUTES ?= 5

VENV := .venv
BIN := $(VENV)/bin
# The stamp names the checkout that the environment was made for: its scripts and
# the editable install hold absolute paths, so a copied .venv runs another tree.
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
PYTEST := $(BIN)/python -m pytest
# More workers than cores of a small machine: many tests wait for a daemon or a server.
WORKERS := -n 4 --dist worksteal

# Tests start some hundred daemons, and each would compile all that it imports: 4.4 s of processor time instead of 1.3.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv check-venv demo test test-system lint types format coverage
.PHONY: proof-once proof-lag bench simulate matrix faults faults-report faults-sabotage model mutants fuzz requirements sbom audit clean

help: ## Print this list
	@echo "make TARGET [ARGS='…' for the command behind it]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

venv: check-venv $(READY) ## Set up .venv from the hashed requirements (the others do it for you)

check-venv:
	@if [ ! -f $(READY) ]; then \
	    :; \
	elif [ "$$(cat $(READY))" != "$(CURDIR)" ]; then \
	    echo ".venv was made for $$(cat $(READY)) and still points there: rm -rf .venv, then again." >&2; \
	    exit 1; \
	elif ! $(BIN)/python -c 'from importlib import util; exit(not util.find_spec("curfew_store"))' 2>&-; then \
	    echo ".venv no longer works (was its Python removed or replaced?): rm -rf .venv, then again." >&2; \
	    exit 1; \
	fi

$(READY): requirements-dev.txt pyproject.toml | check-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or later is needed; '$(PYTHON)' says: $$($(PYTHON) -V 2>&1)" >&2; \
	    echo "Debian and Ubuntu: apt install python3 python3-venv. Another one: make PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "This Python has no venv module. Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; }
	@echo "Setting up .venv from requirements-dev.txt: once, some 70 packages, about half a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --no-compile --require-hashes -r requirements-dev.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@printf '%s\n' "$(CURDIR)" > $@

demo: venv ## See runs time out in a real PostgreSQL, in a minute or two
	@$(BIN)/curfewd demo $(ARGS)

test: venv ## Run every test that needs neither root nor Debian's packages
	@$(PYTEST) -m "not system" $(WORKERS) $(ARGS)

test-system: venv ## Run the tests that need root or Debian's packages (tests/install-debian.sh)
	@$(PYTEST) -m system --system $(ARGS)

lint: venv ## Check style, formatting, the import contracts and the pinned requirements
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m pip --disable-pip-version-check check

types: venv ## Check types (mypy --strict)
	@$(BIN)/mypy $(ARGS)

format: venv ## Format the code and apply ruff's safe fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# `coverage run`, not pytest --cov: the store is also a pytest plug-in, so pytest
# imports it before pytest-cov could measure. COVERAGE_PROCESS_START reaches the
# workers and the daemons that the tests start, in whatever folder they run.
coverage: export COVERAGE_PROCESS_START = $(CURDIR)/pyproject.toml
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage
coverage: export COVERAGE_ROOT = $(CURDIR)
coverage: venv ## Measure branches: 95 % over all, 100 % of the store and the sweeper
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not system" $(WORKERS) $(ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report --fail-under=95
	@$(BIN)/coverage report --fail-under=100 --include='*/curfew_store/*,*/curfew_daemon/sweeper.py'

proof-once: venv ## Prove "once": three daemons, kills and restarts (SEED=…)
	@$(BIN)/python -m tests.faults.proof_once --seed $(SEED) $(ARGS)

proof-lag: venv ## Measure how late deadlines are met, beside one APScheduler job per run
	@$(BIN)/python -m tests.bench.proof_lag $(ARGS)

bench: venv ## Measure lag, speed, idle cost and size (ARGS=--full takes long; '--only lag_steady')
	@$(BIN)/python -m tests.bench --seed $(SEED) $(ARGS)

simulate: venv ## Simulate fleets of daemons in virtual time: lag and cost
	@$(BIN)/python -m tests.simulation --seed $(SEED) $(ARGS)

faults: venv ## Inject faults and check the invariants (SEED=… MINUTES=…; as root for all kinds)
	@$(BIN)/python -m tests.faults --seed $(SEED) --minutes $(MINUTES) $(ARGS)

faults-report: venv ## Sum the recorded runs of `make faults` into tests/README.md
	@$(BIN)/python -m tests.faults.report $(ARGS)

faults-sabotage: venv ## Take one safety after the other away: does the laboratory notice?
	@$(BIN)/python -m tests.faults.sabotage $(ARGS)

model: venv ## Explore every interleaving of the model and replay traces on a real PostgreSQL
	@$(BIN)/python -m tests.model --seed $(SEED) $(ARGS)

mutants: venv ## Break the SQL and the code in a private copy: do the tests notice? (SEED=…)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && trap 'exit 1' INT TERM && \
	$(PIP) install --no-deps --require-hashes --target "$$tmp" -r tests/mutants/requirements.txt && \
	PYTHONPATH="$$tmp" $(BIN)/python -m tests.mutants --seed $(SEED) $(ARGS)

fuzz: venv ## Look for bad inputs that nobody thought of (SEED=… MINUTES=…)
	@$(BIN)/python -m tests.badinput.fuzz --minutes $(MINUTES) --seed $(SEED) $(ARGS)

matrix: venv ## Run the store's and sweeper's tests on PostgreSQL 14-18, SQLAlchemy 2.0 and 2.1
	@$(BIN)/python -m tests.matrix $(ARGS)

requirements: export CUSTOM_COMPILE_COMMAND = make requirements
requirements: ## Resolve requirements-dev.txt anew (ARGS=--upgrade to move every pin)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	    echo "Resolve with the oldest supported Python: make requirements PYTHON=python3.11" >&2; exit 1; }
	@echo "Resolving requirements-dev.txt: about a minute"
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && trap 'exit 1' INT TERM && \
	$(PYTHON) -m venv "$$tmp/venv" && \
	"$$tmp/venv/bin/pip" --disable-pip-version-check -q install 'pip-tools>=7.5,<8' && \
	compile="$$tmp/venv/bin/pip-compile --quiet --generate-hashes --strip-extras --no-annotate \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --unsafe-package curfewd" && \
	$$compile --extra dev --all-build-deps --output-file requirements-dev.txt $(ARGS) pyproject.toml && \
	sed -n 's/^\([a-z0-9].*==[^ ]*\).*/\1/p' requirements-dev.txt > "$$tmp/pins.txt" && \
	echo 'hatchling>=1.27' > "$$tmp/build.in" && \
	$$compile --extra daemon --constraint "$$tmp/pins.txt" --output-file deploy/requirements.txt pyproject.toml && \
	$$compile --constraint "$$tmp/pins.txt" --output-file deploy/requirements-build.txt "$$tmp/build.in"

# Both tools run from an environment that is thrown away: nothing of theirs gets among our pins.
PINNED := deploy/requirements.txt deploy/requirements-build.txt requirements-dev.txt tests/mutants/requirements.txt \
    tests/system/kubernetes/kubernetes-validate.txt

sbom: ## Write dist/*.cdx.json: what the daemon installs, and what developing it does (CycloneDX)
	@mkdir -p dist
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && trap 'exit 1' INT TERM && \
	$(PYTHON) -m venv "$$tmp/venv" && \
	"$$tmp/venv/bin/pip" --disable-pip-version-check -q install 'cyclonedx-bom>=7,<8' && \
	for each in daemon:deploy/requirements.txt dev:requirements-dev.txt; do \
	    "$$tmp/venv/bin/cyclonedx-py" requirements --pyproject pyproject.toml --output-reproducible \
	        --output-file "dist/curfewd-$${each%%:*}.cdx.json" "$${each#*:}" && \
	    echo "dist/curfewd-$${each%%:*}.cdx.json" || exit 1; \
	done

audit: ## Look every pin up in a database of known vulnerabilities (needs a network; ARGS='-s osv' asks OSV)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && trap 'exit 1' INT TERM && \
	$(PYTHON) -m venv "$$tmp/venv" && \
	"$$tmp/venv/bin/pip" --disable-pip-version-check -q install 'pip-audit>=2.9,<3' && \
	"$$tmp/venv/bin/pip-audit" --strict --require-hashes --disable-pip --progress-spinner off \
	    $(addprefix -r ,$(PINNED)) $(ARGS)

clean: ## Remove everything that make made, .venv included
	@rm -rf .system-tools .venv .venv-sa20 .venv-sa21 .pg-matrix build dist .coverage .coverage.* coverage.xml
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find store daemon tests -name __pycache__ -type d -prune -exec rm -rf {} +
