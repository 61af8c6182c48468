"""A fit that is stopped, killed, or started twice."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from quantizing import FAST, QUANTISERS, SMALL, health_of, run
from ranks import run_on

from distrec.data import item_codes, store
from distrec.engine import states
from distrec.jobs.codes import fit
from distrec.runtime import Ranks


def test_two_at_once_do_not_spoil_each_other(small, tmp_path):
    target = tmp_path / "codes-x"
    busy = pytest.raises(ValueError, match="another process is making codes-x")
    with store.alone(target, Ranks()), busy, store.alone(target, Ranks()):
        pass
    with store.alone(target, Ranks()):
        pass


def test_a_stopped_fit_goes_on_and_a_broken_state_is_left_out(small, tmp_path, capsys):
    whole = run(tmp_path / "whole", small)
    for n in (3, 5, 4):
        calls = iter([False] * n + [True])  # the embedding asks twice at the first run
        assert run(tmp_path / "killed", small, stop=partial(next, calls)) is None
    saved = sorted((tmp_path / "killed" / "checkpoints").glob("codes-*/state-*"))
    assert len(saved) == 2
    raw = bytearray((saved[-1] / "state.safetensors").read_bytes())
    raw[-1] ^= 1
    (saved[-1] / "state.safetensors").write_bytes(raw)
    folder = run(tmp_path / "killed", small)
    assert f"{saved[-1].name} is corrupt" in capsys.readouterr().err
    assert torch.equal(item_codes.load(folder).codes, item_codes.load(whole).codes)
    assert health_of(folder)["levels"] == health_of(whole)["levels"]
    assert not list((tmp_path / "killed" / "checkpoints").glob("codes-*"))


def test_a_fit_goes_on_with_another_number_of_processes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "BLOCK", 32)
    monkeypatch.setattr(states, "SAVE_SECONDS", 0)
    whole = item_codes.load(run(tmp_path / "a", small))
    run(tmp_path / "b", small, "codes.levels=2")  # embeds

    def part():
        calls = iter([False] * 7 + [True] * 3)
        return run(tmp_path / "b", small, stop=partial(next, calls))

    assert run_on(2, part) == [None, None]
    assert torch.equal(item_codes.load(run(tmp_path / "b", small)).codes, whole.codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmm", "balanced", "rqvae"])
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_random_it_ends_with_the_same_codes(tmp_path, size, name):
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, time\n"
        "from distrec.engine import states\nfrom distrec.jobs import quantize\nfrom distrec.jobs.codes import fit\nfrom distrec.runtime import run\n"
        "states.SAVE_SECONDS = 0\nhow_far = fit.how_far\n"
        "def slow(state): time.sleep(.03); return how_far(state)\n"
        "fit.how_far = slow\nrun(quantize.main)\n"
    )

    def start(root):
        alone = [sys.executable]
        both = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
        more = {"rqvae": ["codes.epochs=40"], "balanced": ["codes.levels=8"]}.get(name, [])
        settings = [*SMALL, *FAST, *QUANTISERS[name], *more, f"data.root={root}"]
        words = [*(alone if size == 1 else both), str(driver), *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        log = (tmp_path / "log.txt").open("ab")
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)

    def reached(root):
        return max(
            (int(p.name[6:]) for p in Path(root).glob("checkpoints/codes-*/state-*") if p.name[6:].isdigit()),
            default=-1,
        )

    assert start(tmp_path / "whole").wait(300) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    chance, kills, seen = random.Random(size), 0, -1
    while kills < 6:
        job = start(tmp_path / "killed")
        wanted = seen + chance.randint(1, 6)
        while job.poll() is None and reached(tmp_path / "killed") < wanted:
            time.sleep(0.01)
        if job.poll() is not None:
            break
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        seen, kills = max(seen, reached(tmp_path / "killed")), kills + 1
        assert not list((tmp_path / "killed").glob("codes-*"))
    assert kills >= 2
    assert start(tmp_path / "killed").wait(300) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    (one,), (other,) = ((tmp_path / root).glob("codes-*") for root in ("whole", "killed"))
    assert torch.equal(item_codes.load(one).codes, item_codes.load(other).codes)
    for file in ("codes.safetensors", "levels.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
