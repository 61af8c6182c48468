"""The pretended GPU sees each kind of fault and of host wait with its file and line, and flags nothing else."""

import inspect

import numpy as np
import pytest
import torch
from pretended import CPU, GPU, Gpu
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def gpu():
    with Gpu() as device:
        yield device


def x(*shape, dtype=torch.float32):
    return torch.arange(int(np.prod(shape)), dtype=torch.float32, device="cuda").reshape(shape).to(dtype)


def waits(gpu, run):
    """What the host waited for in run(), which stands on one line of this file."""
    gpu.waits.clear()
    run()
    line = inspect.getsourcelines(run)[1]
    assert all(where == f"tests/test_pretended.py:{line}" for _, where in gpu.waits), gpu.waits
    return sorted(what for what, _ in gpu.waits.elements())


def faults(gpu, run):
    gpu.faults.clear()
    run()
    line = inspect.getsourcelines(run)[1]
    assert all(where == f"tests/test_pretended.py:{line}" for _, where in gpu.faults), gpu.faults
    return [what for what, _ in gpu.faults.elements()]


WAITS = {
    "item": lambda: x(1).item(),
    "tolist": lambda: x(3).tolist(),
    "__bool__": lambda: bool(x(2).any()),
    "__bool__ of assert": lambda: x(3).isfinite().all() and None,
    "__float__": lambda: float(x(1)),
    "__int__": lambda: int(x(1)),
    "__index__": lambda: [7, 8][x(1, dtype=torch.long)[0]],
    "__contains__": lambda: 2 in x(3),
    "__format__": lambda: f"{x(1)[0]:.2f}",
    "__repr__": lambda: repr(x(2)),
    "equal": lambda: torch.equal(x(2), x(2)),
    "allclose": lambda: torch.allclose(x(2), x(2)),
    "nonzero": lambda: x(3).nonzero(),
    "nonzero of where": lambda: torch.where(x(3) > 1),
    "mask": lambda: x(3)[x(3) > 1],
    "mask set": lambda: x(3).__setitem__(x(3) > 1, x(1)),
    "masked_select": lambda: x(3).masked_select(x(3) > 1),
    "unique": lambda: torch.unique(x(3)),
    "unique_consecutive": lambda: torch.unique_consecutive(x(3)),
    "bincount": lambda: torch.bincount(x(3, dtype=torch.long)),
    "multinomial": lambda: torch.multinomial(x(3), 1),
    "repeat_interleave": lambda: torch.repeat_interleave(x(2), x(2, dtype=torch.long)),
    "one_hot": lambda: F.one_hot(x(2, dtype=torch.long)),
    "linalg_eigh": lambda: torch.linalg.eigh(torch.eye(2, device="cuda")),
    "linalg_cholesky": lambda: torch.linalg.cholesky(torch.eye(2, device="cuda")),
    "linalg_inv": lambda: torch.linalg.inv(torch.eye(2, device="cuda")),
    "linalg_solve": lambda: torch.linalg.solve(torch.eye(2, device="cuda"), x(2)),
    "item of arange": lambda: torch.arange(x(3)[2]),
    "item of narrow": lambda: x(3).narrow(0, x(1, dtype=torch.long)[0], 1),
    "item of a slice": lambda: x(3)[: x(3, dtype=torch.long)[1]],
    "item of an index": lambda: x(3)[x(3, dtype=torch.long)[1]],
    "item of masked_fill": lambda: x(3).masked_fill(x(3) > 1, x(1)[0]),
    "item of tensor()": lambda: torch.tensor([x(1)[0]]),
    "index to GPU": lambda: x(3)[torch.tensor([1, 2])],
    "index to GPU of a list": lambda: x(3)[[1, 2]],
    "index to GPU of an array": lambda: x(3)[np.array([1, 2])],
    "to host": lambda: x(3).cpu(),
    "to host pageable": lambda: torch.empty(3).copy_(x(3), non_blocking=True),
    "to host of to": lambda: x(3).to("cpu"),
    "to host of numpy": lambda: x(3).numpy(force=True),
    "to host in another type": lambda: x(3).to("cpu", torch.float64, non_blocking=True),
    "to host of a value": lambda: torch.zeros(3).__setitem__(slice(1), x(1)),
    "to GPU": lambda: torch.ones(3).to("cuda", non_blocking=True),
    "to GPU of cuda": lambda: torch.ones(3).cuda(),
    "to GPU of type_as": lambda: torch.ones(3).type_as(x(3)),
    "to GPU of to(other)": lambda: torch.ones(3).to(x(3)),
    "to GPU of data": lambda: torch.tensor([1.0, 2.0], device="cuda"),
    "to GPU of an array": lambda: torch.as_tensor(np.ones(2), device=GPU),
    "to GPU of new_tensor": lambda: x(3).new_tensor([1.0]),
    "to GPU pinned, blocking": lambda: torch.ones(3).pin_memory().to("cuda"),
    "to GPU pinned, another type": lambda: torch.ones(3).pin_memory().to("cuda", torch.float64, non_blocking=True),
    "to GPU pinned, with gaps": lambda: torch.ones(3, 3).pin_memory().T[:2].to("cuda", non_blocking=True),
    "to GPU of copy_": lambda: x(3).copy_(torch.ones(3)),
    "to GPU of one element": lambda: x(3).__setitem__(1, True),
    "to GPU of a value": lambda: x(3).__setitem__(slice(2), torch.ones(2)),
    "synchronize": lambda: torch.cuda.synchronize(),
    "stream": lambda: torch.cuda.current_stream().synchronize(),
    "event": lambda: torch.cuda.Event().synchronize(),
}
FAULTS = {
    "add: tensors on cpu and on cuda": lambda: x(3) + torch.ones(3),
    "cat: tensors on cpu and on cuda": lambda: torch.cat([x(3), torch.ones(3)]),
    "linear: tensors on cpu and on cuda": lambda: F.linear(x(2, 3), torch.ones(4, 3)),
    "embedding: tensors on cpu and on cuda": lambda: F.embedding(torch.tensor([1]), x(2, 3)),
    "gather: tensors on cpu and on cuda": lambda: x(2, 3).gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "a CPU tensor indexed by a CUDA tensor": lambda: torch.ones(3)[x(2, dtype=torch.long)],
    "a value of another device": lambda: x(3).__setitem__(x(2, dtype=torch.long), torch.ones(2)),
    "a gradient of another device": lambda: setattr(torch.zeros(3, device="cuda"), "grad", torch.ones(3)),
    "numpy() of a CUDA tensor": lambda: x(3).numpy(),
    "__array__() of a CUDA tensor": lambda: np.asarray(x(3)),
    "pin_memory() of a CUDA tensor": lambda: x(3).pin_memory(),
    "a generator of cpu for a tensor on cuda": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    "a generator of cpu for a tensor on cuda, in place": lambda: x(3).normal_(generator=torch.Generator()),
    "a generator of cuda for a tensor on cpu": lambda: torch.rand(3, generator=torch.Generator("cuda")),
}  # fmt: skip
INNOCENT = {
    "arithmetic": lambda: ((x(3) * 2 + torch.tensor(1.0)) / x(3).sum()).exp(),
    "where": lambda: torch.where(x(3) > 1, x(3), 0.0),
    "gather": lambda: x(2, 3).gather(1, x(2, 1, dtype=torch.long)),
    "index": lambda: x(3)[x(2, dtype=torch.long)],
    "index of the host": lambda: x(3, 3)[1, :2],
    "index of NumPy's integer": lambda: x(3)[np.int64(1)],
    "filled mask": lambda: x(3).__setitem__(x(3) > 1, 0.0),
    "filled slice": lambda: x(3).__setitem__(slice(2), 1.0),
    "value of the device": lambda: x(3).__setitem__(slice(2), x(2)),
    "one element of the device": lambda: x(3).__setitem__(1, x(1)[0]),
    "masked_fill": lambda: x(3).masked_fill(x(3) > 1, -1e9),
    "repeat_interleave": lambda: torch.repeat_interleave(x(2), x(2, dtype=torch.long), output_size=1),
    "one_hot": lambda: F.one_hot(x(2, dtype=torch.long), 4),
    "factory": lambda: torch.full((3,), 0.5, device="cuda"),
    "generator": lambda: torch.rand(3, device="cuda", generator=torch.Generator("cuda")),
    "in another type": lambda: x(3).to(torch.float64).to("cuda"),
    "pinned": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "pinned view": lambda: torch.ones(3).pin_memory()[1:].cuda(non_blocking=True),
    "pinned at once": lambda: x(3).copy_(torch.zeros(3, pin_memory=True), non_blocking=True),
    "to the host": lambda: x(3).to("cpu", non_blocking=True),
    "to pinned memory": lambda: torch.zeros(3, pin_memory=True).copy_(x(3), non_blocking=True),
    "query": lambda: torch.cuda.current_stream().record_event().query(),
    "on the CPU": lambda: torch.ones(3)[torch.ones(3) > 0].tolist(),
}


@pytest.mark.parametrize("name", WAITS)
def test_each_kind_of_host_wait_is_seen(gpu, name):
    kinds = ("index to GPU", "to host", "to GPU", "item", "mask", "nonzero", "__bool__")
    kind = next((kind for kind in kinds if name.startswith(kind)), name)
    if name == "masked_select":
        kind = name
    assert waits(gpu, WAITS[name]) == [kind]
    assert not gpu.faults


@pytest.mark.parametrize("name", FAULTS)
def test_each_kind_of_fault_is_seen(gpu, name):
    expected = name.removesuffix(", in place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "strict", False)
        seen = faults(gpu, FAULTS[name])
    assert [what[: len(expected)] for what in seen] == [expected]


@pytest.mark.parametrize("name", INNOCENT)
def test_innocent_calls_are_not_flagged(gpu, name):
    assert waits(gpu, INNOCENT[name]) == []
    assert not gpu.faults


def test_a_fault_can_be_raised():
    with (
        Gpu(strict=True),
        pytest.raises(RuntimeError, match=r"CUDA would refuse: add: .* at tests/test_pretended.py:\d+$"),
    ):
        x(3) + torch.ones(3)


def test_results_and_gradients_are_on_the_device_and_right(gpu):
    layer = torch.nn.Linear(3, 2)
    data = torch.randn(5, 3)
    layer(data).square().sum().backward()
    wanted = layer.weight.grad.clone()
    layer.zero_grad()
    layer.to("cuda")
    layer(data.to("cuda")).square().sum().backward()
    gradient = layer.weight.grad
    assert gradient.device == layer.weight.device == GPU
    assert gradient.is_cuda
    assert not gradient.is_cpu
    assert gradient.get_device() == 0
    assert isinstance(layer.weight, torch.nn.Parameter)
    assert gradient.cpu().device == CPU
    torch.testing.assert_close(gradient.cpu(), wanted, rtol=0, atol=0)
    assert not gpu.faults


def test_what_python_does_in_the_backward_pass_is_seen(gpu):
    leaf = torch.ones(2, device="cuda", requires_grad=True)
    checkpoint(
        lambda tensor: float(tensor.detach().sum()) * tensor.square(), leaf, use_reentrant=False
    ).sum().backward()
    assert [what for what, _ in gpu.waits.elements()] == ["__float__"] * 2  # the second when it is computed again
    assert leaf.grad.tolist() == [4.0, 4.0]
    assert not gpu.faults


def test_host_memory_is_not_read_before_its_copy_is_done(gpu):
    """A copy to pinned memory returns at once: what lies there is not valid before the device got so far."""
    host = torch.zeros(3, pin_memory=True)
    event = torch.cuda.Event()

    def send():
        host.copy_(x(3), non_blocking=True)

    send()
    assert len(faults(gpu, lambda: host.sum())) == 1
    assert len(faults(gpu, lambda: host[1:].tolist())) == 1
    event.record()
    event.synchronize()
    assert faults(gpu, lambda: host.tolist()) == []
    send()
    event.synchronize()  # recorded before that copy
    assert len(faults(gpu, lambda: host.tolist())) == 1
    torch.cuda.synchronize()
    assert faults(gpu, lambda: host.tolist()) == []


@pytest.mark.parametrize("fused", [True, False])
def test_optimizers_run_as_on_a_gpu(gpu, fused):
    """Fused AdamW takes found_inf, on the device; neither waits; both give the CPU's weights."""
    start = torch.randn(4, 3)
    weights = {}
    for device in ("cpu", "cuda"):
        parameter = torch.nn.Parameter(start.clone().to(device))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
        if fused:
            optimizer.found_inf = torch.zeros((), device=device)
        gpu.waits.clear()
        for _ in range(3):
            parameter.grad = parameter.detach() * 2
            optimizer.step()
        assert not gpu.waits
        weights[device] = parameter.detach().cpu()
        if fused:
            optimizer.found_inf.fill_(1)
            optimizer.step()
            assert torch.equal(parameter.detach().cpu(), weights[device])
            assert int(optimizer.state[parameter]["step"]) == 3
            assert optimizer.state[parameter]["step"].device.type == device
    torch.testing.assert_close(weights["cpu"], weights["cuda"])
    assert not torch.equal(weights["cuda"], start)
    assert not gpu.faults


def test_a_step_counter_on_the_cpu_is_refused_by_the_fused_kernel(gpu):
    parameter = torch.nn.Parameter(torch.ones(2, device="cuda"))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.ones(2, device="cuda")
    optimizer.step()
    optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].cpu()
    optimizer.step()
    assert any("_fused_adamw_" in what for what, _ in gpu.faults)


def test_clipping_does_not_wait(gpu):
    parameter = torch.nn.Parameter(torch.ones(2, device="cuda"))
    parameter.grad = torch.ones(2, device="cuda")
    assert torch.nn.utils.clip_grad_norm_([parameter], 1.0).device == GPU
    assert not gpu.waits
    assert not gpu.faults


def test_autocast_of_the_device_is_on(gpu):
    with torch.autocast("cuda", torch.bfloat16):
        assert (x(2, 2) @ x(2, 2)).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert (x(2, 2) @ x(2, 2)).dtype == torch.float32


def test_products_with_another_type_of_result_are_exact(gpu):
    a = x(2, 2, dtype=torch.bfloat16)
    product = torch.mm(a, a, out_dtype=torch.float32)
    assert product.dtype == torch.float32
    assert product.tolist() == [[2.0, 3.0], [6.0, 11.0]]


def test_torch_is_as_before_afterwards():
    generator, cuda_event = torch.Generator, torch.cuda.Event
    with Gpu(free=123):
        assert torch.cuda.is_available()
        assert torch.cuda.mem_get_info() == (123, 80 * 2**30)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            raise torch.cuda.OutOfMemoryError
        kept = x(3)
    assert not torch.cuda.is_available()
    assert torch.Generator is generator
    assert torch.cuda.Event is cuda_event
    assert kept.sum().item() == 3  # a tensor that was kept is one of the CPU
