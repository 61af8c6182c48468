"""distrec quantize [FILE.yaml …] [section.key=value …]
distrec quantize --assign-only=CODES [FILE.yaml …] [section.key=value …]

Item vectors → codes (semantic ids): levels of a quantiser, each on what the ones before left over, and a last
code that tells items apart.  Prints and saves a health report; a collapsed codebook stops here (codes.gate=false:
goes on).  A killed fit goes on from its last iteration; every process of a launch takes its share, and the codes
are the same on any number of them: accelerate launch -m distrec.jobs.quantize …

  codes.name=gmm|kmeans|balanced|spectral|rqvae      codes.levels=3     codes.size=256 (default: from the catalogue)
  codes.assignment=cosine|posterior|euclid|fitted    codes.pca=64       codes.covariance=diag|spherical|tied|full
  codes.vectors=FOLDER_OR_FILE   vectors made elsewhere; without it the items' texts are embedded (distrec embed)
  codes.category=COLUMN          item column for the category figures

--assign-only gives codes to the items of a grown catalogue by a finished artefact: known items keep theirs, nothing
is fitted.

Example:  distrec quantize configs/data/beauty.yaml configs/codes/resgmm.yaml embed.encoder=minilm
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrec import config as cfg
from distrec import train
from distrec.codes import health
from distrec.codes.residual import Assignment, zero_rows
from distrec.codes.rows import BLOCK, Rows, principal_axes, share
from distrec.data import item_codes, prepared, store, vectors
from distrec.data.prepared import Prepared
from distrec.jobs import codes_report, embed
from distrec.runtime import FAILED, REQUEUE, Ranks, Stop, log

SAVE_SECONDS = 5  # between saved states of a fit
_OWN: dict[str, Assignment] = {"gmm": "cosine", "kmeans": "euclid", "balanced": "fitted", "spectral": "fitted"}
_FREE = ("gate", "min_used", "max_collisions", "vectors", "category")  # shape no code


class Collapsed(Exception):
    """Codes that are not worth training on."""


def main(argv: Sequence[str]) -> int | None:
    known = [arg.removeprefix("--assign-only=") for arg in argv if arg.startswith("--assign-only")]
    if known and (len(known) > 1 or known[0].startswith("-")):
        raise ValueError("--assign-only=CODES names one folder of codes, made by distrec quantize")
    config = cfg.load([arg for arg in argv if not arg.startswith("--assign-only")])
    accelerator = train.join(config)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    with Stop() as stop:
        make = partial(extend, Path(known[0])) if known else quantize
        try:
            folder = make(config, data, ranks, stop, accelerator.device)
        except Collapsed as error:
            log(f"error: {error}")
            return FAILED
    if folder is None:
        log("stopped; the same command goes on from there")
        return REQUEUE
    if ranks.is_main:
        print(codes_report.table(json.loads((folder / "health.json").read_text())))
        print(folder)
    return None


def quantize(config: cfg.Config, data: Prepared, ranks: Ranks, stop: Stop, device: torch.device) -> Path | None:
    """The folder of the items' codes, made now unless it is there and intact; None when stopped before the end.

    Raises: ValueError on vectors that cannot be quantised; Collapsed, after the report, when the gate is shut.
    """
    source = config.codes.vectors or embed.embed(config.embed, config.data.root, data, ranks, stop)
    if source is None:
        return None
    table, identity = vectors.load(source, data)
    size = config.codes.size or code_size(data.n_items)
    made = made_by(config, data, source, identity, size)
    target = store.folder(config.data.root, "codes", made)
    if ranks.gather(target.exists())[0]:
        store.verify(target, made)
        return target
    check_size(size, data.n_items)
    rows = rows_of(table, ranks, device, config.codes)
    log(f"quantising {data.n_items:,} × {table.shape[1]} vectors into {config.codes.levels} × {size} codes: {target}")
    started = time.perf_counter()
    rows, basis = turned(rows, config.codes)
    fit = fitter(config.codes, size, config.seed)
    saved = SavedStates(config.data.root / "checkpoints" / target.name, made, ranks)
    if not drain(fit.run(rows, saved.load(device)), saved, ranks, stop):
        return None
    report = {
        "quantiser": config.codes.name,
        "items": data.n_items,
        "dimensions": table.shape[1],
        "zero_vectors": zero_rows(rows_of(table, ranks, device, config.codes)),
        "levels": [health.use(fit.codes_[:, number].cpu(), size) | told for number, told in enumerate(fit.reports_)],
        "seconds": time.perf_counter() - started,
    }
    tensors = basis | tensors_of(fit)
    ranks.main_first(partial(_write, target, made, fit.codes_.cpu(), size, tensors, report, config.codes, data))
    saved.remove()
    return target


def made_by(config: cfg.Config, data: Prepared, source: Path, identity: str, size: int) -> dict[str, Any]:
    """What codes depend on."""
    settings = {key: value for key, value in cfg.plain(config.codes).items() if key not in _FREE}
    origin = store.read_stamp(source)["made_by"] if source.is_dir() else {}
    return {
        "fitted_on": origin.get("fitted_on", "file"),
        "items": item_codes.items_digest(data),
        "vectors": identity,
        "encoder": origin.get("encoder"),
        "codes": settings | {"size": size},
        "seed": config.seed,
    }


def code_size(n_items: int) -> int:
    """Codes a level: a power of two with about 50 items a code, 4096 at most."""
    return int(
        min(4096, max(2 ** round(np.log2(max(1, n_items / 50))), 2 ** int(np.log2(max(2, min(64, n_items / 4))))))
    )


def check_size(size: int, n_items: int) -> None:
    """Raises: ValueError when there are more codes than items."""
    if size > n_items:
        raise ValueError(f"codes.size={size} for {n_items:,} items: take at most {max(1, n_items // 2)}")
    if n_items / size > 1000:
        log(f"warning: {n_items / size:,.0f} items a code in the first level; consider a larger codes.size than {size}")


def rows_of(table: np.ndarray, ranks: Ranks, device: torch.device, config: cfg.Codes) -> Rows:
    """This rank's rows of the table, in blocks that suit the device."""
    on_gpu = device.type == "cuda"
    block = 65_536 if on_gpu else BLOCK
    own = share(len(table), ranks.rank, ranks.size, block)
    source = torch.from_numpy(table)[own]
    memory = 2**29
    if on_gpu:
        memory = torch.cuda.mem_get_info(device)[0] // 3
        source = source.to(device) if source.nbytes <= memory else source
    return Rows(
        source=source,
        total=len(table),
        first=own.start,
        sum_=ranks.sum_,
        block=block,
        dtype=torch.float32,
        device=device,
        memory=memory,
    )


def turned(rows: Rows, config: cfg.Codes) -> tuple[Rows, dict[str, torch.Tensor]]:
    """(the rows along their principal axes, the rotation to keep) when config.pca asks for it."""
    n = getattr(config, "pca", None)
    if not n:
        return rows, {}
    centre, rotation, held = principal_axes(rows, n)
    log(f"{n} principal axes hold {held:.1%} of the variance")
    return rotated(rows, {"centre": centre, "rotation": rotation}), {"centre": centre, "rotation": rotation}


def rotated(rows: Rows, kept: dict[str, torch.Tensor]) -> Rows:
    import dataclasses

    return dataclasses.replace(rows, centre=kept["centre"], rotation=kept["rotation"]) if "rotation" in kept else rows
