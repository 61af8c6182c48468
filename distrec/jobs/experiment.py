"""distrec experiment FILE.yaml … [section.key=value …]

Tries a claim: trains its runs over seeds, analyses and compares them, and ends in a verdict with numbers: confirmed,
refuted, or undecided at this power.  configs/experiment/claims holds one file a claim of the two papers; what a file says
is explained in distrec/jobs/claims/job.py.  The test split is read once a run, by its own training.

  experiment.seeds=[0,1,2]   experiment.jobs=2   runs at a time   data.root=DIR
  experiment.root=DIR        where runs lie, each once for all experiments; a stopped experiment goes on from there
  experiment.out=DIR         the verdict: page.md, page.json, verdict.json, pictures; a page for the browser beside it

Example:  distrec experiment configs/data/ml100k.yaml configs/experiment/claims/attenuation.yaml experiment.jobs=2

Exit codes: 0 a verdict, whichever · 1 a run failed · 2 wrong usage or input · 75 stopped by a signal (the same command goes on).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from distrec.data import store
from distrec.engine.evaluation import metrics, paired
from distrec.engine.launch import check_trackers
from distrec.jobs.claims import runs, verdict
from distrec.jobs.claims import told as claim
from distrec.jobs.claims.job import Job, load
from distrec.jobs.comparison import figures, told, variants
from distrec.jobs.pages import page
from distrec.jobs.parts.chain import Known
from distrec.runtime import DONE, Stop, run


def main(argv: Sequence[str]) -> int:
    job = load(list(argv))
    check_trackers(job.train)
    named = [Path(arg).stem for arg in argv if arg.endswith((".yaml", ".yml"))]
    out = job.experiment.out or job.experiment.root / (named[-1] if named else "experiment")
    check(out)
    planned = runs.planned(job)
    runs.check_data(planned)
    try:
        with Stop() as stop:
            if not runs.carry_out(planned, job.experiment.jobs, stop, partial(verdict.check, job.experiment)):
                return runs.stopped()
    except runs.Lost as error:
        return runs.told(error)
    known: Known = {}
    read = [variants.read(each.folder, each.name, [f"data.root={job.data.root}"], known) for each in planned]
    variants.check_same(read)
    found = variants.variants(read)
    made = {
        "runs": {str(each.folder): store.content(each.folder) for each in planned},
        "analyses": {str(each.folder): _analysis(each) for each in planned},
        "experiment": store.digest(repr(replace(job.experiment, jobs=1))),
        "code": store.digest(
            [
                store.file_digest(Path(str(part.__file__)))
                for part in (claim, figures, metrics, paired, told, variants, verdict)
            ]
        ),
    }
    if not out.exists() or store.verify(out)["made_by"] != made:
        store.write(out, made, partial(fill, job=job, planned=planned, found=found), replace=True)
    print((out / "page.md").read_text(encoding="utf-8"))
    print(f"verdict: {out}")
    return DONE


def check(out: Path) -> None:
    """Raise ValueError when the verdict cannot go there: what stands there is none, or belongs to something else."""
    store.check_apart(out)
    if out.exists() and "experiment" not in store.verify(out)["made_by"]:
        raise ValueError(f"experiment.out={out} is there already and is no verdict: choose another folder")


def _analysis(each: runs.Planned) -> str | None:
    """Its hash, every byte read again."""
    folder = each.folder / "analysis"
    if not each.parts:
        return None
    store.verify(folder)
    if each.left():
        raise ValueError(f"{folder} is not the analysis that was made: give the command again")
    return store.content(folder)


def fill(folder: Path, job: Job, planned: Sequence[runs.Planned], found: Sequence[variants.Variant]) -> None:
    own = job.experiment
    against = own.against or next(iter(own.runs))
    measured = figures.figures(found, against, own.metric)
    findings = verdict.findings(own, planned)
    compared = told.page(found, measured, against, own.metric)
    first = claim.section(own, findings, measured["full"]["users"])
    page.write(folder, page.Page(own.claim, (first, *compared.sections, *claim.analyses(planned, folder))))
    told.draw(folder, measured["full"], against, own.metric)
    verdicts = [
        {"that": each.judge.that, "value": each.value if math.isfinite(each.value) else None, "interval": each.interval, "verdict": each.verdict, "aside": each.judge.aside}
        for each in findings
    ]  # fmt: skip
    whole = {"claim": own.claim, "source": own.source, "verdict": verdict.overall(findings), "findings": verdicts, "compared": measured}  # fmt: skip
    (folder / "verdict.json").write_text(json.dumps(whole, indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    run(main, __doc__)
