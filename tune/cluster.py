"""Where a sweep's trials run: a Ray of its own on this machine's loopback, or a cluster that it joins."""

import logging
import math
import os
import secrets
import socket
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import AuthenticationError

from tune.space import Sweep

PATIENCE = 60.0  # seconds that a cluster, or another node of a trial, has to come or to go


def join(sweep: Sweep) -> None:
    """Start Ray on loopback with this sweep's share of the machine, or join a cluster by its token.

    Raises: ValueError where no cluster answers, it wants another token, or too few of its nodes have what a trial asks for.
    """
    if sweep.address is None:
        cpus, gpus = needs(sweep)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else one for good in the home folder
        ray_constants.ENABLE_RAY_CLUSTER = False  # else Ray takes the machine's own address instead of loopback
        ray.init(
            address="local",  # whatever cluster runs here
            num_cpus=math.ceil(sweep.concurrent * cpus),
            num_gpus=sweep.concurrent * gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        _knock(sweep.address)
        ray.init(address=sweep.address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        why = "not this cluster's token" if "InvalidAuthToken" in str(error) else "no token"
        raise ValueError(f"sweep.address={sweep.address}: {why}: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH=FILE") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"sweep.address={sweep.address}: {str(error).strip().splitlines()[0]}") from None
    end = time.monotonic() + PATIENCE
    while len(fit(sweep)) < sweep.nodes:
        if time.monotonic() > end:
            raise ValueError(too_small(sweep))
        time.sleep(1)


def _knock(address: str) -> None:
    """Ray would try for minutes, and end without a word on what is wrong."""
    address = services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = address.rpartition(":")
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, int(port)), 5).close()
            break
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(f"no cluster answers ({error})") from None
            time.sleep(1)
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    GcsClient(address=address)


def fit(sweep: Sweep) -> list[dict[str, float]]:
    """The cluster's nodes on which a trial's processes have room."""
    return [node for node in _nodes() if all(node.get(name, 0) >= n for name, n in zip(("CPU", "GPU"), needs(sweep), strict=True))]  # fmt: skip


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def too_small(sweep: Sweep) -> str:
    nodes = _nodes()
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    return (
        f"a trial takes {sweep.nodes} node(s) with {_asked(sweep)}; {len(fit(sweep))} of the cluster's {len(nodes)} have them "
        f"(the largest: {largest.get('CPU', 0):.0f} cores, {largest.get('GPU', 0):.0f} GPUs)"
    )


def check_machine(sweep: Sweep, cores: int, gpus: int) -> None:
    """Raises: ValueError where this machine has too little for the trials at a time."""
    if sweep.nodes > 1:
        raise ValueError(
            f"sweep.nodes={sweep.nodes} wants a Ray cluster: sweep.address=ADDRESS (slurm/tune.sbatch starts one)"
        )
    cpus, each = needs(sweep)
    for name, needed, there in (("cores", cpus, cores), ("GPUs", each, gpus)):
        if sweep.concurrent * needed > there:
            raise ValueError(
                f"{sweep.concurrent} trial(s) at a time with {_asked(sweep)} each take {sweep.concurrent * needed:g} {name}; "
                f"this machine has {there}: sweep.concurrent, sweep.processes, sweep.cpus, sweep.gpus"
            )


def needs(sweep: Sweep) -> tuple[float, int]:
    """(cores, GPUs) of a trial on a node."""
    return sweep.processes * sweep.cpus, sweep.processes * sweep.gpus


def _asked(sweep: Sweep) -> str:
    cpus, gpus = needs(sweep)
    return f"{cpus:g} cores" + (f" and {gpus} GPUs" if gpus else "")


def machine() -> tuple[int, int]:
    """(cores, GPUs) of this one."""
    import torch

    return len(os.sched_getaffinity(0)), torch.cuda.device_count()


def leave() -> None:
    if ray.is_initialized():
        ray.shutdown()
