"""The same run twice, stopped and resumed; who makes the host wait."""

import warnings
from collections import Counter

import decoders
import loops
import torch
from device.inputs import catalogue, prepared_small
from device.steps import run_steps, trainer_of
from device.visit import failed, left, say, section, visit


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

    def run(name, place, stops=()):
        make, more = kinds[name]
        asked = {"epochs": 1, "batch_tokens": 1000, "micro_tokens": 600, **more}
        for stop in (*stops, None):
            count = iter(range(10**9))
            one = loops.trainer(data, visit.work / place, model=make(), **asked)
            one.fit((lambda stop=stop, count=count: next(count) >= stop) if stop is not None else loops.never)
        return weights_of(one.model)

    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        for name in kinds:
            first = visit.result.get(visit.section, {}).get(name, {})
            if deterministic and not any(first.get(key) for key in ("twice", "resumed")):
                continue  # the same already
            if left() < 30:
                return
            tag = f"{name}{' (deterministic)' if deterministic else ''}"
            try:
                place = tag.replace(" ", "_")
                one, two = run(name, place + "1"), run(name, place + "2")
                cut = run(name, place + "3", stops=(3,))
                say(tag, twice=worst(one, two), resumed=worst(one, cut))
            except Exception as error:
                failed(tag, error)
    torch.use_deterministic_algorithms(False)


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
