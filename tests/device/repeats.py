"""The same run twice, stopped and resumed; who makes the host wait."""

import warnings
from collections import Counter

import decoders
import loops
import torch
from device.inputs import catalogue, histories, prepared_small
from device.steps import run_steps, trainer_of
from device.visit import failed, left, say, section, visit

from distrec.engine import numerics


def weights_of(model):
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items() if v.is_floating_point()}


def worst(a, b):
    """The largest difference between two sets of weights."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@section(60)
def twice():
    """The same run twice, and stopped and resumed: to the last bit?  (under `deterministic` too)"""
    from distrec import knobs
    from distrec.models.tone import Tone

    data = prepared_small()
    folder = decoders.saved(visit.work / "qwen") if not (visit.work / "qwen").exists() else visit.work / "qwen"
    codes = catalogue(150)

    def tone(config):
        torch.manual_seed(0)
        return Tone(config, codes)

    kinds = {
        "sasrec": (lambda: knobs.SasRec(d_model=64, n_heads=2, max_len=50, dropout=0.2), {}),
        "sasrec bf16": (lambda: knobs.SasRec(d_model=64, n_heads=2, max_len=50, dropout=0.2), {"precision": "bf16"}),
        "tiger": (lambda: tone(knobs.Tiger(dropout=0.1, n_layers=1, beams=20)), {"batch_tokens": 1280}),
        "tiger bf16": (
            lambda: tone(knobs.Tiger(dropout=0.1, n_layers=1, beams=20)),
            {"batch_tokens": 1280, "precision": "bf16"},
        ),
        "tone": (lambda: tone(knobs.Tone(dropout=0.1, n_layers=1, beams=20)), {"batch_tokens": 1280}),
        "frellm": (lambda: decoders.frellm(folder, n_items=150, dropout=0.1, tfm={"learn_cutoff": True}), {}),
        "frellm bf16": (lambda: decoders.frellm(folder, n_items=150, dropout=0.1), {"precision": "bf16"}),
    }

    def run(name, place, deterministic, stops=()):
        make, more = kinds[name]
        asked = {"epochs": 1, "batch_tokens": 1000, "micro_tokens": 600, **more, "deterministic": deterministic}
        for stop in (*stops, None):
            count = iter(range(10**9))
            one = loops.trainer(data, visit.work / place, model=make(), **asked)
            one.fit((lambda stop=stop, count=count: next(count) >= stop) if stop is not None else loops.never)
        return weights_of(one.model)

    for deterministic in (False, True):
        for name in kinds:
            first = visit.result.get(visit.section, {}).get(name, {})
            if deterministic and not any(first.get(key) for key in ("twice", "resumed")):
                continue  # the same already
            if left() < 30:
                return
            tag = f"{name}{' (deterministic)' if deterministic else ''}"
            try:
                place = tag.replace(" ", "_")
                one, two = run(name, place + "1", deterministic), run(name, place + "2", deterministic)
                cut = run(name, place + "3", deterministic, stops=(3,))
                say(tag, twice=worst(one, two), resumed=worst(one, cut))
            except Exception as error:
                failed(tag, error)
    numerics.set_up("no", deterministic=False)


def _record(model, batch):
    """Every module's output and the gradient of it, in the order in which they came, and the parameters' gradients."""
    seen, handles = {}, []

    def keep(name, module, args, out):
        if isinstance(out, torch.Tensor) and out.requires_grad:
            seen[f"forward {name}"] = out.detach().clone()
            out.register_hook(lambda grad: seen.update({f"backward {name}": grad.detach().clone()}))

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda m, a, out, name=name: keep(name, m, a, out)))
    model.zero_grad()
    torch.manual_seed(0)
    model(batch).backward()
    for handle in handles:
        handle.remove()
    return seen | {f"gradient {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _kernels():
    """(name, a function that returns gradients) of the operations that only the models over codes use."""
    import torch.nn.functional as F

    g = torch.Generator(visit.device).manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=g, device=visit.device).requires_grad_()

    def grads(out, *leaves):
        weight = torch.sin(torch.arange(out.numel(), device=visit.device)).view_as(out)
        return torch.autograd.grad((out * weight).sum(), leaves)

    q, k, v = drawn(64, 6, 81, 64), drawn(64, 6, 81, 64), drawn(64, 6, 81, 64)
    few = drawn(64, 6, 4, 64)
    bias, table, norm, x = drawn(1, 6, 81, 81), drawn(32, 6), drawn(128), drawn(5120, 128)
    shared, logits = drawn(1024, 128), drawn(1024, 1024)
    bucket = torch.arange(81, device=visit.device)
    bucket = (bucket - bucket[:, None]).abs().clamp(max=31)
    token = torch.randint(1024, (64, 80), generator=g, device=visit.device)
    mask = torch.zeros(64, 1, 1, 81, device=visit.device)
    mask[::2, ..., :40] = -torch.inf
    yield (
        "attention, bias",
        lambda: grads(F.scaled_dot_product_attention(q, k, v, bias + mask, scale=1.0), q, k, v, bias),
    )
    yield "attention, mask", lambda: grads(F.scaled_dot_product_attention(few, k, v, mask, scale=1.0), few, k, v)
    yield "few keys", lambda: grads(F.scaled_dot_product_attention(few, few, few, scale=1.0), few)
    yield "table of buckets", lambda: grads(F.embedding(bucket, table), table)
    yield "embedding", lambda: grads(F.embedding(token, shared), shared)
    yield "few tokens", lambda: grads(F.embedding(token[:, :4], shared), shared)
    yield "rms norm", lambda: grads(F.rms_norm(x, (128,), norm), x, norm)
    yield "cross entropy", lambda: grads(F.cross_entropy(logits, token.flatten()[:1024], reduction="none"), logits)
    yield "broadcast sum", lambda: grads(x.view(64, 80, 128) * norm, norm)


@section(20)
def culprit():
    """Which module, and which kernel, does not give the same bits twice under deterministic algorithms."""
    from distrec import knobs
    from distrec.models.tone import Tone

    numerics.set_up("no", deterministic=True)
    for name, run in _kernels():
        try:
            first, differ = run(), set()
            for _ in range(30):
                differ |= {i for i, (a, b) in enumerate(zip(first, run(), strict=True)) if not torch.equal(a, b)}
            say(name, differ=sorted(differ))
        except Exception as error:
            failed(name, error)
    for name, config, fused in (
        ("tiger", knobs.Tiger(n_layers=1), True),
        ("tone", knobs.Tone(n_layers=1), True),
        ("tiger, attention not fused", knobs.Tiger(n_layers=1), False),
        ("tone, attention not fused", knobs.Tone(n_layers=1), False),
    ):
        torch.backends.cuda.enable_mem_efficient_sdp(fused)
        torch.backends.cuda.enable_flash_sdp(fused)
        torch.manual_seed(0)
        model = Tone(config, catalogue(150)).to(visit.device).train()
        batch = histories(64, 20, 150).to(visit.device)
        first, found = _record(model, batch), Counter()
        for _ in range(5 if visit.small else 30):
            again = _record(model, batch)
            differ = [key for key in first if not torch.equal(first[key], again[key])]
            if differ:
                gradients = [key.removeprefix("gradient ") for key in differ if key.startswith("gradient")]
                found[f"{differ[0]} (of {len(differ)}); {gradients[:6]}"] += 1
        say(name, first=dict(found))
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_flash_sdp(True)
    numerics.set_up("no", deterministic=False)


@section(20)
def waits():
    """Who makes the host wait in one training step (torch.cuda.set_sync_debug_mode)."""
    if not visit.is_gpu:
        return
    from distrec import knobs
    from distrec.models.tone import Tone

    data = prepared_small()
    folder = decoders.saved(visit.work / "qwen") if not (visit.work / "qwen").exists() else visit.work / "qwen"
    for name, model in {
        "sasrec": knobs.SasRec(max_len=50), "tiger": Tone(knobs.Tiger(n_layers=2), catalogue(150)), "tone": Tone(knobs.Tone(n_layers=2), catalogue(150)),
        "frellm causal": decoders.frellm(folder, n_items=150), "frellm global learnt": decoders.frellm(folder, mode="global", n_items=150, tfm={"learn_cutoff": True}),
    }.items():  # fmt: skip
        one = trainer_of(data, model, f"waits-{name}".replace(" ", "-"), batch_tokens=300)
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            modes = {3: "warn", 4: "default"}
            run_steps(one, 5, lambda step, modes=modes: torch.cuda.set_sync_debug_mode(modes.get(step, "default")))
        found = Counter(
            f"{w.filename.rsplit('/distrec/', 1)[-1].rsplit('site-packages/', 1)[-1]}:{w.lineno}"
            for w in messages
            if "synchroniz" in str(w.message)
        )
        say(name, waits=sum(found.values()), at=dict(found))
