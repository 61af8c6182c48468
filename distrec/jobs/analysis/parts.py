"""The parts of an analysis, by name, in the order of the page."""

from collections.abc import Callable

from distrec.jobs.analysis.attention import attention
from distrec.jobs.analysis.controls import controls
from distrec.jobs.analysis.cost import cost
from distrec.jobs.analysis.learnt import learnt
from distrec.jobs.analysis.locality import locality
from distrec.jobs.analysis.retention import retention
from distrec.jobs.analysis.spectra import spectra
from distrec.jobs.analysis.subject import Part, Subject
from distrec.jobs.analysis.tables import item_spectra

PARTS: dict[str, Callable[[Subject], Part]] = {
    "spectra": spectra,
    "items": item_spectra,
    "attention": attention,
    "retention": retention,
    "locality": locality,
    "controls": controls,
    "learnt": learnt,
    "cost": cost,
}
