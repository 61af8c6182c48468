"""Saving beside training: the files of a run that waits for them, whatever happens while one is being written."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from commands import distrec
from loops import fit, losses, never, trainer

from distrec import config as cfg
from distrec.data import store
from distrec.engine.checkpoint import Checkpoints, Progress
from distrec.engine.parallel import Copies
from distrec.jobs.parts import tables
from distrec.jobs.parts.identity import settings
from distrec.jobs.parts.work import Work
from distrec.runtime import Journal, Ranks

TINY = [
    "data.synthetic.users=120", "data.synthetic.items=100", "data.negatives=10", "model.d_model=8", "model.dropout=0.2",
    "train.epochs=3", "train.batch_tokens=200", "train.log_steps=1", "score.bootstrap=0",
]  # fmt: skip
EACH = {"save_steps": 2}


def digests(folder):
    return {path.relative_to(folder): store.file_digest(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def held():
    net = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return Copies(net, optimizer)


@pytest.fixture
def gate(monkeypatch):
    """What each commit waits for before it writes."""
    write, opened = store.write, threading.Event()

    def late(*arguments):
        assert opened.wait(60)
        return write(*arguments)

    monkeypatch.setattr(store, "write", late)
    yield opened
    opened.set()


def open_soon(gate):
    threading.Timer(0.3, gate.set).start()


def test_a_copy_is_saved_that_nothing_reaches_any_more(tmp_path, held, gate):
    checkpoints, progress = Checkpoints(tmp_path, {}, is_async=True), Progress(step=3)
    wanted = {name: tensor.clone() for name, tensor in (held.weights() | held.moments()).items()}
    checkpoints.save(held, progress)
    for tensor in (held.weights() | held.moments()).values():
        tensor.fill_(7)
    progress.step, progress.best_checkpoint = 4, "x"
    assert not any(tmp_path.iterdir())
    gate.set()
    assert checkpoints.load("step-00000003-0000", held) == Progress(step=3)
    found = held.weights() | held.moments()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_one_that_does_not_write_copies_nothing(tmp_path, held, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {}, is_async=True)
    monkeypatch.setattr("distrec.engine.checkpoint._copied", lambda _: pytest.fail("copied"))
    checkpoints.save(held, Progress(), writes=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "read",
    [
        lambda them, held: them.load("step-00000001-0000", held).step,
        lambda them, _: int(them.latest_good()[5:13]),
        lambda them, _: int(them.best()[5:13]),
    ],
    ids=["load", "latest_good", "best"],
)
def test_who_reads_waits(tmp_path, held, gate, read):
    checkpoints = Checkpoints(tmp_path, {}, is_async=True)
    checkpoints.save(held, Progress(step=1, best_checkpoint="step-00000001-0000"))
    open_soon(gate)
    assert read(checkpoints, held) == 1


def test_at_most_one_is_in_flight(tmp_path, held, gate):
    checkpoints = Checkpoints(tmp_path, {}, is_async=True)
    checkpoints.save(held, Progress(step=1))
    open_soon(gate)
    checkpoints.save(held, Progress(step=2))
    assert (tmp_path / "step-00000001-0000").is_dir()
    checkpoints.wait()
    assert (tmp_path / "step-00000002-0000").is_dir()


def test_a_process_that_just_ends_has_saved(tmp_path):
    script = f"""
import torch, time
from pathlib import Path
from distrec.data import store
from distrec.engine.checkpoint import Checkpoints, Progress
from distrec.engine.parallel import Copies
write = store.write
store.write = lambda *those: (time.sleep(1), write(*those))
Checkpoints(Path({str(tmp_path)!r}), {{}}, is_async=True).save(Copies(torch.nn.Linear(2, 2)), Progress())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    store.verify(tmp_path / "step-00000000-0000")


def fails_at_step_3(one):
    def stop():
        if one.progress.step == 3:
            raise ValueError("enough")
        return False

    with pytest.raises(ValueError, match="enough"):
        one.fit(stop)


def test_a_run_that_ends_in_an_error_has_saved(small, tmp_path, monkeypatch):
    write = store.write
    monkeypatch.setattr(store, "write", lambda *those: (time.sleep(0.3), write(*those)))
    one = trainer(small, tmp_path, async_save=True, **EACH)
    fails_at_step_3(one)
    store.verify(tmp_path / "checkpoints/step-00000002-0000")


class Disk:
    """A disk that fails at a checkpoint's n-th commit."""

    def __init__(self, monkeypatch, n, number=errno.ENOSPC):
        self.left, self.number, self.write = n, number, store.write
        monkeypatch.setattr(store, "write", self)

    def __call__(self, target, *those):
        self.left -= 1
        if self.left == 0:
            raise OSError(self.number, os.strerror(self.number), str(target))
        return self.write(target, *those)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("nth", [1, 3, "last"])
def test_a_commit_that_fails_ends_the_run_as_it_does_in_turn(small, tmp_path, monkeypatch, nth, number):
    counted = Disk(monkeypatch, 0)
    fit(small, tmp_path / "whole", **EACH)
    nth = -counted.left if nth == "last" else nth
    told = {}
    for is_async in (False, True):
        with monkeypatch.context() as patch:
            Disk(patch, nth, number)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                trainer(small, tmp_path / "run", async_save=is_async, **EACH).fit(never)
            told[is_async] = str(caught.value)
            assert (Checkpoints(tmp_path / "run/checkpoints", {}).latest_good() is None) == (nth == 1)
        fit(small, tmp_path / "run", **EACH)
        assert losses(tmp_path / "run") == losses(tmp_path / "whole")
        (tmp_path / "run").rename(tmp_path / f"done-{is_async}")
    assert told[True] == told[False]


def test_the_error_that_ends_a_run_is_not_hidden_by_a_commit_that_fails(small, tmp_path, monkeypatch, capsys):
    Disk(monkeypatch, 2)
    one = trainer(small, tmp_path, async_save=True, **EACH)
    fails_at_step_3(one)
    assert "WARNING: the latest checkpoint was not saved: [Errno 28] No space left" in capsys.readouterr().err


@pytest.mark.parametrize("hung", [0, 2, "evaluated"])
def test_killed_while_one_is_in_flight_it_ends_with_the_same_bits(small, tmp_path, monkeypatch, hung):
    """The journal may know of later steps than the last checkpoint, but of none where there is no checkpoint."""
    whole = fit(small, tmp_path / "whole", **EACH)
    epoch = whole.progress.step // 2
    step, evaluations = (epoch, 1) if hung == "evaluated" else (hung, 0)
    stuck, out = f"step-{step:08d}-{evaluations:04d}", tmp_path / "killed"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write = store.write

            def hang(target, *those):
                if target.name == stuck:
                    os.write(writer, b"!")
                    time.sleep(600)
                return write(target, *those)

            monkeypatch.setattr(store, "write", hang)
            trainer(small, out, async_save=True, **EACH).fit(never)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"!"
    until = time.monotonic() + (60 if step else 1)
    while time.monotonic() < until and Journal(out / "metrics.jsonl", Ranks(1, 2)).last_step() <= step:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    assert (Journal(out / "metrics.jsonl", Ranks(1, 2)).last_step() > step) == (step > 0)
    assert not (out / "checkpoints" / stuck).exists()
    fit(small, out, async_save=True, **EACH)
    assert digests(out / "checkpoints") == digests(tmp_path / "whole/checkpoints")
    assert events(out) == events(tmp_path / "whole")


def events(out):
    """Lines of a journal without what is measured in seconds and bytes."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s") and k not in ("peak_gib", "mfu")} for line in lines]  # fmt: skip


LATE = """
import sys, time
from distrec.data import store
from distrec.jobs.__main__ import main
write = store.write
store.write = lambda target, *those: (time.sleep(.5 * target.name.startswith("step-")), write(target, *those))[1]
main()
"""


@pytest.mark.slow
def test_the_files_of_a_run_are_those_of_one_that_waits_also_across_a_signal(tmp_path):
    """SIGTERM comes while a commit is in flight; each start saves in the other way."""
    distrec("train", *TINY, "train.save_steps=2", "out=whole", cwd=tmp_path)
    distrec("train", *TINY, "train.save_steps=2", "out=async", "train.async_save=true", cwd=tmp_path)
    out = tmp_path / "cut"
    words = [sys.executable, "-c", LATE, "train", *TINY, "train.save_steps=1", "out=cut", "train.async_save=true"]
    run = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not list((out / "checkpoints").glob("step-00000003-*")):
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    told = run.communicate(timeout=120)[1]
    assert run.returncode == 75, told
    steps = [line["step"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]
    assert f"stopped at step {steps[-1]};" in told
    store.verify(max((out / "checkpoints").glob(f"step-{steps[-1]:08d}-*")))
    assert not list((out / "checkpoints").glob(".*"))
    distrec("train", *TINY, "train.save_steps=2", "out=cut", cwd=tmp_path)
    for name in ("async", "cut"):
        assert digests(tmp_path / name / "checkpoints") == digests(tmp_path / "whole/checkpoints")
        for file in ("test.json", "ranks.parquet"):
            assert store.file_digest(tmp_path / name / file) == store.file_digest(tmp_path / "whole" / file)
        distrec("train", *TINY, f"out={name}", "train.async_save=false", cwd=tmp_path)  # finished, either way


@pytest.mark.parametrize("key", ["train", "model.sasrec_train"])
def test_how_it_saves_is_no_part_of_what_a_run_is(key):
    more = ["model.name=frellm"]
    one, two = (settings(cfg.load([*more, f"{key}.async_save={value}"])) for value in ("false", "true"))
    assert one == two
    assert not any("async" in name for name in one)


def test_a_sasrec_that_is_there_is_found_however_it_would_be_saved(small):
    def folder(value):
        config = cfg.load(["model.name=frellm", f"model.sasrec_train.async_save={value}"])
        work = Work(config, small, Ranks(), never, torch.device("cpu"))
        return tables._sasrec(work, config.model, lambda own: own.config.out)

    assert folder("false") == folder("true")
