"""Every command that the README shows is run, or at least parsed to the point where work would start."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from distrec import config as cfg
from distrec.jobs.claims.job import load as claim

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]


def arguments(command):
    """The config arguments of a command that starts distrec."""
    words = shlex.split(command, comments=True)
    return [word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*=.*", word) or word.endswith(".yaml")]


def test_the_readme_shows_the_two_commands():
    assert "make demo" in COMMANDS
    assert "make test" in COMMANDS
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"setup", "demo", "test"} <= set(targets)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "distrec" in c or "accelerate" in c])
def test_a_command_of_the_readme_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [
        word
        for word in arguments(command)
        if not word.startswith(
            ("split=", "against=", "metric=", "histories=", "k=", "processes=", "usd_hour=", "ACCELERATE_USE_CPU=")
        )
    ]
    words = shlex.split(command, comments=True)
    config = claim(given) if "experiment" in words else cfg.load(given)
    assert cfg.dump(config)
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file(), word
    if "distrec" in words:
        job = words[words.index("distrec") + 1]
        shown = subprocess.run(
            [sys.executable, "-m", "distrec.jobs", job, "--help"], capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert job in shown.stdout


def test_paths_in_the_file_map_exist():
    for path in re.findall(r"^\s{2,}(distrec/\S+|tests/\S*|configs/\S*|launch/\S*)", README, re.M):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"(distrec|accelerate|ACCELERATE)", c)])
def test_a_command_of_the_readme_runs(command, tmp_path):
    if re.search(r"data\.path=|catalogue=|configs/data|out=runs/beauty", command):
        pytest.skip("needs data of the user's, or a run on them")
    for name in ("distrec", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    small = " data.synthetic.users=200 train.epochs=1" if "train.py" in command else ""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        f"{command}{small}", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
