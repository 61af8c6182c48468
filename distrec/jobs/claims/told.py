"""A verdict as people read it."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from distrec.data import store
from distrec.jobs.claims.job import Experiment
from distrec.jobs.claims.runs import Planned
from distrec.jobs.claims.verdict import Finding, overall
from distrec.jobs.pages.page import Block, Cell, Picture, Section, Table, Text, load


def section(experiment: Experiment, found: Sequence[Finding], users: int) -> Section:
    """The claim, the verdict in a paragraph, and each quantity."""
    verdict = overall(found)
    seeds = ", ".join(map(str, experiment.seeds))
    said = "; ".join(sentence(each) for each in found if not each.judge.aside)
    text = f"{verdict.capitalize()}: “{experiment.claim}” ({experiment.source}). Measured: {said}."
    asides = [Text(f"Beside: {'; '.join(sentence(each) for each in found if each.judge.aside)}.")]
    power = f"Metrics: {users:,} test users; figures: of each run's analysis; seeds {seeds}. Intervals: 95 %, Student's, of metrics over users and seeds, of figures over seeds (none where all seeds have the same); not corrected for several judges."  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for each in found:
        low, high = each.interval or (None, None)
        bound = f"> {each.judge.above:g}" if each.judge.above is not None else f"< {each.judge.below:g}"
        rows.append((each.judge.that, each.value, low, high, bound, each.verdict + " (aside)" * each.judge.aside))
    table = Table(("what is said", "measured", "95 % from", "to", "claimed", "verdict"), tuple(rows))
    is_aside = any(each.judge.aside for each in found)
    return Section("Verdict", (Text(text, "verdict"), *(asides if is_aside else ()), Text(power), table))


def sentence(each: Finding) -> str:
    interval = f" ({each.interval[0]:.4f} to {each.interval[1]:.4f})" if each.interval else " (no interval)"
    bound = f"above {each.judge.above:g}" if each.judge.above is not None else f"below {each.judge.below:g}"
    return f"{each.judge.that}: {each.value:.4f}{interval}, claimed {bound}: {each.verdict}"


def analyses(runs: Sequence[Planned], folder: Path) -> Iterator[Section]:
    """What the first seed of each run was analysed for; pictures are copied to `folder`."""
    first = {run.name: run for run in reversed(runs)}
    for number, run in enumerate(first[name] for name in dict.fromkeys(run.name for run in runs)):
        place = run.folder / "analysis"
        if not run.parts:
            continue
        parts = store.read_stamp(place)["made_by"]["parts"]
        for part, section in zip(parts, load(place).sections, strict=True):
            if part in run.parts:
                blocks = tuple(_copied(block, place, folder, f"run{number}-") for block in section.blocks)
                yield Section(f"{run.name}, seed {run.seed}: {section.title}", blocks)


def _copied(block: Block, place: Path, folder: Path, prefix: str) -> Block:
    if not isinstance(block, Picture):
        return block
    for kind in ("svg", "png"):
        shutil.copyfile(place / f"{block.name}.{kind}", folder / f"{prefix}{block.name}.{kind}")
    return replace(block, name=prefix + block.name)
