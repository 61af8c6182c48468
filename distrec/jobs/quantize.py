"""distrec quantize [FILE.yaml …] [section.key=value …]
distrec quantize --assign-only=CODES [FILE.yaml …] [section.key=value …]

Item vectors → codes (semantic ids): levels of a quantiser, each on what the ones before left over, and a last
code that tells items apart.  Prints and saves a health report; a collapsed codebook stops here (codes.gate=false:
goes on).  A killed fit goes on from its last iteration (spectral: its last level); every process of a launch takes
its share, and the codes are the same on any number of them (rqvae: to rounding only, so that the number of
processes is part of its artefact): accelerate launch -m distrec.jobs.quantize …

  codes.name=gmm|kmeans|balanced|spectral|rqvae      codes.levels=3     codes.size=256 (default: from the catalogue)
  codes.assignment=cosine|posterior|euclid|fitted    codes.pca=64       codes.covariance=diag|spherical|tied|full
  codes.vectors=FOLDER_OR_FILE   vectors made elsewhere; without it the items' texts are embedded (distrec embed).
                                 .parquet with a column of item ids and one of lists, .npz with ids and vectors, or
                                 x.npy, x.safetensors with x.ids.txt (one id a line) or x.ids.npy: joined by id
  codes.vectors_missing=zero     an item without a vector gets the zero vector (default: refuse)
  codes.vectors_order=prepared   the rows of a file without ids follow distrec prepare ids=FILE
  codes.category=COLUMN          item column for the category figures

--assign-only gives codes to the items of a grown catalogue by a finished artefact: known items keep theirs, nothing
is fitted.

Example:  distrec quantize configs/data/beauty.yaml configs/codes/resgmm.yaml embed.encoder=minilm
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distrec import config as cfg
from distrec.data import prepared
from distrec.engine import memory
from distrec.engine.launch import join
from distrec.hints import place
from distrec.jobs.codes import report
from distrec.jobs.codes.artefact import FREE, Collapsed
from distrec.jobs.codes.extend import extend
from distrec.jobs.codes.fit import quantize
from distrec.jobs.parts.work import Work
from distrec.runtime import FAILED, REQUEUE, Ranks, Stop, log, run


def main(argv: Sequence[str]) -> int | None:
    flags = [arg for arg in argv if arg.partition("=")[0] == "--assign-only"]
    known = flags[0].partition("=")[2] if flags else None
    if flags and (len(flags) > 1 or not known):
        raise ValueError("--assign-only=CODES, with an equals sign, names one folder of codes made by distrec quantize")
    known = known and place(known, "--assign-only")
    if known and not Path(known).is_dir():
        raise ValueError(f"--assign-only={known}: no such folder")
    settled = [arg for arg in argv if arg.startswith("codes.") and arg[6:].partition("=")[0] not in FREE]
    if known and settled:
        raise ValueError(f"{settled[0]}: with --assign-only the codes' settings are those of {known}")
    config = cfg.load([arg for arg in argv if arg not in flags])
    accelerator = join(config.train)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    try:
        with Stop() as stop:
            work = Work(config, data, ranks, stop, accelerator.device)
            folder = extend(Path(known), work) if known else quantize(work)
    except Collapsed as error:
        log(str(error))
        return FAILED
    if folder is None:
        log("stopped; the same command goes on from there")
        return REQUEUE
    if ranks.is_main:
        print(report.table(json.loads((folder / "health.json").read_text())))
        print(folder)
    return None


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
