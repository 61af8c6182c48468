# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo tone test slow lint clean

setup: .venv/.done

# no newer torch than pyproject.toml allows: its CPU build where one is at hand
.venv/.done: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distrec needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no distrec/train.py configs/experiment/demo.yaml
	$(BIN)/distrec quantize configs/experiment/demo.yaml
	$(BIN)/distrec audit configs/experiment/demo.yaml

# the whole line on the built-in catalogue: prepare, embed, quantize, train, evaluate, recommend
tone: setup
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no distrec/train.py configs/experiment/tone_demo.yaml
	$(BIN)/distrec recommend out=runs/tone_demo k=5

test: setup
	$(BIN)/python -m pytest -q

slow: setup
	$(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check distrec tune tests
	$(BIN)/pyright

clean:
	rm -rf .venv artefacts runs
