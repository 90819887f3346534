# `make demo`, `make test`, `make test-all`, `make lint`, `make docs`, `make bench`, `make compilers`; `PYTHON=python3.12 make test` picks an interpreter.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
PYTEST_ARGS ?=
BENCH ?= $(filter-out __init__ common parts,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py))) \
	$(patsubst benchmarks/%/__main__.py,%,$(wildcard benchmarks/*/__main__.py))

BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0])')
# One stamp for each interpreter version: another PYTHON finds no stamp of its own and rebuilds the environment.
INSTALLED := $(VENV)/installed-$(VERSION)

.PHONY: demo test test-all lint docs bench compilers venv clean

demo: venv
	$(BIN)/hisam prepare --source shop --protocol per_user_time --text-encoder word_vectors --out $(DEMO)/dataset
	$(BIN)/hisam tokenize --dataset $(DEMO)/dataset --config configs/tokenizer/dst.py --out $(DEMO)/ids
	$(BIN)/hisam train --dataset $(DEMO)/dataset --ids $(DEMO)/ids --config configs/shop.py --workdir $(DEMO)/run
	$(BIN)/hisam evaluate --workdir $(DEMO)/run
	$(BIN)/hisam recommend --workdir $(DEMO)/run --user u0000000 -k 5
	$(BIN)/hisam report --workdir $(DEMO)/run

# All but the slow tests; of two -m pytest takes the last one.
test: venv
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not slow' $(PYTEST_ARGS)

test-all:
	$(MAKE) test PYTEST_ARGS="-m '' $(PYTEST_ARGS)"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site, into site/; a warning is an error. The variable is Material's own, for a notice about its successor.
docs: venv
	$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --quiet --strict
	echo site/index.html

bench: venv
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name; done

# What compiles for TPUs and H100s that are not here: libtpu as jax pins it, and the CUDA plugin without CUDA's libraries.
compilers: venv
	version=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("jax"))')
	$(BIN)/python -m pip install --quiet "jax[tpu]==$$version"
	$(BIN)/python -m pip install --quiet --no-deps "jax-cuda13-plugin==$$version" "jax-cuda13-pjrt==$$version"

venv: $(INSTALLED)

# Colab and minimal Debian have no ensurepip; the interpreter's own pip can fill a bare environment.
$(INSTALLED): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("hisam: error: Python %d.%d is too old; expected 3.11 or newer, as in PYTHON=python3.12 make" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	echo "installing into $(VENV) with Python $(VERSION); about a minute" >&2
	if [ ! -e $(VENV)/made-$(VERSION) ]; then
	  rm -rf $(VENV)
	  if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then
	    $(PYTHON) -m venv $(VENV)
	  else
	    $(PYTHON) -m venv --without-pip $(VENV)
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip || {
	      echo "hisam: error: $(PYTHON) has neither venv nor pip; install your system's python3-venv package" >&2; exit 2; }
	  fi
	  touch $(VENV)/made-$(VERSION)
	fi
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
