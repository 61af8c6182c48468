"""accelerate launch distrec/train.py [FILE.yaml …] [section.key=value …]

Prepares the data if need be, trains, ranks the test split once with the best-validation checkpoint.
With no argument: SASRec on the built-in catalogue.  Started again, a killed run goes on bit for bit.

  data.source=… data.path=…   the interactions (distrec prepare --help)
  model.name=…                popularity, item_knn, markov, sasrec; tiger, tone, frellm (what they need is made first)
  train.epochs=… train.lr=…   the loop            out=DIR   the run folder       seed=…
  from=RUN                    start from the best weights of another run, with the interactions that came since

Every key with its default: distrec config.   Two processes on a CPU:
  torchrun --standalone --nproc_per_node 2 distrec/train.py …

Exit codes: 0 done · 1 failed · 2 wrong usage or input · 75 stopped by a signal after saving (accelerate launch and
torchrun report any of them but 0 as 1; `distrec train` and `python distrec/train.py` keep them).
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared
from distrec.engine import memory
from distrec.engine.evaluation import outcome
from distrec.engine.launch import check_trackers, join
from distrec.hints import place
from distrec.jobs.codes.artefact import Collapsed
from distrec.jobs.parts.assemble import GENERATIVE
from distrec.jobs.parts.identity import made_by
from distrec.jobs.parts.training import train
from distrec.jobs.parts.work import Work
from distrec.runtime import DONE, FAILED, REQUEUE, Ranks, Stop, log, run


def main(argv: Sequence[str]) -> int:
    parents = [place(arg.partition("=")[2], "from") for arg in argv if arg.startswith("from=")]
    config = cfg.load([arg for arg in argv if not arg.startswith("from=")])
    is_run = parents and (Path(parents[0]) / "config.yaml").is_file()
    if len(parents) > 1:
        raise ValueError(f"from={parents[0]} from={parents[1]}: a run starts from one other run; give one of them")
    if parents and not is_run and not (config.out and made_by(config.out)):
        raise ValueError(f"from={parents[-1]} is no run folder (no config.yaml in it); give from=RUN")
    if config.data.cold_items == "keep" and not isinstance(config.model, GENERATIVE | knobs.Frellm):
        raise ValueError(
            f"model.name={config.model.name} knows items by their interactions alone and cannot rank those that have none "
            "(data.cold_items=keep): use tiger, tone or frellm, which know them by their texts, or data.cold_items=drop"
        )
    if config.out and (not os.access(_existing(config.out), os.W_OK) or not _existing(config.out).is_dir()):
        raise ValueError(f"out={config.out}: {_existing(config.out)} is no folder that can be written to")
    check_trackers(config.train)
    accelerator = join(config.train, config.out, tracks=True)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    try:
        with Stop() as stop:
            parent = Path(parents[0]) if parents else None
            out = train(Work(config, data, ranks, stop, accelerator.device, accelerator, parent))
    except Collapsed as error:
        log(str(error))
        return FAILED
    if out is None:
        return REQUEUE
    accelerator.end_training()  # last: it leaves the group of processes
    if ranks.is_main:
        print(outcome.lines(json.loads((out / "test.json").read_text())))
        print(f"run folder: {out}")
    return DONE


def _existing(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    return path if path.exists() else _existing(path.absolute().parent)


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
