"""Run a function on several forked processes joined by gloo, and return what each one returned.

Everything is imported once, in the parent; the parent keeps to one OpenMP thread before the fork.
"""

import os
import pickle
import socket
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist


def run_on(size, fn):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes = [os.pipe() for _ in range(size)]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            _child(rank, size, port, fn, pipes[rank][1])
        children.append(child)
        os.close(pipes[rank][1])
    answers = []
    for reader, _ in pipes:
        with os.fdopen(reader, "rb") as file:
            answers.append(file.read())
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * size, f"ranks ended with {codes}"
    return [pickle.loads(answer) for answer in answers]  # written by our own children


def _child(rank, size, port, fn, pipe):
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            ACCELERATE_USE_CPU="true",
            LOCAL_WORLD_SIZE=str(size),
        )
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=120))
        answer = pickle.dumps(fn())
        dist.barrier()
        with os.fdopen(pipe, "wb") as file:
            file.write(answer)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
