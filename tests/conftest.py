import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distrec import config as cfg
from distrec.data import prepared

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("DISTREC_DATA", ROOT.parent / "shared" / "data"))
torch.set_num_threads(1)  # before anything forks


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real():
    """Folder of the real catalogues, by name; skips where they are not."""

    def folder(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"no real data in {DATA / name} (set DISTREC_DATA)")
        return DATA / name

    return folder


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory):
    """A data.root shared by the session, so that real data is prepared once."""
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="session")
def small(artefacts):
    """A small built-in catalogue, prepared."""
    return prepare_small(artefacts)


def prepare_small(root, *more):
    config = cfg.load(
        [f"data.root={root}", "data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", *more]
    )
    return prepared.load(prepared.prepare(config.data))


@pytest.fixture(scope="session")
def beauty(real, artefacts):
    config = cfg.load([f"data.root={artefacts}", "data.source=sequences", f"data.path={real('amazon_beauty_2014')}"])
    return prepared.load(prepared.prepare(config.data))


@pytest.fixture
def table(small):
    return np.random.default_rng(0).standard_normal((small.n_items, 12)).astype(np.float32)
