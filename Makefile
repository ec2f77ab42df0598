# Every target sets up $(VENV) by itself: Python >= 3.11, torch first, then the versions of constraints.txt.
#   make demo     train five tiny models, rank, compare; about 5 minutes on 2 CPU cores; writes runs/demo
#   make test     every test that needs no GPU, slow and two-process ones included
#   make style    format and fix what ruff can
#   make check    ruff, spelling, types, the documents and the import directions
#   make bench    the claims of speed and memory, each against a baseline run beside it
PYTHON ?= python3
VENV ?= .venv
# The one word to change for another build of torch, e.g. `make demo TORCH=torch==2.12.1` or the path of a CUDA wheel.
TORCH ?= torch==2.13.0
WORKERS ?= 2
BENCHMARKS ?= $(wildcard benchmarks/*.py)

BIN := $(VENV)/bin
READY := $(VENV)/.ready
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
# A changed TORCH installs again; an unchanged one does not.
CHANGED := $(if $(filter $(TORCH),$(shell cat $(VENV)/.torch 2>/dev/null)),,FORCE)

.PHONY: demo test style check bench FORCE

$(READY): pyproject.toml constraints.txt $(CHANGED)
	@$(PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); sys.exit(0 if ok else "hf_rec needs Python >= 3.11, \
	$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip freeze | grep '^torch[ =]' > $(VENV)/torch.txt
	$(BIN)/python -m pip install -c $(VENV)/torch.txt -c constraints.txt -e '.[dev]'
	@echo '$(TORCH)' > $(VENV)/.torch
	@touch $@

demo: $(READY)
	$(OFFLINE) $(BIN)/hf-rec demo

test: $(READY)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

style: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_project.py

bench: $(READY)
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(OFFLINE) $(BIN)/python $$script; done

FORCE:
