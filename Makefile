# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo tone test slow lint device device-rehearsal clean

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

# a file on each core, eight at most; OpenMP's threads would wait for each other
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

slow: setup
	$(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check distrec tune tests
	$(BIN)/pyright

# what to take to a machine with a GPU and without a network, and the command to run there (tests/device/README.md)
device: setup
	PYTHON=$(BIN)/python bash tests/device/pack.sh

OUT ?= runs/device-rehearsal
device-rehearsal: setup
	mkdir -p $(OUT)
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/device/check.py --small --device cpu --budget 1200 --out $(OUT)
	! grep FAILED $(OUT)/result.json

clean:
	rm -rf .venv artefacts runs .whl
