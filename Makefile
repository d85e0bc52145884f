# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow test-browser browser check bench docs results

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Expected Python 3.11 or newer, but $(PYTHON) is older. Use make PYTHON=python3.12, for example."; exit 1; }
	$(PYTHON) -m venv .venv
	@echo 'Installing into .venv. pip downloads about 2 GB the first time, most of it PyTorch, and says nothing meanwhile.'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python train.py probe=position block=mid

test: install
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist loadfile --no-loadscope-reorder

browser: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'

test-browser: browser
	$(BIN)/python -m pytest -m browser

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: install
	$(BIN)/python -m tools.results

bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tools.benchmarks.extraction
	$(BIN)/python -m tools.benchmarks.early_exit
	$(BIN)/python -m tools.benchmarks.transformers
	$(BIN)/python -m tools.benchmarks.matching
	$(BIN)/python -m tools.benchmarks.mitigations
	$(BIN)/python -m tools.benchmarks.levels
	$(BIN)/python -m tools.benchmarks.pair_memory
	$(BIN)/python -m tools.benchmarks.registry
	$(BIN)/python -m tools.benchmarks.statistics_overhead
	$(BIN)/python -m tools.benchmarks.memory probe.solver=closed_form
	$(BIN)/python -m tools.benchmarks.startup
	$(BIN)/python -m tools.benchmarks.inputs
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m tools.benchmarks.explorer

docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --conf-dir docs . build/docs
	@echo "Open build/docs/index.html"
