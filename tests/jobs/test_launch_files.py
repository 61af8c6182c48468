"""Every launch file starts the same run: those that need no GPU by running it, the others as accelerate reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from decoders import HELD, saved
from loops import losses

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


def launched(folder, name, *words, options=(), **env):
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    return subprocess.run(
        [accelerate, "launch", "--config_file", str(ROOT / "launch" / name), *options, str(ROOT / "distrec/train.py"), *WORDS, *words],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


def launch(folder, name, *words):
    out = folder / "-".join([name.removesuffix(".yaml"), *words])
    done = launched(folder, name, *words, f"out={out}")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "test.json").read_text())["full"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_CPU)
def test_a_run_ends_alike_by_every_launch_file(place, name):
    folder, figures = place
    # two processes round otherwise: a near tie may fall to the other side
    assert launch(folder, name) == pytest.approx(figures, abs=1e-3)


@pytest.mark.slow
def test_a_model_that_counts_is_the_same_under_zero(place):
    """There is nothing that DeepSpeed could spread."""
    assert launch(place[0], "zero2.yaml", "model.name=markov") == launch(place[0], "cpu.yaml", "model.name=markov")


@pytest.mark.slow
@pytest.mark.parametrize("held", HELD, ids=lambda held: "-".join(held.values()))
def test_compiled_a_run_has_the_same_losses(place, held):
    words = ["train.log_steps=1", *(f"model.backbone.{key}={value}" for key, value in held.items())]
    curves = []
    for backend in ("no", "aot_eager"):
        out = place[0] / "-".join([*held.values(), backend])
        done = launched(
            place[0], "cpu.yaml", *words, f"out={out}", options=["--dynamo_backend", backend], TORCH_LOGS="dynamo"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("torchdynamo start tracing" in done.stderr) == (backend != "no")
        curves.append(losses(out))
    np.testing.assert_allclose(*curves, rtol=1e-5)
