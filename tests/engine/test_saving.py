"""Saving under bad luck: killed at any instant, no space left, a disk that fails."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from distrec.data import store
from distrec.engine.checkpoint import Checkpoints, Progress
from distrec.engine.parallel import Copies

MADE = {"data": "abc"}
BOTH = pytest.mark.parametrize("is_async", [False, True])


def model(width=64):
    torch.manual_seed(0)
    net = torch.nn.Linear(width, width)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return net, optimizer


def at(net, n):
    with torch.no_grad():
        net.weight.fill_(n)
    return Progress(step=n, best_checkpoint=Progress(step=n - n % 5).name if n >= 5 else "")


def child(folder, pipe, is_async):
    """Save again and again, telling of each save that is done; the weights move on as soon as they may."""
    net, optimizer = model()
    checkpoints = Checkpoints(folder, MADE, is_async)
    found = checkpoints.latest_good()
    first = checkpoints.load(found, Copies(net, optimizer)).step + 1 if found else 0
    checkpoints.save(Copies(net, optimizer), at(net, first))
    checkpoints.wait()
    os.write(pipe, first.to_bytes(4, "big"))
    for n in range(first + 1, first + 10_000):
        checkpoints.save(Copies(net, optimizer), at(net, n))
        at(net, -1)
        os.write(pipe, (n - is_async).to_bytes(4, "big"))  # the one before is done for certain


@pytest.mark.slow
@BOTH
def test_killed_at_200_random_instants_of_saving_no_half_is_loaded_and_no_good_one_lost(tmp_path, is_async):
    torch.set_num_threads(1)
    draw, last, halves = random.Random(0), -1, 0
    for _ in range(200):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(tmp_path / "checkpoints", writer, is_async)
            finally:
                os._exit(1)
        os.close(writer)
        first = os.read(reader, 4)  # it has begun to save
        time.sleep(draw.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told = first
        while more := os.read(reader, 4):
            told = more
        os.close(reader)
        last = int.from_bytes(told, "big")
        halves += any((tmp_path / "checkpoints").glob(".*.tmp"))
        net, optimizer = model()
        checkpoints = Checkpoints(tmp_path / "checkpoints", MADE)
        progress = checkpoints.load(checkpoints.latest_good(), Copies(net, optimizer))
        assert progress.step >= last, "a save that was told of is lost"
        assert (net.weight == progress.step).all()
        if progress.best_checkpoint:
            store.verify(checkpoints.folder / progress.best_checkpoint)
        assert not list(checkpoints.folder.glob("corrupt-*"))
    assert halves > 20  # they were hit while they saved


@BOTH
def test_a_full_disk_keeps_the_last_good_one_and_says_so(tmp_path, is_async):
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False).returncode:  # fmt: skip
        pytest.skip("a small tmpfs can be mounted by root only")
    try:
        net, optimizer = model(128)  # 200 kB a save
        checkpoints = Checkpoints(tmp_path / "checkpoints", MADE, is_async)
        checkpoints.save(Copies(net, optimizer), at(net, 1))
        checkpoints.wait()
        (tmp_path / "fill").write_bytes(bytes(700_000))
        if is_async:
            checkpoints.save(Copies(net, optimizer), at(net, 2))  # the next save tells
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(Copies(net, optimizer), at(net, 3))
        assert checkpoints.latest_good() == "step-00000001-0000"
        assert not list(checkpoints.folder.glob(".*.tmp"))
        (tmp_path / "fill").unlink()
        checkpoints.save(Copies(net, optimizer), at(net, 2))
        assert checkpoints.latest_good() == "step-00000002-0000"
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)


@BOTH
def test_a_failing_disk_keeps_the_last_good_one(tmp_path, monkeypatch, is_async):
    net, optimizer = model()
    checkpoints = Checkpoints(tmp_path / "checkpoints", MADE, is_async)
    checkpoints.save(Copies(net, optimizer), at(net, 1))
    checkpoints.wait()

    def fail(_handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"), checkpoints:
        checkpoints.save(Copies(net, optimizer), at(net, 2))
    monkeypatch.undo()
    assert checkpoints.latest_good() == "step-00000001-0000"


@BOTH
def test_a_disk_that_gives_back_other_bytes_is_found_at_the_first_save(tmp_path, monkeypatch, is_async):
    net, optimizer = model()
    write = store.write

    def spoil(target, made_by, fill):
        def spoilt(scratch):
            fill(scratch)
            file = scratch / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"!")

        return write(target, made_by, spoilt)

    monkeypatch.setattr(store, "write", spoil)
    checkpoints = Checkpoints(tmp_path / "checkpoints", MADE, is_async)
    with pytest.raises(OSError, match=r"model.safetensors does not read as it was written"), checkpoints:
        checkpoints.save(Copies(net, optimizer), at(net, 1))


def test_a_run_folder_that_cannot_be_written_to_is_refused_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    words = [sys.executable, "-m", "distrec.jobs", "train", f"out={tmp_path}/file/run", f"data.root={tmp_path}/art"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: out=")
    assert not (tmp_path / "art").exists()
    shutil.rmtree(tmp_path)
