"""distrec JOB [FILE.yaml …] [section.key=value …]

  prepare    raw logs → numbered, split sequences       distrec prepare --help
  embed      item texts → vectors
  quantize   item vectors → codes (semantic ids)
  filter     item vectors → the same, smoothed over a graph of training interactions
  train      a model, and its test figures              (accelerate launch distrec/train.py)
  evaluate   rank a split again with a run's best checkpoint
  recommend  the best items for a file of histories
  analyze    spectra, attention, retention, locality, cost: pictures and figures about a finished run
  compare    finished runs beside each other, over seeds: tables, intervals, tests
  experiment try a claim: its runs over seeds, and a verdict
  report     a run, a comparison or an analysis as one HTML page
  audit      is there a leak?
  plan       memory, disk, time and cost of a run, before anything is asked of a cluster
  doctor     is this machine, or this launch, fit for a job?
  config     print every key with its value

Words: later ones win.  Where a key is a text or a path its value is taken to the last character (out='runs/try #2',
data.text='{title}: {brand}', data.columns.user=1); ~ at the head of a path is the home folder, $NAME is left to your shell; null
or none is no value, where there may be none.  Lists are [a, b]; one text may stand for a list of one; all else is YAML (1.2).  In
files too an unquoted text is what stands there (out: 2024-05-01); what YAML would cut or take apart is refused with its line.

Exit codes: 0 done · 1 failed · 2 wrong usage or input · 75 stopped by a signal after saving (requeue me)
141 whoever read the output left before the job was done.
"""

import ast
import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence

from distrec.runtime import run

_JOBS = {
    "prepare": "distrec.jobs.prepare",
    "embed": "distrec.jobs.embed",
    "quantize": "distrec.jobs.quantize",
    "filter": "distrec.jobs.filter",
    "train": "distrec.train",
    "evaluate": "distrec.jobs.evaluate",
    "recommend": "distrec.jobs.recommend",
    "analyze": "distrec.jobs.analyze",
    "compare": "distrec.jobs.compare",
    "report": "distrec.jobs.report",
    "experiment": "distrec.jobs.experiment",
    "audit": "distrec.jobs.audit",
    "plan": "distrec.jobs.plan",
    "doctor": "distrec.jobs.doctor",
    "config": "distrec.config",
}


def main() -> None:
    """Run a job as `python -m` would; nothing is imported before the job is known."""
    run(_start)


def _start(argv: Sequence[str]) -> None:
    job, *rest = argv or ["--help"]
    if job in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    if job not in _JOBS:
        near = difflib.get_close_matches(job, _JOBS, 1)
        raise ValueError(f"no job {job!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_JOBS)}"))
    module = _JOBS[job]
    sys.argv = [f"distrec {job}", *rest]
    if {"-h", "--help"} & set(rest):
        print(_help(module))
        return
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _help(module: str) -> str:
    """The job's docstring, read without importing the libraries it needs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as source:
        return (ast.get_docstring(ast.parse(source.read())) or "").strip()


if __name__ == "__main__":
    main()
