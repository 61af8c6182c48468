"""Seconds of steps, evaluations and EM iterations."""

import time

import numpy as np
import torch
from device.inputs import beauty
from device.steps import kernels_of_steps, run_steps, seconds_a_step, steps_an_epoch, trainer_of
from device.visit import failed, gib, left, say, section, sync, timed, visit


def beauty_codes(data):
    """Codes of that many items: three random levels and a running number (as many kinds as ResGMM's)."""
    from distrec.codes.collisions import running_digit
    from distrec.data.item_codes import ItemCodes

    own = torch.from_numpy(np.random.default_rng(0).integers(256, size=(data.n_items, 3)))
    last = running_digit(own, (256,) * 3, 256)
    return ItemCodes.of(torch.cat([own, last[:, None]], 1), (256,) * 4)


@section(70)
def speed():
    """Beauty: seconds a step and an epoch, how busy the visit.is_gpu is, an evaluation."""
    from distrec import knobs
    from distrec.engine.evaluation import scoring
    from distrec.models.tone import Tone
    from distrec.runtime import Ranks

    data = beauty()
    codes = beauty_codes(data)
    n = 6 if visit.small else 60
    for name, make, train in (
        ("sasrec 512", lambda: knobs.SasRec(dropout=0.2), {"batch_tokens": 512}),
        ("sasrec 16384 bf16", lambda: knobs.SasRec(dropout=0.2), {"batch_tokens": 16384, "precision": "bf16"}),
        ("tiger 5120", lambda: Tone(knobs.Tiger(), codes), {"batch_tokens": 5120}),
        ("tiger 5120 tf32", lambda: Tone(knobs.Tiger(), codes), {"batch_tokens": 5120, "precision": "tf32"}),
        ("tiger 5120 bf16", lambda: Tone(knobs.Tiger(), codes), {"batch_tokens": 5120, "precision": "bf16"}),
        ("tone 5120", lambda: Tone(knobs.Tone(), codes), {"batch_tokens": 5120}),
        ("tone 5120 bf16", lambda: Tone(knobs.Tone(), codes), {"batch_tokens": 5120, "precision": "bf16"}),
        (
            "tone 40960 bf16",
            lambda: Tone(knobs.Tone(), codes),
            {"batch_tokens": 40960, "micro_tokens": 40960, "precision": "bf16"},
        ),
    ):
        if visit.only not in name:
            continue
        if left() < 40:
            return
        try:
            train = train | ({"batch_tokens": 640} if visit.small else {})
            one = trainer_of(data, make(), f"speed-{name}".replace(" ", "-"), **train)
            if visit.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            step = seconds_a_step(one, n, warm=2 if visit.small else 5)
            values = {"ms a step": 1e3 * step, "s an epoch": step * steps_an_epoch(one), "gib": gib()}
            if visit.is_gpu:
                again = trainer_of(data, make(), f"profiled-{name}".replace(" ", "-"), **train)
                n_kernels, busy = kernels_of_steps(again, 17, warm=5)
                values |= {"kernels a step": n_kernels, "GPU busy": busy / step}
            if "tf32" not in name and not visit.small:
                sync()
                began = time.perf_counter()
                scoring.rank_split(one.model, data, "valid", knobs.Score(bootstrap=0), Ranks(), visit.device)
                sync()
                values["s an evaluation"] = time.perf_counter() - began
            say(name, **values)
        except Exception as error:
            failed(name, error)


@section(60)
def em():
    """An iteration of EM, 10M × 768, K 256, by precision; in small pieces; how many kernels; streamed from the host."""
    from torch.profiler import ProfilerActivity, profile

    from distrec.codes.gmm import GaussianMixture, _Fit
    from distrec.codes.mixture import density
    from distrec.codes.mixture.density import Parameters
    from distrec.codes.rows import Rows

    n, d, k = (4096, 64, 16) if visit.small else (10_000_000, 768, 256)
    generator = torch.Generator(visit.device).manual_seed(0)
    centres = torch.randn(
        k, d, generator=generator, device=visit.device, dtype=torch.float16 if visit.is_gpu else torch.float32
    )
    source = torch.empty(n, d, device=visit.device, dtype=centres.dtype)
    for low in range(0, n, 1_000_000):
        part = source[low : low + 1_000_000]
        label = torch.randint(k, (len(part),), generator=generator, device=visit.device)
        part.normal_(generator=generator).mul_(1.5).add_(centres[label]).mul_(0.02)
    start = Parameters(torch.full((k,), 1 / k, dtype=torch.float64, device=visit.device), centres.double() * 0.02, torch.full((k, d), 9e-4, dtype=torch.float64, device=visit.device))  # fmt: skip
    pieces, kind = dict(density._PIECE), visit.device.type
    whole = pieces[kind]
    for precision, size, block in (
        ("tf32", whole, 131_072),
        ("float32", whole, 131_072),
        ("bf16x3", whole, 131_072),
        ("tf32", 2**24, 65_536),
    ):
        if left() < 30:
            break
        try:
            density._PIECE[kind] = size
            rows = Rows.whole(source, dtype=torch.float32, block=block, device=visit.device)
            fit = _Fit(GaussianMixture(k, precision=precision), rows)
            state = fit.begin(0, start)
            took = timed(lambda fit=fit, state=state: fit.iterate(state, 1), 3, 1)
            found = {"ms": 1e3 * took, "gib": gib()}
            if visit.is_gpu:
                with profile(activities=[ProfilerActivity.CUDA]) as seen:
                    fit.iterate(state, 1)
                    sync()
                kernels = [e for e in seen.events() if e.device_type.name == "CUDA"]
                found |= {"kernels": len(kernels), "busy": sum(e.time_range.elapsed_us() for e in kernels) / 1e6 / took}
                if (precision, size) == ("tf32", whole):
                    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=60))
            say(f"{precision}, pieces of 2^{size.bit_length() - 1}", **found)
        except Exception as error:
            failed(f"{precision} {size}", error)
    density._PIECE.update(pieces)
    try:  # the order of copies between streams is what no machine without a GPU can show
        ends = []
        for lies in ("resident", "streamed"):
            table = source[:1_000_000] if lies == "resident" else source[:1_000_000].cpu()
            rows = Rows.whole(table, dtype=torch.float32, block=65_536, device=visit.device)
            fit = _Fit(GaussianMixture(k, precision="tf32"), rows)
            state = fit.begin(0, start)
            took = timed(lambda fit=fit, state=state: fit.iterate(state, 1), 3, 1)
            ends.append(fit.iterate(state, 1))
            say(f"a million rows, {lies}", ms=1e3 * took)
        say(
            "streamed as resident",
            bits=all(torch.equal(ends[0][key], ends[1][key]) for key in ("means", "covariances")),
        )
    except Exception as error:
        failed("streamed", error)


@section(60)
def host():
    """Where the host spends a step: by part, by function, by operator; and larger batches, and compiled."""
    import cProfile
    import pstats

    from torch.profiler import ProfilerActivity, profile

    from distrec import knobs
    from distrec.data import batches
    from distrec.models.tone import Tone

    data = beauty()
    codes = beauty_codes(data)
    one = trainer_of(data, Tone(knobs.Tiger(), codes), "host-tiger", batch_tokens=5120)
    n = 5 if visit.small else 30
    profiler = cProfile.Profile()

    def before(step):
        if step == 3:
            sync()
            profiler.enable()
        if step == n:
            profiler.disable()

    run_steps(one, n + 1, before)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(28)
    model, samples = one.model, one.samples
    rows = batches.steps(samples, 5120, 0, 0)[0]
    began = time.perf_counter()
    for _ in range(20):
        piece = batches.micro_batches(data, samples, rows, 10**6, 0, 1)[0]
    say("collate", ms=50 * (time.perf_counter() - began))
    device = visit.device
    say("to the device", ms=1e3 * timed(lambda: piece.to(device), 20, 3))
    there = piece.to(device)
    model.train()
    say("forward", ms=1e3 * timed(lambda: model(there), 20, 3))
    say("forward and backward", ms=1e3 * timed(lambda: model(there).backward(), 20, 3))
    optimizer = torch.optim.AdamW(model.parameters(), fused=visit.is_gpu)
    say("AdamW", ms=1e3 * timed(optimizer.step, 20, 3))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(5):
            model(there).backward()
        sync()
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=50))
    for tokens in (20480, 81920):
        if left() > 60 and not visit.small:
            big = trainer_of(
                data,
                Tone(knobs.Tiger(), codes),
                f"tiger-{tokens}",
                batch_tokens=tokens,
                micro_tokens=tokens,
                precision="bf16",
            )
            step = seconds_a_step(big, 25, warm=5)
            say(f"tiger {tokens} bf16", ms=1e3 * step, epoch=step * steps_an_epoch(big))
    if visit.is_gpu:
        _streams()
    if left() > 100:
        fast = torch.compile(Tone(knobs.Tiger(), codes).to(device).train(), dynamic=True)
        began = time.perf_counter()
        fast(there).backward()
        sync()
        say("compiled", s_at_first=time.perf_counter() - began, ms=1e3 * timed(lambda: fast(there).backward(), 20, 3))


def _streams():
    """A table's way to the GPU: the host's copy into pinned memory, by threads; the whole table pinned."""
    table = torch.randn(1_000_000, 768).half()
    host = torch.empty(131_072, 768, dtype=torch.float16, pin_memory=True)
    there = torch.empty_like(host, device=visit.device)
    before = torch.get_num_threads()
    for threads in (1, 4, 16):
        torch.set_num_threads(threads)
        say(
            f"host's copy, {threads} threads",
            gb_s=host.nbytes / 1e9 / timed(lambda: host.copy_(table[: len(host)]), 10, 2),
        )
    torch.set_num_threads(before)
    say("pinned to the GPU", gb_s=host.nbytes / 1e9 / timed(lambda: there.copy_(host, non_blocking=True), 10, 2))
    began = time.perf_counter()
    torch.cuda.cudart().cudaHostRegister(table.data_ptr(), table.nbytes, 0)
    say("pinning a table", gb_s=table.nbytes / 1e9 / (time.perf_counter() - began))
    say(
        "a pinned table to the GPU",
        gb_s=host.nbytes / 1e9 / timed(lambda: there.copy_(table[: len(host)], non_blocking=True), 10, 2),
    )
