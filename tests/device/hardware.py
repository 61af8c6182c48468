"""How fast the machine is by itself."""

import hashlib

import torch
from device.visit import say, section, timed, visit


@section(12)
def ceilings():
    n = 512 if visit.small else 8192
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, device=visit.device, dtype=dtype) for _ in range(2))
        say(f"matmul {'tf32' if tf32 else str(dtype)[6:]}", tflops=2 * n**3 / timed(lambda a=a, b=b: a @ b) / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False
    size = 2**20 if visit.small else 2**28
    x = torch.empty(size, device=visit.device)
    say("copy on the device", gb_s=2 * x.nbytes / timed(lambda: x.clone()) / 1e9)
    host = torch.empty(size)
    say("host to device, pageable", gb_s=x.nbytes / timed(lambda: x.copy_(host), 2, 1) / 1e9)
    say("device to host, pageable", gb_s=x.nbytes / timed(lambda: host.copy_(x), 2, 1) / 1e9)
    raw = host.numpy().data
    say("sha256 of host memory", gb_s=x.nbytes / timed(lambda: hashlib.sha256(raw).digest(), 1, 0) / 1e9)
    if visit.is_gpu:
        tiny = torch.zeros(8, device=visit.device)
        say("a launch, queued", us=1e6 * timed(lambda: [tiny.add_(1) for _ in range(1000)]) / 1000)
        say("a wait (.item())", us=1e6 * timed(lambda: [tiny[0].item() for _ in range(200)]) / 200)
