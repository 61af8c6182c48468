"""TONE's Table 2 for real vectors: every quantiser on Amazon Beauty's items, beside code sets that others published.

    python tests/bench/codes.py FOLDER_OF_BEAUTY [embed.encoder=minilm] [section.key=value …]

FOLDER_OF_BEAUTY holds the `sequences` layout and, if they are to be compared, text_codes_*.npy.gz and
letter_semantic_ids.tsv.gz.  Artefacts land under ./artefacts (data.root=… elsewhere).  A quarter of an hour on two cores.
"""

import gzip
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from distrec import config as cfg
from distrec.codes import health
from distrec.data import prepared
from distrec.jobs import embed
from distrec.jobs.codes import report as reports
from distrec.jobs.codes.fit import quantize
from distrec.jobs.parts.work import Work
from distrec.runtime import Ranks, Stop

ROOT = Path(__file__).parents[2]
OURS = {
    "RQ-VAE": ["configs/codes/rqvae.yaml"],
    "RQ-VAE, usage loss": ["configs/codes/rqvae.yaml", "codes.usage=0.1"],
    "k-means, random start": ["configs/codes/kmeans.yaml", "codes.init=random"],
    "k-means": ["configs/codes/kmeans.yaml"],
    "balanced k-means": ["configs/codes/balanced.yaml"],
    "spectral": ["configs/codes/spectral.yaml"],
    "ResGMM, cosine": ["configs/codes/resgmm.yaml"],
    "ResGMM, posterior": ["configs/codes/resgmm.yaml", "codes.assignment=posterior"],
    "ResGMM, euclid": ["configs/codes/resgmm.yaml", "codes.assignment=euclid"],
    "ResGMM full, PCA 32, cosine": ["configs/codes/resgmm.yaml", "codes.covariance=full", "codes.pca=32"],
}


def main(place: Path, settings: list[str]) -> None:
    base = ["data.source=sequences", f"data.path={place}", "embed.encoder=minilm", "codes.gate=false", *settings]
    data = prepared.load(prepared.prepare(cfg.load(base).data))
    category = reports.category_of("category", data.items)
    rows = {}
    for name, (file, *more) in OURS.items():
        config = cfg.load([str(ROOT / file), *base, *more])
        with Stop() as stop:
            embed.embed(config.embed, config.data, data, Ranks(), stop)
            started = time.perf_counter()
            folder = quantize(Work(config, data, Ranks(), stop, torch.device("cpu")))
        if folder is None:
            sys.exit("stopped")
        took = time.perf_counter() - started
        rows[name] = json.loads((folder / "health.json").read_text()) | {"seconds": f"{took:.1f}"}
    order = np.array([int(raw) - 1 for raw in data.items["raw"]])
    for name, codes in public(place).items():
        rows[name] = judged(codes[order], category)
    print(
        f"{'codes':<28} {'levels':>6} {'used':>14} {'perplexity':>14} {'collide':>8} {'largest':>7} {'residual':>8} {'NMI':>5} {'s':>6}"
    )
    for name, row in rows.items():
        shown = row["levels"][:3]
        used, perplexity = ("/".join(f"{level[key]:.0f}" for level in shown) for key in ("used", "perplexity"))
        residual = f"{row['levels'][-1]['residual_share']:.3f}" if "residual_share" in row["levels"][-1] else "–"
        shared = row["collisions"]
        print(
            f"{name:<28} {len(row['levels']):>6} {used:>14} {perplexity:>14} {shared['share']:>8.1%} {shared['largest']:>7} "
            f"{residual:>8} {row['levels'][0]['nmi']:>5.3f} {row.get('seconds', '–'):>6}"
        )
    print(json.dumps({name: row["collisions"]["share"] for name, row in rows.items()}))


def public(place: Path) -> dict[str, np.ndarray]:
    """Published codes without their last, telling-apart one; in the order of item ids."""
    found = {}
    for name, levels in (("rqkmeans", 4), ("rqvae_faiss", 3), ("opq", 32)):
        path = place / f"text_codes_{name}.npy.gz"
        if path.exists():
            with gzip.open(path) as file:
                found[f"public: {name}"] = np.load(io.BytesIO(file.read()), allow_pickle=False)[:, :levels]
    path = place / "letter_semantic_ids.tsv.gz"
    if path.exists():
        table = pl.read_csv(path, separator="\t").sort("item_id")
        found["public: LETTER"] = table.select("c0", "c1", "c2", "c3").to_numpy()
    return found


def judged(codes: np.ndarray, category: np.ndarray | None) -> dict:
    table = torch.from_numpy(codes.astype(np.int64))
    levels = [health.use(table[:, i], 256) for i in range(table.shape[1])]
    reports.add_nmi(levels, category, codes)
    _, dense = zip(*(column.unique(return_inverse=True) for column in table.T), strict=True)
    key = dense[0]
    for column in dense[1:]:  # 32 codes of 256 exceed 63 bits: number the distinct prefixes instead
        key = (key * 256 + column).unique(return_inverse=True)[1]
    return {"levels": levels, "collisions": health.collisions(key[:, None], (len(codes),))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
