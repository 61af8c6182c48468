"""What a job will meet, looked at before."""

import subprocess
import sys
from pathlib import Path

from commands import distrec

from distrec.jobs import doctor


def report(**changes):
    usual = {
        "host": "a", "time": 100.0, "versions": {"torch": "2.13"}, "device": "CPU",
        "folders": {"runs": {"mb_s": 500.0}}, "sum": {"right": True, "seconds": 0.1},
    }  # fmt: skip
    return usual | changes


def test_nothing_is_found_where_all_are_alike():
    assert not list(doctor.problems([report(), report(host="b", time=100.5)], 2))


def test_each_fault_is_named_with_its_host():
    wrong = {
        "b (rank 1): torch 2.12, where a has 2.13": {"versions": {"torch": "2.12"}},
        "b (rank 1): its clock differs by -60.0 s from a's": {"time": 40.0},
        "b (rank 1): runs cannot be written to: Read-only file system": {"folders": {"runs": {"error": "Read-only file system"}}},
        "b (rank 1): runs takes 3 MB/s only": {"folders": {"runs": {"mb_s": 3.0}}},
        "b (rank 1): the sum over 2 processes is wrong timed out": {"sum": {"right": False, "error": "timed out"}},
    }  # fmt: skip
    for told, changes in wrong.items():
        assert list(doctor.problems([report(), report(host="b", **changes)], 2)) == [told]


def test_a_machine_is_told_and_a_folder_that_cannot_be_written_to(tmp_path):
    words = [f"data.root={tmp_path}/art", f"out={tmp_path}/run"]
    told = distrec("doctor", *words, cwd=tmp_path).stdout
    assert "torch 2." in told
    assert "nothing found" in told or "MB/s only" in told
    (tmp_path / "file").write_text("")
    wrong = distrec("doctor", f"data.root={tmp_path}/file/art", cwd=tmp_path, code=1).stdout
    assert "file/art cannot be written to: Not a directory" in wrong
    assert not list(tmp_path.rglob(".probe*"))


def test_two_processes_add_up(tmp_path):
    torchrun = Path(sys.executable).with_name("torchrun")
    words = ["--standalone", "--nproc_per_node=2", "-m", "distrec.jobs.doctor", f"data.root={tmp_path}"]
    done = subprocess.run([torchrun, *words], capture_output=True, text=True, check=False, env={"PATH": "", "ACCELERATE_USE_CPU": "true"})  # fmt: skip
    assert done.returncode == 0 or "MB/s only" in done.stdout, done.stderr[-2000:]
    assert done.stdout.count("sum of 16 MiB") == 2
