"""How a process joins a launch: which device it takes, when, and over what it talks; without a GPU, by what accelerate is told."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from ranks import run_on

from distrec import knobs
from distrec.engine import launch

MIXED = "cpu:gloo,cuda:nccl"


def joined(monkeypatch, gpus, **env):
    """What happens, in order, as a process with this environment joins on a machine with so many GPUs."""
    for key in ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(key, raising=False)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    happened = []

    class Told(Accelerator):
        num_processes = int(env.get("WORLD_SIZE", "1"))

        def __init__(self, **words):
            handlers = [h for h in words["kwargs_handlers"] if isinstance(h, launch.InitProcessGroupKwargs)]
            happened.append(("cpu", words["cpu"], [h.backend for h in handlers]))

    monkeypatch.setattr(launch, "Accelerator", Told)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: happened.append(("device", number)))
    launch.join(knobs.Train())
    return happened


@pytest.mark.parametrize(
    ("gpus", "env", "happened"),
    [
        (0, {}, [("cpu", True, [])]),
        (8, {}, [("cpu", False, [])]),
        (0, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, [("cpu", True, ["gloo"])]),
        (8, {"WORLD_SIZE": "16", "LOCAL_RANK": "3"}, [("device", 3), ("cpu", False, [MIXED])]),
        (2, {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, [("device", 1), ("cpu", False, [MIXED])]),
        (8, {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "true"}, [("cpu", True, ["gloo"])]),
        (8, {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "ACCELERATE_USE_DEEPSPEED": "true"}, [("device", 1), ("cpu", False, ["nccl"])]),
        (8, {"ACCELERATE_USE_CPU": "False", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, [("device", 0), ("cpu", False, [MIXED])]),
    ],
)  # fmt: skip
def test_a_process_takes_its_gpu_before_it_joins_and_talks_over_both(monkeypatch, gpus, env, happened):
    assert joined(monkeypatch, gpus, **env) == happened


def test_accelerate_takes_the_two_backends_as_they_are(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    taken = PartialState._prepare_backend(SimpleNamespace(), cpu=False, backend=MIXED)
    assert taken == (MIXED, DistributedType.MULTI_GPU)
    assert launch.InitProcessGroupKwargs(backend=MIXED).to_kwargs()["backend"] == MIXED  # it forgets defaults


def test_objects_of_a_group_with_two_backends_stay_on_the_host(monkeypatch):
    """A gloo that is said to be of GPUs too stands in for NCCL."""
    join = dist.init_process_group
    monkeypatch.setattr(dist, "init_process_group", lambda _, **words: join("cpu:gloo,cuda:gloo", **words))

    def work():
        found = [None, None]
        dist.all_gather_object(found, dist.get_rank())
        host = torch.ones(1)
        dist.all_reduce(host)
        return found, host.item(), dist.distributed_c10d._get_object_coll_device()

    assert run_on(2, work) == [([0, 1], 2.0, "cpu")] * 2
