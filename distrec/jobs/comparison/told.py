"""A comparison as people read it: a page and its pictures."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distrec.data import store
from distrec.engine.evaluation import outcome, paired
from distrec.jobs.comparison.figures import seeds_of
from distrec.jobs.comparison.variants import Run, Variant, told_apart
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Page, Picture, Section, Table, Text, markdown_table

_LEVEL = 0.05
_ALL, _SAMPLED = "All items", "One target among"
_MAIN = ("hr@10", "ndcg@10", "mrr")


def page(variants: Sequence[Variant], told: Mapping[str, Any], against: str, metric: str) -> Page:
    """`told`: as `figures` gives it."""
    name = metric.upper()
    remarks = dict.fromkeys(
        each for variant in variants for run in variant.runs for each in outcome.remarks(run.report)
    )
    sections = [Section("What is compared", (*_header(variants, told), *map(Text, remarks), *_apart(variants)))]
    for protocol, found in told.items():
        tables = [_table(variants, found, metric)]
        if found["comparisons"]:
            tables.append(_differences(found, against, metric))
        pictures = _pictures(found, against, name) if protocol == "full" else ()
        verdict = (Text(_verdict(found, against, name), "verdict"),) if found["comparisons"] else ()
        sections.append(Section(_title(protocol), (*verdict, *tables, *pictures)))
    sections += [
        Section("What this says and what it does not", _notes(variants, told["full"], name)),
        _provenance(variants),
    ]
    return Page(f"Comparison of {'; '.join(variant.name for variant in variants)}", tuple(sections))


def results(page: Page) -> str:
    """The tables of figures and differences, for a terminal."""
    heads = [f"{block.text}\n" for block in page.sections[0].blocks if isinstance(block, Text)]
    tables = [
        f"{section.title}. {block.caption}\n\n{markdown_table(block)}\n"
        for section in page.sections
        for block in section.blocks
        if section.title.startswith((_ALL, _SAMPLED)) and isinstance(block, Table)
    ]
    return "\n".join([*heads, *tables])


def draw(folder: Path, found: Mapping[str, Any], against: str, metric: str) -> None:
    """metric.svg/png: what each variant reaches; difference.svg/png: how far it is from the reference."""
    _draw_metric(folder, found["variants"], metric)
    if found["comparisons"]:
        _draw_difference(folder, found, against, metric)


def _header(variants: Sequence[Variant], told: Mapping[str, Any]) -> tuple[Table, Table]:
    first = variants[0].runs[0]
    protocol = {key: value for key, value in first.report["protocol"].items() if key not in ("bootstrap", "ranks")}
    rows = [
        ("data", f"{first.config.data.source}, {first.report['users']:,} users with a target, {first.report['items']:,} items"),
        ("stamp of the data", first.report["data"][:16]),
        *((key, str(value)) for key, value in protocol.items()),
        ("also", ", ".join(_title(name) for name in told if name != "full") or "–"),
    ]  # fmt: skip
    runs = [
        (
            variant.name,
            seeds_of(variant.runs),
            _each(run.report["protocol"]["ranks"] for run in variant.runs),
            ", ".join(str(run.folder) for run in variant.runs),
            _each(_versions(run) for run in variant.runs),
        )
        for variant in variants
    ]
    return (
        Table(("", "same for all runs"), tuple(rows)),
        Table(("variant", "seeds", "ranks", "runs", "made by"), tuple(runs), "Runs that differ in their seed alone are one variant."),
    )  # fmt: skip


def _apart(variants: Sequence[Variant]) -> tuple[Table, ...]:
    rows = told_apart(variants)
    if not rows:
        return ()
    head = ("setting", *(variant.name for variant in variants))
    return (Table(head, tuple((key, *values) for key, values in rows.items()), "Settings in which variants differ"),)


def _table(variants: Sequence[Variant], found: Mapping[str, Any], metric: str) -> Table:
    shown = [*_MAIN, *([] if metric in _MAIN else [metric])]
    rows = []
    for variant in variants:
        own = found["variants"][variant.name]
        means = [_over_seeds(own[name]) for name in shown]
        rows.append((variant.name, len(variant.runs), *means, _interval(own[metric]["interval"])))
    head = ("variant", "seeds", *(name.upper() for name in shown), f"{metric.upper()} 95 %")
    return Table(head, tuple(rows), "Mean ± standard deviation over seeds; interval over users and seeds")


def _differences(found: Mapping[str, Any], against: str, metric: str) -> Table:
    rows = [
        (
            name,
            f"{one['difference']:+.4f}",
            None if one["relative"] is None else f"{one['relative']:+.1%}",
            _interval(one["interval"], "+"),
            _p(one["p"]),
            _p(one["p_holm"]),
            one["better"],
            one["worse"],
            one["equal"],
            one["detectable"],
        )
        for name, one in found["comparisons"].items()
    ]
    head = ("variant", "difference", "relative", "95 %", "p", "p (Holm)", "better", "worse", "equal", "detectable")
    return Table(head, tuple(rows), f"{metric.upper()} of each user, averaged over seeds, minus that of {against}")


def _verdict(found: Mapping[str, Any], against: str, metric: str) -> str:
    parts = []
    for name, one in found["comparisons"].items():
        p = f"(p = {_p(one['p_holm'])} after Holm)"
        if one["p_holm"] < _LEVEL:
            low, high = one["interval"]
            unsure = "" if low > 0 or high < 0 else ", though other seeds could undo it: the interval holds zero"
            parts.append(
                f"{name} is {'better' if one['difference'] > 0 else 'worse'} than {against} by {abs(one['difference']):.4f} {metric} {p}{unsure}."
            )
        else:
            parts.append(f"No difference between {name} and {against} is shown: {one['difference']:+.4f} {metric} {p}.")
    return " ".join(parts)


def _notes(variants: Sequence[Variant], found: Mapping[str, Any], metric: str) -> tuple[Text, ...]:
    users, several = found["users"], any(len(variant.runs) > 1 for variant in variants)
    interval = f"Intervals: {paired.RESAMPLES:,} bootstrap draws of users, the same for all variants"
    interval += (
        "; with them the spread between seeds (runs of the same seed paired where variants have the same seeds), by Student's t: "
        "few seeds make them wide. A variant of one seed shows nothing of others."
        if several
        else ", and no more than that: each variant has one seed, and nothing is known of others."
    )
    if not found["comparisons"]:
        return (Text(interval),)
    if users > paired.MANY_USERS:
        how = f"the normal limit of a sign-flip randomisation test (more than {paired.MANY_USERS:,} users)"
    else:
        how = f"a sign-flip randomisation test over users, two-sided, {paired.DRAWS:,} draws (all patterns where they are fewer)"
    test = (
        f"p is that of {how}. All runs are measured on the same {users:,} users, and the runs of a variant share them, so "
        f"that they are no further sample: each user's {metric} is averaged over a variant's seeds, and the users are the "
        "random sample. The test says whether other users would show the difference between these very runs. It does not "
        "say whether other seeds, other data or a better tuned reference would. Holm's correction covers all rows of a table."
    )
    power = (
        "Detectable: the smallest true difference that a test of this kind finds in 80 % of cases at 5 %, from the "
        f"spread of the paired differences of these {users:,} users (2.80 standard errors; before Holm's correction). A "
        "difference that is not shown may be as large as that."
    )
    return Text(test), Text(interval), Text(power)


def _provenance(variants: Sequence[Variant]) -> Section:
    """Every artefact once, with the runs that were made of it."""
    rows: dict[str, list[Any]] = {}
    for run in (run for variant in variants for run in variant.runs):
        for link in run.links:
            place = str(link.folder) if link.folder else "–"
            row = rows.setdefault(
                f"{link.name} {link.content} {place}", [link.name, place, link.content[:16] or "–", link.state, 0]
            )
            row[4] += 1
    lost = sum(row[3] != "verified" for row in rows.values())
    said = "Every byte of what is verified was read again and is what its stamp says."
    if lost:
        said += f" {lost} of {len(rows)} artefacts are not at hand (data.root=DIR says where they lie now) and were not verified."
    head = ("artefact", "folder", "sha256", "state", "runs")
    ordered = sorted(rows.values(), key=lambda row: row[0] == "prepared data")
    return Section("Provenance", (Text(said), Table(head, tuple(tuple(row) for row in ordered))))


def _pictures(found: Mapping[str, Any], against: str, metric: str) -> tuple[Picture, ...]:
    reached = Picture(
        "metric", f"{metric} of each variant: its seeds as dots, their mean as a bar, 95 % interval as a line"
    )
    if not found["comparisons"]:
        return (reached,)
    far = f"Difference of {metric} from {against}, with its 95 % interval; dashed: none"
    return reached, Picture("difference", far)


def _draw_metric(folder: Path, variants: Mapping[str, Any], metric: str) -> None:
    figure, axes = picture.new(height=_height(len(variants)))
    for y, one in enumerate(variants.values()):
        own, colour = one[metric], picture.COLOURS[y % len(picture.COLOURS)]
        axes.plot(own["interval"], [y, y], color=colour, alpha=0.5, linewidth=2)
        axes.plot(own["mean"], y, "|", color=colour, markersize=16, markeredgewidth=2)
        axes.plot(own["seeds"], [y] * len(own["seeds"]), "o", color=colour, markersize=4, alpha=0.8)
    _rows(axes, list(variants))
    picture.name(axes, f"{metric.upper()} (mean over users; line: 95 % interval)", "")
    picture.save(figure, folder, "metric")


def _draw_difference(folder: Path, found: Mapping[str, Any], against: str, metric: str) -> None:
    comparisons, order = found["comparisons"], list(found["variants"])
    figure, axes = picture.new(height=_height(len(comparisons)))
    axes.axvline(0, color=picture.INK, linestyle="--", linewidth=1)
    for y, (name, one) in enumerate(comparisons.items()):
        colour = picture.COLOURS[order.index(name) % len(picture.COLOURS)]  # as in the other picture
        axes.plot(one["interval"], [y, y], color=colour, linewidth=2)
        axes.plot(one["difference"], y, "o", color=colour, markersize=6)
    _rows(axes, list(comparisons))
    label = textwrap.fill(f"difference of {metric.upper()} from {against}", 60)
    picture.name(axes, f"{label}\n(mean over users; line: 95 % interval)", "")
    picture.save(figure, folder, "difference")


def _rows(axes: Any, names: Sequence[str]) -> None:
    """A name a row, the first on top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 30) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _height(rows: int) -> float:
    return 1.1 + 0.5 * rows


def _title(protocol: str) -> str:
    titles = {"full": _ALL, "new_targets": f"{_ALL}, new targets", "repeat_targets": f"{_ALL}, repeated targets"}
    return titles.get(protocol) or f"{_SAMPLED} {protocol.rsplit('_', 1)[1]} sampled items"


def _over_seeds(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.4f}" if one["std"] is None else f"{one['mean']:.4f} ± {one['std']:.4f}"


def _interval(pair: Sequence[float], sign: str = "") -> str:
    return f"{pair[0]:{sign}.4f} – {pair[1]:{sign}.4f}"


def _p(p: float) -> str:
    return "<0.0001" if p < 5e-5 else f"{p:.4f}"


def _versions(run: Run) -> str:
    versions = store.read_stamp(run.folder)["made_by"].get("versions", {})
    return ", ".join(f"{name} {versions[name]}" for name in ("distrec", "torch") if name in versions)


def _each(texts: Any) -> str:
    return "; ".join(dict.fromkeys(texts))
