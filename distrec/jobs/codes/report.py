"""A health report of codes, for people: a table and a picture."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrec.runtime import log

_CATEGORIES = 12  # shown in the picture


def table(report: Mapping[str, Any]) -> str:
    """The report as lines."""
    heads = ["level", "used", "perplexity", "entropy", "largest", "norm left", "energy left", "mismatch", "NMI", "fit"]
    rows = [heads, *([*_cells(number, level)] for number, level in enumerate(report["levels"]))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    shared = report["collisions"]
    lines.append(
        f"{report['items']:,} items; {shared['items']:,} ({shared['share']:.1%}) share all codes with another, "
        f"in {shared['groups']:,} groups of at most {shared['largest']}"
    )
    if report.get("zero_vectors"):
        lines.append(
            f"{report['zero_vectors']:,} items have a zero vector (no text); by cosine they take the code nearest to zero"
        )
    if "new_items" in report:
        lines.append(f"{report['new_items']:,} new items, {report['kept_items']:,} kept their codes")
    if report.get("gone_items"):
        lines.append(f"{report['gone_items']:,} known items are not in this catalogue; their codes are not carried on")
    lines += [f"collapsed: {complaint}" for complaint in report.get("complaints", [])]
    return "\n".join(lines)


def _cells(number: int, level: Mapping[str, Any]) -> list[str]:
    def shown(key: str, form: str) -> str:
        return form.format(level[key]) if level.get(key) is not None else "–"

    fit = [f"{level[key]} {key}" for key in ("iterations",) if key in level]
    fit += [f"{level['log_likelihood']:.2f} nat"] if "log_likelihood" in level else []
    fit += [f"{level['reconstruction']:.1%} lost"] if "reconstruction" in level else []
    return [
        str(number + 1),
        f"{level['used']}/{level['size']}",
        shown("perplexity", "{:.0f}"),
        shown("entropy", "{:.2f}"),
        shown("largest", "{}"),
        f"{level['residual_before'] ** 0.5:.3f}→{level['residual'] ** 0.5:.3f}" if "residual" in level else "–",
        shown("residual_share", "{:.3f}"),
        shown("mismatch", "{:.1%}"),
        shown("nmi", "{:.3f}"),
        ", ".join(fit) or "–",
    ]


def category_of(column: str, items: Any) -> np.ndarray | None:
    """The category of each item from a column of theirs; None when there is no such column."""
    return categories(items[column]) if column in items.column_names else None


def add_nmi(levels: Sequence[dict[str, Any]], category: np.ndarray, codes: np.ndarray) -> None:
    """Normalised mutual information of each level's codes with the items' categories."""
    from sklearn.metrics import normalized_mutual_info_score

    known = category != ""
    for i, level in enumerate(levels):
        level["nmi"] = float(normalized_mutual_info_score(category[known], codes[known, i])) if known.any() else None


def categories(labels: Sequence[str]) -> np.ndarray:
    """One category an item: of its labels (separated by |), the one that most items carry; "" where it has none."""
    split = [[part for part in label.split("|") if part and part.lower() != "unknown"] for label in labels]
    names, count = np.unique([part for parts in split for part in parts], return_counts=True)
    often = dict(zip(names.tolist(), count.tolist(), strict=True))
    return np.array([max(parts, key=lambda part: (often[part], part), default="") for parts in split])


def picture(path: Path, category: np.ndarray, codes: np.ndarray, size: int, title: str) -> None:
    """Category × first code: each code's items by category, codes ordered by their main category (the papers' Fig. 5)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names, count = np.unique(category[category != ""], return_counts=True)
    top = names[np.argsort(-count, kind="stable")][:_CATEGORIES]
    places = {name: i for i, name in enumerate(top)}
    row = np.array([places.get(name, len(top)) for name in category])
    counts = np.zeros((len(top) + 1, size))
    np.add.at(counts, (row, codes), 1)
    share = counts / np.maximum(counts.sum(0), 1)
    order = np.lexsort((-share.max(0), share.argmax(0), counts.sum(0) == 0))
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(11, 5.5), sharex=True, height_ratios=(1, 3), layout="constrained"
    )
    above.bar(np.arange(size), counts.sum(0)[order], width=1.0, color="0.4")
    above.set_ylabel("items")
    above.set_title(title, parse_math=False)
    image = below.imshow(share[:, order], aspect="auto", vmin=0, vmax=1, cmap="magma_r", interpolation="nearest")
    below.set_yticks(range(len(top) + 1), [*top, "all others"], parse_math=False)
    below.set_xlabel("first code, ordered by its main category")
    figure.colorbar(image, ax=below, label="share of the code's items")
    with warnings.catch_warnings(record=True) as caught:
        figure.savefig(path, dpi=120)
    if any("missing from font" in str(warning.message) for warning in caught):
        log(f"{path.name}: letters that matplotlib's font lacks are shown as boxes")
    plt.close(figure)
