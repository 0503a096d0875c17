# Everything a clone needs: python3 (3.11 or newer) and make. Each target installs first what is missing.
PYTHON ?= python3
BIN := .venv/bin

# Build isolation installs hatchling outside the reach of -c; the environment reaches it.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test fuzz serve lint bench docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/python client/examples/digits/train.py

test: install
	$(BIN)/pytest

# The coverage-guided part needs atheris, which is not for every Python; the rest runs without.
fuzz: install
	-$(BIN)/pip install --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

serve: install
	$(BIN)/lossd serve

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: install
	$(BIN)/python tests/benchmarks/run.py

docs: install
	$(BIN)/python tests/readme.py
	$(BIN)/python tests/excerpts.py

clean:
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache
