"""Pictures that are readable on paper and on a screen, light or dark: NAME.svg and NAME.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.ticker import LogFormatter, NullFormatter

INK = "#767676"  # of axes and letters: contrast 4.5 on white and on near black
COLOURS = ("#2f7ec2", "#d1701f", "#3c9a5f", "#b4559f", "#8a7a1f", "#5b6fd6", "#c2443c", "#2f9aa0")  # seen on both


STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "text.parse_math": False,
}


def new(width: float = 5.6, height: float = 3.6, **more: Any) -> tuple[Any, Any]:
    """(a figure, its axes), as `plt.subplots` gives them."""
    plt.rcParams.update(STYLE)
    return plt.subplots(figsize=(width, height), layout="constrained", **more)


def name(axes: Any, x: str, y: str) -> None:
    """Say what the axes show, units in parentheses; a legend where lines have names."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), LogFormatter):  # whose powers are formulae, which are not drawn
            axis.set_major_formatter(lambda value, _place: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
    if len(axes.get_legend_handles_labels()[0]):
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def logarithmic(axis: Any, ticks: Sequence[float], form: str = "{:.0%}") -> None:
    """A log axis (`axes.xaxis`, `axes.yaxis`) that is read at these ticks."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_ticks(ticks, [form.format(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def save(figure: Any, folder: Path, stem: str) -> None:
    """The SVG without a background; the PNG on white, for who pastes it.   The same bytes for the same picture."""
    with plt.rc_context({"svg.hashsalt": stem, "svg.fonttype": "path"}):
        figure.savefig(folder / f"{stem}.svg", transparent=True, metadata={"Date": None})
    figure.savefig(folder / f"{stem}.png", dpi=150, facecolor="white", metadata={"Software": None})
    plt.close(figure)
