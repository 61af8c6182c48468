"""Whole commands on the pretended GPU, in this process: nothing that CUDA refuses."""

import importlib

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from pretending import counts

DATA = ["data.synthetic.users=150", "data.synthetic.items=120", "data.negatives=20", "embed.encoder=builtin"]
TRAIN = ["train.epochs=2", "train.batch_tokens=600", "train.log_steps=3", "score.bootstrap=20"]
CODES = ["codes.size=16", "codes.gate=false"]
TINY = ["model.d_model=16", "model.d_ff=32", "model.n_layers=1", "model.n_heads=2", "model.d_kv=8", "model.beams=8"]
CODED = [*TINY, *CODES, "codes.n_init=1", "codes.max_iter=5"]
FRELLM = ["model.name=frellm", "model.sasrec_train.epochs=1"]
CAUSAL = [*FRELLM, "model.tfm.mode=causal"]
TRAININGS = {
    "popularity": ["model.name=popularity"],
    "item_knn": ["model.name=item_knn"],
    "markov": ["model.name=markov"],
    "sasrec": ["model.name=sasrec"],
    "sasrec-bce": ["model.name=sasrec", "model.loss=bce"],
    "sasrec-bf16": ["model.name=sasrec", "train.precision=bf16"],
    "sasrec-async": ["model.name=sasrec", "train.async_save=true"],
    "tiger": ["model.name=tiger", *CODED],
    "tiger-users": ["model.name=tiger", "model.user_tokens=20", *CODED],
    "tone": ["model.name=tone", *CODED],
    "tone-free": ["model.name=tone", "model.decoding=free", "model.rpml_decoder=true", "model.agf_axis=items", *CODED],
    "tone-channels": ["model.name=tone", "model.crfa_tokens=channels", "train.precision=bf16", *CODED],
    "tone-masked": ["model.name=tone", "score.mask_history=true", *CODED],
    "frellm-causal": CAUSAL,
    "frellm-global": [*FRELLM, "model.tfm.mode=global", "model.tfm.learn_cutoff=true", "train.epochs=1", "train.batch_tokens=4000"],
    "frellm-bf16": [*CAUSAL, "model.backbone.dtype=bfloat16", "model.head=linear", "model.backbone.checkpointing=true"],
    "frellm-lora": [*CAUSAL, "model.backbone.tune=lora", "model.loss=sampled", "model.negatives=32"],
    "frellm-full": [*FRELLM, "model.tfm.mode=none", "model.backbone.tune=full"],
    "frellm-text": [*CAUSAL, "model.graph.source=text", "embed.encoder=small_llm"],
    "frellm-small-logits": [*CAUSAL, "model.logits_mib=1"],
    "frellm-nf4": [*CAUSAL, "model.backbone.quantise=nf4"],
}  # fmt: skip
QUANTIZERS = {
    "gmm": ["codes.name=gmm", "codes.n_init=2", "codes.max_iter=5"],
    "gmm-tf32": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=3", "codes.precision=tf32"],
    "gmm-bf16x3": ["codes.name=gmm", "codes.n_init=1", "codes.max_iter=3", "codes.precision=bf16x3"],
    "gmm-full": ["codes.name=gmm", "codes.covariance=full", "codes.pca=3", "codes.assignment=posterior", "codes.n_init=1"],
    "gmm-tied": ["codes.name=gmm", "codes.covariance=tied", "codes.pca=8", "codes.n_init=1", "codes.max_iter=5"],
    "gmm-spherical": ["codes.name=gmm", "codes.covariance=spherical", "codes.n_init=1", "codes.max_iter=5"],
    "kmeans": ["codes.name=kmeans"],
    "kmeans-random": ["codes.name=kmeans", "codes.init=random", "codes.pca=8"],
    "balanced": ["codes.name=balanced", "codes.max_iter=3"],
    "spectral": ["codes.name=spectral", "codes.neighbours=5"],
    "spectral-landmarks": ["codes.name=spectral", "codes.neighbours=5", "codes.landmarks=60"],
    "rqvae": ["codes.name=rqvae", "codes.hidden=[32]", "codes.latent=8", "codes.epochs=2", "codes.batch=64", "codes.usage=0.1"],
}  # fmt: skip
PARTS = "parts=spectra,items,attention,retention,locality,controls,learnt"
LATER = {  # on runs that are there
    "evaluate": ["sasrec", "split=valid"],
    "recommend": ["sasrec", "k=5"],
    "recommend tone": ["tone", "k=5"],
    "recommend tone-masked": ["tone", "k=5", "score.mask_history=true"],
    "recommend frellm": ["frellm-bf16", "k=5"],
    "recommend markov": ["markov", "k=5"],
    **{
        f"analyze {name}": [name, "users=40", "steps=10", PARTS]
        for name in ("sasrec", "tone", "frellm-causal", "frellm-bf16", "tone-channels", "tiger", "markov")
    },
}


def command(name, words, monkeypatch):
    """Run a command; nothing that CUDA refuses."""
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    module = importlib.import_module("distrec.train" if name == "train" else f"distrec.jobs.{name}")
    with counts.device(monkeypatch) as gpu:
        assert module.main(words) in (0, None)
    assert not gpu.faults, gpu.faults


def test_training_evaluating_and_recommending(tmp_path, monkeypatch):
    root = f"data.root={tmp_path}"
    command("train", [*DATA, root, *TRAIN, *TRAININGS["sasrec"], f"out={tmp_path / 'run'}"], monkeypatch)
    command("evaluate", [f"out={tmp_path / 'run'}", "split=valid"], monkeypatch)
    command("recommend", [f"out={tmp_path / 'run'}", "k=5"], monkeypatch)
    command("quantize", [*DATA, root, *CODES, *QUANTIZERS["kmeans"]], monkeypatch)


@pytest.mark.slow
def test_all_commands(tmp_path, monkeypatch):
    root = f"data.root={tmp_path / 'artifacts'}"
    for name, words in TRAININGS.items():
        command("train", [*DATA, root, *TRAIN, *words, f"out={tmp_path / name}"], monkeypatch)
    for words in QUANTIZERS.values():
        command("quantize", [*DATA, root, *CODES, *words], monkeypatch)
    for name, (run, *words) in LATER.items():
        command(name.split()[0], [f"out={tmp_path / run}", *words], monkeypatch)
