# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WHEEL := $(abspath $(VENV))-wheel
ENGINES := $(abspath $(VENV))-engines
INSTALLED := $(VENV)/.installed
PIP := python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo train-demo test test-engines study-quick lint docs check-wheel clean

help:
	@echo "make demo         MD of aspirin with a bundled model (about a minute)"
	@echo "make train-demo   train on the 500 frames that come along, then MD (about two minutes)"
	@echo "make test         the tests"
	@echo "make test-engines the tests, with torch-sim, OpenMM and i-PI (PYTHON=python3.12 or newer)"
	@echo "make study-quick  every arm of the studies on LKM for a few steps (some minutes)"
	@echo "make lint         ruff and mypy"
	@echo "make docs         the documentation, into site/"
	@echo "make check-wheel  build the wheel and use it in an environment of its own"
	@echo "make clean        remove environments and what was built"
	@echo "Python: PYTHON=$(PYTHON); environment: VENV=$(VENV)"

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) torch
	$(BIN)/$(PIP) -e '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python md_examples/langevin_aspirin.py --compile --output demo

train-demo: $(INSTALLED)
	$(BIN)/lkm-train check-data md_examples/ethanol_gfn2.h5
	$(BIN)/lkm-train fit ethanol-gfn2 --data md_examples/ethanol_gfn2.h5 --run.directory train-demo
	$(BIN)/python md_examples/nve_ethanol.py --model train-demo/model.safetensors --ps 5 --compile --output train-demo/md

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

# torch-sim needs Python 3.12.
test-engines:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
	  echo "$(PYTHON) is older than Python 3.12; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/$(PIP) torch
	$(ENGINES)/bin/$(PIP) -e '.[test,torchsim,openmm,ipi]'
	OMP_NUM_THREADS=1 $(ENGINES)/bin/python -m pytest -n auto --maxprocesses 4

study-quick: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m studies run all --quick --workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.layers --quick --work runs/study-quick
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.generality --quick --work runs/study-quick

lint: $(INSTALLED)
	$(BIN)/$(PIP) -e '.[test,dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The folder holds a train.py, which would shadow a package installed as `train`.
check-wheel:
	rm -rf build dist $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	$(WHEEL)/bin/$(PIP) torch
	$(WHEEL)/bin/$(PIP) dist/*.whl
	folder=$$(mktemp -d) && echo 'raise SystemExit("shadowed")' > $$folder/train.py && cd $$folder && \
	  $(WHEEL)/bin/lkm-train --help && \
	  $(WHEEL)/bin/python -m lkm_train fit --help > fit.txt && \
	  $(WHEEL)/bin/python -c 'from lkm_calc import LKMCalculator; LKMCalculator("rmd17-ethanol")' && \
	  rm -r $$folder $(WHEEL)

clean:
	rm -rf $(VENV) $(WHEEL) $(ENGINES) build dist site demo train-demo *.egg-info
