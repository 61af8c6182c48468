"""A run folder as a page: what it is, its figures, its curves, what made it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distrec import config as cfg
from distrec.data import prepared, store
from distrec.engine.evaluation import metrics, outcome
from distrec.jobs.pages import curves, learnt
from distrec.jobs.pages.page import Block, Cards, Cell, Page, Section, Table, Text
from distrec.jobs.pages.run_facts import RunFacts
from distrec.jobs.parts.identity import CHECKPOINT

_METRICS = ("hr@1", "hr@5", "ndcg@5", "hr@10", "ndcg@10", "hr@20", "ndcg@20", "mrr")
_GROUPS = 5  # of users, by the length of their history


def page(run: RunFacts, folder: Path) -> Page:
    """All that the facts tell; pictures go to `folder`."""
    sections = [
        Section("Summary", _summary(run)),
        Section("Test figures", _figures(run)),
        Section("Training", _training(run, folder)),
        Section("What was learnt", learnt.blocks(learnt.curves(run.journal), folder)),
        Section("Where the targets stand", _ranks(run, folder)),
        Section("By length of history", _groups(run, folder)),
        Section("Config", _config(run)),
        Section("Provenance", _provenance(run)),
        Section("Environment", _environment(run)),
    ]
    return Page(title(run), tuple(section for section in sections if section.blocks))


def title(run: RunFacts) -> str:
    return f"{run.config.model.name} on {run.config.data.catalogue or run.config.data.source}: {run.out.resolve().name}"


def _summary(run: RunFacts) -> tuple[Block, ...]:
    counts = _counts(run)
    full = run.figures.get("full", {})
    cards = [(key.upper(), f"{full[key]:.4f}", _interval(full, key)) for key in ("ndcg@10", "hr@10", "mrr") if full]
    evaluations = run.evaluations()
    if evaluations:
        best = curves.best_of(evaluations)
        cards.append(("Best validation", f"{best['ndcg@10']:.4f}", f"NDCG@10, epoch {best['epoch']}"))
    cards += [
        (name.capitalize(), f"{counts[name]:,}", "") for name in ("users", "items", "interactions") if name in counts
    ]
    said = f"{run.status.capitalize()}. " + (
        _protocol(run) if full else "Test figures are written when it is finished."
    )
    rows: list[tuple[Cell, ...]] = [
        ("Model", run.config.model.name),
        ("Data", run.config.data.catalogue or run.config.data.source),
        ("Split", run.config.data.split.replace("_", " ")),
        ("Seed", str(run.config.seed)),
        ("Epochs", _epochs(run, evaluations)),
        ("Steps skipped", str(sum(line["event"] == "skipped" for line in run.journal))),
    ]
    return (Text(said, "verdict"), Cards(tuple(cards)), Table(("This run", "Value"), tuple(rows)))


def _epochs(run: RunFacts, evaluations: list[Mapping[str, Any]]) -> str:
    if not hasattr(run.config.model, "dropout"):  # a counting model
        return "–"
    done = evaluations[-1]["epoch"] if evaluations else 0
    early = " (stopped early: no better validation)" if run.figures and done < run.config.train.epochs else ""
    return f"{done} of {run.config.train.epochs}{early}"


def _protocol(run: RunFacts) -> str:
    told, full = run.figures["protocol"], run.figures["full"]
    ndcg = f"NDCG@10 {full['ndcg@10']:.4f} {_interval(full, 'ndcg@10')}".rstrip()
    return f"{ndcg} on the test split: {run.figures['items']:,} items ranked, history {told['history']}, ranks: {told['ranks']}."


def _counts(run: RunFacts) -> dict[str, int]:
    """Users, items and interactions of the data; what the figures know of them where the data are not at hand."""
    if run.data:
        return json.loads((run.data / "statistics.json").read_text(encoding="utf-8"))
    return {name: run.figures[name] for name in ("items",) if name in run.figures}


def _interval(found: Mapping[str, Any], key: str) -> str:
    bounds = found.get(f"{key}_ci")
    return f"[{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else ""


def _both(found: Mapping[str, Any], key: str) -> tuple[Cell, Cell]:
    return found[key], _interval(found, key) or None


def _protocols(figures: Mapping[str, Any]) -> dict[str, str]:
    """Every protocol of test.json and what it is called; what a model generates is constrained to items at first."""
    named = {
        "full": "all items",
        "free": "generated freely, then items only",
        "free_ids": "generated freely, all that came out",
        "new_targets": "targets new to the user",
        "repeat_targets": "repeated targets",
    }
    found = [name for name, value in figures.items() if isinstance(value, dict) and "hr@10" in value]
    if figures.get("constrained") == figures.get("full"):
        found = [name for name in found if name != "constrained"]
        named["full"] += ", constrained" if "free" in found else ""
    sampled = {name: f"target and {name.removeprefix('sampled_1_')} drawn items" for name in found if "sampled" in name}
    return {name: (named | sampled).get(name, name) for name in found}


def _figures(run: RunFacts) -> tuple[Block, ...]:
    protocols = _protocols(run.figures)
    if not protocols:
        return ()
    head = ("Metric", *(word for told in protocols.values() for word in (told.capitalize(), "95 % interval")))
    rows = tuple(
        (key.upper(), *(cell for name in protocols for cell in _both(run.figures[name], key))) for key in _METRICS
    )
    told = f"Test split, {run.figures['users']:,} users; intervals by {run.figures['protocol']['bootstrap']:,} bootstrap resamples."
    blocks: list[Block] = [*(Text(each) for each in outcome.remarks(run.figures)), Table(head, rows, told)]
    for name, share in run.figures.items():
        if name.endswith("_invalid"):
            blocks.append(Text(f"{share:.2%} of what was generated freely is no item."))
    protocol = tuple((key.capitalize(), str(value)) for key, value in run.figures["protocol"].items())
    return (*blocks, Table(("Protocol", "Here"), protocol, "How the test split was ranked."))


def _training(run: RunFacts, folder: Path) -> tuple[Block, ...]:
    return (*curves.of_validation(run.journal, folder), *curves.of_training(run.journal, folder))


def _ranks(run: RunFacts, folder: Path) -> tuple[Block, ...]:
    if run.ranks.is_empty():
        return ()
    ends = {name: "" if name == "full" else name for name in _protocols(run.figures)}
    own = (name for name in ends if name == "full" or f"rank_{name}" in run.ranks.columns)
    titles = {ends[name]: _protocols(run.figures)[name] for name in own}
    return tuple(curves.of_ranks(run.ranks, titles, folder))


def _groups(run: RunFacts, folder: Path) -> tuple[Block, ...]:
    """Users in groups of about equal size by the length of their history; needs the prepared data."""
    if run.ranks.is_empty() or run.data is None:
        return ()
    data = prepared.load(run.data)
    users, places = data.targets("test")
    if len(users) != len(run.ranks):
        return ()
    length, standing = places - data.start[users], metrics.standing(run.ranks)
    edges = np.unique(np.quantile(length, np.linspace(0, 1, _GROUPS + 1), method="lower"))
    group = np.searchsorted(edges[1:-1], length, "left")
    found = []
    for n in np.unique(group):
        inside = length[group == n]
        low, high = int(inside.min()), int(inside.max())
        summary = metrics.summarise(standing.of(group == n), run.config.score.bootstrap or 1000)
        found.append((f"{low}–{high}" if low < high else str(low), len(inside), summary))
    rows = tuple((name, n, each["ndcg@10"], _interval(each, "ndcg@10"), each["hr@10"]) for name, n, each in found)
    head = ("Items in the history", "Users", "NDCG@10", "95 % interval", "HR@10")
    return (*curves.of_groups(found, folder), Table(head, rows, "Groups of about equal size, all items ranked."))


def _config(run: RunFacts) -> tuple[Block, ...]:
    """What differs from the defaults of the same kinds of model and codes first."""
    config = run.config
    usual = cfg.Config(model=type(config.model)(), codes=type(config.codes)())
    now, before = store.flat(cfg.plain(config)), store.flat(cfg.plain(usual))
    changed = tuple(
        (key, _yaml(value), _yaml(before.get(key))) for key, value in now.items() if value != before.get(key)
    )
    whole = Text(cfg.dump(config), "code", "The whole config")
    return (Table(("Key", "Here", "By default"), changed, "What differs from the defaults."), whole)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _provenance(run: RunFacts) -> tuple[Block, ...]:
    if not run.links:
        return ()
    head = ("What", "Where", "sha256", "State")
    rows = tuple((link.name, str(link.folder or "–"), link.content[:16] or "–", link.state) for link in run.links)
    whole = "\n".join(f"{link.content or 'removed':64}  {link.name}" for link in run.links)
    told = "Each was found by the hash of its content; every byte of what is verified was read again for this page."
    return (Table(head, rows, told), Text(whole, "code", "The hashes in full"))


def _environment(run: RunFacts) -> tuple[Block, ...]:
    out = shlex.quote(str(run.out))
    parent = run.made_by.get("from", "RUN")  # what a checkpoint says is no place
    start = f" {shlex.quote(f'from={parent}')}" if run.made_by.get(CHECKPOINT) else ""
    again = f"distrec train {out}/config.yaml{start}" + " out=NEW_FOLDER" * bool(run.figures)
    blocks: list[Block] = []
    if versions := run.made_by.get("versions"):
        blocks.append(Table(("Library", "Version"), tuple(versions.items()), "With which the run was finished."))
    if command := run.made_by.get("command"):
        blocks += [Text("The command that was given:"), Text(command, "code")]
    told = "The same run again:" if run.figures else "To go on with it:"
    return (*blocks, Text(told), Text(again, "code"))
