"""distrec compare [NAME:]RUN [NAME:]RUN … [against=NAME] [metric=ndcg@10] [out=DIR] [data.root=DIR]

Finished runs beside each other.  Runs that differ in their seed alone are one variant; a variant's name is what it
differs in, or NAME.  Of each: mean and standard deviation over seeds, and 95 % intervals over users and seeds; of each with
the reference: the paired difference, p of a sign-flip test over users, Holm's correction, and what could have been found.
Every file of the runs, and all that they were made of as far as it is at hand, is read again first.

  against=NAME     the reference (default: the variant of the first run)
  metric=ndcg@10   what is compared: hr, ndcg at 1, 5, 10, 20, mrr   (the figures are of all)
  out=DIR          where the page goes: page.md, page.json, tables.tex, compare.json, metric and difference as SVG and PNG
                   (default: comparisons/HASH)
  data.root=DIR    where prepared data, codes, vectors … of the runs lie now, if they were moved

Refused: runs on other data, with another protocol or other targets; a seed twice; a file that was changed.

Example:  distrec compare runs/sasrec-0 runs/sasrec-1 runs/tone-0 runs/tone-1 against=sasrec metric=hr@10
"""

import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distrec.data import store
from distrec.engine.evaluation import metrics, paired
from distrec.hints import place, placed
from distrec.jobs.comparison import figures, told, variants
from distrec.jobs.comparison.variants import Run, Variant
from distrec.jobs.pages import page
from distrec.jobs.parts.chain import Known
from distrec.runtime import run as run_command

_OWN = ("against", "metric", "out", "data.root")


def main(argv: Sequence[str]) -> None:
    asked, given = _asked(argv)
    metric = given.get("metric", "ndcg@10")
    if metric not in figures.METRICS:
        raise ValueError(f"metric={metric}: it is one of {', '.join(figures.METRICS)}")
    known: Known = {}
    words = [f"data.root={given['data.root']}"] if "data.root" in given else []
    runs = [variants.read(folder, label, words, known) for label, folder in asked]
    variants.check_same(runs)
    found = variants.variants(runs)
    names = [variant.name for variant in found]
    against = given.get("against", names[0])
    if against not in names:
        raise ValueError(f"against={against}: the variants are {'; '.join(names)}")
    made = _made_by(found, against, metric)
    target = Path(given["out"]) if "out" in given else store.folder(Path("comparisons"), "compare", made)
    store.check_apart(target)
    store.make(target, made, partial(_fill, found=found, against=against, metric=metric))
    print(told.results(page.load(target)))
    print(target)


def _asked(argv: Sequence[str]) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    """((name or "", folder) of each run, the keys given)."""
    runs: list[tuple[str, Path]] = []
    given: dict[str, str] = {}
    for arg in argv:
        key, _, value = arg.partition("=")
        label, _, folder = arg.partition(":")
        if Path(arg).is_dir():
            runs.append(("", Path(arg)))
        elif key in _OWN and value:
            given[key] = value
        elif label and folder and (Path(os.path.expanduser(folder)).is_dir() or not value):
            runs.append((label, Path(place(folder, label))))
        elif re.fullmatch(r"[\w.]+=.*", arg):
            raise ValueError(f"compare takes runs and {', '.join(f'{name}=…' for name in _OWN)}, not {arg}")
        else:
            runs.append(("", Path(place(arg, "compare"))))
    if not runs:
        raise ValueError("compare what? distrec compare RUN RUN … (see --help)")
    if twice := [
        str(folder) for _, folder in runs if [other.resolve() for _, other in runs].count(folder.resolve()) > 1
    ]:
        raise ValueError(f"{twice[0]} is given twice")
    return runs, placed(given, "out")


def _made_by(found: Sequence[Variant], against: str, metric: str) -> dict[str, Any]:
    runs = [run for variant in found for run in variant.runs]
    return {
        "runs": {str(run.folder): run.links[0].content for run in runs},
        "names": [variant.name for variant in found],
        "against": against,
        "metric": metric,
        "links": store.digest([_state(run) for run in runs]),
        "code": store.digest(
            [store.file_digest(Path(str(part.__file__))) for part in (figures, metrics, paired, told, variants, page)]
        ),
    }


def _state(run: Run) -> list[list[str]]:
    return [[link.name, link.content, str(link.folder), link.state] for link in run.links]


def _fill(folder: Path, found: Sequence[Variant], against: str, metric: str) -> None:
    measured = figures.figures(found, against, metric)
    first = found[0].runs[0]
    whole = {
        "protocol": first.report["protocol"],
        "data": {key: first.report[key] for key in ("data", "users", "items")},
        "metric": metric,
        "against": against,
        "resamples": paired.RESAMPLES,
        "draws": paired.DRAWS,
        "runs": {variant.name: {str(run.folder): run.config.seed for run in variant.runs} for variant in found},
        "settings": variants.told_apart(found),
        **measured,
    }
    (folder / "compare.json").write_text(json.dumps(whole, indent=1))
    page.write(folder, told.page(found, measured, against, metric))
    told.draw(folder, measured["full"], against, metric)


if __name__ == "__main__":
    run_command(main, __doc__)
