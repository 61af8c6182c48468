"""A real Slurm of two nodes on this machine: a job that is preempted goes back into the queue and ends as if it never was."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "slurm").glob("*.*"))
CONF = """
ClusterName=distrec
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/munge/sock,cred_expire=5
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool.%n
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.%n.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
JobRequeue=1
ReturnToService=2
KillWait=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=27001 CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=27002 CPUs=1 RealMemory=4000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=1:00:00 State=UP
"""
WORDS = [
    "data.synthetic.users=300",
    "data.synthetic.items=100",
    "data.negatives=0",
    "train.batch_tokens=64",
    "train.log_steps=50",
    "score.bootstrap=0",
    "model.name=sasrec",
    "train.epochs=40",
    "train.patience=100",
]


def call(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{words}: {done.stdout[-500:]}{done.stderr[-1500:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Munge, a controller and two nodes, all on loopback; ended by their pid files."""
    if not all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")) or os.geteuid() != 0:
        pytest.skip("no Slurm can be started here: it takes root, and Debian's slurm-wlm and munge")
    at = tmp_path_factory.mktemp("slurm")
    for parent in (at, *at.parents[:2]):
        parent.chmod(0o755)  # munge asks for it
    for name in ("state", "spool.n1", "spool.n2", "munge"):
        (at / name).mkdir(mode=0o755)
    (at / "munge/key").write_bytes(os.urandom(1024))
    (at / "munge/key").chmod(0o400)
    (at / "slurm.conf").write_text(CONF.format(at=at))
    os.environ["SLURM_CONF"] = str(at / "slurm.conf")
    places = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    call("munged", "--force", *(f"--{option}={at}/munge/{name}" for option, name in places.items()))
    call("slurmctld", "-c")
    for node in ("n1", "n2"):
        call("slurmd", "-N", node)
    until(lambda: call("sinfo", "--noheader", "--format=%T").split() == ["idle"], 30)
    yield at
    for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munge/pid"):
        subprocess.run(["kill", (at / name).read_text().strip()], check=False)
    del os.environ["SLURM_CONF"]


def until(is_so, seconds):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)


def submit(folder, *words, script="train.sbatch", **env):
    return call(
        *("sbatch", "--parsable", "--nodes=2", f"--output={folder}/%j.log", str(ROOT / "slurm" / script), *words),
        cwd=ROOT,
        env={**os.environ, "DISTREC_BIN": str(Path(sys.executable).parent), **env},
    )


def state(job):
    found = re.search(r"JobState=(\w+)", call("scontrol", "show", "job", job))
    return found[1] if found else None


def hashes(run):
    best = max((run / "checkpoints").glob("step-*"))
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for path, name in (
        (best, "model.safetensors"), (best, "optimizer.safetensors"), (run, "test.json"), (run, "ranks.parquet"),
    )}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    call("shellcheck", str(script))


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["", "launch/zero2.yaml"])
def test_a_preempted_job_ends_as_the_one_that_was_not(cluster, tmp_path, launch):
    words = [*WORDS, f"data.root={tmp_path}/artefacts"]
    env = {"DISTREC_LAUNCH": launch}
    whole = submit(tmp_path, *words, f"out={tmp_path}/whole", **env)
    until(lambda: state(whole) == "COMPLETED", 240)
    for moment in ("as it starts", "as it trains"):
        run = tmp_path / moment.replace(" ", "-")
        job = submit(tmp_path, *words, f"out={run}", **env)
        log, journal = tmp_path / f"{job}.log", run / "metrics.jsonl"
        if moment == "as it starts":  # its processes do not listen yet
            until(log.exists, 30)
        else:
            until(lambda journal=journal: journal.exists() and '"epoch": 6' in journal.read_text(), 120)
        call("scancel", "--batch", "--signal=USR1", job)
        until(lambda log=log: "back into the queue" in log.read_text(), 60)
        assert (run / "checkpoints").exists()
        assert not (run / "test.json").exists()
        until(lambda job=job: state(job) == "COMPLETED", 240)
        assert "resuming step-" in log.read_text()
        assert hashes(run) == hashes(tmp_path / "whole")


@pytest.mark.slow
def test_a_pipeline_runs_each_stage_after_the_one_before(cluster, tmp_path):
    words = [*WORDS, "model.name=tiger", "model.d_model=16", "model.n_layers=1", "model.d_ff=32", "train.epochs=1"]
    words += ["embed.encoder=builtin", "codes.gate=false", f"data.root={tmp_path}/artefacts", f"out={tmp_path}/run"]
    bin = str(Path(sys.executable).parent)
    options = {"DISTREC_BIN": bin, "DISTREC_GPU": f"--nodes=2 --output={tmp_path}/%j.log", "DISTREC_CPU": f"--output={tmp_path}/%j.log"}  # fmt: skip
    told = call("bash", "slurm/pipeline.sh", *words, cwd=ROOT, env={**os.environ, **options})
    jobs = dict(line.split() for line in told.splitlines())
    assert list(jobs) == ["prepare", "embed", "quantize", "train", "evaluate"]
    until(lambda: all(state(job) in ("COMPLETED", "FAILED", "CANCELLED") for job in jobs.values()), 400)
    assert {name: state(job) for name, job in jobs.items()} == dict.fromkeys(jobs, "COMPLETED")
    assert (tmp_path / "run/evaluate-test.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "program"), [("", "torchrun"), ("launch/zero2.yaml", "accelerate")])
def test_a_node_that_never_comes_ends_the_job_and_is_named(cluster, tmp_path, launch, program):
    real = Path(sys.executable).with_name(program)
    (tmp_path / program).write_text(f'#!/bin/bash\n[ "$SLURM_NODEID" = 1 ] && exec sleep 600\nexec {real} "$@"\n')
    (tmp_path / program).chmod(0o755)
    env = {"DISTREC_BIN": str(tmp_path), "DISTREC_JOIN": "5", "DISTREC_LAUNCH": launch}
    job = submit(tmp_path, *WORDS, f"out={tmp_path}/run", **env)
    until(lambda: state(job) == "FAILED", 150)
    log = (tmp_path / f"{job}.log").read_text()
    assert "1/2 clients joined" in log
    assert re.search(r"srun: error: n2: task 1: (Killed|Terminated)", log)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweep_runs_on_a_ray_cluster_of_two_nodes(cluster, tmp_path):
    pytest.importorskip("ray", reason="needs Ray Tune: pip install 'distrec[tune]'")
    words = [*WORDS, "train.epochs=2", f"data.root={tmp_path}/artefacts", "sweep.space.train.lr=[0.001, 0.003, 0.01]"]
    words += ["sweep.concurrent=2", f"sweep.out={tmp_path}/sweep"]
    job = submit(tmp_path, *words, script="tune.sbatch")
    until(lambda: state(job) in ("COMPLETED", "FAILED"), 400)
    log = (tmp_path / f"{job}.log").read_text()
    assert state(job) == "COMPLETED", log[-3000:]
    assert (tmp_path / "sweep/best.yaml").exists()
    assert log.count("done  ") == 3


@pytest.mark.slow
def test_a_job_without_a_run_folder_is_refused(cluster, tmp_path):
    job = submit(tmp_path, *WORDS)
    until(lambda: state(job) == "FAILED", 60)
    assert "give out=DIR" in (tmp_path / f"{job}.log").read_text()
