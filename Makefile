# lbd: everything a developer types. `make` alone lists it; CONTRIBUTING.md explains it.
#
#   PYTHON=...        interpreter that .venv is made of (default python3, at least 3.11)
#   ARGS=...          more arguments for pytest, or for a benchmark
#   FUZZ_SECONDS=...  how long `make fuzz` runs

PYTHON ?= python3
ARGS ?=
FUZZ_SECONDS ?= 300
export PYTHON

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
RUFF := .venv/bin/ruff
# a go of `make test` (tests/order.py); 5 is pytest's word for no tests chosen
GO = $(PYTEST) --durations=10 --junitxml=build/junit-$(1).xml --go $(1) $(ARGS); s=$$?; [ $$s = 0 ] || [ $$s = 5 ]

.DEFAULT_GOAL := help
# make's own parallelism would run linters, builds and tests into each other
.NOTPARALLEL:
.PHONY: help setup build build-asan test demo lint format vm fuzz chaos clean uninstall \
        setup-build setup-demo compile compile-asan bench-instructions \
        test-unit test-packet test-source test-netns test-vm

help: ## this list
	@awk -F ': .*## ' '/^[a-z% -]+:.* ## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- set up and build --------------------------------------------------------------------------

setup: ## install the Debian packages (as root) and the .venv that all of this needs
	@tools/setup.sh test

setup-build:
	@tools/setup.sh build

setup-demo:
	@tools/setup.sh demo

build: setup-build compile ## compile the extensions and the BPF program, in place

compile:
	@LBD_TEST_EXT=1 $(PY) setup.py -q build_ext --inplace
	@$(PY) -m compileall -q lbd tests bench # where PYTHONDONTWRITEBYTECODE is set, every start would compile them again

build-asan: setup compile-asan ## the same under AddressSanitizer and UBSan, in build/asan (see tools/asan)

compile-asan:
	@LBD_TEST_EXT=1 LBD_SANITIZE=1 $(PY) setup.py -q build --build-base build/asan-tmp --build-lib build/asan

vm: setup ## fetch kernel and emulator of the lab VM into ~/.cache/vmlab
	@tests/vm/vmlab-setup

# --- run it ------------------------------------------------------------------------------------

demo: setup-demo compile ## balance real traffic between network namespaces, and show it
	.venv/bin/lbd demo

bench-%: setup compile ## a benchmark of bench/, such as bench-engine
	$(PY) bench/$*.py $(ARGS)

bench-instructions: setup compile ## the engine's instructions per packet beside those recorded (ARGS=--update, ARGS=--lines)
	$(PY) bench/instructions.py $(ARGS)

# --- test --------------------------------------------------------------------------------------

test: setup compile lint ## set up, build, lint, and run every test
	@tests/vm/vmlab-setup || echo 'make test: the lab VM cannot be had here, its tests will be skipped'
	@mkdir -p build
	@rm -f build/modes-*.json; \
	( $(call GO,left) ) >build/test-left.log 2>&1 & left=$$!; \
	failed=; ( $(call GO,right) ) || failed=yes; \
	wait $$left || failed=yes; cat build/test-left.log; \
	( $(call GO,alone) ) || failed=yes; \
	[ -z "$$failed" ] && echo 'make test: passed' || { echo 'make test: failed'; exit 1; }

lint: setup ## ruff, mypy, cython-lint
	$(RUFF) check .
	$(PY) -m mypy
	PATH="$$PWD/.venv/bin:$$PATH" cython-lint lbd bench tests # it calls pycodestyle, found on PATH

format: setup ## let ruff correct what it can
	$(RUFF) check --fix .

test-unit test-packet test-source test-netns: test-%: setup compile ## one directory of tests/
	$(PYTEST) tests/$* $(ARGS)

test-vm: setup compile vm ## the tests in the lab VM
	$(PYTEST) tests/vm $(ARGS)

chaos: setup compile ## processes of lbd killed at random under traffic, for some ten minutes (ARGS="kills --seed 7")
	$(PY) -m tests.chaos $(ARGS)

fuzz: setup compile ## the fuzz targets for FUZZ_SECONDS each (make test runs them shortly)
	LBD_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) tests/fuzz --timeout=0 $(ARGS)

# --- undo --------------------------------------------------------------------------------------

clean: ## remove what was built
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/*/bin
	find lbd tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find lbd tests bench -name '*.so' -delete
	rm -f lbd/xdp/*.bpf.o lbd/xdp/*.tmp

uninstall: ## remove .venv and the VM's files; lists the Debian packages that setup added (PURGE=1 removes them)
	@[ ! -x .venv/bin/lbd ] || ! .venv/bin/python -c 'import lbd.cli.main' 2>/dev/null || .venv/bin/lbd demo down || true
	@tools/uninstall.sh $(if $(filter 1,$(PURGE)),--purge)
