# Everything a clone needs: python3 (3.11 or newer) and make. Each target installs first what is missing.
PYTHON ?= python3
BIN := .venv/bin
# What to measure: all, or a command of tests/benchmarks with its options; BENCH=--help lists them.
BENCH ?= all

# The formatter and linter of the explorer's JavaScript, from npm. `make lint` skips it without npm.
BIOME := npx --yes @biomejs/biome@2.6.8

# Build isolation installs hatchling outside the reach of -c; the environment reaches it.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Python writes bytecode even if this machine's environment forbids it: each of the hundreds of processes that tests start
# would compile what it imports. pip compiles none, because a process imports a small part of the largest packages.
export PYTHONDONTWRITEBYTECODE :=

# $(call venv,FOLDER) makes an environment whose pip, of the pinned version and by hash, installs in half the processor time
# that the pip which Python brings takes.
venv = $(PYTHON) -m venv $(1) && sed -n '/^pip==/,/[^\]$$/p' requirements.txt > $(1)/pip.txt && \
  $(1)/bin/pip install --quiet --no-compile --require-hashes --no-deps -r $(1)/pip.txt

# `service` is what serving and the demo need, `install` what tests, lint and documentation need besides.
.PHONY: service install demo test fuzz clients serve lint bench chaos simulate docs audit pins clean

install: .venv/installed

.venv/installed: .venv/service
	@echo "Installing what tests, lint and documentation need besides: about 115 packages more."
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

service: .venv/service

# torch has no hash: its build depends on where it comes from. What it needs is installed before, by hash.
# pip refuses constraints of an isolated build where there is none.
.venv/service: pyproject.toml constraints.txt requirements.txt
	@echo "Installing the service into .venv: about 60 packages, most of it torch; a minute or more, once."
	$(call venv,.venv)
	$(BIN)/pip install --no-compile --require-hashes --no-deps -r requirements.txt
	$(BIN)/pip install --no-compile -c constraints.txt torch
	PIP_BUILD_CONSTRAINT= $(BIN)/pip install --no-compile -c constraints.txt --no-build-isolation -e '.[demo]'
	$(BIN)/python -c 'import lossd.api.server, lossd.engine.worker' # writes the bytecode of what serving imports
	-$(BIN)/lossd compile
	@touch $@

demo: service
	$(BIN)/python client/examples/digits/train.py

# The passes are compiled first: answers are compared to the last digit, which changes when a worker begins to use a pass.
# The bytecode is compiled too, before processes that start at once would each compile it.
# Tests run in two processes more than there are cores, because many wait. A process takes neighbouring tests, and then half
# of the tests another has left.
test: install
	$(BIN)/lossd compile
	$(BIN)/python -m compileall -q service client
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# The coverage-guided part needs atheris, which is not for every Python; the rest runs without.
fuzz: install
	-$(BIN)/pip install --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

# Installs other projects' clients, with which tests call the service, into environments of their own: about 800 MB.
# The bytecode of what they import is written here, and not by the first tests.
clients: .clients/installed

.clients/installed: $(wildcard tests/api/stock/*.txt tests/api/stock/*.json)
	for name in kserve mlserver; do \
	  $(call venv,.clients/$$name) && \
	  PIP_CONSTRAINT= .clients/$$name/bin/pip install --quiet --no-compile --no-deps -r tests/api/stock/$$name.txt && \
	  .clients/$$name/bin/python -c "import $$name" || exit 1; \
	done
	mkdir -p .clients/node && cp tests/api/stock/package*.json .clients/node
	if command -v npm > /dev/null; then npm ci --prefix .clients/node --no-audit --no-fund; fi
	@touch $@

serve: service
	$(BIN)/lossd serve

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@if $(BIOME) --version >/dev/null 2>&1; then $(BIOME) ci --colors=off --error-on-warnings; \
	else echo "JavaScript is not linted here: that needs npm and its registry."; fi

bench: install
	cd tests && ../$(BIN)/python -m benchmarks $(BENCH)

simulate: install
	cd tests && ../$(BIN)/python -m simulations $(SIMULATE)

chaos: install
	cd tests && ../$(BIN)/python -m chaos $(CHAOS)

docs: install
	$(BIN)/python tests/tables.py
	$(BIN)/python tests/excerpts.py
	$(BIN)/python tests/website.py

# Tools in environments of their own, because they need other packages than the service does.
.tools/pip-audit:
	$(call venv,$@.part)
	PIP_CONSTRAINT= $@.part/bin/pip install --quiet --no-compile pip-audit==2.10.1
	mv $@.part $@

.tools/uv:
	$(call venv,$@.part)
	PIP_CONSTRAINT= $@.part/bin/pip install --quiet --no-compile uv==0.13.9
	mv $@.part $@

# Without a database of vulnerabilities that can be reached, a sentence says so.
audit: .tools/pip-audit
	$</bin/python3 tests/audit.py

# Run this after a change of constraints.txt.
pins: .tools/uv
	$</bin/python3 tests/pins.py

clean:
	rm -rf .venv .tools .bench .clients .pytest_cache .hypothesis .mypy_cache .ruff_cache
