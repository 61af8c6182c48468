"""Trials that are spread over the nodes of a real Ray cluster: two on this machine, each with an address of its own."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sweeping import processes, started, swept, table, until

pytest.importorskip("ray", reason="needs Ray Tune: pip install 'distrec[tune]'")
pytest.importorskip("optuna", reason="needs Optuna: pip install 'distrec[tune]'")

ONE = ["sweep.space.train.lr=[0.003]", "sweep.space.model.dropout=[0.1]"]
WORDS = [*ONE, "sweep.nodes=2", "train.epochs=12"]
SECOND = "127.0.0.2"


class Cluster:
    def __init__(self, port):
        from ray.util import get_node_ip_address

        self.folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path has an end
        self.address = f"{get_node_ip_address()}:{port}"
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
        self.first = self.node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}")
        self.second = self.join()

    def join(self):
        return self.node(f"--address={self.address}", f"--node-ip-address={SECOND}")

    def node(self, *words):
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *words]
        log = (Path(self.folder) / "start.log").open("ab")
        return subprocess.Popen(command, env={**os.environ, **self.env}, stdout=log, stderr=log, start_new_session=True)

    def words(self, root):
        return [*WORDS, f"sweep.address={self.address}", f"sweep.out={root}"]


@pytest.fixture(scope="module")
def cluster():
    found = Cluster(26379)
    yield found
    for node in (found.second, found.first):
        node.terminate()
        node.wait(60)
    shutil.rmtree(found.folder, ignore_errors=True)


def of_node(root, rank):
    """The launcher of a node, and what it launched: in sessions of their own."""
    launcher = next(pid for pid, line in processes(root) if f"--node_rank {rank}" in line)
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [launcher, *map(int, children)]


@pytest.mark.slow
def test_a_trial_runs_on_two_nodes(cluster, tmp_path):
    swept(tmp_path, *cluster.words(tmp_path / "two"), **cluster.env)
    swept(tmp_path, *WORDS, "sweep.nodes=1", f"sweep.out={tmp_path}/one")
    one, two = (table(tmp_path / name).to_dicts()[0] for name in ("one", "two"))
    assert two["status"] == "done"
    assert two["value"] == pytest.approx(one["value"], abs=0.05)
    log = next((tmp_path / "two/trials").glob("*/node-1/log.txt")).read_text()
    assert "--nnodes 2 --node_rank 1" in log
    assert any(f"--master_addr {at}" in log for at in (SECOND, cluster.address.partition(":")[0]))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_trial_whose_processes_on_a_node_are_killed_goes_on(cluster, tmp_path, rank):
    root = tmp_path / "s"
    driver = started(tmp_path, *cluster.words(root), **cluster.env)
    until(lambda: any((root / "trials").glob("*/checkpoints/step-*/stamp.json")))
    for process in of_node(root, rank):
        os.kill(process, signal.SIGKILL)
    assert driver.wait(timeout=400) == 0, (tmp_path / "sweep.log").read_text()[-3000:]
    assert table(root)["status"].to_list() == ["done"]
    assert "resuming step-" in next((root / "trials").glob("*/log.txt")).read_text()
    assert not processes(root)


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nobody_behind(cluster, tmp_path):
    root = tmp_path / "s"
    driver = started(tmp_path, *cluster.words(root), **cluster.env)
    until(lambda: any((root / "trials").glob("*/checkpoints/step-*/stamp.json")))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    until(lambda: not processes(root), 90)
    swept(tmp_path, *cluster.words(root), "--resume", **cluster.env)
    assert "resuming step-" in next((root / "trials").glob("*/log.txt")).read_text()


@pytest.mark.slow
def test_a_node_that_is_lost_for_good_is_told(cluster, tmp_path):
    root = tmp_path / "s"
    driver = started(tmp_path, *cluster.words(root), "train.epochs=2000", "train.patience=2000", **cluster.env)
    until(lambda: any((root / "trials").glob("*/checkpoints/step-*/stamp.json")))
    os.killpg(cluster.second.pid, signal.SIGKILL)
    assert driver.wait(timeout=400) == 1
    told = (tmp_path / "sweep.log").read_text()
    assert "a trial takes 2 node(s) with 1 cores; 1 of the cluster's 1 have them" in told.splitlines()[-1]
    until(lambda: not processes(root), 90)
    cluster.second = cluster.join()
