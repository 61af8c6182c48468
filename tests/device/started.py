"""Whole commands, as a user starts them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from device.visit import left, say, section, visit


@section(75)
def commands():
    """As a user starts it: every model by the command, kill -9 and resume, ZeRO; several at a time."""
    train = [sys.executable, "distrec/train.py"]
    small = [
        "data.synthetic.users=600",
        "data.synthetic.items=300",
        "train.epochs=2",
        "train.log_steps=5",
        "score.bootstrap=50",
        "embed.encoder=builtin",
    ]
    tiny = [
        "model.d_model=32",
        "model.d_ff=64",
        "model.n_layers=1",
        "model.n_heads=2",
        "model.d_kv=16",
        "codes.size=32",
        "codes.gate=false",
        "train.batch_tokens=2000",
    ]
    zero = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--use_deepspeed",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--zero_stage",
    ]
    jobs = {
        "popularity": [*train, "model.name=popularity"], "sasrec": [*train, "model.name=sasrec"], "sasrec bf16": [*train, "model.name=sasrec", "train.precision=bf16"],
        "tiger": [*train, "model.name=tiger", *tiny], "tone": [*train, "model.name=tone", *tiny], "tone free": [*train, "model.name=tone", "model.decoding=free", *tiny, "train.precision=bf16"],
        "frellm": [*train, "model.name=frellm", "model.tfm.mode=causal"], "frellm bf16": [*train, "model.name=frellm", "model.backbone.dtype=bfloat16", "model.tfm.mode=causal", "model.backbone.checkpointing=true"],
        "frellm nf4": [*train, "model.name=frellm", "model.backbone.dtype=bfloat16", "model.backbone.quantise=nf4", "model.tfm.mode=causal", "model.backbone.tune=lora"],
        "ddp of one": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "distrec/train.py", "model.name=sasrec"],
        "zero 2": [*zero, "2", "--main_process_port", "29611", "distrec/train.py", "model.name=sasrec"], "zero 3": [*zero, "3", "--main_process_port", "29612", "distrec/train.py", "model.name=frellm", "model.tfm.mode=causal"],
        "compiled": [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "inductor", "distrec/train.py", "model.name=sasrec", "train.epochs=1"],
        "rqvae": [sys.executable, "-m", "distrec.jobs", "quantize", "codes.name=rqvae", "codes.epochs=5", "codes.size=32", "codes.gate=false"],
        "doctor": [sys.executable, "-m", "distrec.jobs", "doctor"],
    }  # fmt: skip
    if visit.small:
        jobs = {k: v for k, v in jobs.items() if k in ("sasrec", "tiger", "doctor")}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not visit.is_gpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    running, at_once, waiting, began = {}, (2 if visit.small else 7), list(jobs.items()), time.monotonic()

    def start(name, words):
        log = (visit.work / f"log-{name.replace(' ', '-')}.txt").open("wb")
        own = [] if name == "doctor" else [*small, f"data.root={visit.work / 'cli' / name.replace(' ', '-')}"]
        out = [] if name in ("doctor", "rqvae") else [f"out={visit.work / 'runs' / name.replace(' ', '-')}"]
        running[name] = (
            subprocess.Popen([*words, *own, *out], env=env, stdout=log, stderr=log),
            time.monotonic(),
            Path(log.name),
        )

    while (waiting or running) and left() > 15 and time.monotonic() - began < 200:
        while waiting and len(running) < at_once:
            start(*waiting.pop(0))
        for name, (process, since, log) in list(running.items()):
            if process.poll() is not None:
                del running[name]
                text = log.read_text(errors="replace").splitlines()
                told = {"rc": process.returncode, "s": time.monotonic() - since}
                if process.returncode:
                    told["tail"] = " | ".join(text[-3:])[-400:]
                elif (visit.work / "runs" / name.replace(" ", "-") / "test.json").exists():
                    full = json.loads((visit.work / "runs" / name.replace(" ", "-") / "test.json").read_text())["full"]
                    told["ndcg@10"] = full["ndcg@10"]
                say(name, **told)
        time.sleep(0.3)
    for name, (process, since, log) in running.items():
        process.kill()
        say(
            name,
            KILLED=f"after {time.monotonic() - since:.0f} s",
            tail=" | ".join(log.read_text(errors="replace").splitlines()[-3:])[-400:],
        )
    evaluated = visit.work / "runs" / "sasrec"
    if (evaluated / "test.json").exists() and left() > 20:
        for words in (["evaluate", f"out={evaluated}", "split=valid"], ["recommend", f"out={evaluated}", "k=5"]):
            done = subprocess.run(
                [sys.executable, "-m", "distrec.jobs", *words, f"data.root={visit.work / 'cli' / 'sasrec'}"],
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            say(words[0], rc=done.returncode, **({"tail": done.stderr[-300:]} if done.returncode else {}))
