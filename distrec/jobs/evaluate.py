"""distrec evaluate out=RUN [split=valid|test] [score.mask_history=false …]

Ranks a split again with the best checkpoint of a finished or stopped run; writes RUN/evaluate-SPLIT.json
and its ranks.  data.root, data.path, data.items, model.codes and model.backbone.path tell where things lie now, if they
were moved.  Every process of a launch takes its share: accelerate launch -m distrec.jobs.evaluate out=RUN

Example:  distrec evaluate out=runs/beauty split=valid
"""

from collections.abc import Sequence
from pathlib import Path

from distrec import config as cfg
from distrec.engine import memory
from distrec.engine.evaluation import outcome
from distrec.engine.launch import join
from distrec.hints import place
from distrec.jobs.parts.assemble import best_of
from distrec.runtime import Ranks, run


def main(argv: Sequence[str]) -> None:
    given: dict[str, str] = {key: value for key, _, value in (arg.partition("=") for arg in argv)}
    split, out = given.pop("split", "test"), Path(place(given.get("out", ""), "out"))
    own = ("out", "data.root", "data.path", "data.items", "model.codes", "model.backbone.path")
    if other := [key for key in given if key not in own and not key.startswith("score.")]:
        raise ValueError(
            f"evaluate takes out, split, score.… and the places of the data, not {other[0]}: the run's config holds"
        )
    if split not in ("valid", "test"):
        raise ValueError(f"split={split!r}: it is valid or test")
    if not (out / "config.yaml").is_file():
        raise ValueError(f"out={str(out)!r} is no run folder (no config.yaml in it); give out=RUN")
    config = cfg.load([str(out / "config.yaml"), *(arg for arg in argv if not arg.startswith("split="))])
    accelerator = join(config.train)
    ranks = Ranks.here()
    found = best_of(out, config, ranks, accelerator.device)
    report, table = outcome.measure(found.model, found.data, split, config.score, ranks, accelerator.device)
    if ranks.is_main:
        outcome.write(out, report, table, f"evaluate-{split}")
        print(outcome.lines(report))


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
