"""distrec evaluate out=RUN [split=valid|test] [score.mask_history=false …]

Ranks a split again with the best checkpoint of a finished or stopped run; writes RUN/evaluate-SPLIT.json
and its ranks; a finished run that was measured by a former protocol gets the figures of today's in their place.  data.root, data.path, data.items, model.codes and model.backbone.path tell where things lie now, if they
were moved.  Every process of a launch takes its share: accelerate launch -m distrec.jobs.evaluate out=RUN

Example:  distrec evaluate out=runs/beauty split=valid
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrec import config as cfg
from distrec.data import store
from distrec.engine import memory
from distrec.engine.evaluation import outcome
from distrec.engine.launch import join
from distrec.hints import place
from distrec.jobs.parts.assemble import best_of
from distrec.runtime import Ranks, log, run


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
        renewed(out, found.data.stamp, given, split, report, table)
        print(outcome.lines(report))


def renewed(out: Path, stamp: str, given: dict[str, str], split: str, report: dict[str, Any], table: Any) -> None:
    """A finished run whose figures are of a former protocol gets those of today."""
    was_killed = (out / store.FORMER).exists()  # while it did this
    is_as_trained = (
        split == "test" and "score.mask_history" not in given and (was_killed or (out / store.STAMP).exists())
    )
    before = json.loads((out / "test.json").read_text(encoding="utf-8")) if is_as_trained else None
    if before and (was_killed or outcome.is_former(before)) and before["data"] == stamp:
        outcome.renew(out, report, table)
        log(f"{out}: the figures of a former protocol are replaced (they are in former-test.json)")


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
