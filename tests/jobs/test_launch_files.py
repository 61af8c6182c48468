"""Every launch file starts the same run: those that need no GPU by running it, the others as accelerate reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from decoders import saved

FILES = sorted(path.name for path in (ROOT / "launch").glob("*.yaml"))
ON_CPU = [name for name in FILES if name.startswith(("cpu", "zero"))]
WORDS = [
    "data.synthetic.users=200",
    "data.synthetic.items=80",
    "data.negatives=0",
    "data.root=artefacts",
    "score.bootstrap=0",
    "model.name=frellm",
    "model.backbone.path=./llm",
    "model.tfm.mode=causal",
    "model.hidden=16",
    "model.sasrec_train.epochs=1",
    "train.epochs=1",
    "train.batch_tokens=400",
]


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_is_read_by_accelerate_and_leaves_precision_to_the_config(name):
    found = load_config_from_file(str(ROOT / "launch" / name))
    assert found.mixed_precision == "no"
    head = (ROOT / "launch" / name).read_text().splitlines()[:4]
    assert any(f"launch/{name}" in line for line in head)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a language model, and the figures of one process."""
    folder = tmp_path_factory.mktemp("launch")
    saved(folder / "llm", width=32, layers=2)
    return folder, launch(folder, "cpu.yaml")


def launch(folder, name):
    out = folder / name.removesuffix(".yaml")
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    done = subprocess.run(
        [accelerate, "launch", "--config_file", str(ROOT / "launch" / name), str(ROOT / "distrec/train.py"), *WORDS, f"out={out}"],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "test.json").read_text())["full"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_CPU)
def test_a_run_ends_alike_by_every_launch_file(place, name):
    folder, figures = place
    # two processes round otherwise: a near tie may fall to the other side
    assert launch(folder, name) == pytest.approx(figures, abs=1e-3)
