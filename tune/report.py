"""What a sweep found: a table, pictures, and the best point as a config that trains with one command."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from distrec import config as cfg
from distrec.jobs.pages import picture
from distrec.runtime import write_atomically
from tune.space import Sweep, shown
from tune.trial import ENDED


def ended(root: Path) -> list[dict[str, Any]]:
    """What every trial of a folder came to, in the order of their points."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) | {"folder": path.parent.name}
        for path in (root / "trials").glob(f"*/{ENDED}")
    ]
    return sorted(found, key=lambda trial: (json.dumps(list(trial["point"].values())), trial["seed"]))


def write(root: Path, sweep: Sweep, shared: Mapping[str, Any]) -> str:
    """trials.parquet, trials.md, best.yaml and pictures; the table as text.   A point's value is the mean of its seeds."""
    trials = ended(root)
    keys = sorted({key for trial in trials for key in trial["point"]})
    table = pl.DataFrame(
        [
            {key: _cell(trial["point"].get(key)) for key in keys}
            | {name: trial[name] for name in ("seed", "status", "value", "epoch", "epochs", "why", "folder")}
            | trial["valid"]
            for trial in trials
        ],
        infer_schema_length=None,
    )
    table.write_parquet(root / "trials.parquet")
    points = by_point(trials)
    text = markdown(points, keys, sweep, max((trial["repeats"] for trial in trials), default=0))
    write_atomically(root / "trials.md", text)
    if points and points[0]["mean"] is not None:
        best = cfg.load([], {**shared, **points[0]["point"], "seed": points[0]["seeds"][0]})
        head = f"# accelerate launch distrec/train.py {shlex.quote(f'{root}/best.yaml')} out=DIR\n# {sweep.metric} {points[0]['mean']:.4f} on the validation split, {len(points[0]['seeds'])} seed(s), best of {len(points)} points\n"
        write_atomically(root / "best.yaml", head + cfg.dump(best))
        curves(root, points, keys, sweep)
        parallel(root, points, keys, sweep)
        progress(root, trials, sweep)
    return text


def by_point(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each point, the best first; points without a value last."""
    groups: dict[str, dict[str, Any]] = {}
    for trial in trials:
        group = groups.setdefault(
            json.dumps(trial["point"], sort_keys=True),
            {"point": trial["point"], "seeds": [], "values": [], "status": []},
        )
        group["seeds"].append(trial["seed"])
        group["status"].append(trial["status"])
        group["values"].append(trial["value"])
    for group in groups.values():
        values = [value for value in group["values"] if value is not None]
        group["mean"] = float(np.mean(values)) if len(values) == len(group["values"]) else None
        group["std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return sorted(groups.values(), key=lambda group: 0.0 if group["mean"] is None else -group["mean"] - 1)


def markdown(points: Sequence[Mapping[str, Any]], keys: Sequence[str], sweep: Sweep, repeats: float = 0.0) -> str:
    """The table of all points.   `repeats`: the share of targets that their users have had before."""
    lines = [
        f"{sweep.metric} on the validation split, over all items; {len(points)} points, seeds {', '.join(map(str, sweep.seeds))}",
        *(
            [f"{repeats:.1%} of the targets are items that the user has had before: they are ranked among all items"]
            if repeats
            else []
        ),
        "",
        "| " + " | ".join([*keys, f"{sweep.metric}, mean", "std", "trials"]) + " |",
        "|" + "---|" * (len(keys) + 3),
    ]
    for group in points:
        cells = [shown(group["point"].get(key)).replace("|", "\\|") for key in keys]
        figures = ["–" if group[name] is None else f"{group[name]:.4f}" for name in ("mean", "std")]
        status = ", ".join(f"{group['status'].count(each)} {each}" for each in sorted(set(group["status"])))
        lines.append("| " + " | ".join([*cells, *figures, status]) + " |")
    return "\n".join(lines) + "\n"


def curves(root: Path, points: Sequence[Mapping[str, Any]], keys: Sequence[str], sweep: Sweep) -> None:
    """One picture a knob: every point, and the best at each of its values; one line for each value of the second knob."""
    known = [group for group in points if group["mean"] is not None]
    for key in keys:
        values = sorted({_cell(group["point"][key]) for group in known}, key=_order)
        others = [other for other in keys if other != key]
        figure, axes = picture.new()
        places = _places(values)
        if len(others) == 1 and len({_cell(g["point"][others[0]]) for g in known}) <= 8 and sweep.search == "grid":
            for line in sorted({_cell(group["point"][others[0]]) for group in known}, key=_order):
                own = sorted(
                    (g for g in known if _cell(g["point"][others[0]]) == line),
                    key=lambda g: _order(_cell(g["point"][key])),
                )
                xs = [places[_cell(group["point"][key])] for group in own]
                axes.errorbar(xs, [g["mean"] for g in own], [g["std"] or 0 for g in own] if any(g["std"] for g in own) else None, marker="o", capsize=2, lw=1.4, label=f"{others[0].rpartition('.')[2]} {shown(line)}")  # fmt: skip
        else:
            axes.plot(
                [places[_cell(g["point"][key])] for g in known],
                [g["mean"] for g in known],
                "o",
                alpha=0.45,
                label="a point",
            )
            if len(values) <= 20:
                tops = [max(g["mean"] for g in known if _cell(g["point"][key]) == value) for value in values]
                axes.plot([places[value] for value in values], tops, "-", label="best at this value")
        if not _are_numbers(values):
            axes.set_xticks(range(len(values)), [shown(value) for value in values])
        elif min(values) > 0 and max(values) / min(values) > 50:
            axes.set_xscale("log")
        picture.name(axes, key, f"{sweep.metric}, validation")
        picture.save(figure, root, f"sensitivity-{key}")


def parallel(root: Path, points: Sequence[Mapping[str, Any]], keys: Sequence[str], sweep: Sweep) -> None:
    """Every point as a line through its values; the darker, the better."""
    known = [group for group in points if group["mean"] is not None]
    columns = [*keys, sweep.metric]
    figure, axes = picture.new(1.8 + 1.9 * len(columns), 3.8)
    heights, ticks = [], []
    for key in columns:
        cells = [group["mean"] if key == sweep.metric else _cell(group["point"][key]) for group in known]
        kinds = sorted(set(cells), key=_order)
        places = _places(kinds)
        low, high = min(places.values()), max(places.values())
        scale = {kind: (places[kind] - low) / (high - low) if high > low else 0.5 for kind in kinds}
        heights.append([scale[cell] for cell in cells])
        ticks.append([(scale[kind], shown(kind)) for kind in ([kinds[0], kinds[-1]] if len(kinds) > 8 else kinds)])
    for i in reversed(range(len(known))):
        axes.plot(
            range(len(columns)),
            [height[i] for height in heights],
            color=colormaps["viridis_r"](heights[-1][i]),
            alpha=0.8,
            lw=1.5,
        )
    for x, marks in enumerate(ticks):
        axes.axvline(x, color="0.75", lw=0.8, zorder=0)
        for y, text in marks:
            axes.annotate(
                text,
                (x, y),
                fontsize=7.5,
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
            )
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(columns) - 0.6)
    axes.spines[:].set_visible(False)
    picture.save(figure, root, "parallel")


def progress(root: Path, trials: Sequence[Mapping[str, Any]], sweep: Sweep) -> None:
    """The best so far, trial by trial in the order in which they ended."""
    order = sorted(trials, key=lambda trial: (root / "trials" / trial["folder"] / ENDED).stat().st_mtime)
    values = np.array([np.nan if trial["value"] is None else trial["value"] for trial in order], dtype=float)
    figure, axes = picture.new()
    places = np.arange(1, len(values) + 1)
    axes.plot(places, values, "o", alpha=0.45, label="a trial")
    axes.step(places, np.fmax.accumulate(values), where="post", label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture.name(axes, "trials that have ended", f"{sweep.metric}, validation")
    picture.save(figure, root, "best")


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else json.dumps(value)


def _order(value: Any) -> tuple[bool, bool, Any]:
    """By which any values can be sorted: numbers by size, before all others by their name."""
    is_number = _are_numbers([value])
    return (not is_number, value is None, value if is_number else str(value))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _places(values: Sequence[Any]) -> dict[Any, float]:
    return {value: float(value) if _are_numbers(values) else float(i) for i, value in enumerate(values)}
