"""The scripts with stand-ins for Slurm's programs; and a real Slurm of two nodes on this machine, where a job that is preempted
goes back into the queue and ends as if it never was."""

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
GresTypes=gpu
ReturnToService=2
KillWait=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=27001 CPUs=2 RealMemory=4000 Gres=gpu:1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=27002 CPUs=2 RealMemory=4000 Gres=gpu:1
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
    (at / "gres.conf").write_text("NodeName=n1,n2 Name=gpu Count=1 File=/dev/null\n")  # a card that torch cannot see
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


def submit(folder, *words, script="train.sbatch", options=(), **env):
    return call(
        *(
            "sbatch",
            "--parsable",
            "--nodes=2",
            *options,
            f"--output={folder}/%j.log",
            str(ROOT / "slurm" / script),
            *words,
        ),
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


class Stubs:
    """Slurm's programs, and the environment's, as scripts that write down how they were called."""

    def __init__(self, at):
        self.at, self.log = at, at / "log"
        say = f'echo "$(basename "$0") $* OMP_NUM_THREADS=$OMP_NUM_THREADS CPU=$ACCELERATE_USE_CPU JOB=$DISTREC_JOB" >> {self.log}'
        programs = {
            "torchrun": say,
            "accelerate": say,
            "python": 'echo "$SEEN"',
            "sbatch": f"{say}\nwc -l < {self.log}",
            "distrec": 'printf "model:\\n  name: $MODEL\\ntrain:\\n"',
            "scontrol": '[ "$1" = show ] && echo n1 || echo " NodeAddr=10.0.0.1 "',
            "srun": f'while [[ $1 == --* ]]; do echo "srun $1" >> {self.log}; shift; done\nSLURM_NODEID=0 exec "$@"',
            "sleep": "exit 0",
        }
        for name, text in programs.items():
            (at / name).write_text(f"#!/bin/bash\n{text}\n")
            (at / name).chmod(0o755)

    def run(self, *words, script="train.sbatch", code=0, **env):
        """(what was called, what was said) by a script in a job of one node."""
        job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_CPUS_PER_NODE": "64"}
        path = f"{self.at}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(ROOT / "slurm" / script), *words], cwd=ROOT, capture_output=True, text=True, check=False,
            env={"PATH": path, "DISTREC_BIN": str(self.at), "SEEN": "8", **job, **env},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return self.log.read_text() if self.log.exists() else "", done.stdout + done.stderr


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


EIGHT = {"SLURM_GPUS_ON_NODE": "8"}


def test_the_processes_of_a_node_share_its_cores(stubs):
    called, said = stubs.run("out=a", **EIGHT)
    assert "srun --cpus-per-task=64\n" in called
    assert "--nproc_per_node 8 " in called
    assert "distrec/train.py out=a OMP_NUM_THREADS=8 CPU= " in called
    assert said == ""


@pytest.mark.parametrize(("nodes", "fewest"), [("16(x2),8", 8), ("8,16(x3)", 8), ("32(x4)", 32)])
def test_the_node_with_fewest_cores_counts(stubs, nodes, fewest):
    called, _ = stubs.run("out=a", SLURM_JOB_CPUS_PER_NODE=nodes, DISTREC_PROCS="2", **EIGHT)
    assert f"srun --cpus-per-task={fewest}\n" in called
    assert f"OMP_NUM_THREADS={fewest // 2} " in called


@pytest.mark.parametrize(("own", "used"), [("2", "2"), ("64", "8")])
def test_threads_may_be_fewer_than_the_share_and_never_more(stubs, own, used):
    assert f"OMP_NUM_THREADS={used} " in stubs.run("out=a", OMP_NUM_THREADS=own, **EIGHT)[0]


def test_fewer_cores_than_processes_are_refused_and_few_are_told(stubs):
    called, said = stubs.run("out=a", code=2, SLURM_JOB_CPUS_PER_NODE="1", **EIGHT)
    assert called == ""
    assert said == "error: 8 processes on a node would share 1 core(s): sbatch --cpus-per-task=64, or fewer processes (DISTREC_PROCS)\n"  # fmt: skip
    called, said = stubs.run("out=a", SLURM_JOB_CPUS_PER_NODE="24", **EIGHT)
    assert "torchrun" in called
    assert said == "WARNING: 3 core(s) for each GPU's process, which may wait for them: sbatch --cpus-per-task=64\n"
    assert "WARNING" not in stubs.run("out=a", SLURM_JOB_CPUS_PER_NODE="1")[1]  # on a CPU one will do


@pytest.mark.parametrize("launch", ["", "launch/zero2.yaml"])
@pytest.mark.parametrize(("seen", "told"), [("0", "0"), ("7", "7"), ("", "none")])
def test_gpus_of_the_job_that_torch_does_not_see_stop_it(stubs, launch, seen, told):
    called, said = stubs.run("out=a", code=2, SEEN=seen, DISTREC_LAUNCH=launch, **EIGHT)
    assert "torchrun" not in called
    assert "accelerate" not in called
    assert f"the job has 8 GPU(s) on this node, torch sees {told} for 8 process(es): look with distrec doctor" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        (EIGHT, 8),
        ({"SLURM_JOB_GPUS": "0,1,2,3"}, 4),
        ({"SLURM_GPUS_PER_NODE": "h100:2"}, 2),
        ({"SLURM_GPUS_PER_NODE": "2"}, 2),
        ({}, 0),
        ({"SLURM_GPUS_ON_NODE": "8", "ACCELERATE_USE_CPU": "true"}, 0),
    ],
)
def test_processes_are_as_many_as_the_jobs_gpus_and_cpus_are_taken_where_they_are_wanted(stubs, given, gpus):
    called, said = stubs.run("out=a", **given)
    assert f"--nproc_per_node {max(1, gpus)} " in called
    assert ("CPU=true" in called) == (gpus == 0)
    assert ("no GPUs in this job: train runs on CPUs" in said) == (gpus == 0)


def test_accelerate_starts_the_processes_of_all_nodes(stubs):
    called, _ = stubs.run("out=a", "seed=1", SLURM_NNODES="2", DISTREC_LAUNCH="launch/zero2.yaml", **EIGHT)
    assert "accelerate launch --config_file launch/zero2.yaml" in called
    assert "--num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 20007 distrec/train.py out=a seed=1 OMP_NUM_THREADS=8" in called  # fmt: skip


def test_a_step_is_not_given_cores_twice(stubs):
    (stubs.at / "torchrun").write_text(f'#!/bin/bash\necho "PER_GPU=${{SLURM_CPUS_PER_GPU:-}}" > {stubs.log}\n')
    assert stubs.run("out=a", SLURM_CPUS_PER_GPU="8", **EIGHT)[0] == "PER_GPU=\n"


@pytest.mark.parametrize(("job", "is_back"), [("train", True), ("quantize", True), ("evaluate", False)])
def test_only_what_saves_goes_back_into_the_queue(stubs, job, is_back):
    (stubs.at / "srun").write_text("#!/bin/bash\ntrap '' USR1\nkill -USR1 $PPID\nexit 1\n")
    (stubs.at / "scontrol").write_text(f'#!/bin/bash\necho "$*" >> {stubs.log}\n')
    called, _ = stubs.run("out=a", code=1, DISTREC_JOB=job)
    assert ("requeue 7" in called) == is_back


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("markov", {"prepare": "cpu", "train": "cpu", "evaluate": "cpu"}),
        ("sasrec", {"prepare": "cpu", "train": "gpu", "evaluate": "gpu"}),
        ("frellm", {"prepare": "cpu", "train": "gpu", "evaluate": "gpu"}),
        ("tone", {"prepare": "cpu", "embed": "gpu", "quantize": "gpu", "train": "gpu", "evaluate": "gpu"}),
    ],
)
def test_a_pipeline_takes_gpus_for_what_computes_on_them(stubs, model, stages):
    options = {"DISTREC_CPU": "--partition=cpu", "DISTREC_GPU": "--partition=gpu"}
    called, _ = stubs.run("model.name=x", "out=a b", script="pipeline.sh", MODEL=model, **options)
    jobs = dict(re.findall(r"--job-name distrec-(\w+) .*--partition=(\w+)", called))
    assert jobs == stages
    last = called.splitlines()[-1]
    assert "slurm/train.sbatch out=a b OMP" in last
    assert last.endswith("JOB=evaluate")


def test_the_variables_that_the_document_lists_are_those_that_the_scripts_read():
    text = (ROOT / "docs/scale.md").read_text().split("## Cores, threads and devices")[1].split("\n## ")[0]
    listed = set(re.findall(r"[A-Z]+_[A-Z_]+", " ".join(re.findall(r"^\| (`.*?`) \|", text, re.M))))
    read = {name for path in SCRIPTS for name in re.findall(r"\$\{(\w+):-", path.read_text())}
    assert listed == {"OMP_NUM_THREADS", "DISTREC_PROCS", "ACCELERATE_USE_CPU", "DISTREC_GPU", "DISTREC_CPU"}
    assert listed <= read


@pytest.mark.slow
def test_gpus_that_torch_does_not_see_are_refused_and_cores_are_shared(cluster, tmp_path):
    options = ["--gpus-per-node=1", "--cpus-per-gpu=2"]
    job = submit(tmp_path, *WORDS, f"out={tmp_path}/run", options=options)
    until(lambda: state(job) == "FAILED", 120)
    log = (tmp_path / f"{job}.log").read_text()
    assert "the job has 1 GPU(s) on this node, torch sees 0 for 1 process(es)" in log
    assert "WARNING: 2 core(s) for each GPU's process" in log
    assert not (tmp_path / "run").exists()
    words = [*WORDS, "train.epochs=1", f"data.root={tmp_path}/artefacts", f"out={tmp_path}/run"]
    job = submit(tmp_path, *words, options=options, ACCELERATE_USE_CPU="true")
    until(lambda: state(job) in ("COMPLETED", "FAILED"), 240)
    assert state(job) == "COMPLETED", (tmp_path / f"{job}.log").read_text()[-3000:]


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
