"""What a finished run reports: test.json and ranks.parquet."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from distrec.data import store
from distrec.data.files import paths
from distrec.data.prepared import Prepared, Split
from distrec.engine.evaluation import metrics, scoring
from distrec.knobs import Score
from distrec.runtime import Ranks, write_atomically

_NEGATIVES = "{} distinct ones for each user, of the items that the user never had (none for a user who lacks fewer)"
_FORMER = (
    "{0} was measured by a former protocol ({1}), whose figures cannot stand beside those of today: "
    "`distrec evaluate out={0}` measures it again"
)


def measure(
    model: Any,
    data: Prepared,
    split: Split,
    config: Score,
    ranks: Ranks,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], pl.DataFrame]:
    """(metrics of a split under both protocols, where each user's target stands, with raw ids).

    Raises: Stopped, on all ranks, when stop() on any.
    """
    ranking = scoring.rank_split(model, data, split, config, ranks, device, thorough=True, stop=stop)
    beams = getattr(model, "beams", None)
    report: dict[str, Any] = {
        "protocol": {
            "split": split,
            "candidates": "all items",
            "history": scoring.HISTORY[config.mask_history is not False],
            "ties": metrics.TIES,
            "negatives": _NEGATIVES.format(data.negatives.shape[1]) if data.negatives is not None else "none",
            "ranks": f"the first {beams} generated" if beams else "exact",
            "bootstrap": config.bootstrap,
        },
        "full": metrics.summarise(ranking.standing, config.bootstrap),
        "users": len(ranking.user),
        "repeats": int(ranking.repeats.sum()),
        "items": data.n_items,
    }
    table = {
        "user": data.users.data.column("raw").take(ranking.user).combine_chunks(),
        "target": data.items.data.column("raw").take(ranking.target).combine_chunks(),
        **ranking.standing.columns(),
        "repeat": ranking.repeats,
    }
    for name, users in by_repeat(ranking.repeats).items():
        report[name] = _of(ranking.standing, users, config)
    for name, standing in ranking.others.items():
        report[name] = metrics.summarise(standing, config.bootstrap)
        table |= standing.columns(name)
    has_negatives = np.zeros(0, bool) if ranking.sampled is None else ~np.isnan(ranking.sampled.better)
    if ranking.sampled is not None and data.negatives is not None and has_negatives.any():
        name = f"sampled_1_{data.negatives.shape[1]}"
        report[name] = _of(ranking.sampled, has_negatives, config)
        table |= ranking.sampled.columns(name)
    if ranking.short is not None:
        report["short_lists"] = int(ranking.short.sum())
    if ranking.invalid is not None:
        report["free_invalid"] = float(ranking.invalid.mean())
        table["free_invalid"] = ranking.invalid
    if hasattr(model, "facts"):
        report["learnt"] = model.facts()
    return report, pl.DataFrame(table)


def _of(standing: metrics.Standing, users: np.ndarray, config: Score) -> dict[str, Any]:
    """The figures of some users, and how many they are."""
    return {**metrics.summarise(standing.of(users), config.bootstrap), "users": int(users.sum())}


def by_repeat(repeats: np.ndarray) -> dict[str, np.ndarray]:
    """Which users are new_targets and which repeat_targets; nothing where no target repeats."""
    parts = {"new_targets": ~repeats, "repeat_targets": repeats}
    return {name: users for name, users in parts.items() if users.any()} if repeats.any() else {}


def read(folder: Path) -> tuple[dict[str, Any], pl.DataFrame]:
    """(test.json, ranks.parquet) of a finished run.   Raises: ValueError when they were measured by a former protocol."""
    report = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    if is_former(report):
        raise ValueError(
            _FORMER.format(folder, ", ".join(f"{key}: {report['protocol'].get(key)}" for key in ("ties", "history")))
        )
    return report, ranks(folder)


def ranks(folder: Path) -> pl.DataFrame:
    """The ranks.parquet of a finished run.   Raises: ValueError when it was measured by a former protocol."""
    table = paths.read_parquet(folder / "ranks.parquet")
    if "better" not in table.columns:
        raise ValueError(_FORMER.format(folder, "no column `better` in its ranks.parquet"))
    return table


def is_former(report: Mapping[str, Any]) -> bool:
    protocol = report["protocol"]
    return protocol.get("ties") != metrics.TIES or protocol.get("history") not in scoring.HISTORY.values()


def renew(folder: Path, report: dict[str, Any], table: pl.DataFrame) -> None:
    """Put these figures of the test split in the place of those that a finished run has from a former protocol; what made
    the run stays as it is, the former figures become former-test.json."""
    before = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    if is_former(before):  # else a kill came after the new ones were written
        write_atomically(folder / "former-test.json", json.dumps(before, indent=1))
    fresh = report | {key: before[key] for key in ("model", "seed", "data")}
    store.restamp(folder, lambda: write(folder, fresh, table))


def write(folder: Path, report: dict[str, Any], table: pl.DataFrame, name: str = "test") -> None:
    """Ranks first, then the figures: whoever finds NAME.json finds its ranks too."""
    scratch = folder / f".ranks-{name}.parquet.tmp"
    with scratch.open("wb") as file:
        table.write_parquet(file)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(folder / ("ranks.parquet" if name == "test" else f"ranks-{name}.parquet"))
    write_atomically(folder / f"{name}.json", json.dumps(report, indent=1))


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures has to know of them, in sentences."""
    users, found = report["users"], []
    if repeats := report["repeats"]:
        history = (
            "the history is kept for them" if report["protocol"]["history"] == scoring.HISTORY[True] else "as all are"
        )
        found.append(
            f"{repeats:,} of {users:,} targets ({repeats / users:.1%}) are items that the user has had before: "
            f"they are ranked among all items, {history}; new and repeated targets also stand apart."
        )
    if short := report.get("short_lists"):
        found.append(
            f"{short:,} of {users:,} lists are shorter than {metrics.CUTOFFS[-1]} without the user's history and lack the target: "
            "more beams may find it (model.beams)."
        )
    for name, part in report.items():
        if name.startswith("sampled_") and part.get("users", users) < users:
            found.append(f"{name} is of the {part['users']:,} users who have negatives, of {users:,}.")
    return found


def lines(report: dict[str, Any]) -> str:
    """The figures as a table for people."""
    rows = [f"{report['users']:,} users, {report['items']:,} items, history {report['protocol']['history']}"]
    rows += [f"  {told}" for told in remarks(report)]
    for name, found in report.items():
        if isinstance(found, dict) and "hr@10" in found:
            figures = "  ".join(
                f"{key.upper()} {found[key]:.4f}"
                for key in ("hr@1", "hr@5", "ndcg@5", "hr@10", "ndcg@10", "hr@20", "ndcg@20", "mrr")
            )
            interval = found.get("ndcg@10_ci")
            rows.append(
                f"  {name:<14} {figures}"
                + (f"  (NDCG@10 95 % {interval[0]:.4f} – {interval[1]:.4f})" if interval else "")
            )
        elif name.endswith("_invalid"):
            rows.append(f"  {name:<14} {found:.4%} of what was generated is no item")
    return "\n".join(rows)
