"""kill -9 at random steps, on one and on two processes: the final weights are those of the uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from distrec.data import store

SETTINGS = [
    "data.synthetic.users=150", "data.synthetic.items=120", "data.negatives=10", "model.dropout=0.2",
    "train.save_steps=7", "train.log_steps=1", "train.patience=100",
]  # fmt: skip
MODELS = {
    "sasrec": ["model.d_model=16", "train.epochs=20", "train.batch_tokens=120", "train.micro_tokens=30"],
    "tone": [
        "model.name=tone", "model.d_model=16", "model.d_ff=32", "model.d_kv=8", "model.n_heads=2", "model.n_layers=1", "model.max_len=8", "embed.encoder=builtin",
        "codes.name=kmeans", "codes.size=8", "codes.gate=false", "train.epochs=6", "train.batch_tokens=256", "train.micro_tokens=64",
    ],
    "frellm": [
        "model.name=frellm", "model.tfm.mode=causal", "model.tfm.learn_cutoff=true", "model.tfm.dropout=0.1", "model.max_len=8",
        "model.hidden=16", "model.sasrec.d_model=8", "model.sasrec_train.epochs=2", "train.epochs=12", "train.batch_tokens=100", "train.micro_tokens=40",
        "model.loss=sampled", "model.negatives=16",
    ],
}  # fmt: skip


def start(size, folder, out, model="sasrec", *more):
    launcher = (
        [sys.executable]
        if size == 1
        else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    )
    places = [f"data.root={folder}/artefacts", f"out={out}"]
    command = [*launcher, str(ROOT / "distrec" / "train.py"), *SETTINGS, *MODELS[model], *places, *more]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def step_of(out):
    path = out / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def finished(size, folder, out, model="sasrec"):
    run = start(size, folder, out, model)
    assert run.wait(300) == 0, (folder / "log.txt").read_text()[-3000:]


def weights(out):
    last = max((out / "checkpoints").glob("step-*"))
    store.verify(last)
    return last.name, store.file_digest(last / "model.safetensors"), json.loads((out / "test.json").read_text())["full"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "is_async"), [*((model, False) for model in MODELS), ("sasrec", True)])
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_20_random_steps_it_ends_with_the_same_bits(tmp_path, size, model, is_async):
    """Where `is_async`, every other start saves so, as often as it can."""
    finished(size, tmp_path, tmp_path / "whole", model)
    total = step_of(tmp_path / "whole")
    assert total > 60
    out, kills = tmp_path / "killed", 0
    for target in sorted(random.Random(size).sample(range(1, total - 1), 20)):
        more = ["train.async_save=true", "train.save_steps=1"] if is_async and kills % 2 == 0 else []
        run = start(size, tmp_path, out, model, *more)
        while step_of(out) < target and run.poll() is None:
            time.sleep(0.002)
        assert run.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        os.killpg(run.pid, signal.SIGKILL)
        subprocess.run(["pkill", "-9", "-f", str(out)], check=False)  # torchrun's workers lead sessions of their own
        run.wait()
        kills += 1
    finished(size, tmp_path, out, model)
    assert kills == 20
    assert weights(out) == weights(tmp_path / "whole")
    assert "resuming" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_a_signal_saves_and_leaves_with_75(tmp_path):
    finished(1, tmp_path, tmp_path / "whole")
    out = tmp_path / "stopped"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        run = start(1, tmp_path, out)
        before = step_of(out)
        while step_of(out) < before + 5 and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(number)
        assert run.wait(60) == 75
    finished(1, tmp_path, out)
    assert weights(out) == weights(tmp_path / "whole")
