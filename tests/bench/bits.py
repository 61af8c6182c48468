"""Hashes of what short runs compute, so that two checkouts can be compared bit for bit.

    python tests/bench/bits.py [--only NAME,NAME]        # in each checkout, with PYTHONPATH=. ; then compare the last lines

Every kind of training (weights, losses, test figures) and every quantizer (codes, codebooks) on the built-in catalogue, on the
CPU in this process, in fresh folders.  Equal hashes mean equal bits; they differ between processors and thread counts.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from distrec import config as cfg
from distrec.data import prepared

DATA = ["data.synthetic.users=150", "data.synthetic.items=120", "data.negatives=20", "embed.encoder=builtin"]
TRAIN = [
    "train.epochs=2",
    "train.batch_tokens=600",
    "train.micro_tokens=400",
    "train.log_steps=1",
    "score.bootstrap=20",
]
CODES = ["codes.size=16", "codes.gate=false"]
SMALL = ["model.d_model=16", "model.d_ff=32", "model.n_layers=2", "model.n_heads=2", "model.d_kv=8", "model.beams=8"]
CODED = [*SMALL, *CODES, "codes.n_init=1", "codes.max_iter=5"]
FRELLM = ["model.name=frellm", "model.sasrec_train.epochs=1"]
RUNS = {
    "sasrec ce": ["model.name=sasrec"],
    "sasrec bce": ["model.name=sasrec", "model.loss=bce"],
    "sasrec bf16": ["model.name=sasrec", "train.precision=bf16"],
    "tiger": ["model.name=tiger", "model.user_tokens=20", *CODED],
    "tone": ["model.name=tone", *CODED],
    "tone free, items": ["model.name=tone", "model.decoding=free", "model.rpml_decoder=true", "model.agf_axis=items", *CODED],
    "tone channels": ["model.name=tone", "model.crfa_tokens=channels", "score.mask_history=true", *CODED],
    "frellm causal": [*FRELLM, "model.tfm.mode=causal"],
    "frellm causal, sampled, LoRA": [*FRELLM, "model.tfm.mode=causal", "model.loss=sampled", "model.negatives=32", "model.backbone.tune=lora"],
    "frellm global": [*FRELLM, "model.tfm.mode=global", "train.epochs=1", "train.batch_tokens=4000"],
    "frellm learnt": [*FRELLM, "model.tfm.mode=causal", "model.tfm.learn_cutoff=true", "model.head=linear"],
    "frellm bf16": [*FRELLM, "model.tfm.mode=causal", "model.backbone.dtype=bfloat16", "train.precision=bf16"],
}  # fmt: skip
FITS = {
    "gmm": ["codes.name=gmm", "codes.n_init=2", "codes.max_iter=20"],
    "gmm tf32": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=5", "codes.precision=tf32", "codes.pca=4"],
    "gmm bf16x3": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=5", "codes.precision=bf16x3", "codes.pca=4"],
    "gmm full": ["codes.name=gmm", "codes.covariance=full", "codes.pca=3", "codes.assignment=posterior", "codes.n_init=1"],
    "gmm tied": ["codes.name=gmm", "codes.covariance=tied", "codes.pca=8", "codes.n_init=1"],
    "gmm spherical": ["codes.name=gmm", "codes.covariance=spherical", "codes.n_init=1"],
    "kmeans": ["codes.name=kmeans"],
    "kmeans random": ["codes.name=kmeans", "codes.init=random", "codes.pca=8"],
    "balanced": ["codes.name=balanced"],
    "spectral": ["codes.name=spectral", "codes.neighbours=5"],
    "spectral landmarks": ["codes.name=spectral", "codes.neighbours=5", "codes.landmarks=60"],
    "rqvae": ["codes.name=rqvae", "codes.hidden=[32]", "codes.latent=8", "codes.epochs=5", "codes.batch=64", "codes.usage=0.1"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, separated by commas")
    only = [name for name in parser.parse_args().only.split(",") if name]
    torch.set_num_threads(1)
    bits: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bits["prepared"] = hash_prepared(root)
        for name, words in {**RUNS, **FITS}.items():
            if only and name not in only:
                continue
            began = time.perf_counter()
            run(root, "train" if name in RUNS else "quantize", name, words)
            bits[name] = hash_run(root / "runs" / name) if name in RUNS else hash_codes(root / name)
            print(f"{name:<30} {time.perf_counter() - began:5.1f} s  {bits[name]}", flush=True)
    print(json.dumps(bits | {"torch": torch.__version__, "cores": os.cpu_count()}))


def run(root: Path, command: str, name: str, words: list[str]) -> None:
    """A command in this process; artifacts of codes lie in a folder of the run's name."""
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    is_training = command == "train"
    module = importlib.import_module("distrec.train" if is_training else "distrec.jobs.quantize")
    own = [*TRAIN, *words, f"out={root / 'runs' / name}"] if is_training else [*CODES, *words]
    messages = io.StringIO()  # what the command says is of interest where it fails alone
    with contextlib.redirect_stdout(messages), contextlib.redirect_stderr(messages):
        code = module.main([*DATA, f"data.root={root if is_training else root / name}", *own])
    if code not in (0, None):
        raise SystemExit(f"{name} ended with exit code {code}:\n{messages.getvalue()[-2000:]}")


def hash_prepared(root: Path) -> str:
    config = cfg.load([*DATA, f"data.root={root}"])
    data = prepared.load(prepared.prepare(config.data))
    return _hash(data.item.tobytes(), data.start.tobytes(), data.train_end.tobytes())


def hash_run(folder: Path) -> dict[str, str]:
    """Hashes of the last checkpoint's weights and moments, of the losses and of the test figures."""
    last = max(path for path in (folder / "checkpoints").glob("step-*") if path.is_dir())
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    report = {key: value for key, value in json.loads((folder / "test.json").read_text()).items() if key != "protocol"}
    return {
        "weights": hash_tensors(last / "model.safetensors"),
        "moments": hash_tensors(last / "optimizer.safetensors"),
        "losses": _hash(json.dumps(losses).encode()),
        "test": _hash(json.dumps(report, sort_keys=True).encode()),
    }


def hash_codes(root: Path) -> dict[str, str]:
    (folder,) = root.glob("codes-*")
    return {"codes": hash_tensors(folder / "codes.safetensors"), "levels": hash_tensors(folder / "levels.safetensors")}


def hash_tensors(path: Path) -> str:
    """The hash of names, types, shapes and values, whatever else the file says."""
    parts = []
    for name, tensor in sorted(safetensors.torch.load_file(path).items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()]
        parts += [tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    return _hash(*parts)


def _hash(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


if __name__ == "__main__":
    main()
