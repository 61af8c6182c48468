"""What the model's parts learnt over training."""

import json

from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.pages.learnt import blocks, curves
from distrec.jobs.pages.page import Section, Text

_TITLE = "What was learnt over training"


def learnt(subject: Subject) -> Part:
    """Curves of each kind over epochs, and a table of first and last values; the first before the first step."""
    lines = (subject.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = curves(map(json.loads, lines))
    nothing = Text("No part of this model learns a figure that its journal tells of.")
    return Part(Section(_TITLE, blocks(found, subject.folder) or (nothing,)), found)
