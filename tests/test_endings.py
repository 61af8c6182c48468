"""How commands end when nobody reads them any more, when they are interrupted, and when a disk is full."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

LONG = "from distrec.runtime import run\ndef main(argv):\n    for i in range(10**6): print('x' * 100)\n    return 0\nrun(main)"
SHORT = "import time\nfrom distrec.runtime import run\ndef main(argv):\n    print('x'); print('y'); time.sleep(0.5)\n    return {}\nrun(main)"
LOGS = "import time\nfrom distrec.runtime import log, run\ndef main(argv):\n    for _ in range(100):\n        log('x'); time.sleep(0.05)\nrun(main)"
OTHER = "from distrec.runtime import run\ndef main(argv):\n    raise BrokenPipeError('a socket')\nrun(main)"
SLOW = "import time\nfrom distrec.runtime import run\ndef main(argv):\n    print('ready', flush=True); time.sleep(60)\nrun(main)"


BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}


def piped(command, reads="head -1", both=False, **more):
    """(exit code, what the reader saw, stderr) of a command whose reader leaves early."""
    line = f'{" ".join(command)} {"2>&1" if both else ""} | {reads}; echo "code ${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60,
        env={**BUFFERED, **more},
    )  # fmt: skip
    seen, _, code = done.stdout.rpartition("code ")
    return int(code), seen, done.stderr


def script(folder, text):
    (folder / "a.py").write_text(text)
    return [sys.executable, str(folder / "a.py")]


@pytest.mark.parametrize("world", ["1", "2"])
def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path, world):
    assert piped(script(tmp_path, LONG), WORLD_SIZE=world) == (141, "x" * 100 + "\n", "")
    assert piped(script(tmp_path, LOGS), both=True, WORLD_SIZE=world)[::2] == (141, "")


@pytest.mark.parametrize("code", [0, 1, 75])
def test_what_was_done_is_done_though_nobody_reads_of_it(tmp_path, code):
    assert piped(script(tmp_path, SHORT.format(code)), reads="true") == (code, "", "")


def test_another_broken_pipe_is_an_error_of_ours(tmp_path):
    code, _, said = piped(script(tmp_path, OTHER), reads="cat")
    assert code == 1
    assert "BrokenPipeError: a socket" in said


@pytest.mark.parametrize("words", [["config"], ["--help"], ["prepare", "--help"], ["nonsense"], []])
def test_every_word_of_distrec_may_be_read_in_part(words):
    command = [sys.executable, "-m", "distrec.jobs", *words]
    for reads in ("true", "head -1"):
        code, _, said = piped(command, reads=reads)
        assert code == (2 if words == ["nonsense"] else 0)
        assert said.count("\n") == (words == ["nonsense"])


def test_a_full_disk_is_told_in_a_line(tmp_path):
    command = script(tmp_path, SHORT.format(0))
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(command)} > /dev/full"], capture_output=True, text=True, check=False,
        env=BUFFERED,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: what was printed is lost: No space left on device\n"


def test_a_closed_output_is_no_error(tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(script(tmp_path, SHORT.format(0)))} >&-"], capture_output=True, text=True, check=False,
        env=BUFFERED,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def interrupted(command, wait):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=BUFFERED) as process:
        wait(process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_an_interrupt_is_one_line(tmp_path):
    code, said = interrupted(script(tmp_path, SLOW), lambda process: process.stdout.readline())
    assert (code, said) == (1, "interrupted; nothing was saved since the last checkpoint\n")


def test_an_interrupt_while_libraries_load_is_one_line():
    def loads(process):
        end = time.monotonic() + 60
        while "libtorch" not in open(f"/proc/{process.pid}/maps").read():  # noqa: SIM115
            assert time.monotonic() < end
            time.sleep(0.01)

    code, said = interrupted([sys.executable, "-m", "distrec.jobs", "train", "data.synthetic.users=50"], loads)
    assert code == 1
    assert said == "interrupted; nothing was saved since the last checkpoint\n"
