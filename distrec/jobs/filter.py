"""distrec filter model.name=frellm [FILE.yaml …] [section.key=value …]

What FreLLM4Rec reads of items: SASRec's vectors and the texts' vectors, smoothed once over a graph of training
interactions (G-LPF), (I − glpf_alpha · L)^order.  What is missing is made first: vectors (distrec embed) and the SASRec.

  model.graph.glpf_alpha=0.7   0: no filter                       model.graph.order=1
  model.graph.source=interactions|session|text|items   text, items: nearest neighbours of the vectors
  model.graph.window=5 model.graph.weighting=binary|count|lag model.graph.top_k=50 model.graph.self_loops=false
  model.items=RUN              a finished run of model.name=sasrec in place of one made by model.sasrec and model.sasrec_train

Example:  distrec filter configs/data/ml100k.yaml model.name=frellm embed.encoder=minilm
"""

from collections.abc import Sequence
from functools import partial

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared
from distrec.engine import memory
from distrec.engine.launch import join
from distrec.jobs.parts.tables import tables
from distrec.jobs.parts.training import train
from distrec.jobs.parts.work import Work
from distrec.runtime import REQUEUE, Ranks, Stop, log, run


def main(argv: Sequence[str]) -> int | None:
    config = cfg.load(argv)
    if not isinstance(config.model, knobs.Frellm):
        raise ValueError(f"model.name={config.model.name} reads no filtered vectors: model.name=frellm does")
    accelerator = join(config.train)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    with Stop() as stop:
        folder = tables(Work(config, data, ranks, stop, accelerator.device, accelerator), train)
    accelerator.end_training()
    if folder is None:
        log("stopped; the same command goes on from there")
        return REQUEUE
    if ranks.is_main:
        print(folder)
    return None


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
