# make demo: install, compile the demo checkpoint for this CPU, ask it two questions.   make test: what CI runs.
# make campaign: the tests that take minutes each: long texts, 20 kills of everything, ten minutes of calls.
# make wheels: the wheels of a release, in dist/.   make docs: the documentation as a site, in build/site; a warning is an error.
# make native: build and install the runtimes for OpenCL and Vulkan devices; make native-asan: their tests under AddressSanitizer.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find minicpm_mlc -name '*.py')
DEMO := examples/demo_model/MiniCPM4.1-demo

NATIVE := $(shell find native -type f)

.PHONY: demo test check campaign native native-asan devices wheels docs clean

demo: .venv/.installed
	$(BIN)/minicpm-mlc compile $(DEMO) -o build/demo --force
	$(BIN)/minicpm-mlc chat build/demo --stats --temperature 0 --prompt "What is 4827 + 356?"
	$(BIN)/minicpm-mlc chat build/demo --stats --temperature 0 --prompt "What does minicpm-mlc do? /no_think"

# what takes one core each, two at a time; all that pip installs is there before
test: .venv/.tests .venv/.docs
	$(MAKE) -j2 check devices docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder

campaign: .venv/.tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m campaign

native: .venv/.native

native-asan: .venv/.tests .venv/.native
	sh tools/native_asan.sh .venv

devices: .venv/.installed
	sh tools/test_devices.sh .venv

check: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/basedpyright

wheels: .venv/.made
	$(BIN)/python tools/wheels.py dist

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

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

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet '.[docs]'
	touch $@

# built against TVM's wheel in the venv, without a second copy of it
.venv/.native: .venv/.installed $(NATIVE)
	$(BIN)/pip install --quiet 'scikit-build-core>=0.10' cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --no-build-isolation --no-deps ./native
	touch $@
