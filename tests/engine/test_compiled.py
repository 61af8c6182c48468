"""Compiled training: the losses of the plain one, and one compilation for all shapes of its batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# in a process of its own: what checks shapes while testing cannot be compiled
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from conftest import prepare_small
from loops import SASREC, fit, losses
from tones import SMALL, catalogue
from distrec import knobs
from distrec.data import batches
from distrec.models.tone import Tone

folder, name = Path(sys.argv[1]), sys.argv[2]
data = prepare_small(folder / "artefacts")

def run(place):
    torch.manual_seed(0)
    model = SASREC if name == "sasrec" else Tone(knobs.Tone(**SMALL, max_len=6, dropout=0.0), catalogue(150))
    return fit(data, folder / place, model=model, epochs=1, batch_tokens=60)

one = run("plain")
os.environ["ACCELERATE_DYNAMO_BACKEND"] = "aot_eager"
run("compiled")
plan = batches.steps(one.samples, 60, 0, 0)
print(json.dumps({
    "plain": losses(folder / "plain"),
    "compiled": losses(folder / "compiled"),
    "shapes": len({(len(rows), int(one.samples.lengths(rows).max())) for rows in plan}),
    "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
}))
"""


@pytest.mark.parametrize("name", ["sasrec", pytest.param("tone", marks=pytest.mark.slow)])
def test_a_compiled_epoch_has_the_losses_of_a_plain_one_and_is_not_compiled_again_for_each_shape(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["compiled"] == pytest.approx(told["plain"], abs=1e-5)
    assert 0 < told["graphs"] <= 3
    assert told["shapes"] > 2 * told["graphs"]
