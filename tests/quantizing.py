"""What the tests of codes share."""

import json

import torch

from distrec import config as cfg
from distrec.jobs.codes.fit import quantize
from distrec.jobs.parts.work import Work
from distrec.runtime import Ranks

SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "embed.encoder=builtin"]
FAST = ["codes.size=16", "codes.gate=false"]
QUANTISERS = {
    "gmm": ["codes.name=gmm"],
    "gmm-posterior-full": ["codes.name=gmm", "codes.covariance=full", "codes.pca=3", "codes.assignment=posterior"],
    "gmm-tied": ["codes.name=gmm", "codes.covariance=tied", "codes.pca=8", "codes.n_init=1"],
    "kmeans": ["codes.name=kmeans"],
    "balanced": ["codes.name=balanced"],
    "spectral": ["codes.name=spectral", "codes.neighbours=5"],
    "rqvae": ["codes.name=rqvae", "codes.hidden=[32]", "codes.latent=8", "codes.epochs=5", "codes.batch=64"],
}


def never():
    return False


def run(root, data, *args, ranks=None, make=quantize, stop=never):
    config = cfg.load([*SMALL, f"data.root={root}", *FAST, *args])
    return make(Work(config, data, ranks or Ranks.here(), stop, torch.device("cpu")))


def prepared_order(place):
    """Words that give a file of vectors without ids."""
    return f"codes.vectors={place}", "codes.vectors_order=prepared"


def health_of(folder):
    return json.loads((folder / "health.json").read_text())
