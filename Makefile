# make demo: install, compile the demo checkpoint for this CPU, ask it two questions.   make test: what CI runs.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find minicpm_mlc -name '*.py')
DEMO := examples/demo_model/MiniCPM4.1-demo

.PHONY: demo test check clean

demo: .venv/.installed
	$(BIN)/minicpm-mlc compile $(DEMO) -o build/demo --force
	$(BIN)/minicpm-mlc chat build/demo --stats --temperature 0 --prompt "What is 4827 + 356?"
	$(BIN)/minicpm-mlc chat build/demo --stats --temperature 0 --prompt "What does minicpm-mlc do? /no_think"

test: .venv/.tests check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/basedpyright

clean:
	rm -rf .venv build

.venv/.made:
	PYTHON=$(PYTHON) sh tools/make_venv.sh .venv
	touch $@

.venv/.installed: .venv/.made pyproject.toml $(SOURCES)
	$(BIN)/pip install --quiet .
	mkdir -p build
	touch $@

.venv/.tests: .venv/.installed
	$(BIN)/pip install --quiet '.[dev]'
	touch $@
