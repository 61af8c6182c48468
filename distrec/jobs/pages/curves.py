"""Pictures of a run: what its journal tells over training, and where its targets stood."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.ticker import MaxNLocator

from distrec.engine.evaluation import metrics
from distrec.jobs.pages import picture
from distrec.jobs.pages.page import Picture

Lines = Sequence[Mapping[str, Any]]
_CUTOFFS = 200
_SIZE = (4.8, 3.0)  # inches: readable on a phone


def of_training(journal: Lines, folder: Path) -> list[Picture]:
    """Loss, learning rate and throughput, by optimiser step; nothing where the journal tells nothing."""
    lines = [line for line in journal if line.get("event") == "train"]
    kinds = (
        ("loss", "training loss", "Training loss, the mean since the last point."),
        ("lr", "learning rate", "Learning rate."),
        ("tokens_per_s", "tokens (1/s)", "Throughput: tokens read in a second, all processes together."),
        ("mfu", "share of peak", "Model FLOPs utilisation: the share of the device's peak for products of their type."),
    )
    found = [_curve(lines, key, y, caption, folder) for key, y, caption in kinds]
    return [each for each in found if each]


def _curve(lines: Lines, key: str, y: str, caption: str, folder: Path) -> Picture | None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    if len(points) < 2:
        return None
    figure, axes = picture.new(*_SIZE)
    axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "")
    if key in ("tokens_per_s", "mfu"):
        axes.set_ylim(0)
    return _kept(figure, axes, "optimiser step", y, key, f"{caption} Last: {_short(points[-1][1])}.", folder)


def of_validation(journal: Lines, folder: Path) -> list[Picture]:
    """NDCG@10 and HR@10 of the validation split by epoch, the best epoch marked."""
    lines = [line for line in journal if line.get("event") == "valid"]
    if not lines:
        return []
    epochs = [line["epoch"] for line in lines]
    best = best_of(lines)
    figure, axes = picture.new(*_SIZE)
    for key, marker in (("ndcg@10", "o"), ("hr@10", "s")):
        axes.plot(epochs, [line[key] for line in lines], marker=marker, markersize=3, label=key.upper())
    axes.axvline(best["epoch"], color=picture.INK, linestyle=":", linewidth=1)
    axes.plot(best["epoch"], best["ndcg@10"], marker="*", markersize=13, color=picture.COLOURS[0], label="best")
    axes.set_ylim(0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    told = f"Validation by epoch; the best NDCG@10, {best['ndcg@10']:.4f}, is that of epoch {best['epoch']}."
    return [_kept(figure, axes, "epoch", "validation", "validation", told, folder)]


def best_of(lines: Lines) -> Mapping[str, Any]:
    """The evaluation whose checkpoint is kept: the first of the highest NDCG@10."""
    return max(lines, key=lambda line: line["ndcg@10"])


def of_ranks(ranks: pl.DataFrame, titles: Mapping[str, str], folder: Path) -> list[Picture]:
    """How many targets stand at which rank, and within the first K; both on a logarithmic scale.

    `titles`: what the protocols of the table are called, by the name of their columns.   A rank beyond what a generative model lists is infinite.
    """
    full = ranks["rank"].to_numpy()
    listed = full[np.isfinite(full)]
    beyond = f" {np.mean(np.isinf(full)):.1%} of the targets are beyond what the model lists." * (
        len(listed) < len(full)
    )
    pictures = []
    if len(listed):
        figure, axes = picture.new(*_SIZE)
        edges = np.unique(np.floor(np.geomspace(1, listed.max() + 1, 26)))
        axes.hist(listed, edges if len(edges) > 1 else [1, 2], weights=np.full(len(listed), 1 / len(full)))
        axes.set_xscale("log")
        half = f"; half of them at rank {np.median(full):,.0f} or better" if np.isfinite(np.median(full)) else ""
        told = f"Where the targets of {len(full):,} users stand{half}.{beyond}"
        pictures.append(_kept(figure, axes, "rank of the target", "share of users", "ranks", told, folder))
    figure, axes = picture.new(*_SIZE)
    for name, title in titles.items():
        found = metrics.standing(ranks, name)
        found = found.of(~np.isnan(found.better))
        last = (found.better + found.ties)[np.isfinite(found.better)].max(initial=0) + 1
        cutoffs = np.unique(np.geomspace(1, last, _CUTOFFS).round())
        axes.step(cutoffs, [metrics.within(found, k).mean() for k in cutoffs], where="post", label=title)
    axes.set_xscale("log")
    axes.set_ylim(0)
    told = "The share of users whose target stands within the first K (HR@K), under each protocol."
    return [*pictures, _kept(figure, axes, "K", "HR@K", "hits", told, folder)]


def of_groups(groups: Sequence[tuple[str, int, Mapping[str, Any]]], folder: Path) -> list[Picture]:
    """NDCG@10 with its interval, by group of users."""
    figure, axes = picture.new(*_SIZE)
    middle = np.array([found["ndcg@10"] for _, _, found in groups])
    low, high = np.array([found["ndcg@10_ci"] for _, _, found in groups]).T
    axes.errorbar(range(len(groups)), middle, [middle - low, high - middle], fmt="o", capsize=3)
    axes.set_xticks(range(len(groups)), [name for name, _, _ in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0)
    told = "NDCG@10 by the length of the history before the target, with 95 % intervals."
    return [_kept(figure, axes, "items in the history", "NDCG@10", "groups", told, folder)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _kept(figure: Any, axes: Any, x: str, y: str, name: str, caption: str, folder: Path) -> Picture:
    picture.name(axes, x, y)
    picture.save(figure, folder, name)
    return Picture(name, caption)
