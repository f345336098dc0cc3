# Two commands: `make run` and `make test`. Both make .venv with the versions of requirements.lock first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# `make run TORCH_INDEX=<index>`: take torch from that index (see docs/install.md: CPU or CUDA build).
TORCH_INDEX ?=
TORCH  := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.lock)

.PHONY: run test study check bench format clean
.DELETE_ON_ERROR:

run: $(READY)
	$(BIN)/stagescope run

test: $(READY)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

study: $(READY)
	$(BIN)/python -m tests.study

bench: $(READY)
	$(BIN)/python -m tests.bench

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("StageScope needs Python 3.11 or later; PYTHON=... names another" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
